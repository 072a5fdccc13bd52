package tunnel_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/reach"
	"github.com/authpool/authpool/proxy/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNet is a resolver, and a net in which everybody answers.
type fakeNet struct {
	mu      sync.Mutex
	names   map[string][]string // what each name means; nil: nobody knows it
	lookups []string
	dialled []netip.AddrPort
}

func (f *fakeNet) lookup(_ context.Context, host string) (out []netip.Addr, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookups = append(f.lookups, host)
	for _, a := range f.names[host] {
		out = append(out, netip.MustParseAddr(a))
	}
	if len(out) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return out, nil
}

func (f *fakeNet) dial(_ context.Context, a netip.AddrPort) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialled = append(f.dialled, a)
	here, there := net.Pipe()
	_ = there.Close()
	return here, nil
}

// newTunnels makes Tunnels of a policy, as change wants them otherwise.
func newTunnels(t interface{ Fatal(...any) }, p tunnel.Policy, change func(*tunnel.Options)) *tunnel.Tunnels {
	if p.Idle == 0 {
		p.Idle, p.Total = time.Minute, time.Hour
	}
	rules, err := tunnel.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	o := tunnel.Options{Rules: rules, PerAgent: 100, Most: 1000, Connect: 20 * time.Second, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	return tunnel.New(o)
}

func (f *fakeNet) options(o *tunnel.Options) { o.Lookup, o.Dial = f.lookup, f.dial }

// reason is why a tunnel was refused, "" when it was not.
func reason(t *testing.T, err error) tunnel.Reason {
	t.Helper()
	if err == nil {
		return ""
	}
	refused, ok := errors.AsType[*tunnel.RefusedError](err)
	if !ok {
		t.Fatalf("%T %v is no refusal", err, err)
	}
	return refused.Reason
}

func TestPermit(t *testing.T) {
	providers := []string{"api.anthropic.com", "*.openai.azure.com", "llm.example:8443", "127.0.0.1:11434", "localhost:8000", "192.0.2.7"}
	list := newTunnels(t, tunnel.Policy{
		Hosts:     []string{"*.github.com", "registry.npmjs.org:443", "example.com:8080", "mail.example:25", "192.0.2.9", "[2001:db8::1]:22", "bücher.example", "api.anthropic.com", "127.0.0.1:8000", "localhost"},
		Providers: providers,
	}, nil)
	all := newTunnels(t, tunnel.Policy{All: true, Providers: providers}, nil)
	none := newTunnels(t, tunnel.Policy{Providers: providers}, nil)
	f := func(host string, port uint16, inList, inAll tunnel.Reason) {
		t.Helper()
		for tunnels, want := range map[*tunnel.Tunnels]tunnel.Reason{list: inList, all: inAll} {
			if got := reason(t, tunnels.Permit(host, port)); got != want {
				t.Errorf("%s:%d: %q, want %q (in the list %q)", host, port, got, want, inList)
			}
		}
		want := tunnel.NotListed
		if inAll == tunnel.ProviderHost || inAll == tunnel.BadHost {
			want = inAll
		}
		if got := reason(t, none.Permit(host, port)); got != want {
			t.Errorf("%s:%d with deny: %q, want %q", host, port, got, want)
		}
	}
	const no, provider, bad = tunnel.NotListed, tunnel.ProviderHost, tunnel.BadHost
	f("api.github.com", 443, "", "")
	f("API.GitHub.COM.", 80, "", "")
	f("a.b.github.com", 443, "", "")
	f("api.github.com", 22, no, "") // without a port it is that of the web
	f("github.com", 443, no, "")
	f("evilgithub.com", 443, no, "")
	f("api.github.com.evil.example", 443, no, "")
	f("registry.npmjs.org", 443, "", "")
	f("registry.npmjs.org", 80, no, "")
	f("example.com", 8080, "", "")
	f("example.com", 443, no, "")
	f("mail.example", 25, "", no) // of all hosts, spam to none
	f("other.example", 25, no, no)
	f("other.example", 587, no, "")
	f("192.0.2.9", 443, "", "")
	f("::ffff:192.0.2.9", 443, "", "")
	f("[::ffff:c000:209]", 443, "", "")
	f("192.0.2.10", 443, no, "")
	f("2001:db8:0::1", 22, "", "")
	f("xn--bcher-kva.example", 443, "", "")

	// A provider's host by every name, and on every port.
	f("api.anthropic.com", 443, provider, provider)
	f("api.anthropic.com", 80, provider, provider)
	f("API.Anthropic.com.", 8443, provider, provider)
	f("team.openai.azure.com", 443, provider, provider)
	f("openai.azure.com", 443, no, "")
	f("llm.example", 443, provider, provider)
	f("127.0.0.1", 11434, provider, provider)
	f("::ffff:127.0.0.1", 11434, provider, provider)
	f("127.0.0.1", 8000, "", "") // here are other services than a provider's
	f("localhost", 8000, provider, provider)
	f("localhost", 80, "", "")
	f("192.0.2.7", 443, provider, provider)
	f("192.0.2.7", 22, no, "")

	// What one reader takes for a name and another one for an address.
	for _, host := range []string{"", ".", "0177.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "127.0.0.01", "fe80::1%eth0", "[fe80::1%25eth0]", "a b", "a:1", "user@example.com", "bücher.example", "exa\x00mple.com", "*", "*.github.com"} {
		f(host, 443, bad, bad)
	}
	f("api.github.com", 0, bad, bad)

	// Behind an egress proxy nobody else would look at where they are.
	for _, host := range []string{"metadata.google.internal", "Metadata.Google.Internal.", "metadata", "instance-data", "metadata.tencentyun.com"} {
		f(host, 80, no, tunnel.BadAddress)
	}
	let := newTunnels(t, tunnel.Policy{All: true, Private: []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}}, nil)
	if err := let.Permit("metadata.google.internal", 80); err != nil {
		t.Error(err)
	}
}

