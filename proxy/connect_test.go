package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/ca"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tunnel"
)

// intercepted makes the rig's providers ones at hosts of their own, which upstream
// stands for, and has the TLS to them opened.
func intercepted(t testing.TB, u *fakeUpstream) func(*rigOptions) {
	t.Helper()
	return interceptedAt(t, u.ln.Addr().String())
}

func interceptedAt(t testing.TB, upstream string) func(*rigOptions) {
	t.Helper()
	authorities, err := ca.Open(t.TempDir(), []string{"llm.example.test", "openai.example.test"})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *rigOptions) {
		o.opts.Intercept = true
		o.providers[0].BaseURL, o.providers[1].BaseURL = "http://llm.example.test:443", "http://openai.example.test:443"
		o.transport.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", upstream)
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

// tunnelled lets the rig's agents reach every other host, this machine too.
func tunnelled(t testing.TB) func(*rigOptions) {
	t.Helper()
	rules, err := tunnel.Read(tunnel.Policy{
		All: true, Private: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Idle: time.Minute, Total: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	tunnels := tunnel.New(tunnel.Options{Rules: rules, PerAgent: 4096, Most: 4096, Connect: 5 * time.Second, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { tunnels.Close(context.Background()) })
	return func(o *rigOptions) {
		former := o.deps
		o.deps = func(d *Deps) {
			if former != nil {
				former(d)
			}
			d.Tunnels = tunnels
		}
	}
}

// Without interception authpool is a proxy to no provider, by CONNECT or in absolute form,
// and still serves what an agent sends to authpool itself in that form.
func TestNoProxyToProviders(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u), func(o *rigOptions) { o.opts.Intercept = false })
	ask := func(target, host string) int {
		t.Helper()
		c := r.dial()
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s", target, host, testToken, len(message), message)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if _, status := r.open("default", testToken, "llm.example.test:443"); status != 403 {
		t.Errorf("CONNECT: %d", status)
	}
	for _, target := range []string{"http://llm.example.test/v1/messages", "https://llm.example.test/v1/messages"} {
		if status := ask(target, "llm.example.test"); status != 403 {
			t.Errorf("%s: %d", target, status)
		}
	}
	if n := len(u.requests()); n != 0 {
		t.Errorf("the provider got %d requests", n)
	}
	if status := ask("http://"+r.addr+"/v1/messages", r.addr); status != 200 {
		t.Errorf("authpool itself: %d", status)
	}
}

// A request in absolute form goes to the provider that it names, to authpool itself, or
// to another host as it is but for what is the agent's and authpool's.
func TestAbsoluteFormToOthers(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	other := newUpstream(t, func(c *upstreamConn) { c.json(418, "X-Other: yes\r\n", "another's answer") })
	r := newRig(t, u.url(), 1, intercepted(t, u), tunnelled(t))
	login := base64.StdEncoding.EncodeToString([]byte("my-session:" + testToken))
	ask := func(target, host, more, body string) (*http.Response, string) {
		t.Helper()
		c := r.dial()
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\nContent-Length: %d\r\n%s\r\n%s", target, host, login, len(body), more, body)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, _ := io.ReadAll(resp.Body)
		return resp, string(text)
	}
	for target, host := range map[string]string{
		"http://llm.example.test:443/v1/messages":        "llm.example.test:443",
		"https://llm.example.test/v1/messages":           "llm.example.test",
		"http://LLM.example.test/v1/messages":            "LLM.example.test", // the operator's TLS, not the agent's word, says how it goes out
		"http://" + r.addr + "/v1/messages":              r.addr,
		"http://" + r.addr + "/anthropic/v1/messages":    r.addr,
		"http://localhost" + r.addr[9:] + "/v1/messages": "localhost" + r.addr[9:],
	} {
		if resp, text := ask(target, host, "", message); resp.StatusCode != 200 || text != answer {
			t.Errorf("%s: %d %s", target, resp.StatusCode, text)
		}
	}
	if n := len(u.requests()); n != 6 {
		t.Errorf("the provider got %d requests", n)
	}
	to := other.ln.Addr().String()
	unknown := "apa_of-nobody-that-is-known-here"
	more := "Authorization: Bearer " + testToken + "\r\nX-Own: kept\r\nConnection: x-hop\r\nConnection: x-hop-2\r\nX-Hop: gone\r\nX-Hop-2: gone\r\nX-Authpool-Session: s\r\n" +
		"Via: 1.1 other\r\nCookie: a=" + unknown + "\r\nX-Key: " + testToken + ".task\r\nX-Basic: Basic " + base64.StdEncoding.EncodeToString([]byte(unknown+":x")) + "\r\n"
	resp, text := ask("http://"+to+"/path?q=1", to, more, "the body")
	if resp.StatusCode != 418 || text != "another's answer" || resp.Header.Get("X-Other") != "yes" {
		t.Errorf("another host: %d %s", resp.StatusCode, text)
	}
	heads := other.requests()
	if len(heads) != 1 || !strings.HasPrefix(heads[0], "POST /path?q=1 HTTP/1.1\r\nHost: "+to+"\r\n") || !strings.Contains(heads[0], "X-Own: kept") {
		t.Fatalf("the other host got %q", heads)
	}
	for _, gone := range []string{testToken, login, unknown, "X-Basic", "X-Hop", "X-Authpool", key("anthropic", 1), key("openai", 1)} {
		if strings.Contains(heads[0], gone) {
			t.Errorf("the other host got %s in %q", gone, heads[0])
		}
	}
	via := "Via: 1.1 before\r\n" + regexp.MustCompile(`Via: 1.1 authpool.*\r\n`).FindString(heads[0])
	for name, tt := range map[string]struct {
		target, host, more string
		want               int
	}{
		"a circle":              {"http://" + to + "/", to, via, 508},
		"a token in the query":  {"http://" + to + "/?key=" + testToken, to, "", 403},
		"a token in the path":   {"http://" + to + "/x/" + testToken + "/y", to, "", 403},
		"another Host header":   {"http://" + to + "/", "llm.example.test", "", 400},
		"https to another host": {"https://" + to + "/", to, "", 400},
		"a provider's, refused": {"http://llm.example.test/v1/organizations/x", "llm.example.test", "", 403},
	} {
		if resp, text := ask(tt.target, tt.host, tt.more, ""); resp.StatusCode != tt.want || resp.Header.Get("X-Authpool-Error") == "" {
			t.Errorf("%s: %d %s", name, resp.StatusCode, text)
		}
	}
	login = base64.StdEncoding.EncodeToString([]byte("x:wrong"))
	if resp, _ := ask("http://"+to+"/", to, "", ""); resp.StatusCode != 407 || resp.Header.Get("Proxy-Authenticate") == "" {
		t.Errorf("without a token: %d", resp.StatusCode)
	}
	if n := len(other.requests()); n != 1 {
		t.Errorf("the other host got %d requests", n)
	}
}

// What is inside a tunnel is carried as it is, and what an agent sends behind its CONNECT
// at once is not lost.
func TestTunnel(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := echo.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	t.Cleanup(func() { _ = echo.Close(); wg.Wait() })
	r := newRig(t, "http://127.0.0.1:9", 1, tunnelled(t))
	c := r.dial()
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Bearer %s\r\n\r\nat once", echo.Addr(), testToken)
	br := bufio.NewReader(c)
	if resp, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"}); err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Length") != "" {
		t.Fatal(resp, err)
	}
	got := make([]byte, 14)
	if _, err := io.ReadFull(br, got[:7]); err != nil || string(got[:7]) != "at once" {
		t.Fatalf("%q, %v", got, err)
	}
	_, _ = io.WriteString(c, ", later")
	_ = c.(*net.TCPConn).CloseWrite()
	rest, err := io.ReadAll(br)
	if err != nil || string(rest) != ", later" {
		t.Errorf("%q, %v", rest, err)
	}
}

// git asks without a token first, and again on the same connection.
func TestConnectAgainOnTheSameConnection(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u))
	c := r.dial()
	br := bufio.NewReader(c)
	connect := "CONNECT llm.example.test:443 HTTP/1.1\r\nHost: llm.example.test:443\r\n"
	_, _ = io.WriteString(c, connect+"\r\n")
	resp, err := http.ReadResponse(br, &http.Request{Method: "GET"})
	if err != nil || resp.StatusCode != 407 || resp.Close || !strings.HasPrefix(resp.Header.Get("Proxy-Authenticate"), "Basic ") {
		t.Fatal(resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	_, _ = io.WriteString(c, connect+"Proxy-Authorization: Bearer "+testToken+"\r\n\r\n")
	if resp, err = http.ReadResponse(br, &http.Request{Method: "CONNECT"}); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	secured := tls.Client(c, r.trusted())
	_, _ = io.WriteString(secured, "POST /v1/messages HTTP/1.1\r\nHost: llm.example.test\r\nContent-Length: "+fmt.Sprint(len(message))+"\r\n\r\n"+message)
	if resp, err = http.ReadResponse(bufio.NewReader(secured), nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()
}

// inside opens an intercepted connection.
func (r *rig) inside(change func(*tls.Config)) (*tls.Conn, error) {
	c, status := r.open("", testToken, "llm.example.test:443")
	if status != 200 {
		r.t.Fatalf("CONNECT: %d", status)
	}
	config := r.trusted()
	change(config)
	secured := tls.Client(c, config)
	err := secured.Handshake()
	return secured, err
}

func TestHandshake(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u))
	for name, tt := range map[string]struct {
		change func(*tls.Config)
		fails  bool
	}{
		"TLS 1.2":         {func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, false},
		"TLS 1.1":         {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, true},
		"HTTP/2 offered":  {func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }, false},
		"another name":    {func(c *tls.Config) { c.ServerName = "other.example.test" }, true},
		"name in capital": {func(c *tls.Config) { c.ServerName = "LLM.example.test" }, false},
		"no trust":        {func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }, true},
	} {
		c, err := r.inside(tt.change)
		if (err != nil) != tt.fails {
			t.Errorf("%s: %v", name, err)
		}
		if proto := c.ConnectionState().NegotiatedProtocol; name == "HTTP/2 offered" && proto != "http/1.1" {
			t.Errorf("%s: %s is spoken", name, proto)
		}
		_ = c.Close()
	}
	// Sessions are resumed, in both versions.
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(1)
		for i := range 2 {
			c, err := r.inside(func(c *tls.Config) { c.ClientSessionCache, c.MinVersion, c.MaxVersion = cache, version, version })
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "GET /v1/models HTTP/1.1\r\nHost: llm.example.test\r\n\r\n") // TLS 1.3 tickets come behind the handshake
			if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
				t.Fatal(err)
			}
			if resumed := c.ConnectionState().DidResume; resumed != (i == 1) {
				t.Errorf("%x: connection %d resumed: %t", version, i, resumed)
			}
			_ = c.Close()
		}
	}
	text := r.log.text()
	if strings.Count(text, "authpool doctor") != 1 || strings.Count(text, "the TLS of an agent is refused") != 1 {
		t.Errorf("an agent that does not trust the authority, and what is refused here, is told of in the log as %s", text)
	}
}

