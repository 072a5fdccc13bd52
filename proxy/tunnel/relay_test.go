package tunnel_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/proxy/tunnel"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// pair is two ends of a TCP connection on this machine.
func pair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, far = accepted.(*net.TCPConn), dialled.(*net.TCPConn)
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	for _, c := range []net.Conn{near, far} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return near, far
}

// relayed is a tunnel under way, as its two sides see it.
type relayed struct {
	agent, host net.Conn
	ended       chan tunnel.Stats
}

func (r *relayed) stats(t *testing.T) tunnel.Stats {
	t.Helper()
	return <-r.ended
}

// relay opens a tunnel to host and relays on connections of this machine.
func relay(t *testing.T, tunnels func(dial func(context.Context, netip.AddrPort) (net.Conn, error)) *tunnel.Tunnels, host string) *relayed {
	t.Helper()
	upper, far := pair(t)
	lower, agent := pair(t)
	all := tunnels(func(context.Context, netip.AddrPort) (net.Conn, error) { return upper, nil })
	one, err := all.Open(t.Context(), "agent-a", host, 443)
	if err != nil {
		t.Fatal(err)
	}
	_ = upper.SetDeadline(time.Time{})
	_ = lower.SetDeadline(time.Time{})
	r := &relayed{agent, far, make(chan tunnel.Stats, 1)}
	go func() { r.ended <- one.Relay(t.Context(), lower, nil) }()
	return r
}

func policyOf(p tunnel.Policy) func(func(context.Context, netip.AddrPort) (net.Conn, error)) *tunnel.Tunnels {
	return func(dial func(context.Context, netip.AddrPort) (net.Conn, error)) *tunnel.Tunnels {
		rules, err := tunnel.Read(p)
		if err != nil {
			panic(err)
		}
		return tunnel.New(tunnel.Options{
			Rules: rules, PerAgent: 10, Most: 10, Connect: patience, Dial: dial, Log: slog.New(slog.DiscardHandler),
			Lookup: func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("93.184.216.34")}, nil
			},
		})
	}
}

var every = policyOf(tunnel.Policy{All: true, Idle: time.Minute, Total: time.Hour, Providers: []string{"api.anthropic.com"}})

// What either side sends arrives as it is, and that it has sent all does, too, while
// the other one goes on.
func TestRelay(t *testing.T) {
	r := relay(t, every, "files.example")
	upload := bytes.Repeat([]byte("what an agent sends. "), 50_000)
	download := bytes.Repeat([]byte("what it gets, which is longer. "), 100_000)
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = r.agent.Write(upload)
		_ = r.agent.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(r.host) // the end of what the agent sends, before anything is answered
	if err != nil || !bytes.Equal(got, upload) {
		t.Errorf("the host got %d bytes of %d, %v", len(got), len(upload), err)
	}
	both.Go(func() {
		_, _ = r.host.Write(download)
		_ = r.host.(*net.TCPConn).CloseWrite()
	})
	if got, err = io.ReadAll(r.agent); err != nil || !bytes.Equal(got, download) {
		t.Errorf("the agent got %d bytes of %d, %v", len(got), len(download), err)
	}
	both.Wait()
	if s := r.stats(t); s.Up != int64(len(upload)) || s.Down != int64(len(download)) || s.End != tunnel.Done || s.Took <= 0 {
		t.Errorf("%+v", s)
	}
}

// A server that speaks first, and the other half-close.
func TestServerSpeaksFirst(t *testing.T) {
	r := relay(t, every, "ssh.example")
	_, _ = io.WriteString(r.host, "SSH-2.0-x\r\n")
	line := make([]byte, 11)
	if _, err := io.ReadFull(r.agent, line); err != nil || string(line) != "SSH-2.0-x\r\n" {
		t.Errorf("%q, %v", line, err)
	}
	_ = r.host.(*net.TCPConn).CloseWrite()
	if _, err := r.agent.Read(line); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	_, _ = io.WriteString(r.agent, "goodbye")
	_ = r.agent.Close()
	if rest, err := io.ReadAll(r.host); err != nil || string(rest) != "goodbye" {
		t.Errorf("%q, %v", rest, err)
	}
	if s := r.stats(t); s.End != tunnel.Done || s.Up != 7 || s.Down != 11 {
		t.Errorf("%+v", s)
	}
}

