package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/ca"
	"github.com/authpool/authpool/proxy/provider"
)

// intercepted makes the rig's Anthropic provider one at a host of its own, which
// upstream stands for, and has the TLS to it opened.
func intercepted(t *testing.T, u *fakeUpstream) func(*rigOptions) {
	t.Helper()
	authorities, err := ca.Open(t.TempDir(), []string{"llm.example.test"})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *rigOptions) {
		o.opts.Intercept = true
		o.providers[0].BaseURL = "http://llm.example.test:443"
		o.transport.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", u.ln.Addr().String())
		}
		o.deps = func(d *Deps) { d.Authorities = authorities }
	}
}

// trusted is the TLS of an agent that trusts the rig's authority.
func (r *rig) trusted() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.server.deps.Authorities.(*ca.Authorities).Bundle())
	return &tls.Config{RootCAs: roots, ServerName: "llm.example.test"}
}

// open has CONNECT open a connection, as the agent of a token and a user name.
func (r *rig) open(user, token, authority string) (c net.Conn, status int) {
	r.t.Helper()
	c = r.dial()
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Basic %s\r\n\r\n",
		authority, base64.StdEncoding.EncodeToString([]byte(user+":"+token)))
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), &http.Request{Method: "CONNECT"})
	if err != nil {
		r.t.Fatal(err)
	}
	return c, resp.StatusCode
}

func TestInterceptedRequest(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u))
	agent := http.Client{Transport: &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: r.addr, User: url.UserPassword("my-session", testToken)}),
		TLSClientConfig:   r.trusted(),
		ForceAttemptHTTP2: true,
	}}
	defer agent.CloseIdleConnections()
	for range 2 {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://llm.example.test/v1/messages", strings.NewReader(message))
		req.Header.Set("X-Api-Key", "sk-the-agents-own")
		resp, err := agent.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != 200 || string(body) != answer || resp.ProtoMajor != 1 {
			t.Errorf("%s %d %s", resp.Proto, resp.StatusCode, body)
		}
		if session := resp.Header.Get("X-Authpool-Session"); session != "my-session" {
			t.Errorf("the session is %q", session)
		}
	}
	for _, head := range u.requests() {
		if strings.Contains(head, "agents-own") || strings.Contains(head, testToken) || !strings.Contains(head, key("anthropic", 1)) {
			t.Errorf("the provider got %s", head)
		}
	}
	r.waitEvents(2)
}

func TestConnect(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u))
	for _, tt := range []struct {
		user, token, to string
		want            int
	}{
		{"x", testToken, "llm.example.test:443", 200},
		{"x", testToken, "LLM.example.test.:443", 200},
		{"x", testToken, r.addr, 200},
		{"x", "apa_wrong", "llm.example.test:443", 407},
		{"x", testToken, "llm.example.test:8443", 403},
		{"x", testToken, "other.example.test:443", 403},
		{"x", testToken, "llm.example.test", 400},
	} {
		if _, status := r.open(tt.user, tt.token, tt.to); status != tt.want {
			t.Errorf("CONNECT %s as %q: %d, want %d", tt.to, tt.token, status, tt.want)
		}
	}
	// Plain HTTP inside goes to the same host.
	for to, path := range map[string]string{"llm.example.test:443": "/v1/messages", r.addr: "/anthropic/v1/messages"} {
		c, _ := r.open("", testToken, to)
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s", path, to, testToken, len(message), message)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("plain HTTP inside CONNECT %s: %v, %v", to, resp, err)
		}
		_ = resp.Body.Close()
	}
}

func TestAuthority(t *testing.T) {
	f := func(in string, want provider.Authority) {
		t.Helper()
		if got, ok := provider.ParseAuthority(in, 0); got != want || ok != (want.Port != 0) {
			t.Errorf("%q is %v, %t", in, got, ok)
		}
	}
	f("a.example:443", provider.Authority{Host: "a.example", Port: 443})
	f("A.Example.:443", provider.Authority{Host: "a.example", Port: 443})
	f("[::1]:80", provider.Authority{Host: "::1", Port: 80})
	for _, bad := range []string{"", "a", "a:", "a:0", "a:70000", "a:+1", "::1:80", "[::1]", "[a]:80", "a b:80", "a/b:80", "u@a:80", "[::1:80", ":80", "a\x00:80"} {
		f(bad, provider.Authority{})
	}
}