// Inside a connection a request is for its host alone, and its agent is the one that
// CONNECT has shown.
func TestInsideRules(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u), func(o *rigOptions) {
		o.agents = NewAgents(map[string]string{"default": testToken, "other": "apa_the-other-ones"})
	})
	c, err := r.inside(func(*tls.Config) {})
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(c)
	for _, tt := range []struct {
		head string
		want int
	}{
		{"GET /v1/models HTTP/1.1\r\nHost: llm.example.test\r\n", 200},
		{"GET /v1/models HTTP/1.1\r\nHost: llm.example.test:443\r\nx-api-key: sk-dummy\r\n", 200},
		{"GET https://llm.example.test/v1/models HTTP/1.1\r\nHost: llm.example.test\r\n", 200},
		{"GET /v1/models HTTP/1.1\r\nHost: llm.example.test\r\nx-api-key: apa_the-other-ones\r\n", 401},
		{"GET /anthropic/v1/models HTTP/1.1\r\nHost: llm.example.test\r\n", 200}, // a path of that host, and no name of a provider
		{"GET /v1/organizations/me HTTP/1.1\r\nHost: llm.example.test\r\n", 403},
		{"GET /v1/models HTTP/1.1\r\nHost: other.example.test\r\n", 421},
	} {
		_, _ = io.WriteString(c, tt.head+"\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(tt.head, err)
		}
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%q: %d %s", tt.head, resp.StatusCode, text)
		}
	}
	if paths := strings.Join(u.requests(), ""); !strings.Contains(paths, "GET /anthropic/v1/models ") || strings.Contains(paths, "apa_") || strings.Contains(paths, "sk-dummy") {
		t.Errorf("the provider got %s", paths)
	}
}

