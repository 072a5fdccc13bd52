package proxy

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
)

// rigMaker is newRig, or what stands for it.
type rigMaker func(t testing.TB, base string, n int, change ...func(*rigOptions)) *rig

// everyWay runs a test with agents that use a base URL, and with such as go through
// CONNECT and TLS.
func everyWay(t *testing.T, test func(*testing.T, rigMaker)) {
	t.Run("base URL", func(t *testing.T) { test(t, newRig) })
	t.Run("CONNECT", func(t *testing.T) {
		test(t, func(t testing.TB, base string, n int, change ...func(*rigOptions)) *rig {
			r := newRig(t, base, n, append([]func(*rigOptions){interceptedAt(t, strings.TrimPrefix(base, "http://"))}, change...)...)
			r.proxied = true
			return r
		})
	})
}

// hostOf is the host to which an agent in proxy mode sends a path.
func hostOf(path string) string {
	if strings.HasPrefix(path, "/v1/messages") {
		return "llm.example.test"
	}
	return "openai.example.test"
}

// secured opens a connection to a provider's host inside c.
func (r *rig) secured(c net.Conn, host string) net.Conn {
	r.t.Helper()
	_, _ = fmt.Fprintf(c, "CONNECT %s:443 HTTP/1.1\r\nHost: %[1]s:443\r\nProxy-Authorization: Bearer %s\r\n\r\n", host, testToken)
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != 200 {
		r.t.Fatalf("CONNECT %s: %v, %v", host, resp, err)
	}
	config := r.trusted()
	config.ServerName = host
	return tls.Client(c, config)
}

// Requests inside follow each other on one connection, also without waiting for
// answers, until one says that it is the last.
func TestConnectionInside(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u))
	c := r.secured(r.dial(), "llm.example.test")
	request := func(more string) string {
		return fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: llm.example.test\r\n%sContent-Length: %d\r\n\r\n%s", more, len(message), message)
	}
	br := bufio.NewReader(c)
	for _, sent := range []string{request(""), request("") + request(""), request("Connection: close\r\n") + request("")} {
		_, _ = io.WriteString(c, sent)
		last := strings.Contains(sent, "close")
		for range min(strings.Count(sent, "POST"), 3-strings.Count(sent, "Connection")*2) {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != 200 || string(text) != answer || resp.Close != last {
				t.Errorf("%d %s, close: %t", resp.StatusCode, text, resp.Close)
			}
		}
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("behind the last answer came %q", rest)
	}
	if n := len(u.requests()); n != 4 {
		t.Errorf("the provider got %d requests", n)
	}
}

// How clients write CONNECT, and what they put beside the token.
func TestConnectDialects(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u), func(o *rigOptions) {
		o.agents = NewAgents(map[string]string{"default": testToken, "other": "apa_the-other-ones"})
	})
	basic := func(login string) string {
		return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(login)) + "\r\n"
	}
	const to = "llm.example.test:443"
	for name, tt := range map[string]struct {
		head string
		want int
	}{
		"Go":                            {"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n" + basic("s:"+testToken), 200},
		"Host without a port":           {"CONNECT " + to + " HTTP/1.1\r\nHost: llm.example.test\r\n" + basic("s:"+testToken), 200},
		"Python's http.client":          {"CONNECT " + to + " HTTP/1.0\r\n" + basic("s:"+testToken), 200},
		"no Host in HTTP/1.1":           {"CONNECT " + to + " HTTP/1.1\r\n" + basic("s:"+testToken), 400},
		"Bearer":                        {"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\nproxy-authorization: bearer " + testToken + "\r\n", 200},
		"beside a key of the agent's":   {"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n" + basic("s:"+testToken) + "Authorization: Bearer sk-dummy\r\n", 200},
		"two agents":                    {"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n" + basic("s:"+testToken) + "Authorization: Bearer apa_the-other-ones\r\n", 401},
		"the token as the user name":    {"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n" + basic(testToken+":"), 407},
		"nothing":                       {"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n", 407},
		"a web page":                    {"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\nOrigin: https://evil.test\r\n" + basic("s:"+testToken), 403},
		"another Host":                  {"CONNECT " + to + " HTTP/1.1\r\nHost: other.example.test:443\r\n" + basic("s:"+testToken), 400},
		"a body":                        {"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\nContent-Length: 5\r\n" + basic("s:"+testToken), 400},
		"a provider's host with a path": {"CONNECT https://" + to + "/ HTTP/1.1\r\nHost: " + to + "\r\n" + basic("s:"+testToken), 400},
	} {
		c := r.dial()
		_, _ = io.WriteString(c, tt.head+"\r\nPOST /") // the latter is a body, or the beginning of what is inside
		asked := &http.Request{Method: http.MethodGet} // of CONNECT no body would be read
		if tt.want == 200 {
			asked.Method = http.MethodConnect
		}
		resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), asked)
		if err != nil || resp.StatusCode != tt.want {
			t.Errorf("%s: %v, %v", name, resp, err)
			continue
		}
		if tt.want != 200 {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, max(0, resp.ContentLength)))
			if help := strings.Contains(string(text), "http://SESSION:TOKEN@HOST:PORT"); help != (tt.want == 407 || tt.want == 401) {
				t.Errorf("%s: %s", name, text)
			}
			continue
		}
		_, _ = fmt.Fprintf(c, "v1/messages HTTP/1.1\r\nHost: llm.example.test\r\nx-api-key: sk-dummy\r\nContent-Length: %d\r\n\r\n%s", len(message), message)
		if resp, err = http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
			t.Errorf("inside, %s: %v, %v", name, resp, err)
		}
	}
}