func TestWrongPolicies(t *testing.T) {
	for _, p := range []tunnel.Policy{{Hosts: []string{"a/b"}}, {Hosts: []string{"ok.example", "127.1"}}, {Providers: []string{"http://x"}}} {
		if _, err := tunnel.Read(p); err == nil {
			t.Errorf("%+v is a policy", p)
		}
	}
}

// The text of a refusal can stand in an answer's head and on a terminal.
func TestRefusalText(t *testing.T) {
	tunnels := newTunnels(t, tunnel.Policy{All: true}, nil)
	text := tunnels.Permit("a\r\nSet-Cookie: x\x1b[2J\u202e"+strings.Repeat("b", 1000), 443).Error()
	if len(text) > 600 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) || !strings.HasPrefix(text, "authpool: ") {
		t.Errorf("%q", text)
	}
}

// open opens a tunnel and gives it up.
func open(t *testing.T, tunnels *tunnel.Tunnels, host string, port uint16) error {
	t.Helper()
	one, err := tunnels.Open(t.Context(), "agent-a", host, port)
	if err == nil {
		one.Close()
	}
	return err
}

// Whatever kind of place a name or an address is: it is connected to when it is public,
// or when allow_private holds it, for what is on the link or hands out credentials only
// if it is named alone.
func TestAddresses(t *testing.T) {
	const public, private, alone, never = "public", "private", "alone", "never"
	for address, kind := range map[string]string{
		"93.184.216.34": public, "2606:4700::1111": public, "64:ff9b::808:808": public,
		"127.0.0.1": private, "127.8.9.1": private, "::1": private, "10.1.2.3": private, "172.16.0.1": private, "192.168.1.1": private, "100.64.0.1": private,
		"fd12::1": private, "198.18.0.1": private, "192.0.2.1": private, "2001:db8::1": private, "64:ff9b:1::1": private,
		"64:ff9b::a00:1": private, "2002:7f00:1::1": private,
		"169.254.169.254": alone, "169.254.1.1": alone, "100.100.100.200": alone, "168.63.129.16": alone, "fe80::1": alone, "fd00:ec2::254": alone, "192.0.0.192": alone,
		"64:ff9b::a9fe:a9fe": alone, "2002:a9fe:a9fe::": alone,
		"0.0.0.0": never, "::": never, "224.0.0.1": never, "255.255.255.255": never, "240.0.0.1": never, "ff02::1": never, "2001:0:1::1": never, "fec0::1": never,
	} {
		for let, lets := range map[string]map[string]bool{
			"":                 {public: true},
			"0.0.0.0/0 ::/0":   {public: true, private: true},
			address:            {public: true, private: true, alone: true},
			"10.99.0.0/16":     {public: true},
			"169.254.169.0/24": {public: true},
		} {
			var policy tunnel.Policy
			policy.All = true
			for text := range strings.FieldsSeq(let) {
				if !strings.Contains(text, "/") {
					a := netip.MustParseAddr(text)
					policy.Private = append(policy.Private, netip.PrefixFrom(a, a.BitLen()))
					continue
				}
				policy.Private = append(policy.Private, netip.MustParsePrefix(text))
			}
			forms := []string{address}
			if a := netip.MustParseAddr(address); a.Is4() {
				forms = append(forms, "::ffff:"+address)
			}
			for _, form := range forms {
				for _, host := range []string{"name.example", form} {
					net := &fakeNet{names: map[string][]string{"name.example": {form}}}
					tunnels := newTunnels(t, policy, net.options)
					err := open(t, tunnels, host, 443)
					if lets[kind] != (err == nil) || err != nil && reason(t, err) != tunnel.BadAddress || lets[kind] != (len(net.dialled) == 1) {
						t.Errorf("%s by %s, with allow_private %q: %v, dialled %v", form, host, let, err, net.dialled)
					}
					for _, a := range net.dialled {
						if a != netip.AddrPortFrom(netip.MustParseAddr(address), 443) {
							t.Errorf("%s by %s: dialled %s", form, host, a)
						}
					}
				}
			}
		}
	}
	// A zone of the resolver's making says where on this machine, which is nobody's to say.
	net := &fakeNet{names: map[string][]string{"name.example": {"fe80::1%eth0"}, "other.example": {"2606:4700::1111%eth0"}}}
	tunnels := newTunnels(t, tunnel.Policy{All: true, Private: []netip.Prefix{netip.MustParsePrefix("fe80::1/128")}}, net.options)
	for host := range net.names {
		if err := open(t, tunnels, host, 443); reason(t, err) != tunnel.BadAddress || len(net.dialled) > 0 {
			t.Errorf("%s: %v, dialled %v", host, err, net.dialled)
		}
	}
}