// A reset of one side ends the other.
func TestReset(t *testing.T) {
	for name, side := range map[string]func(*relayed) (broken, other net.Conn){
		"the agent's": func(r *relayed) (net.Conn, net.Conn) { return r.agent, r.host },
		"the host's":  func(r *relayed) (net.Conn, net.Conn) { return r.host, r.agent },
	} {
		r := relay(t, every, "files.example")
		broken, other := side(r)
		_ = broken.(*net.TCPConn).SetLinger(0)
		_ = broken.Close()
		if _, err := other.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s reset is not passed on", name)
		}
		if s := r.stats(t); s.End != tunnel.Broken {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// inBubble relays between pipes, whose time is the bubble's.
func inBubble(t *testing.T, p tunnel.Policy) (all *tunnel.Tunnels, r *relayed) {
	t.Helper()
	upper, far := net.Pipe()
	lower, agent := net.Pipe()
	all = policyOf(p)(func(context.Context, netip.AddrPort) (net.Conn, error) { return upper, nil })
	one, err := all.Open(t.Context(), "agent-a", "files.example", 443)
	if err != nil {
		t.Fatal(err)
	}
	r = &relayed{agent, far, make(chan tunnel.Stats, 1)}
	go func() { r.ended <- one.Relay(t.Context(), lower, nil) }()
	return all, r
}

// say has one byte go from one side to the other.
func say(t *testing.T, from, to net.Conn) {
	t.Helper()
	go func() { _, _ = from.Write([]byte("x")) }()
	if _, err := to.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// Silence ends a tunnel, progress in either direction puts that off, and its age ends
// it whatever moves.
func TestLimits(t *testing.T) {
	for direction, ends := range map[string]func(*relayed) (from, to net.Conn){
		"up":   func(r *relayed) (net.Conn, net.Conn) { return r.agent, r.host },
		"down": func(r *relayed) (net.Conn, net.Conn) { return r.host, r.agent },
	} {
		t.Run("idle "+direction, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, r := inBubble(t, tunnel.Policy{All: true, Idle: 10 * time.Minute, Total: 24 * time.Hour})
				from, to := ends(r)
				for range 5 {
					time.Sleep(9 * time.Minute)
					say(t, from, to)
				}
				if s := r.stats(t); s.End != tunnel.IdleLimit || s.Took != 55*time.Minute || s.Up+s.Down != 5 {
					t.Errorf("%+v", s)
				}
				if _, err := to.Read(make([]byte, 1)); err == nil {
					t.Error("the connection is open")
				}
			})
		})
	}
	t.Run("total", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, r := inBubble(t, tunnel.Policy{All: true, Idle: 10 * time.Minute, Total: time.Hour})
			for range 11 {
				time.Sleep(5 * time.Minute)
				say(t, r.host, r.agent)
			}
			if s := r.stats(t); s.End != tunnel.TotalTime || s.Took != time.Hour || s.Down != 11 {
				t.Errorf("%+v", s)
			}
		})
	})
	// A side that takes nothing is no progress.
	t.Run("stalled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, r := inBubble(t, tunnel.Policy{All: true, Idle: 10 * time.Minute, Total: time.Hour})
			go func() { _, _ = r.host.Write(make([]byte, 1<<20)) }()
			if s := r.stats(t); s.End != tunnel.IdleLimit || s.Took != 10*time.Minute || s.Down != 0 {
				t.Errorf("%+v", s)
			}
		})
	})
	t.Run("the caller", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			upper, far := net.Pipe()
			lower, agent := net.Pipe()
			defer far.Close()
			defer agent.Close()
			all := every(func(context.Context, netip.AddrPort) (net.Conn, error) { return upper, nil })
			one, err := all.Open(t.Context(), "agent-a", "files.example", 443)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if s := one.Relay(ctx, lower, nil); s.End != tunnel.Stopped || s.Took != time.Second {
				t.Errorf("%+v", s)
			}
		})
	})
}

