package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/authpool/authpool/proxy/ca"
	"github.com/authpool/authpool/proxy/upstream/certtest"
)

// BenchmarkIntercept is one connection of an agent through CONNECT, from dialling to
// the end of the handshake, beside a plain tunnel to a server that ends the TLS itself:
// what both ends cost, the agent's part of the handshake included.
func BenchmarkIntercept(b *testing.B) {
	const host = "llm.example.test"
	up := newEcho(b, jsonReply)
	far, farTLS := newTLSServer(b, host)
	quiet := func(o *rigOptions) { o.quiet = true }
	opened := func(t testing.TB) func(*rigOptions) { return interceptedAt(t, up.Addr().String()) }
	hello := func(conn net.Conn, config *tls.Config) error {
		c := tls.Client(conn, config)
		if err := c.Handshake(); err != nil {
			return err
		}
		// The tickets of TLS 1.3 come with the first answer.
		if config.ClientSessionCache != nil {
			if _, err := io.WriteString(c, "GET /v1/none HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n"); err != nil {
				return err
			}
			_, err := io.ReadAll(c)
			return err
		}
		return nil
	}
	for _, bench := range []struct {
		name    string
		to      string
		options func(testing.TB) func(*rigOptions)
		config  func(*rig) *tls.Config
	}{
		{"tunnel, nothing inside", far, tunnelled, nil},
		{"tunnel, TLS inside", far, tunnelled, func(*rig) *tls.Config { return farTLS }},
		{"leaf cached", host + ":443", opened, (*rig).trusted},
		{"leaf made anew", host + ":443", func(t testing.TB) func(*rigOptions) {
			change := opened(t)
			return func(o *rigOptions) {
				change(o)
				former := o.deps
				o.deps = func(d *Deps) {
					former(d)
					d.Authorities = &forgetful{Authorities: d.Authorities.(*ca.Authorities)}
				}
			}
		}, func(r *rig) *tls.Config {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(r.server.deps.Authorities.(*forgetful).Bundle())
			return &tls.Config{RootCAs: roots, ServerName: host}
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			r := newRig(b, "http://"+up.Addr().String(), 1, quiet, bench.options(b))
			var config *tls.Config
			if bench.config != nil {
				config = bench.config(r)
			}
			connect := connectRequest(bench.to)
			defer reportCPU(b)()
			for b.Loop() {
				c := r.connected(b, connect)
				if config != nil {
					if err := hello(c, config); err != nil {
						b.Fatal(err)
					}
				}
				_ = c.Close()
			}
		})
	}
	// With a request, since without one no session is had that could be resumed.
	for _, resumes := range []bool{false, true} {
		b.Run(fmt.Sprintf("and a refused request, resumed=%t", resumes), func(b *testing.B) {
			r := newRig(b, "http://"+up.Addr().String(), 1, quiet, opened(b))
			config, connect := r.trusted(), connectRequest(host+":443")
			config.ClientSessionCache = noSessions{}
			if resumes {
				config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			}
			defer reportCPU(b)()
			for b.Loop() {
				c := r.connected(b, connect)
				if err := hello(c, config); err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
			}
		})
	}
}

// BenchmarkInterceptedMessage is BenchmarkMessage inside a connection that CONNECT has
// opened, with TLS and without, beside the base URL.
func BenchmarkInterceptedMessage(b *testing.B) {
	body := `{"model":"claude-sonnet-4-5","max_tokens":10,"messages":[{"role":"user","content":"` + strings.Repeat("x", 2<<10) + `"}]}`
	for _, way := range []string{"base URL", "CONNECT", "CONNECT and TLS"} {
		b.Run(way, func(b *testing.B) {
			up := newEcho(b, jsonReply)
			r := newRig(b, "http://"+up.Addr().String(), 1, func(o *rigOptions) { o.quiet = true }, interceptedAt(b, up.Addr().String()))
			c, host := r.dial(), "localhost"
			if way != "base URL" {
				host = "llm.example.test"
				secured := r.secured(c, host)
				if way == "CONNECT and TLS" {
					c = secured
				}
			}
			request := fmt.Appendf(nil, "POST /v1/messages HTTP/1.1\r\nHost: %s\r\nx-api-key: %s\r\nanthropic-version: 2023-06-01\r\nContent-Type: application/json\r\nX-Authpool-Session: bench\r\nContent-Length: %d\r\n\r\n%s", host, testToken, len(body), body)
			br := bufio.NewReader(c)
			defer reportCPU(b)()
			for b.Loop() {
				if _, err := c.Write(request); err != nil {
					b.Fatal(err)
				}
				if err := skipAnswer(br); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// reportCPU tells the processor time of each operation, which other work on the machine
// hardly changes; call what it returns behind the loop.
func reportCPU(b *testing.B) func() {
	b.Helper()
	b.ReportAllocs()
	before := processorTime(b)
	return func() { b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op") }
}

func connectRequest(to string) []byte {
	login := base64.StdEncoding.EncodeToString([]byte("bench:" + testToken))
	return fmt.Appendf(nil, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Basic %s\r\n\r\n", to, login)
}

// connected opens a connection by a CONNECT request.
func (r *rig) connected(b *testing.B, request []byte) net.Conn {
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := c.Write(request); err != nil {
		b.Fatal(err)
	}
	got := make([]byte, len(established))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 200 ")) {
		b.Fatalf("%q, %v", got, err)
	}
	return c
}

// newTLSServer ends TLS as authpool does where it intercepts.
func newTLSServer(b *testing.B, host string) (address string, trusted *tls.Config) {
	b.Helper()
	authority := certtest.New(b)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{authority.Leaf(host)}})
	if err != nil {
		b.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			})
		}
	})
	b.Cleanup(func() { _ = ln.Close(); all.Wait() })
	return ln.Addr().String(), &tls.Config{RootCAs: authority.Roots(), ServerName: host}
}

// forgetful are Authorities that have to make every leaf anew: they ask for another
// spelling of the name each time.
type forgetful struct {
	*ca.Authorities
	mu sync.Mutex
	n  int
}

// Leaf implements Authorities.
func (f *forgetful) Leaf(host string) (*tls.Certificate, error) {
	f.mu.Lock()
	f.n++
	n := f.n
	f.mu.Unlock()
	spelt := []byte(host)
	for i := range spelt {
		if bit := n >> i & 1; bit == 1 && spelt[i] >= 'a' {
			spelt[i] -= 'a' - 'A'
		}
	}
	return f.Authorities.Leaf(string(spelt))
}

// noSessions is a cache that keeps none.
type noSessions struct{}

// Get implements tls.ClientSessionCache.
func (noSessions) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

// Put implements tls.ClientSessionCache.
func (noSessions) Put(string, *tls.ClientSessionState) {}