// A refusal says what would permit it, if anything does.
func TestAdvice(t *testing.T) {
	list := newTunnels(t, tunnel.Policy{Hosts: []string{"192.168.0.1", "169.254.169.254", "0.0.0.0"}}, new(fakeNet).options)
	for host, want := range map[string]string{
		"other.example":   "intercept.other_hosts does not permit it",
		"192.168.0.1":     "it is at a private address, which intercept.allow_private does not hold",
		"169.254.169.254": "it is at a link-local or metadata address, which intercept.allow_private would have to name alone",
		"0.0.0.0":         "it is at no host's address, which is never connected to",
		"127.1":           "write it as four decimal numbers",
	} {
		if err := open(t, list, host, 443); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", host, err, want)
		}
	}
}

// A name that means a permitted address at the first look and this machine at the
// second is looked up once for each tunnel: what was judged is what is dialled.
func TestRebinding(t *testing.T) {
	var lookups int
	net := &fakeNet{}
	tunnels := newTunnels(t, tunnel.Policy{All: true}, func(o *tunnel.Options) {
		o.Dial = net.dial
		o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
			lookups++
			if lookups%2 == 1 {
				return []netip.Addr{netip.MustParseAddr("93.184.216.34")}, nil
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
	})
	for i := range 4 {
		err := open(t, tunnels, "rebind.example", 443)
		if even := i%2 == 0; even != (err == nil) || !even && reason(t, err) != tunnel.BadAddress {
			t.Errorf("tunnel %d: %v", i, err)
		}
	}
	if lookups != 4 || len(net.dialled) != 2 {
		t.Errorf("%d look-ups, dialled %v", lookups, net.dialled)
	}
	for _, a := range net.dialled {
		if a.String() != "93.184.216.34:443" {
			t.Errorf("dialled %s", a)
		}
	}
}

// Two names of one address are judged by it, each by itself, and of a name with several
// addresses those are dialled that are permitted.
func TestNamesOfOneAddress(t *testing.T) {
	net := &fakeNet{names: map[string][]string{
		"good.example": {"10.0.0.1", "93.184.216.34", "::ffff:169.254.169.254"},
		"one.example":  {"127.0.0.1"}, "two.example": {"::ffff:127.0.0.1"}, "three.example": {"64:ff9b::7f00:1"},
	}}
	tunnels := newTunnels(t, tunnel.Policy{Hosts: []string{"*.example"}}, net.options)
	for _, host := range []string{"one.example", "two.example", "three.example"} {
		if err := open(t, tunnels, host, 443); reason(t, err) != tunnel.BadAddress {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := open(t, tunnels, "good.example", 443); err != nil || len(net.dialled) != 1 || net.dialled[0].String() != "93.184.216.34:443" {
		t.Errorf("%v, dialled %v", err, net.dialled)
	}
	if err := open(t, tunnels, "nobody.example", 443); err == nil {
		t.Error("a name that nobody knows is reached")
	} else if _, refused := errors.AsType[*tunnel.RefusedError](err); refused {
		t.Errorf("%v is a refusal", err)
	}
}

// Who cannot be reached is told without a word of where that was looked up.
func TestUnreachable(t *testing.T) {
	tunnels := newTunnels(t, tunnel.Policy{All: true}, func(o *tunnel.Options) {
		o.Lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
			if host == "nobody.example" {
				return nil, &net.DNSError{Err: "no such host", Name: host, Server: "10.0.0.53:53", IsNotFound: true}
			}
			return []netip.Addr{netip.MustParseAddr("93.184.216.34"), netip.MustParseAddr("93.184.216.35")}, nil
		}
		o.Dial = func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(a), Err: errors.New("connection refused")}
		}
	})
	for host, want := range map[string]string{
		"nobody.example": `authpool: cannot connect to "nobody.example" port 443: no such host`,
		"closed.example": `authpool: cannot connect to "closed.example" port 443: connection refused`,
	} {
		err := open(t, tunnels, host, 443)
		if unreachable, ok := errors.AsType[*tunnel.UnreachableError](err); !ok || unreachable.Error() != want {
			t.Errorf("%T %v, want %s", err, err, want)
		}
	}
}