// Agents have so many tunnels and no more, and a closed one makes room.
func TestCaps(t *testing.T) {
	fake := &fakeNet{}
	all := newTunnels(t, tunnel.Policy{All: true}, func(o *tunnel.Options) {
		fake.options(o)
		o.PerAgent, o.Most = 2, 3
	})
	var opened []*tunnel.Tunnel
	f := func(agent string, want tunnel.Reason) {
		t.Helper()
		one, err := all.Open(t.Context(), agent, "1.1.1.1", 443)
		if reason(t, err) != want {
			t.Errorf("%s: %v, want %q", agent, err, want)
		}
		if err == nil {
			opened = append(opened, one)
		}
	}
	f("a", "")
	f("a", "")
	f("a", tunnel.TooMany)
	f("b", "")
	f("b", tunnel.TooMany)
	f("c", tunnel.TooMany)
	opened[0].Close()
	opened[0].Close() // twice is once
	f("c", "")
	f("c", tunnel.TooMany)
	if len(fake.dialled) != 4 {
		t.Errorf("dialled %v", fake.dialled)
	}
	// What fails keeps no place.
	failing := newTunnels(t, tunnel.Policy{All: true}, func(o *tunnel.Options) {
		o.PerAgent, o.Most = 1, 1
		o.Dial = func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, errors.New("nobody is there") }
	})
	for range 3 {
		if _, err := failing.Open(t.Context(), "a", "1.1.1.1", 443); err == nil || !strings.Contains(err.Error(), "nobody is there") {
			t.Error(err)
		}
		if err := open(t, failing, "127.0.0.1", 443); reason(t, err) != tunnel.BadAddress {
			t.Error(err)
		}
	}
}

// At the end a tunnel on which nothing moves is ended, one that is in use goes on until
// the grace is over, and none begins.
func TestClose(t *testing.T) {
	p := tunnel.Policy{All: true, Idle: 10 * time.Minute, Total: time.Hour}
	t.Run("quiet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			all, r := inBubble(t, p)
			time.Sleep(time.Minute)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
			defer cancel()
			all.Close(ctx)
			if s := r.stats(t); s.End != tunnel.Stopped || time.Since(began) != 0 {
				t.Errorf("%+v after %s", s, time.Since(began))
			}
			if err := open(t, all, "files.example", 443); reason(t, err) != tunnel.Stopping {
				t.Error(err)
			}
		})
	})
	t.Run("busy", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			all, r := inBubble(t, p)
			var talk sync.WaitGroup
			defer talk.Wait()
			talk.Go(func() {
				for range 100 {
					if _, err := r.host.Write([]byte("x")); err != nil {
						return
					}
					time.Sleep(500 * time.Millisecond)
				}
			})
			talk.Go(func() { _, _ = io.Copy(io.Discard, r.agent) })
			time.Sleep(time.Second)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
			defer cancel()
			all.Close(ctx)
			if s := r.stats(t); s.End != tunnel.Stopped || time.Since(began) != 25*time.Second || s.Down < 50 {
				t.Errorf("%+v after %s", s, time.Since(began))
			}
		})
	})
	t.Run("ends by itself", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			all, r := inBubble(t, p)
			go func() {
				for range 10 {
					_, _ = r.host.Write([]byte("x"))
					time.Sleep(500 * time.Millisecond)
				}
				_ = r.host.Close()
			}()
			go func() { _, _ = io.Copy(io.Discard, r.agent) }()
			began := time.Now()
			all.Close(t.Context())
			if s := r.stats(t); s.End != tunnel.Done || time.Since(began) != 5*time.Second || s.Down != 10 {
				t.Errorf("%+v after %s", s, time.Since(began))
			}
		})
	})
	t.Run("connecting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			all := every(func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
			failed := make(chan error)
			go func() {
				_, err := all.Open(context.Background(), "a", "files.example", 443)
				failed <- err
			}()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			go all.Close(ctx)
			began := time.Now()
			if err := <-failed; err == nil || time.Since(began) != 2*time.Second {
				t.Errorf("%v after %s", err, time.Since(began))
			}
		})
	})
	t.Run("never relayed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			upper, far := net.Pipe()
			lower, agent := net.Pipe()
			all := every(func(context.Context, netip.AddrPort) (net.Conn, error) { return upper, nil })
			one, err := all.Open(t.Context(), "a", "files.example", 443)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			go all.Close(ctx)
			synctest.Wait()
			if s := one.Relay(t.Context(), lower, nil); s.End != tunnel.Stopped {
				t.Errorf("%+v", s)
			}
			for _, c := range []net.Conn{far, agent} {
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("a connection is left")
				}
			}
		})
	})
}

