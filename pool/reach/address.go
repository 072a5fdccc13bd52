// Package reach judges where authpool connects to by somebody's order: webhooks that
// an operator names, hosts that an agent asks a tunnel to. It has one reading of hosts
// (ParseHost), of patterns of them (ParsePattern), what kind of place an IP address is
// (Of), and a Dialer that connects to nothing but what was judged.
package reach

import (
	"net/netip"
	"strings"
)

// Kind is what kind of place an IP address is.
type Kind uint8

// The kinds, in the order of how much it takes to let somebody reach them.
const (
	Public   Kind = iota // the internet's
	Private              // a network of a company, a home or a carrier
	Local                // this machine
	Special              // set aside for documentation, benchmarks, or protocols; some make use of them nevertheless
	Metadata             // this link, and where clouds tell machines their credentials, which is mostly there
	Never                // no host: unspecified, multicast, broadcast, reserved
)

// String is for messages: "is ... address".
func (k Kind) String() string {
	return [...]string{"a public", "a private", "this machine's own", "a special-purpose", "a link-local or metadata", "no host's"}[k]
}

// kinds are the special-purpose registries of IANA for IPv4 and IPv6 (RFC 6890, as of
// 2025), but for what they call globally reachable, and the clouds' addresses. Of
// several that hold an address the longest counts, as in routing.
var kinds = func() (table []kindOf) {
	for _, row := range []struct {
		kind Kind
		nets string
	}{
		{Private, "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"}, // RFC 1918
		{Private, "100.64.0.0/10"},                           // RFC 6598, carriers
		{Private, "fc00::/7"},                                // RFC 4193
		{Private, "64:ff9b:1::/48"},                          // RFC 8215, a network's own NAT64
		{Local, "127.0.0.0/8 ::1/128"},                       // RFC 1122, RFC 4291
		{Special, "192.0.0.0/24 2001::/23"},                  // RFC 6890, protocol assignments; benchmarks and ORCHID are in the second
		{Special, "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20"}, // RFC 5737, RFC 3849, RFC 9637: documentation
		{Special, "198.18.0.0/15"},                                   // RFC 2544, benchmarks; the made-up addresses of some VPN clients
		{Special, "192.88.99.0/24"},                                  // RFC 7526, was 6to4's
		{Metadata, "169.254.0.0/16 fe80::/10"},                       // RFC 3927, RFC 4291: link-local, with most metadata services
		{Metadata, "100.100.100.200/32 168.63.129.16/32"},            // Alibaba Cloud; Azure's wire server
		{Metadata, "192.0.0.192/32 fd00:c1::a9fe:a9fe/128"},          // Oracle Cloud
		{Metadata, "fd00:ec2::/32 fd20:ce::254/128"},                 // Amazon's services, over IPv6; Google's
		{Metadata, "fd00:42::42/128"},                                // Scaleway
		{Never, "0.0.0.0/8 ::/128"},                                  // RFC 1122: this host
		{Never, "224.0.0.0/4 ff00::/8"},                              // multicast
		{Never, "240.0.0.0/4"},                                       // RFC 1112, and the broadcast address
		{Never, "2001::/32"},                                         // RFC 4380: Teredo, whose addresses hide two of IPv4
		{Never, "::/0"}, {Public, "2000::/3"}, {Public, "0.0.0.0/0"}, // IANA has given out no other global unicast
	} {
		for text := range strings.FieldsSeq(row.nets) {
			table = append(table, kindOf{netip.MustParsePrefix(text), row.kind})
		}
	}
	return table
}()

type kindOf struct {
	net  netip.Prefix
	kind Kind
}

// The prefixes of IPv6 behind which a gateway finds an address of IPv4: NAT64 (RFC
// 6052), 6to4 (RFC 3056), and IPv4-compatible addresses (RFC 4291), which no gateway
// serves any more.
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	compatible = netip.MustParsePrefix("::/96")
)

// embedded is the IPv4 address that an IPv6 address leads to, or a itself.
func embedded(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	b := a.As16()
	switch {
	case nat64.Contains(a), compatible.Contains(a) && !a.IsLoopback() && !a.IsUnspecified():
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

// Of is the kind of a, or of the IPv4 address that it leads to. The zone does not
// matter.
func Of(a netip.Addr) Kind {
	a = embedded(a)
	if !a.IsValid() {
		return Never
	}
	kind, bits := Never, -1
	for _, row := range kinds {
		if row.net.Bits() > bits && row.net.Contains(a) {
			kind, bits = row.kind, row.net.Bits()
		}
	}
	return kind
}