// Authpool's own listeners are reached by no name of theirs, whatever is allowed.
func TestOwnAddresses(t *testing.T) {
	everywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	net := &fakeNet{names: map[string][]string{"me.example": {"127.0.0.1"}, "me6.example": {"::ffff:127.0.0.1"}}}
	own := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8787"), netip.MustParseAddrPort("[::]:8788"), netip.MustParseAddrPort("10.9.9.9:8789")}
	tunnels := newTunnels(t, tunnel.Policy{All: true, Private: everywhere}, func(o *tunnel.Options) {
		net.options(o)
		o.Own = func() []netip.AddrPort { return own }
	})
	f := func(host string, port uint16, want tunnel.Reason) {
		t.Helper()
		if err := open(t, tunnels, host, port); reason(t, err) != want {
			t.Errorf("%s port %d: %v, want %q", host, port, err, want)
		}
	}
	for _, host := range []string{"me.example", "me6.example", "127.0.0.1", "::ffff:127.0.0.1"} {
		f(host, 8787, tunnel.BadAddress)
	}
	f("127.0.0.2", 8788, tunnel.BadAddress)
	f("::1", 8788, tunnel.BadAddress)
	f("10.9.9.9", 8789, tunnel.BadAddress)
	f("127.0.0.1", 8786, "")
	f("127.0.0.2", 8787, "")
	f("10.9.9.8", 8788, "")
	f("10.9.9.8", 8789, "")
}

