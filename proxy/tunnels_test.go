package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/proxy/tunnel"
)

// tunnelling lets agents reach *.example.test, whose names mean what names says, also on
// this machine, where services are at those addresses by port.
func tunnelling(t *testing.T, names func(host string) string, services map[uint16]net.Addr) func(*rigOptions) {
	t.Helper()
	rules, err := tunnel.Read(tunnel.Policy{
		Hosts:     []string{"*.example.test:443", "*.example.test:80", "10.1.1.1", "169.254.169.254"},
		Private:   []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		Providers: []string{"llm.example.test"},
		Idle:      time.Minute, Total: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *rigOptions) {
		o.deps = func(d *Deps) {
			d.Tunnels = tunnel.New(tunnel.Options{
				Rules: rules, PerAgent: 8, Most: 8, Connect: 30 * time.Second, Log: slog.New(slog.DiscardHandler),
				Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
					at, err := netip.ParseAddr(names(host))
					return []netip.Addr{at}, err
				},
				Dial: func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
					if a.Addr().String() != "127.0.0.1" {
						t.Errorf("dialled %s", a)
					}
					return new(net.Dialer).DialContext(ctx, "tcp", services[a.Port()].String())
				},
			})
		}
	}
}

// An agent follows redirects by itself, and so each step comes by: to the metadata of
// the cloud, in whatever spelling, to this machine, and to what a name means the second
// time, it is refused.
func TestRedirectsAreJudged(t *testing.T) {
	var target atomic.Value
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/start" {
			http.Redirect(w, req, target.Load().(string), http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "arrived")
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	var rebound atomic.Int32
	r := newRig(t, "http://127.0.0.1:1", 1, tunnelling(t, func(host string) string {
		switch host {
		case "metadata.example.test":
			return "169.254.169.254"
		case "mapped.example.test":
			return "::ffff:169.254.169.254"
		case "inner.example.test":
			return "10.0.0.1"
		case "rebind.example.test":
			if rebound.Add(1) > 1 {
				return "169.254.169.254"
			}
		}
		return "127.0.0.1"
	}, map[uint16]net.Addr{80: plain.Listener.Addr(), 443: secure.Listener.Addr()}))
	agent := http.Client{Transport: &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: r.addr, User: url.UserPassword("s", testToken)}),
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the test's own server
		DisableKeepAlives: true,
	}}
	f := func(start, to string, want int) {
		t.Helper()
		target.Store(to)
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, start, http.NoBody)
		resp, err := agent.Do(req)
		status, body := 0, []byte(nil)
		switch {
		case err == nil:
			status = resp.StatusCode
			body, _ = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		case strings.HasSuffix(err.Error(), ": Forbidden"): // net/http's words for a refused CONNECT
			status = http.StatusForbidden
		default:
			t.Errorf("%s to %s: %v", start, to, err)
		}
		if status != want || (want == http.StatusOK) != (string(body) == "arrived") {
			t.Errorf("%s to %s: %d %.200s, want %d", start, to, status, body, want)
		}
	}
	for _, start := range []string{"http://a.example.test/start", "https://a.example.test/start"} {
		f(start, "http://b.example.test/", 200)
		f(start, "https://b.example.test/", 200)
		for _, to := range []string{
			"http://169.254.169.254/latest/meta-data/", "http://[::ffff:169.254.169.254]/", "http://[::ffff:a9fe:a9fe]/", "http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/",
			"http://169.254.169.254./", "http://metadata.example.test/", "http://mapped.example.test/", "http://metadata.google.internal/", "http://10.1.1.1/",
			"http://inner.example.test/", "http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://elsewhere.invalid/", "http://a.example.test:8080/",
			"https://169.254.169.254/", "https://metadata.example.test/", "https://inner.example.test/", "https://elsewhere.invalid/", "https://a.example.test:22/",
		} {
			f(start, to, 403)
		}
		rebound.Store(0)
		f("http://rebind.example.test/start", "http://rebind.example.test/", 403)
	}
}

// The bytes that an agent has sent right behind its CONNECT are the first ones of the
// tunnel, nothing is added, and either end is passed on.
func TestBytesBehindConnect(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r := newRig(t, "http://127.0.0.1:1", 1, tunnelling(t, func(string) string { return "127.0.0.1" }, map[uint16]net.Addr{443: ln.Addr()}))
	c := r.dial().(*net.TCPConn)
	_, _ = fmt.Fprintf(c, "CONNECT echo.example.test:443 HTTP/1.1\r\nHost: echo.example.test:443\r\nProxy-Authorization: Basic %s\r\n\r\nfirst words",
		base64.StdEncoding.EncodeToString([]byte("s:"+testToken)))
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != 200 || len(resp.Header) > 0 {
		t.Fatalf("%v, %v", resp, err)
	}
	_, _ = io.WriteString(c, ", and the last")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(server); err != nil || string(got) != "first words, and the last" {
		t.Errorf("the host got %q, %v", got, err)
	}
	_, _ = io.WriteString(server, "an answer, long after the agent has ended")
	_ = server.Close()
	if got, err := io.ReadAll(br); err != nil || string(got) != "an answer, long after the agent has ended" {
		t.Errorf("the agent got %q, %v", got, err)
	}
}

// What a tunnel is refused for, in the words that agents show.
func TestRefusedTunnels(t *testing.T) {
	r := newRig(t, "http://127.0.0.1:1", 1, tunnelling(t, func(string) string { return "10.0.0.1" }, nil))
	for to, want := range map[string]int{
		"inner.example.test:443": 403, "other.invalid:443": 403, "llm.example.test:8443": 403, "169.254.169.254:80": 403, "0x7f.1:443": 403, "[::ffff:127.0.0.1]:443": 403,
	} {
		if _, status := r.open("s", testToken, to); status != want {
			t.Errorf("CONNECT %s: %d, want %d", to, status, want)
		}
	}
}

// Tunnels end with the server: nothing of them is left, and none holds it up that is
// quiet.
func TestShutdownEndsTunnels(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r := newRig(t, "http://127.0.0.1:1", 1, tunnelling(t, func(string) string { return "127.0.0.1" }, map[uint16]net.Addr{443: ln.Addr()}))
	c, status := r.open("s", testToken, "a.example.test:443")
	server, err := ln.Accept()
	if err != nil || status != 200 {
		t.Fatal(status, err)
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := r.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	for _, end := range []net.Conn{c, server} {
		if _, err := end.Read(make([]byte, 1)); err == nil {
			t.Error("a connection is left")
		}
	}
}

// A tunnel outlives its agent's token by seconds.
func TestRevokedAgentLosesItsTunnel(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	book := newBook(t)
	r := newRig(t, "http://127.0.0.1:1", 1, knowing(book), tunnelling(t, func(string) string { return "127.0.0.1" }, map[uint16]net.Addr{443: ln.Addr()}))
	c, status := r.open("s", create(t, book, agents.Agent{ID: "leaver"}), "a.example.test:443")
	server, err := ln.Accept()
	if err != nil || status != 200 {
		t.Fatal(status, err)
	}
	defer server.Close()
	if err := book.Remove(t.Context(), "leaver", 0); err != nil {
		t.Fatal(err)
	}
	for _, end := range []net.Conn{c, server} {
		_ = end.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := end.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the tunnel is there: %v", err)
		}
	}
}
