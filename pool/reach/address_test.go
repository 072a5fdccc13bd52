package reach_test

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/reach"
)

// All rows of IANA's special-purpose registries for IPv4 and IPv6, the clouds' metadata
// services, and neighbours that are none of them.
func TestKinds(t *testing.T) {
	f := func(want reach.Kind, addresses ...string) {
		t.Helper()
		for _, a := range addresses {
			if got := reach.Of(netip.MustParseAddr(a)); got != want {
				t.Errorf("%s is %s address, want %s", a, got, want)
			}
		}
	}
	f(reach.Public, "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.216.34", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
		"169.253.255.255", "169.255.0.0", "168.63.129.15", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.31.196.1", "192.52.193.1", "192.167.255.255",
		"192.169.0.0", "192.175.48.1", "198.17.255.255", "198.20.0.0", "223.255.255.255",
		"2606:4700::1111", "2620:4f:8000::1", "2001:200::1", "2a00:1450::1", "3ffe::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "::8.8.8.8")
	f(reach.Private, "10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.1", "100.64.0.0", "100.127.255.255",
		"fc00::1", "fdff:ffff::1", "fd00:ec1::254", "fd00:ec3::1", "64:ff9b:1::a00:1", "::ffff:10.1.2.3", "64:ff9b::a01:203", "2002:a01:203::", "::10.1.2.3")
	f(reach.Local, "127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "::127.0.0.1")
	f(reach.Special, "192.0.0.0", "192.0.0.8", "192.0.0.170", "192.0.0.193", "192.0.2.1", "192.88.99.1", "198.18.0.0", "198.19.255.255", "198.51.100.1", "203.0.113.1",
		"2001:1::1", "2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:db8::1", "3fff::1", "::ffff:198.18.0.1", "64:ff9b::c633:6401")
	f(reach.Metadata, "169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.0.23", "169.254.42.42", "100.100.100.200", "168.63.129.16", "192.0.0.192",
		"fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fe80::1", "febf::1", "fe80::1%eth0",
		"::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254", "::ffff:168.63.129.16")
	f(reach.Never, "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "ff02::1", "ff0e::1", "fec0::1", "100::1", "100:0:0:1::1", "5f00::1", "4000::1", "1::1", "::ffff:0:127.0.0.1", "2001::1", "2001:0:7f00:1::1",
		"::ffff:0.0.0.0", "::ffff:255.255.255.255", "64:ff9b::e000:1", "2002:0:1::")
	if reach.Of(netip.Addr{}) != reach.Never {
		t.Error("no address is one")
	}
}

// An IPv4 address is the same kind of place by every way to it.
func TestEmbeddedIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := [4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address"))
		plain := netip.AddrFrom4(raw)
		if plain == netip.AddrFrom4([4]byte{0, 0, 0, 1}) {
			return // ::0.0.0.1 is ::1
		}
		var mapped, nat64, sixToFour, compatible [16]byte
		mapped[10], mapped[11] = 0xff, 0xff
		copy(mapped[12:], raw[:])
		copy(nat64[:], []byte{0, 0x64, 0xff, 0x9b})
		copy(nat64[12:], raw[:])
		copy(sixToFour[:], []byte{0x20, 0x02})
		copy(sixToFour[2:], raw[:])
		copy(compatible[12:], raw[:])
		for _, b := range [][16]byte{mapped, nat64, sixToFour, compatible} {
			if a := netip.AddrFrom16(b); reach.Of(a) != reach.Of(plain) {
				t.Fatalf("%s is %s address, %s is %s", a, reach.Of(a), plain, reach.Of(plain))
			}
		}
	})
}
