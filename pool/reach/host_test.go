package reach_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/authpool/authpool/pool/reach"
)

func TestHosts(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		h, err := reach.ParseHost(text)
		if err != nil || h.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, h, err, want)
		}
	}
	f("example.com", "example.com")
	f("Example.COM.", "example.com")
	f("xn--bcher-kva.example", "xn--bcher-kva.example")
	f("XN--Bcher-KVA.example", "xn--bcher-kva.example")
	f("a_b.example", "a_b.example")
	f("gitea", "gitea")
	f("1e100.net", "1e100.net")
	f("1.2.3.4.example", "1.2.3.4.example")
	f("0xy.example", "0xy.example")
	f("192.0.2.1", "192.0.2.1")
	f("192.0.2.1.", "192.0.2.1")
	f("2001:DB8:0::1", "2001:db8::1")
	f("[2001:db8::1]", "2001:db8::1")
	f("::ffff:192.0.2.1", "192.0.2.1")
	f("[::ffff:c000:201]", "192.0.2.1")
	f(strings.Repeat("a", 63)+".example", strings.Repeat("a", 63)+".example")

	for _, text := range []string{
		"", ".", "..", "a..b", ".a", "a..", "-a.example", "a-.example", "a b", "a\x00b", "a/b", "a@b", "a:80", "*", "*.example.com", "a%2eb", "bücher.example", "ｅxample.com", "a。b",
		strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "aa",
		"0177.0.0.1", "127.0.0.01", "127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0X7F.1", "1.0x7f", "0x", "127.0.0.1.1", "256.1.1.1", "1.2.3.4.5.", "a.1", "a.0x1",
		"127.0.0.1%lo", "fe80::1%eth0", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[127.0.0.1]", "[example.com]", "[::1", "::1]", "[[::1]]", "[]", "::1.", ":::", "1:2", "::ffff:0177.0.0.1",
	} {
		if h, err := reach.ParseHost(text); err == nil {
			t.Errorf("%q is read as %q", text, h)
		}
	}
}

func TestPatterns(t *testing.T) {
	f := func(pattern string, port uint16, has, hasNot []string) {
		t.Helper()
		p, err := reach.ParsePattern(pattern)
		if err != nil || p.Port != port {
			t.Errorf("%q: port %d, %v; want %d", pattern, p.Port, err, port)
			return
		}
		check := func(hosts []string, want bool) {
			for _, text := range hosts {
				h, err := reach.ParseHost(text)
				if err != nil {
					t.Fatal(err)
				}
				if p.Has(h) != want {
					t.Errorf("%q has %q: %t", pattern, text, !want)
				}
			}
		}
		check(has, true)
		check(hasNot, false)
	}
	l := func(texts ...string) []string { return texts }
	f("example.com", 0, l("example.com", "EXAMPLE.com", "example.com."), l("a.example.com", "evilexample.com", "example.com.evil", "example.co", "1.1.1.1"))
	f("Example.COM.", 0, l("example.com"), l("a.example.com"))
	f("*.github.com", 0, l("api.github.com", "a.b.github.com", "API.GitHub.com."), l("github.com", "evilgithub.com", "github.com.evil.example", "api.github.com.evil.example"))
	f("registry.npmjs.org:443", 443, l("registry.npmjs.org"), l("npmjs.org"))
	f("example.com:8080", 8080, l("example.com"), nil)
	f("*", 0, l("a", "a.b", "a.b.c"), l("1.1.1.1", "::1"))
	f("*:8443", 8443, l("a.b"), l("1.1.1.1"))
	f("api-*.example.com", 0, l("api-1.example.com", "api-x.example.com"), l("api.example.com", "api-1.b.example.com", "x.api-1.example.com"))
	f("*-aiplatform.googleapis.com", 0, l("us-east5-aiplatform.googleapis.com"), l("a.b-aiplatform.googleapis.com", "aiplatform.googleapis.com"))
	f("a.*.example", 0, l("a.b.example"), l("a.b.c.example", "a.example"))
	f("?.example", 0, l("a.example"), l("ab.example", "a.b.example"))
	f("*.*.example", 0, l("a.b.example", "a.b.c.example"), l("a.example"))
	f("bücher.example", 0, l("xn--bcher-kva.example"), l("bucher.example"))
	f("*.Bücher.example:443", 443, l("a.xn--bcher-kva.example"), l("xn--bcher-kva.example"))
	f("192.0.2.1", 0, l("192.0.2.1", "::ffff:192.0.2.1"), l("192.0.2.2", "192.0.2.1.example"))
	f("192.0.2.1:22", 22, l("192.0.2.1"), nil)
	f("2001:db8::1", 0, l("2001:db8:0::1", "[2001:db8::1]"), l("2001:db8::2"))
	f("[2001:db8::1]:443", 443, l("2001:db8::1"), nil)
	f("[2001:db8::1]", 0, l("2001:db8::1"), nil)

	for _, text := range []string{
		"", ".example.com", "*..example.com", "exa mple.com", "a/b", "http://example.com", "example.com:", "example.com:0", "example.com:080", "example.com:65536", "example.com:x", "example.com:+1",
		"10.0.0.0/8", "10.0.0.*", "*.1", "1?.1.1.1", "127.1", "0x7f.1", "fe80::1%eth0", "[::1", "[a]:1", "user@example.com", "-*.example", "[*]", "*.example.com:80:81",
	} {
		if p, err := reach.ParsePattern(text); err == nil {
			t.Errorf("%q is a pattern: %+v", text, p)
		}
	}
}

// Whatever is accepted is one thing to everybody who reads it: it parses to itself, and
// no resolver is asked for what could be an address.
func FuzzParseHost(f *testing.F) {
	for _, seed := range []string{"example.com", "Example.COM.", "[::ffff:127.0.0.1]", "0x7f.1", "127.1", "xn--a.b", "fe80::1%1", "a.0x1", "1.2.3.4.", "*.a", "a:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := reach.ParseHost(text)
		if err != nil {
			return
		}
		if again, err := reach.ParseHost(h.String()); err != nil || again != h {
			t.Errorf("%q is %q, which is %q, %v", text, h, again, err)
		}
		if _, err := netip.ParseAddr(h.Name); err == nil || h.Addr.Is4In6() || h.Addr.Zone() != "" || (h.Name == "") != h.Addr.IsValid() {
			t.Errorf("%q is %+v", text, h)
		}
		if h.Name != "" && strings.ToLower(strings.TrimSuffix(text, ".")) != h.Name {
			t.Errorf("%q is the name %q", text, h.Name)
		}
		if joined, err := reach.ParsePattern(h.Join(443)); err != nil || joined.Port != 443 || !joined.Has(h) {
			t.Errorf("%q is no pattern of itself: %v", h.Join(443), err)
		}
	})
}
