package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // RFC 6455
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit/usage"
)

// provided is the provider's side of a socket, in the hands of a test.
type provided struct {
	*upstreamConn
	t  testing.TB
	br *bufio.Reader
}

// header is the value of one of the upgrade's headers.
func (c *upstreamConn) header(name string) string {
	for line := range strings.SplitSeq(c.head, "\r\n") {
		if n, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(n, name) {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// accept agrees to the upgrade.
func (c *upstreamConn) accept(t testing.TB, extra string) *provided {
	sum := sha1.Sum([]byte(c.header("Sec-WebSocket-Key") + acceptGUID)) //nolint:gosec // RFC 6455
	c.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%sSec-WebSocket-Accept: %s\r\n\r\n",
		extra, base64.StdEncoding.EncodeToString(sum[:]))
	return &provided{c, t, bufio.NewReader(c)}
}

// frame is an unmasked frame.
func frame(first byte, payload string) string {
	switch n := len(payload); {
	case n < 126:
		return string([]byte{first, byte(n)}) + payload
	case n < 1<<16:
		return string([]byte{first, 126, byte(n >> 8), byte(n)}) + payload
	default:
		return string([]byte{first, 127, 0, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + payload
	}
}

// send sends messages.
func (c *provided) send(messages ...string) {
	for _, m := range messages {
		c.write(frame(0x81, m)+"%s", "")
	}
}

// receive reads a frame of the agent's, and returns its payload in the clear; "" at the end.
func (c *provided) receive() string {
	var h [14]byte
	if _, err := io.ReadFull(c.br, h[:2]); err != nil {
		return ""
	}
	n := uint64(h[1] & 0x7f)
	size := map[uint64]int{126: 2, 127: 8}[n]
	if _, err := io.ReadFull(c.br, h[2:2+size+4]); err != nil {
		return ""
	}
	if size > 0 {
		n = 0
		for _, b := range h[2 : 2+size] {
			n = n<<8 | uint64(b)
		}
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(c.br, payload); err != nil {
		return ""
	}
	for i := range payload {
		payload[i] ^= h[2+size+i%4]
	}
	if h[0]&0x0f == 8 {
		_, _ = io.WriteString(c, frame(0x88, string(payload)))
		return ""
	}
	return string(payload)
}

// socket opens a WebSocket as an agent.
func (r *rig) socket(path string, header http.Header, protocols ...string) (*websocket.Conn, *http.Response, error) {
	r.t.Helper()
	if header == nil {
		header = http.Header{}
	}
	if header.Get("Authorization") == "" && len(protocols) == 0 && !strings.Contains(path, "key=") {
		header.Set("Authorization", "Bearer "+testToken)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, "ws://"+r.addr+path, &websocket.DialOptions{HTTPHeader: header, Subprotocols: protocols})
	if err == nil {
		c.SetReadLimit(-1)
		r.t.Cleanup(func() { _ = c.CloseNow() })
	}
	return c, resp, err
}

// mustSocket is socket that must succeed.
func (r *rig) mustSocket(path string) *websocket.Conn {
	r.t.Helper()
	c, _, err := r.socket(path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func say(t testing.TB, c *websocket.Conn, message string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
		t.Fatal(err)
	}
}

// listenFor reads the next message.
func listenFor(t testing.TB, c *websocket.Conn) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, text, err := c.Read(ctx)
	return string(text), err
}

// readUntil reads messages up to one that holds text.
func readUntil(t testing.TB, c *websocket.Conn, text string) {
	t.Helper()
	for {
		m, err := listenFor(t, c)
		if err != nil {
			t.Fatalf("before %q: %v", text, err)
		}
		if strings.Contains(m, text) {
			return
		}
	}
}

// Messages of the Responses API's socket.
const (
	askTurn   = `{"type":"response.create","model":"gpt-5.1","input":[]}`
	created   = `{"type":"response.created","response":{"id":"resp_1","model":"gpt-5.1-2025-11-13","usage":null}}`
	delta     = `{"type":"response.output_text.delta","delta":"Hello"}`
	completed = `{"type":"response.completed","response":{"id":"resp_1","model":"gpt-5.1-2025-11-13","usage":{"input_tokens":20,"input_tokens_details":{"cached_tokens":8},"output_tokens":5,"total_tokens":25}}}`
)

// answerTurns answers every message with one turn, until the agent leaves.
func answerTurns(t testing.TB) func(c *upstreamConn) {
	return func(c *upstreamConn) {
		p := c.accept(t, "")
		for p.receive() != "" {
			p.send(created, delta, completed)
		}
	}
}

func TestSocketTurns(t *testing.T) {
	u := newUpstream(t, answerTurns(t))
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/responses")
	for n := 1; n <= 3; n++ {
		say(t, c, askTurn)
		readUntil(t, c, "response.completed")
		// The agent has seen the end: it is counted.
		if got := len(r.recorder.all()); got != n {
			t.Fatalf("%d events after %d turns", got, n)
		}
	}
	_ = c.Close(websocket.StatusNormalClosure, "")
	ids := map[string]bool{}
	for _, e := range r.recorder.all() {
		want := usage.Tokens{Input: 12, CacheRead: 8, Output: 5}
		if e.Tokens != want || e.Model != "gpt-5.1-2025-11-13" || e.Estimated || e.Unknown || e.Subscription != "openai-1" || e.Agent != "default" {
			t.Errorf("event %+v", e)
		}
		ids[e.ID] = true
	}
	if len(ids) != 3 {
		t.Errorf("the turns have the ids %v", ids)
	}
	head := u.requests()[0]
	if strings.Contains(head, testToken) || !strings.Contains(head, "Bearer "+key("openai", 1)) || strings.Contains(strings.ToLower(head), "sec-websocket-extensions") {
		t.Errorf("the provider got %s", head)
	}
}

func TestSocketCarriers(t *testing.T) {
	var mu sync.Mutex
	var heads []string
	u := newUpstream(t, func(c *upstreamConn) {
		mu.Lock()
		heads = append(heads, c.head)
		mu.Unlock()
		protocol := ""
		if strings.Contains(c.head, "realtime,") || strings.HasSuffix(c.header("Sec-WebSocket-Protocol"), "realtime") {
			protocol = "Sec-WebSocket-Protocol: realtime\r\n"
		}
		c.accept(t, protocol).receive()
	})
	r := newRig(t, u.url(), 1, func(o *rigOptions) {
		o.providers = append(o.providers, provider.Options{Name: "gemini", Family: provider.Gemini, BaseURL: u.url(), AllowPlaintext: true})
		o.subs = append(o.subs, pool.Subscription{ID: "gemini-1", Provider: "gemini", Credential: fixedKey(key("gemini", 1))})
	})
	f := func(path string, protocols []string, wantProtocol, wantHead string) {
		t.Helper()
		c, resp, err := r.socket(path, nil, protocols...)
		if err != nil {
			t.Fatal(err)
		}
		if c.Subprotocol() != wantProtocol {
			t.Errorf("%s: the subprotocol is %q", path, c.Subprotocol())
		}
		for _, name := range []string{"X-Authpool-Request-Id", "X-Authpool-Subscription", "X-Authpool-Session"} {
			if resp.Header.Get(name) == "" {
				t.Errorf("%s: no %s", path, name)
			}
		}
		_ = c.CloseNow()
		mu.Lock()
		defer mu.Unlock()
		head := heads[len(heads)-1]
		if !strings.Contains(head, wantHead) || strings.Contains(head, testToken) || strings.Contains(head, "insecure") {
			t.Errorf("the provider got %s", head)
		}
	}
	f("/v1/realtime?model=gpt-realtime", []string{"realtime", "openai-insecure-api-key." + testToken, "openai-project.x"}, "realtime", "GET /v1/realtime?model=gpt-realtime HTTP/1.1")
	f("/v1/realtime?model=gpt-realtime", []string{"openai-insecure-api-key." + testToken}, "", key("openai", 1))
	f("/openai/v1/responses?key="+testToken, nil, "", "GET /v1/responses HTTP/1.1")
	f("/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent?key="+testToken, nil, "", "x-goog-api-key: "+key("gemini", 1))
	f("/gemini/ws/google.ai.generativelanguage.v1alpha.GenerativeService.BidiGenerateContent?key="+testToken, nil, "", "GET /ws/google.ai.generativelanguage.v1alpha.")
}

func TestSocketRefused(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.accept(t, "") })
	r := newRig(t, u.url(), 1)
	const good = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	f := func(method, path, headers string, want int) {
		t.Helper()
		c := r.dial()
		_, _ = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n%s\r\n", method, path, r.addr, testToken, headers)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("%s %s with %q: %d, want %d", method, path, headers, resp.StatusCode, want)
		}
	}
	f("GET", "/v1/responses", good, 101)
	f("GET", "/v1/chat/completions", good, 426)
	f("GET", "/openai/v1/realtime/transcription", good, 426)
	f("GET", "/anthropic/v1/responses", good, 426)
	f("GET", "/v1/responses", strings.Replace(good, "websocket", "h2c", 1), 426)
	f("GET", "/v1/responses", strings.Replace(good, "13", "8", 1), 426)
	f("GET", "/v1/responses", strings.Replace(good, "Connection: keep-alive, Upgrade\r\n", "", 1), 400)
	f("GET", "/v1/responses", strings.Replace(good, "dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 1), 400)
	f("GET", "/v1/responses", good+"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", 400)
	f("GET", "/v1/responses", good+"Origin: https://evil.example\r\n", 403)
	f("DELETE", "/v1/responses", good, 400)
	if n := len(u.requests()); n != 1 {
		t.Errorf("the provider got %d requests", n)
	}
}

func TestSocketFailover(t *testing.T) {
	f := func(answer string) {
		t.Helper()
		u := newUpstream(t, func(c *upstreamConn) {
			if c.key == key("openai", 1) {
				_, _ = io.WriteString(c, answer)
				return
			}
			answerTurns(t)(c)
		})
		r := newRig(t, u.url(), 2)
		c, resp, err := r.socket("/v1/responses", nil)
		if err != nil {
			t.Fatalf("%q: %v", answer, err)
		}
		if sub := resp.Header.Get("X-Authpool-Subscription"); sub != "openai-2" {
			t.Errorf("served by %s", sub)
		}
		say(t, c, askTurn)
		readUntil(t, c, "response.completed")
		if e := r.waitEvents(1)[0]; e.Subscription != "openai-2" {
			t.Errorf("event %+v", e)
		}
	}
	const limit = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 20\r\nContent-Length: 59\r\n\r\n{\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"limited\"}}"
	f(strings.Replace(limit, "59", fmt.Sprint(len(limit)-strings.Index(limit, "{")), 1))
	f("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
	f("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
	f("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
	f("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n")
}

// An answer that agrees to what nobody has offered is none.
func TestSocketUnoffered(t *testing.T) {
	for _, extra := range []string{"Sec-WebSocket-Extensions: permessage-deflate\r\n", "Sec-WebSocket-Protocol: chat\r\n"} {
		u := newUpstream(t, func(c *upstreamConn) { c.accept(t, extra).receive() })
		r := newRig(t, u.url(), 1)
		if _, resp, err := r.socket("/v1/responses", nil); err == nil || resp.StatusCode != 502 {
			t.Errorf("%q: %v, %v", extra, resp, err)
		}
	}
}

// All closed: the agent gets an HTTP error in the provider's shape.
func TestSocketExhausted(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		c.json(429, "Retry-After: 20\r\n", `{"error":{"code":"rate_limit_exceeded","message":"limited"}}`)
	})
	r := newRig(t, u.url(), 2)
	_, resp, err := r.socket("/v1/responses", nil)
	if err == nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Fatalf("%v, %v", resp, err)
	}
	if body, _ := io.ReadAll(resp.Body); !strings.Contains(string(body), `"error"`) || !strings.Contains(string(body), "authpool:") {
		t.Errorf("%s", body)
	}
	if n := len(r.recorder.all()); n != 0 {
		t.Errorf("%d events", n)
	}
}

// A limit inside sends the next socket elsewhere; this one goes on.
func TestSocketLimitInside(t *testing.T) {
	f := func(message string) {
		t.Helper()
		u := newUpstream(t, func(c *upstreamConn) {
			if c.key != key("openai", 1) {
				answerTurns(t)(c)
				return
			}
			p := c.accept(t, "")
			p.receive()
			p.send(message)
			for p.receive() != "" {
				p.send(created, delta, completed)
			}
		})
		r := newRig(t, u.url(), 2)
		c := r.mustSocket("/v1/responses")
		say(t, c, askTurn)
		if m, err := listenFor(t, c); err != nil || m != message {
			t.Fatalf("%q, %v", m, err)
		}
		say(t, c, askTurn)
		readUntil(t, c, "response.completed")
		_, resp, err := r.socket("/v1/responses", nil)
		if err != nil || resp.Header.Get("X-Authpool-Subscription") != "openai-2" {
			t.Errorf("after %s: %v, %v", message, resp, err)
		}
		if events := r.recorder.all(); len(events) != 1 || events[0].Tokens.Output != 5 {
			t.Errorf("after %s: %+v", message, events)
		}
	}
	f(`{"type":"error","status":429,"error":{"type":"requests","code":"rate_limit_exceeded","message":"Please try again in 20s."}}`)
	f(`{"type":"response.failed","response":{"id":"resp_1","status":"failed","usage":null,"error":{"code":"rate_limit_exceeded","message":"Please try again in 20s."}}}`)
	f(`{"type":"error","error":{"type":"insufficient_quota","code":"insufficient_quota","message":"You exceeded your current quota"}}`)
}

// What the agent gets when it, or the provider, leaves in a turn is counted as estimated.
func TestSocketCut(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.receive()
		p.send(created, delta, delta, delta)
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/responses")
	say(t, c, askTurn)
	readUntil(t, c, "delta")
	if e := r.recorder.lastOpened(); !e.Unknown || e.Model != "gpt-5.1" || !strings.HasSuffix(e.ID, "/1") {
		t.Errorf("the journal was told %+v", e)
	}
	_ = c.CloseNow()
	e := r.waitEvents(1)[0]
	if !e.Estimated || !e.Unknown || e.Tokens.Output == 0 {
		t.Errorf("event %+v", e)
	}
}

// Shutdown takes leave of agents whose sockets have outlived it.
func TestSocketShutdown(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.receive()
		p.send(created, delta)
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/responses")
	say(t, c, askTurn)
	readUntil(t, c, "delta")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.server.Shutdown(ctx)
	}()
	_, err := listenFor(t, c)
	var closed websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != websocket.StatusGoingAway {
		t.Errorf("the agent got %v", err)
	}
	_ = c.CloseNow()
	<-done
	if e := r.waitEvents(1)[0]; !e.Estimated {
		t.Errorf("event %+v", e)
	}
}

// A frame that says the credential again does not bring it to the agent.
func TestSocketEcho(t *testing.T) {
	secret := key("openai", 1)
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.send(`{"say":"` + secret + `"}`)
		p.receive()
		text := `{"say":"` + secret + `"}`
		_, _ = io.WriteString(p, frame(0x01, text[:15])+frame(0x80, text[15:]))
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/responses")
	if m, err := listenFor(t, c); err != nil || m != `{"say":"`+strings.Repeat("*", len(secret))+`"}` {
		t.Errorf("%q, %v", m, err)
	}
	say(t, c, "next")
	if m, err := listenFor(t, c); err == nil {
		t.Errorf("the agent got %q", m)
	}
}

func TestInterceptedSocket(t *testing.T) {
	u := newUpstream(t, answerTurns(t))
	r := newRig(t, u.url(), 1, intercepted(t, u), func(o *rigOptions) {
		o.providers[0], o.providers[1] = o.providers[1], o.providers[0]
		o.providers[0].BaseURL = "http://llm.example.test:443"
		o.providers[1].BaseURL = u.url()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "wss://llm.example.test/v1/responses", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				nc, _ := r.open("my-session", testToken, "llm.example.test:443")
				return secured(ctx, nc, r)
			},
		}},
		HTTPHeader: http.Header{"Authorization": {"Bearer sk-the-agents-own"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		say(t, c, askTurn)
		readUntil(t, c, "response.completed")
	}
	_ = c.Close(websocket.StatusNormalClosure, "")
	for _, e := range r.waitEvents(2) {
		if e.Session != "my-session" || e.Tokens.Output != 5 {
			t.Errorf("event %+v", e)
		}
	}
}

// A socket over its agent's budget is closed at the turn's end, with the turn.
func TestSocketBudget(t *testing.T) {
	u := newUpstream(t, answerTurns(t))
	book := newBook(t)
	r := newRig(t, u.url(), 1, knowing(book), func(o *rigOptions) {
		o.deps = func(d *Deps) { d.Recorder = counting{d.Recorder, book} }
	})
	bob := create(t, book, agents.Agent{ID: "bob", Budgets: []agents.Budget{{Period: usage.PeriodMonth, Requests: 2}}})
	bearer := http.Header{"Authorization": {"Bearer " + bob}}
	c, _, err := r.socket("/v1/responses", bearer)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		say(t, c, askTurn)
		readUntil(t, c, "response.completed")
	}
	refusedFor(t, c, "authpool: this agent has used up its budget of requests")
	if n := len(r.waitEvents(2)); n != 2 {
		t.Errorf("%d events", n)
	}
	if _, resp, err := r.socket("/v1/responses", bearer); err == nil || resp.StatusCode != 429 {
		t.Errorf("another socket: %v, %v", resp, err)
	}
}

// refusedFor wants the socket closed by authpool for what its agent may not do.
func refusedFor(t testing.TB, c *websocket.Conn, reason string) {
	t.Helper()
	for {
		_, err := listenFor(t, c)
		if err == nil {
			continue
		}
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != websocket.StatusPolicyViolation || !strings.HasPrefix(closed.Reason, reason) {
			t.Errorf("the agent got %v, want %q", err, reason)
		}
		return
	}
}

// What an agent may not use it does not reach by a message either, nor what another has made.
func TestSocketRights(t *testing.T) {
	var mu sync.Mutex
	var got []string
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		for {
			m := p.receive()
			if m == "" {
				return
			}
			mu.Lock()
			got = append(got, m)
			mu.Unlock()
			p.send(created, delta, completed)
		}
	})
	book := newBook(t)
	r := newRig(t, u.url(), 1, isolated, knowing(book))
	carol := create(t, book, agents.Agent{ID: "carol", Rights: agents.Rights{Models: []string{"gpt-5.1*"}}})
	as := func(token string) *websocket.Conn {
		t.Helper()
		c, _, err := r.socket("/v1/responses", http.Header{"Authorization": {"Bearer " + token}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	mine := as(testToken)
	say(t, mine, askTurn)
	readUntil(t, mine, "response.completed")
	limited := as(carol)
	say(t, limited, strings.Replace(askTurn, "gpt-5.1", "gpt-5.1-mini", 1))
	readUntil(t, limited, "response.completed")
	say(t, limited, strings.Replace(askTurn, "gpt-5.1", "o9-pro", 1))
	refusedFor(t, limited, `authpool: agent carol may not use model "o9-pro"`)
	foreign := as(otherToken)
	say(t, foreign, `{"type":"response.create","model":"gpt-5.1","previous_response_id":"resp_1","input":[]}`)
	refusedFor(t, foreign, "authpool: there is no resp_1 for agent other")
	say(t, mine, `{"type":"response.create","model":"gpt-5.1","previous_response_id":"resp_1","input":[]}`)
	readUntil(t, mine, "response.completed")
	mu.Lock()
	defer mu.Unlock()
	for _, m := range got {
		if strings.Contains(m, "o9-pro") {
			t.Errorf("the provider got %s", m)
		}
	}
	if len(got) != 3 {
		t.Errorf("the provider got %d messages", len(got))
	}
}

// A Close with which a provider says that a limit was reached sends the next socket elsewhere.
func TestSocketCloseForLimit(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		if c.header("x-goog-api-key") == key("gemini", 1) {
			_, _ = io.WriteString(p, frame(0x88, "\x03\xf3You exceeded your current quota, please check your plan"))
		}
		p.receive()
	})
	r := newRig(t, u.url(), 1, func(o *rigOptions) {
		o.providers = append(o.providers, provider.Options{Name: "gemini", Family: provider.Gemini, BaseURL: u.url(), AllowPlaintext: true})
		for n := 1; n <= 2; n++ {
			o.subs = append(o.subs, pool.Subscription{ID: fmt.Sprintf("gemini-%d", n), Provider: "gemini", Priority: n, Credential: fixedKey(key("gemini", n))})
		}
	})
	const path = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
	c := r.mustSocket(path)
	if _, err := listenFor(t, c); websocket.CloseStatus(err) != websocket.StatusInternalError {
		t.Errorf("the agent got %v", err)
	}
	_, resp, err := r.socket(path, nil)
	if err != nil || resp.Header.Get("X-Authpool-Subscription") != "gemini-2" {
		t.Errorf("%v, %v", resp, err)
	}
}

// What a Realtime session tells of its limits is known of the subscription, and what another model has written down is
// counted beside the turns.
func TestSocketRealtime(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.send(
			`{"type":"session.created","session":{"model":"gpt-realtime","audio":{"input":{"transcription":{"model":"whisper-1"}}}}}`,
			`{"type":"conversation.item.input_audio_transcription.completed","usage":{"type":"tokens","input_tokens":13,"output_tokens":9}}`,
			`{"type":"response.created","response":{"id":"resp_1"}}`,
			`{"type":"rate_limits.updated","rate_limits":[{"name":"tokens","limit":50000,"remaining":1950,"reset_seconds":57.7}]}`,
			`{"type":"response.done","response":{"id":"resp_1","status":"completed","usage":{"input_tokens":20,"output_tokens":5,"input_token_details":{"audio_tokens":12,"cached_tokens":4}}}}`,
		)
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/realtime?model=gpt-realtime")
	readUntil(t, c, "response.done")
	events := r.recorder.all()
	if len(events) != 2 || events[0].Model != "whisper-1" || !events[0].Further || events[0].Tokens.Output != 9 ||
		events[1].Model != "gpt-realtime" || events[1].Further || !events[1].Unpriced || events[1].Tokens != (usage.Tokens{Input: 16, CacheRead: 4, Output: 5}) {
		t.Errorf("events %+v", events)
	}
	status := r.pool.Status()
	found := false
	for _, s := range status {
		for _, w := range s.Windows {
			found = found || s.ID == "openai-1" && w.Name == "tokens" && w.Left == 1950
		}
	}
	if !found {
		t.Errorf("the limit is not known: %+v", status)
	}
}

// Whatever is said, in whatever frames and pieces, arrives as it was sent.
func TestSocketBytes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(masked bool) (wire []byte) {
			for range rapid.IntRange(1, 8).Draw(rt, "messages") {
				parts := rapid.IntRange(1, 3).Draw(rt, "frames")
				for i := range parts {
					opcode := byte(rapid.IntRange(1, 2).Draw(rt, "opcode"))
					if i > 0 {
						opcode = 0
					}
					if i == parts-1 {
						opcode |= 0x80
					}
					text := frame(opcode, string(rapid.SliceOfN(rapid.Byte(), 0, 70_000).Draw(rt, "payload")))
					if masked {
						text = mask(text)
					}
					wire = append(wire, text...)
				}
				ping := frame(0x89, "ping")
				if masked {
					ping = mask(ping)
				}
				wire = append(wire, ping...)
			}
			return wire
		}
		up, down := draw(true), draw(false)
		cut := rapid.IntRange(1, 5000).Draw(rt, "cut")
		arrived := make(chan []byte, 1)
		u := newUpstream(t, func(c *upstreamConn) {
			p := c.accept(t, "")
			go func() {
				for rest := down; len(rest) > 0; {
					n := min(cut, len(rest))
					if _, err := p.Write(rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
			}()
			got := make([]byte, len(up))
			_, _ = io.ReadFull(p.br, got)
			arrived <- got
			p.receive()
		})
		defer u.close()
		r := newRig(t, u.url(), 1, func(o *rigOptions) { o.quiet = true })
		c := r.dial()
		defer func() { _ = c.Close() }()
		_, _ = fmt.Fprintf(c, "GET /v1/responses HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", r.addr, testToken)
		br := bufio.NewReader(c)
		if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 {
			rt.Fatalf("%v, %v", resp, err)
		}
		go func() { _, _ = c.Write(up) }()
		got := make([]byte, len(down))
		if _, err := io.ReadFull(br, got); err != nil || !bytes.Equal(got, down) {
			rt.Fatalf("the agent got something else: %v", err)
		}
		if !bytes.Equal(<-arrived, up) {
			rt.Fatal("the provider got something else")
		}
	})
}

// mask makes a client's frame of a server's.
func mask(text string) string {
	b := []byte(text)
	size := map[byte]int{126: 2, 127: 8}[b[1]]
	key := []byte{1, 2, 3, 4}
	masked := append(bytes.Clone(b[:2+size]), key...)
	masked[1] |= 0x80
	for i, c := range b[2+size:] {
		masked = append(masked, c^key[i%4])
	}
	return string(masked)
}

// A socket on which nobody says anything is closed, with a word to the agent.
func TestSocketIdle(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.accept(t, "").receive() })
	r := newRig(t, u.url(), 1, func(o *rigOptions) { o.opts.Idle = 50 * time.Millisecond })
	c := r.mustSocket("/v1/responses")
	if _, err := listenFor(t, c); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the agent got %v", err)
	}
}

