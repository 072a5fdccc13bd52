package tunnel_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/egress"
	"github.com/authpool/authpool/proxy/tunnel"
)

// company is a forward proxy that says 200 to every CONNECT and repeats what it hears.
type company struct {
	addr string

	mu    sync.Mutex
	asked []string
}

func newCompany(t *testing.T) *company {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &company{addr: ln.Addr().String()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				c.mu.Lock()
				c.asked = append(c.asked, req.Method+" "+req.Host)
				c.mu.Unlock()
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
				_, _ = io.Copy(conn, r)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); serving.Wait() })
	return c
}

// Behind a company's proxy it is that which looks names up. What can be judged here is:
// addresses, and what a name means here; hosts that the proxy is not for are dialled as
// without one.
func TestThroughTheEgressProxy(t *testing.T) {
	c := newCompany(t)
	dialer, err := egress.New(egress.Options{Proxy: "http://" + c.addr, NoProxy: []string{".internal.example", "10.0.0.0/8"}, Connect: patience})
	if err != nil {
		t.Fatal(err)
	}
	fake := &fakeNet{names: map[string][]string{
		"public.example": {"93.184.216.34"}, "inner.example": {"10.0.0.7"}, "mixed.example": {"93.184.216.34", "10.0.0.7"},
		"localhost": {"127.0.0.1"}, "git.internal.example": {"10.0.0.8"}, "rogue.internal.example": {"192.168.0.1"},
	}}
	all := newTunnels(t, tunnel.Policy{All: true, Private: []netip.Prefix{netip.MustParsePrefix("10.0.0.8/32")}}, func(o *tunnel.Options) {
		fake.options(o)
		o.Egress = dialer
	})
	for _, tt := range []struct {
		host    string
		want    tunnel.Reason
		proxied bool
	}{
		{"public.example", "", true},
		{"unknown.example", "", true}, // by whom the proxy knows it
		{"93.184.216.34", "", true},
		{"2606:4700::1111", "", true},
		{"inner.example", tunnel.BadAddress, false},
		{"mixed.example", tunnel.BadAddress, false}, // nobody can say which one the proxy takes
		{"192.168.0.1", tunnel.BadAddress, false},
		{"169.254.169.254", tunnel.BadAddress, false},
		{"metadata.google.internal", tunnel.BadAddress, false},
		{"localhost", tunnel.BadAddress, false}, // is reached without the proxy
		{"git.internal.example", "", false},
		{"rogue.internal.example", tunnel.BadAddress, false},
		{"10.0.0.8", "", false},
		{"10.0.0.7", tunnel.BadAddress, false},
	} {
		before, direct := len(c.heard()), len(fake.dialled)
		err := open(t, all, tt.host, 443)
		if got := reason(t, err); got != tt.want {
			t.Errorf("%s: %v, want %q", tt.host, err, tt.want)
		}
		if asked := c.heard()[before:]; len(asked) > 0 != tt.proxied || tt.proxied && !strings.Contains(asked[0], tt.host) {
			t.Errorf("%s: the proxy heard %q", tt.host, asked)
		}
		if wants := tt.want == "" && !tt.proxied; len(fake.dialled) > direct != wants {
			t.Errorf("%s: dialled %v", tt.host, fake.dialled[direct:])
		}
	}
	if want := "CONNECT [2606:4700::1111]:443"; !slices.Contains(c.heard(), want) {
		t.Errorf("the proxy heard %q, not %q", c.heard(), want)
	}
}

func (c *company) heard() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.asked)
}

// A resolver that says nothing about names outside holds up for two seconds, not for
// the whole time that a connection may take.
func TestSilentResolverBehindAProxy(t *testing.T) {
	c := newCompany(t)
	dialer, err := egress.New(egress.Options{Proxy: "http://" + c.addr, Connect: patience})
	if err != nil {
		t.Fatal(err)
	}
	var waited time.Duration
	all := newTunnels(t, tunnel.Policy{All: true}, func(o *tunnel.Options) {
		o.Connect = time.Hour
		o.Egress = dialer
		o.Lookup = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			deadline, _ := ctx.Deadline()
			waited = time.Until(deadline)
			return nil, errors.New("no answer")
		}
	})
	if err := open(t, all, "unknown.example", 443); err != nil || waited > 2*time.Second {
		t.Errorf("%v, the resolver had %s", err, waited)
	}
}
