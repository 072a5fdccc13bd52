package egress_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/egress"
)

// forward is a forward proxy.
type forward struct {
	addr string
	mu   sync.Mutex
	seen []string // heads
}

// newForward answers each CONNECT with answer; after one of 200 it is a tunnel to
// target, whose bytes begin in the same packet.
func newForward(t *testing.T, wire *tls.Config, answer, target string) *forward {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forward{addr: ln.Addr().String()}
	if wire != nil {
		ln = tls.NewListener(ln, wire)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				f.serve(c, answer, target)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return f
}

func (f *forward) serve(c net.Conn, answer, target string) {
	br := bufio.NewReader(c)
	head := ""
	for !strings.HasSuffix(head, "\r\n\r\n") {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		head += line
	}
	f.mu.Lock()
	f.seen = append(f.seen, head)
	f.mu.Unlock()
	if !strings.Contains(answer, " 200 ") {
		_, _ = io.WriteString(c, answer)
		_, _ = io.Copy(io.Discard, br)
		return
	}
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()
	first := make([]byte, 5)
	_, _ = io.ReadFull(up, first)
	_, _ = c.Write(append([]byte(answer), first...))
	var back sync.WaitGroup
	defer back.Wait()
	back.Go(func() {
		_, _ = io.Copy(up, br)
		_ = up.Close() // the other way ends, too
	})
	_, _ = io.Copy(c, up)
	_ = c.Close()
}

func (f *forward) heads() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

// greeter says who it is and repeats what it is told.
func greeter(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.WriteString(c, "hello")
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func dialer(t *testing.T, o egress.Options) *egress.Dialer {
	t.Helper()
	if o.Connect == 0 {
		o.Connect = 20 * time.Second
	}
	d, err := egress.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const tunnelled = "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"

// Every byte behind the proxy's head is the provider's, and of the user and password
// only the proxy hears.
func TestTunnel(t *testing.T) {
	certificate := httptest.NewUnstartedServer(http.NotFoundHandler())
	certificate.StartTLS()
	defer certificate.Close()
	roots := certificate.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	target := greeter(t)
	for scheme, wire := range map[string]*tls.Config{"http": nil, "https": certificate.TLS} {
		t.Run(scheme, func(t *testing.T) {
			f := newForward(t, wire, tunnelled, target)
			d := dialer(t, egress.Options{Proxy: scheme + "://" + f.addr, Username: "u", Password: credential.NewSecret("pass"), RootCAs: roots})
			c, err := d.Dial(t.Context(), "api.example.com:443")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, " world")
			got := make([]byte, 11)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello world" {
				t.Errorf("%q, %v", got, err)
			}
			want := "CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\nProxy-Authorization: Basic dTpwYXNz\r\n\r\n"
			if heads := f.heads(); len(heads) != 1 || heads[0] != want {
				t.Errorf("the proxy got %q", heads)
			}
		})
	}
	t.Run("https, of nobody known", func(t *testing.T) {
		f := newForward(t, certificate.TLS, tunnelled, target)
		d := dialer(t, egress.Options{Proxy: "https://" + f.addr, Password: credential.NewSecret("pass")})
		if _, err := d.Dial(t.Context(), "api.example.com:443"); err == nil || !strings.Contains(err.Error(), "certificate") || len(f.heads()) != 0 {
			t.Errorf("%v, the proxy got %q", err, f.heads())
		}
	})
}

// What the rules name, and this machine itself, is reached directly.
func TestNoProxy(t *testing.T) {
	target := greeter(t)
	_, port, _ := net.SplitHostPort(target)
	f := newForward(t, nil, tunnelled, target)
	for _, test := range []struct {
		rules string
		addr  string
		by    bool
	}{
		{"", target, false},
		{"", "localhost:" + port, false},
		{"", "192.0.2.1:443", true},
		{"192.0.2.0/24", "192.0.2.1:443", false},
		{"192.0.2.1:444", "192.0.2.1:443", true},
		{"example.com", "api.example.com:443", false},
		{".example.com", "other.invalid:443", true},
		{"*", "other.invalid:443", false},
	} {
		before := len(f.heads())
		d := dialer(t, egress.Options{Proxy: "http://" + f.addr, NoProxy: []string{test.rules}})
		ctx, cancel := context.WithCancelCause(t.Context())
		if !test.by && test.addr != target && !strings.HasPrefix(test.addr, "localhost") {
			cancel(errors.New("enough")) // nobody is there, and that is not waited for
		}
		c, err := d.Dial(ctx, test.addr)
		if err == nil {
			_ = c.Close()
		}
		cancel(nil)
		if by := len(f.heads()) > before; by != test.by {
			t.Errorf("no_proxy %q, %s: by the proxy %v, %v", test.rules, test.addr, by, err)
		}
	}
}

// A proxy that will not serve is told of in words that help, without the password.
func TestRefusals(t *testing.T) {
	for answer, want := range map[string]string{
		"HTTP/1.1 407 Proxy Authentication Required\r\nConnection: close\r\n\r\n": "egress.username and egress.password",
		"HTTP/1.1 403 Forbidden\r\n\r\n":                                          "it answers 403: does it allow CONNECT to api.example.com:443?",
		"SSH-2.0-x\r\n\r\n":                                                       "it does not answer like an HTTP proxy",
		"HTTP/1.1 200x\r\n" + strings.Repeat("X-Much: more\r\n", 2000):            "it does not answer like an HTTP proxy",
	} {
		f := newForward(t, nil, answer, "")
		d := dialer(t, egress.Options{Proxy: "http://" + f.addr, Username: "u", Password: credential.NewSecret("hunter2")})
		_, err := d.Dial(t.Context(), "api.example.com:443")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), f.addr) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.30q: %v, want %s", answer, err, want)
		}
	}
}

// A proxy that says nothing is not waited for longer than the call lives.
func TestSilentProxy(t *testing.T) {
	f := newForward(t, nil, "HTTP/1.1 2", "")
	d := dialer(t, egress.Options{Proxy: "http://" + f.addr})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := d.Dial(ctx, "api.example.com:443")
		failed <- err
	}()
	for len(f.heads()) == 0 {
		select {
		case err := <-failed:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	select {
	case err := <-failed:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it is still waited for")
	}
}

func TestRootCAs(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.pem")
	if err := os.WriteFile(bad, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{bad: "holds no certificate", filepath.Join(dir, "none.pem"): "no such file"} {
		if _, err := egress.RootCAs(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
	if pool, err := egress.RootCAs(""); pool != nil || err != nil {
		t.Error(pool, err)
	}
}

func ExampleDialer() {
	d, err := egress.New(egress.Options{Proxy: "ftp://proxy.internal", Connect: time.Second})
	fmt.Println(d, err)
	// Output: <nil> the proxy's URL is not http://HOST:PORT or https://HOST:PORT
}