// Many tunnels at once, some of which are still in use at the end: every place is given
// back, and nothing is left.
func TestManyTunnels(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var echoes, agents sync.WaitGroup
	echoes.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			echoes.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	defer echoes.Wait()
	defer ln.Close()
	const many = 40
	all := newTunnels(t, tunnel.Policy{All: true}, func(o *tunnel.Options) {
		o.PerAgent, o.Most = many/4, many
		o.Dial = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		}
	})
	text := bytes.Repeat([]byte("back and forth. "), 10_000)
	for round := range 2 * many { // twice as many as there are places
		lower, agent := pair(t)
		_ = lower.SetDeadline(time.Time{})
		one, err := all.Open(t.Context(), fmt.Sprint("agent-", round%4), "1.1.1.1", 443)
		if round >= many {
			if reason(t, err) != tunnel.TooMany {
				t.Errorf("tunnel %d: %v", round, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		agents.Go(func() { one.Relay(t.Context(), lower, nil) })
		agents.Go(func() { _, _ = agent.Write(text) })
		got := make([]byte, len(text))
		if _, err := io.ReadFull(agent, got); err != nil || !bytes.Equal(got, text) {
			t.Errorf("tunnel %d gives back %d bytes, %v", round, len(got), err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all.Close(ctx)
	agents.Wait()
}

// Who has lost the right to a tunnel keeps it for five seconds at most, whatever moves.
func TestRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upper, far := net.Pipe()
		lower, agent := net.Pipe()
		defer far.Close()
		defer agent.Close()
		all := every(func(context.Context, netip.AddrPort) (net.Conn, error) { return upper, nil })
		one, err := all.Open(t.Context(), "a", "files.example", 443)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		may := func() bool { return time.Since(began) < 31*time.Second }
		if s := one.Relay(t.Context(), lower, may); s.End != tunnel.Revoked || s.Took < 31*time.Second || s.Took > 36*time.Second {
			t.Errorf("%+v", s)
		}
	})
}

// A tunnel that was given up closes what it is given afterwards.
func TestRelayAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upper, far := net.Pipe()
		lower, agent := net.Pipe()
		all := every(func(context.Context, netip.AddrPort) (net.Conn, error) { return upper, nil })
		one, err := all.Open(t.Context(), "a", "files.example", 443)
		if err != nil {
			t.Fatal(err)
		}
		one.Close()
		if s := one.Relay(t.Context(), lower, nil); s.End != tunnel.Broken {
			t.Errorf("%+v", s)
		}
		for _, c := range []net.Conn{far, agent} {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("a connection is left")
			}
		}
	})
}