// A stream arrives event by event, and an agent that leaves ends it.
func TestStreamInside(t *testing.T) {
	next, left := make(chan struct{}), make(chan struct{})
	u := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock)
		c.chunk(msgHello)
		c.wait(next)
		c.chunk(msgHello)
		_, _ = c.Read(make([]byte, 1)) // until authpool closes
		close(left)
	})
	r := newRig(t, u.url(), 1, intercepted(t, u))
	c, err := r.inside(func(*tls.Config) {})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: llm.example.test\r\nContent-Length: %d\r\n\r\n%s", len(messageS), messageS)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	hello := hellos(t, resp.Body)
	hello()
	close(next)
	hello()
	_ = c.NetConn().Close()
	select {
	case <-left:
	case <-time.After(time.Minute):
		t.Fatal("the provider is not told that the agent has left")
	}
	if e := r.waitEvents(1)[0]; !e.Estimated {
		t.Errorf("what was used is %+v", e)
	}
}

// secured speaks TLS over nc as an agent of the rig.
func secured(ctx context.Context, nc net.Conn, r *rig) (net.Conn, error) {
	tc := tls.Client(nc, r.trusted())
	err := tc.HandshakeContext(ctx)
	return tc, err
}

// hellos returns what waits for the next piece of text of a stream.
func hellos(t *testing.T, body io.Reader) func() {
	events := bufio.NewReader(body)
	return func() {
		t.Helper()
		for {
			line, err := events.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(line, "text_delta") {
				return
			}
		}
	}
}