// A socket outlives its agent's token by seconds, also while nothing is said on it.
func TestRevokedAgentLosesItsSocket(t *testing.T) {
	u := newUpstream(t, answerTurns(t))
	book := newBook(t)
	r := newRig(t, u.url(), 1, knowing(book))
	token := create(t, book, agents.Agent{ID: "leaver"})
	c, _, err := r.socket("/v1/responses", http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		t.Fatal(err)
	}
	say(t, c, askTurn)
	readUntil(t, c, "response.completed")
	if err := book.Remove(t.Context(), "leaver", 0); err != nil {
		t.Fatal(err)
	}
	_, err = listenFor(t, c)
	var closed websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != websocket.StatusPolicyViolation || !strings.HasPrefix(closed.Reason, "authpool:") {
		t.Errorf("the agent got %v", err)
	}
}

// At a stop a silent socket is closed at once, and one in a turn when that has ended.
func TestSocketsAtAStop(t *testing.T) {
	goOn := make(chan struct{})
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		if p.receive() == "" {
			return
		}
		p.send(created, delta)
		c.wait(goOn)
		p.send(completed)
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	silent, busy := r.mustSocket("/v1/responses"), r.mustSocket("/v1/responses")
	say(t, busy, askTurn)
	readUntil(t, busy, "delta")
	done := make(chan error, 1)
	go func() { done <- r.server.Shutdown(context.Background()) }() // as much grace as they like
	expectGone := func(c *websocket.Conn) {
		t.Helper()
		_, err := listenFor(t, c)
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != websocket.StatusGoingAway {
			t.Errorf("the agent got %v", err)
		}
		_ = c.CloseNow()
	}
	expectGone(silent)
	close(goOn)
	readUntil(t, busy, "response.completed")
	expectGone(busy)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if e := r.waitEvents(1)[0]; e.Estimated {
		t.Errorf("event %+v", e)
	}
}

// What stands before a message that is refused goes on, though they came together.
func TestSocketRefusesTheSecondOfTwo(t *testing.T) {
	first := make(chan string, 1)
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		first <- p.receive()
		p.receive()
	})
	book := newBook(t)
	r := newRig(t, u.url(), 1, knowing(book))
	token := create(t, book, agents.Agent{ID: "carol", Rights: agents.Rights{Models: []string{"gpt-5.1*"}}})
	c := r.dial()
	_, _ = fmt.Fprintf(c, "GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", token)
	if resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	masked := func(text string) string { // by a mask of zeros
		return string([]byte{0x81, 0x80 | 126, byte(len(text) >> 8), byte(len(text)), 0, 0, 0, 0}) + text
	}
	refused := strings.Replace(askTurn, "gpt-5.1", "other-1", 1)
	_, _ = io.WriteString(c, masked(askTurn+strings.Repeat(" ", 100))+masked(refused+strings.Repeat(" ", 100)))
	select {
	case got := <-first:
		if strings.TrimSpace(got) != askTurn {
			t.Errorf("the provider got %q", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("the provider got nothing")
	}
}