// Whatever a resolver answers: no address is dialled that is not public, but those of
// allow_private, and none that was not in the answer.
func TestNothingDeniedIsDialled(t *testing.T) {
	address := rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "IPv4") {
			b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "bytes")
			b[0] = rapid.SampledFrom([]byte{0, 1, 10, 100, 127, 168, 169, 172, 192, 198, 203, 224, 240, 255, b[0]}).Draw(t, "first")
			b[1] = rapid.SampledFrom([]byte{0, 16, 18, 51, 63, 64, 88, 100, 168, 254, b[1]}).Draw(t, "second")
			return netip.AddrFrom4([4]byte(b))
		}
		head := rapid.SampledFrom([]string{"::", "::ffff:0:0", "64:ff9b::", "64:ff9b:1::", "2002::", "2001::", "2001:db8::", "2600::", "fc00::", "fd00:ec2::", "fe80::", "ff02::", "5f00::"}).Draw(t, "head")
		b := netip.MustParseAddr(head).As16()
		for i := 4; i < 16; i++ {
			b[i] |= rapid.SampledFrom([]byte{0, 127, 169, 254, 10, 1, rapid.Byte().Draw(t, "any")}).Draw(t, "byte")
		}
		return netip.AddrFrom16(b)
	})
	let := netip.MustParsePrefix("10.1.0.0/16")
	rapid.Check(t, func(t *rapid.T) {
		answer := rapid.SliceOfN(address, 0, 6).Draw(t, "answer")
		fake := &fakeNet{}
		tunnels := newTunnels(t, tunnel.Policy{All: true, Private: []netip.Prefix{let}}, func(o *tunnel.Options) {
			o.Lookup = func(context.Context, string) ([]netip.Addr, error) { return answer, nil }
			o.Dial = func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
				_, _ = fake.dial(ctx, a)
				return nil, errors.New("nobody is there")
			}
		})
		_, err := tunnels.Open(context.Background(), "a", "name.example", 443)
		if err == nil {
			t.Fatal("connected to nobody")
		}
		for _, a := range fake.dialled {
			known := false
			for _, one := range answer {
				known = known || one.Unmap() == a.Addr()
			}
			if kind := reach.Of(a.Addr()); !known || kind != reach.Public && !let.Contains(a.Addr()) {
				t.Fatalf("dialled %s, %s address, of %v", a, kind, answer)
			}
		}
	})
}

// Whatever is accepted as a host is dialled as exactly what was judged: an address is
// itself, and of a name the resolver is asked for that name and nothing else.
func FuzzOpen(f *testing.F) {
	for _, seed := range []string{"example.com", "EXAMPLE.com.", "127.0.0.1", "[::ffff:127.0.0.1]", "0x7f.1", "1.1.1.1", "[2606:4700::1111]", "api.anthropic.com", "API.Anthropic.com.", "localhost", "1.1.1.1."} {
		f.Add(seed, uint16(443))
	}
	f.Fuzz(func(t *testing.T, host string, port uint16) {
		net := &fakeNet{}
		tunnels := newTunnels(t, tunnel.Policy{All: true, Providers: []string{"api.anthropic.com"}}, func(o *tunnel.Options) {
			net.options(o)
			o.Lookup = func(_ context.Context, name string) ([]netip.Addr, error) {
				net.lookups = append(net.lookups, name)
				return []netip.Addr{netip.MustParseAddr("93.184.216.34")}, nil
			}
		})
		permitted := tunnels.Permit(host, port) == nil
		one, err := tunnels.Open(t.Context(), "a", host, port)
		if err != nil {
			if len(net.dialled) > 0 {
				t.Errorf("%q: %v, and dialled %v", host, err, net.dialled)
			}
			return
		}
		one.Close()
		h, bad := reach.ParseHost(host)
		if bad != nil || !permitted || len(net.dialled) != 1 || net.dialled[0].Port() != port {
			t.Fatalf("%q (%v): dialled %v", host, bad, net.dialled)
		}
		at := net.dialled[0].Addr()
		switch {
		case h.Name == "" && (at != h.Addr || len(net.lookups) > 0 || reach.Of(at) != reach.Public):
			t.Errorf("%q: dialled %s after %q", host, at, net.lookups)
		case h.Name != "" && (len(net.lookups) != 1 || net.lookups[0] != h.Name || at.String() != "93.184.216.34" || h.Name == "api.anthropic.com"):
			t.Errorf("%q: looked up %q, dialled %s", host, net.lookups, at)
		}
	})
}