// Other rules count for the tunnels from then on.
func TestConfigure(t *testing.T) {
	fake := &fakeNet{}
	all := newTunnels(t, tunnel.Policy{}, fake.options)
	if err := open(t, all, "1.1.1.1", 443); reason(t, err) != tunnel.NotListed {
		t.Error(err)
	}
	rules, err := tunnel.Read(tunnel.Policy{Hosts: []string{"1.1.1.1"}, Idle: time.Minute, Total: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	all.Configure(rules)
	if err := open(t, all, "1.1.1.1", 443); err != nil {
		t.Error(err)
	}
}

// hello is what a TLS client of that server name sends first.
func hello(t *testing.T, name string) []byte {
	t.Helper()
	near, far := net.Pipe()
	sent := make(chan []byte, 1)
	go func() {
		b := make([]byte, 64<<10)
		n, _ := far.Read(b)
		_ = far.Close()
		sent <- b[:n]
	}()
	_ = tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	return <-sent
}

// inRecords puts a ClientHello into records of size bytes.
func inRecords(record []byte, size int) (out []byte) {
	for body := record[5:]; len(body) > 0; {
		n := min(size, len(body))
		out = append(append(out, 22, 3, 1, byte(n>>8), byte(n)), body[:n]...)
		body = body[n:]
	}
	return out
}

// The server name in the first message of TLS is one that CONNECT could have named: not
// a provider's, and on the list where there is one. Who says none, or speaks something
// else, is let.
func TestServerNames(t *testing.T) {
	list := policyOf(tunnel.Policy{Hosts: []string{"*.cdn.example", "1.1.1.1"}, Idle: time.Minute, Total: time.Hour, Providers: []string{"api.anthropic.com"}})
	for _, tt := range []struct {
		tunnels   func(func(context.Context, netip.AddrPort) (net.Conn, error)) *tunnel.Tunnels
		to, named string
		let       bool
	}{
		{every, "cdn.example", "cdn.example", true},
		{every, "cdn.example", "CDN.example", true},
		{every, "cdn.example", "other.example", true},
		{every, "cdn.example", "api.anthropic.com", false},
		{every, "cdn.example", "API.Anthropic.COM", false},
		{every, "1.1.1.1", "api.anthropic.com", false},
		{every, "1.1.1.1", "other.example", true},
		{every, "cdn.example", "", true},
		{list, "a.cdn.example", "a.cdn.example", true},
		{list, "a.cdn.example", "b.cdn.example", true},
		{list, "a.cdn.example", "evil.example", false},
		{list, "a.cdn.example", "api.anthropic.com", false},
		{list, "a.cdn.example", "", true},
		{list, "1.1.1.1", "any.example", true},
		{list, "1.1.1.1", "api.anthropic.com", false},
	} {
		sent := hello(t, tt.named)
		for what, wire := range map[string][]byte{"whole": sent, "in small records": inRecords(sent, 7), "with more behind": append(bytes.Clone(sent), "more"...)} {
			r := relay(t, tt.tunnels, tt.to)
			cut := len(wire) / 2
			_, _ = r.agent.Write(wire[:cut])
			_, _ = r.agent.Write(wire[cut:])
			_ = r.agent.(*net.TCPConn).CloseWrite()
			got, err := io.ReadAll(r.host)
			want := wire
			if !tt.let {
				want = nil
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("to %s, named %s, %s: the host got %d bytes of %d, %v", tt.to, tt.named, what, len(got), len(wire), err)
			}
			_ = r.host.Close()
			answer, _ := io.ReadAll(r.agent)
			if !tt.let && !bytes.Equal(answer, []byte{21, 3, 3, 0, 2, 2, 49}) {
				t.Errorf("to %s, named %s, %s: the agent got %x, want the alert access_denied", tt.to, tt.named, what, answer)
			}
			if s := r.stats(t); (s.End == tunnel.Forbidden) == tt.let {
				t.Errorf("to %s, named %s, %s: %+v", tt.to, tt.named, what, s)
			}
		}
	}
}

// What begins like TLS and is none that anybody could read goes nowhere; what does not
// begin so goes on as it is.
func TestNoHello(t *testing.T) {
	good := hello(t, "cdn.example")
	broken := bytes.Clone(good)
	broken[5+4+2+32] = 0xff // the length of the session id
	long := []byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}
	for what, wire := range map[string][]byte{
		"an HTTP request in disguise": append([]byte{22}, "GET / HTTP/1.1\r\n\r\n"...),
		"a cut one":                   good[:len(good)-1],
		"a broken one":                broken,
		"a ServerHello":               append([]byte{22, 3, 3, 0, 4, 2}, 0, 0, 0),
		"an endless one":              append(long, make([]byte, 1<<20)...),
	} {
		r := relay(t, every, "cdn.example")
		go func() {
			_, _ = r.agent.Write(wire)
			_ = r.agent.(*net.TCPConn).CloseWrite()
		}()
		if got, _ := io.ReadAll(r.host); len(got) > 0 {
			t.Errorf("%s: the host got %d bytes", what, len(got))
		}
		if s := r.stats(t); s.End != tunnel.Forbidden || s.Up != 0 {
			t.Errorf("%s: %+v", what, s)
		}
	}
	for _, wire := range []string{"GET / HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n", "SSH-2.0-x\r\n", "\x00", "\x80\x2e\x01"} {
		r := relay(t, every, "cdn.example")
		_, _ = io.WriteString(r.agent, wire)
		_ = r.agent.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(r.host); err != nil || string(got) != wire {
			t.Errorf("%q arrives as %q, %v", wire, got, err)
		}
		_ = r.host.Close()
		if s := r.stats(t); s.End != tunnel.Done {
			t.Errorf("%q: %+v", wire, s)
		}
	}
}

// A real handshake goes through, and its bytes are the two parties' own.
func TestHandshakeThroughTunnel(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.StartTLS()
	defer server.Close()
	lower, agent := pair(t)
	_ = lower.SetDeadline(time.Time{})
	all := every(func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
	})
	one, err := all.Open(t.Context(), "agent-a", "example.com", 443)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan tunnel.Stats, 1)
	go func() { done <- one.Relay(t.Context(), lower, nil) }()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	secured := tls.Client(agent, &tls.Config{ServerName: "example.com", RootCAs: roots})
	if err := secured.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprint(secured, "GET / HTTP/1.0\r\n\r\n")
	if answer, err := io.ReadAll(secured); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 404") {
		t.Errorf("%q, %v", answer, err)
	}
	_ = agent.Close()
	if s := <-done; s.End != tunnel.Done {
		t.Errorf("%+v", s)
	}
}