// What CONNECT has opened opens nothing more: nobody nests connections without end.
func TestConnectInside(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u), tunnelled(t))
	for _, to := range []string{"llm.example.test:443", r.addr} {
		c, _ := r.open("", testToken, to)
		_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Bearer %s\r\n\r\n", to, testToken)
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 400 {
			t.Errorf("CONNECT inside of %s: %v, %v", to, resp, err)
		}
	}
}

// Of several providers at one host the path decides, the longest base URL first; what is
// none's goes nowhere, and neither does what a provider has no subscription for.
func TestProvidersAtOneHost(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u), func(o *rigOptions) {
		o.providers[0].BaseURL, o.providers[1].BaseURL = "http://llm.example.test:443/team", "http://llm.example.test:443/team/open"
		o.providers = append(o.providers, provider.Options{Name: "idle", Family: provider.Gemini, BaseURL: "http://llm.example.test:443/idle", AllowPlaintext: true})
	})
	chat := `{"model":"gpt-5-mini","messages":[{"role":"user","content":"hi"}]}`
	c := r.secured(r.dial(), "llm.example.test")
	br := bufio.NewReader(c)
	for _, tt := range []struct {
		path, body   string
		status       int
		served, says string
	}{
		{"/team/v1/messages", message, 200, "anthropic-1", answer},
		{"/team/open/v1/chat/completions", chat, 200, "openai-1", answer},
		{"/teams/v1/messages", message, 403, "", `"forbidden_path"`},
		{"/v1/messages", message, 403, "", "outside of every provider's base_url"},
		{"/team", message, 403, "", "outside of every provider's base_url"},
		{"/anthropic/v1/messages", message, 403, "", "outside of every provider's base_url"},
		{"/idle/v1beta/models/gemini-2.5-pro:generateContent", `{"contents":[]}`, 404, "", `"NOT_FOUND"`},
		{"/team/open/../v1/messages", message, 400, "", "dot segments"},
	} {
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: llm.example.test\r\nContent-Length: %d\r\n\r\n%s", tt.path, len(tt.body), tt.body)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(tt.path, err)
		}
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != tt.status || resp.Header.Get("X-Authpool-Subscription") != tt.served || !strings.Contains(string(text), tt.says) {
			t.Errorf("%s: %d by %q: %s", tt.path, resp.StatusCode, resp.Header.Get("X-Authpool-Subscription"), text)
		}
	}
	if heads := strings.Join(u.requests(), ""); len(u.requests()) != 2 || !strings.Contains(heads, "POST /team/v1/messages ") || !strings.Contains(heads, "POST /team/open/v1/chat/completions ") {
		t.Errorf("the provider got %s", heads)
	}
}
