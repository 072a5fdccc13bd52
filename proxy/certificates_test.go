package proxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/upstream/certtest"
)

// overTLS is a listener of a provider that counts what is said to it behind the
// handshake.
type overTLS struct {
	net.Listener
	mu   sync.Mutex
	said int
}

// Accept implements net.Listener.
func (l *overTLS) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &overhearing{c, l}, nil
}

func (l *overTLS) bytes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said
}

type overhearing struct {
	net.Conn
	l *overTLS
}

// Read implements net.Conn.
func (c *overhearing) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.l.said += n
	return n, err
}

// A provider whose certificate is not good gets no request and no credential; the agent
// is told why in the provider's shape, and the breaker keeps the next ones away.
func TestProviderCertificates(t *testing.T) {
	const host = "llm.example.test"
	authority := certtest.New(t)
	for name, tt := range map[string]struct {
		shown tls.Certificate
		want  string // in the message; empty: it is good
	}{
		"good":              {authority.Leaf(host), ""},
		"expired":           {authority.Leaf(host, certtest.Expired), "expired"},
		"self-signed":       {authority.SelfSigned(host), "unknown authority"},
		"another host's":    {authority.Leaf("other.example.test"), "other.example.test"},
		"signed over SHA-1": {authority.Leaf(host, certtest.SHA1), "SHA1"},
		"revoked":           {authority.Staple(authority.Leaf(host), ocsp.Revoked, time.Minute), "revoked"},
		"must staple":       {authority.Leaf(host, certtest.MustStaple), "Must-Staple"},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ln := &overTLS{Listener: tls.NewListener(raw, &tls.Config{Certificates: []tls.Certificate{tt.shown}})}
			u := newUpstreamAt(t, ln, func(c *upstreamConn) { c.json(200, "", answer) })
			r := newRig(t, u.url(), 1, func(o *rigOptions) {
				o.transport.RootCAs = authority.Roots()
				o.transport.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "tcp", raw.Addr().String())
				}
				o.providers = []provider.Options{{Name: "anthropic", Family: provider.Anthropic, BaseURL: "https://" + host}}
				o.subs = o.subs[:1]
			})
			if tt.want == "" {
				if status, _, body := r.post("/v1/messages", message); status != 200 || body != answer {
					t.Errorf("%d %s", status, body)
				}
				return
			}
			for i := range 6 { // one more than the breaker takes
				resp := r.send("POST", "/v1/messages", fmt.Sprintf("X-Authpool-Session: s%d\r\n", i), message)
				var said struct {
					Type  string
					Error struct{ Type, Message string }
				}
				if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
					t.Fatal(err)
				}
				if i == 0 && (resp.StatusCode != 502 || said.Type != "error" || said.Error.Type != "api_error" ||
					!strings.HasPrefix(said.Error.Message, "authpool: provider anthropic: cannot open TLS to "+host) || !strings.Contains(said.Error.Message, tt.want)) {
					t.Errorf("%d %+v", resp.StatusCode, said)
				}
				if resp.StatusCode < 500 {
					t.Errorf("request %d: %d", i, resp.StatusCode)
				}
			}
			if n := ln.bytes(); n > 0 {
				t.Errorf("the provider got %d bytes", n)
			}
			if b := r.pool.Status()[0].Breaker; b != "open" {
				t.Errorf("the breaker is %s", b)
			}
			if e := r.recorder.all(); len(e) != 0 {
				t.Errorf("usage was counted: %+v", e)
			}
		})
	}
}
