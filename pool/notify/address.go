package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// connectTime bounds the look-up of a target's name and the connection to it.
const connectTime = 5 * time.Second

// reach is which addresses a target may be at.
type reach uint8

const (
	public   reach = iota // the internet's
	internal              // these and those of private networks and of this machine
	local                 // of this machine alone
)

// closedNets are no address of a receiver, or one that must not be reached by
// somebody's order: "this host" (RFC 1122), link-local with the clouds' metadata
// services (RFC 3927, RFC 4291), protocol assignments (RFC 6890), the metadata
// services that are elsewhere (Alibaba, Amazon over IPv6, Oracle's in 192.0.0.0/24),
// benchmarks, multicast and what is reserved.
var closedNets = prefixes("0.0.0.0/8 169.254.0.0/16 192.0.0.0/24 198.18.0.0/15 224.0.0.0/4 240.0.0.0/4 100.100.100.200/32 " +
	"::/128 fe80::/10 fec0::/10 ff00::/8 fd00:ec2::254/128 100::/64 2001:db8::/32 192.0.2.0/24 198.51.100.0/24 203.0.113.0/24")

// innerNets are private networks (RFC 1918, RFC 4193), those of carriers (RFC 6598)
// and this machine.
var innerNets = prefixes("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8 ::1/128 fc00::/7")

func prefixes(list string) (out []netip.Prefix) {
	for text := range strings.FieldsSeq(list) {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func in(nets []netip.Prefix, a netip.Addr) bool {
	for _, n := range nets {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// embedded is the IPv4 address that an IPv6 address leads to, or a itself: mapped and
// compatible ones, NAT64 (RFC 6052), 6to4 (RFC 3056).
func embedded(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	b := a.As16()
	at := -1
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
		at = 12
	case netip.MustParsePrefix("2002::/16").Contains(a):
		at = 2
	case netip.MustParsePrefix("::/96").Contains(a) && !a.IsLoopback() && !a.IsUnspecified():
		at = 12
	}
	if at < 0 {
		return a
	}
	return netip.AddrFrom4([4]byte(b[at : at+4]))
}

// allows tells by its error why an address is not reached.
func (r reach) allows(address netip.Addr) error {
	a := embedded(address)
	switch {
	case r == local && !a.IsLoopback():
		return fmt.Errorf("%s is not this machine, and the URL names it", address)
	case in(closedNets, a):
		return fmt.Errorf("%s is an address that notifications are never sent to", address)
	case r == public && in(innerNets, a):
		return fmt.Errorf("%s is a private address: allow_private: true allows it", address)
	}
	return nil
}

// dialer connects to what a name means at that moment, and to no other address than
// the one that was judged: a name that means something else an instant later gains
// nothing.
type dialer struct {
	reach  reach
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	dial   func(ctx context.Context, address netip.AddrPort) (net.Conn, error)
}

func newDialer(r reach, opts Options) *dialer {
	d := &dialer{reach: r, lookup: opts.Lookup, dial: opts.Dial}
	if d.lookup == nil {
		d.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if d.dial == nil {
		d.dial = func(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address.String())
		}
	}
	return d
}

// DialContext is for http.Transport.
func (d *dialer) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, err
	}
	var addresses []netip.Addr
	if one, err := netip.ParseAddr(host); err == nil {
		addresses = []netip.Addr{one}
	} else if addresses, err = d.lookup(ctx, host); err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addresses {
		if err := d.reach.allows(a); err != nil {
			errs = append(errs, err)
			continue
		}
		conn, err := d.dial(ctx, netip.AddrPortFrom(a.Unmap(), uint16(port))) //nolint:gosec // a port
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("%s has no address", host)
	}
	return nil, errors.Join(errs...)
}
