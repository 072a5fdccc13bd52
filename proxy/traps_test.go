package proxy

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/ratelimit/usage"
)

// The tests of this file each name a trap of the HTTP library (fasthttp 1.74.0)
// or of the breaker that was once fallen into, and fail for whoever falls into it
// again. They go over sockets, so that they see what the provider or the agent
// would.

// mixed writes every other letter in upper case.
func mixed(name string) string {
	b := []byte(strings.ToLower(name))
	for i := range b {
		if i%2 == 1 {
			b[i] = bytes.ToUpper(b[i : i+1])[0]
		}
	}
	return string(b)
}

// ask writes a request as it is on a connection of its own and reads the answer.
func (r *rig) ask(request string) (*http.Response, string) {
	r.t.Helper()
	c := r.dial()
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		r.t.Fatalf("%.200q: %v", request, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%.200q: %v", request, err)
	}
	return resp, string(body)
}

// Trap: with DisableHeaderNamesNormalizing the library's Peek, Del and Set by
// name see one spelling only; a lower-case x-api-key went upstream untouched.
func TestTrapHeaderNamesInEveryCase(t *testing.T) {
	const canary = "agents-own-canary"
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	names := []string{
		"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key",
		"x-goog-user-project", "x-goog-iam-authorization-token", "openai-organization", "openai-project",
		"chatgpt-account-id", "x-organization-uuid", "anthropic-workspace-id", "anthropic-user-profile-id",
		"x-amz-security-token", "x-amz-date", "x-amz-content-sha256", "ocp-apim-subscription-key",
		"x-oai-attestation", "x-openai-authorization", "x-openai-actor-authorization", "x-claude-code-ide-authorization",
		"keep-alive", "proxy-connection", "te", "trailer", "x-authpool-session", "x-authpool-anything", "sec-websocket-protocol",
		"x-original-url", "x-rewrite-url", "x-http-method-override", "x_api_key",
	}
	for _, path := range []string{"/v1/messages", "/v1/responses"} {
		for _, name := range names {
			upper := strings.ToUpper(name)
			for _, lines := range []string{
				name + ": " + canary + "\r\n",
				upper + ": " + canary + "\r\n",
				mixed(name) + ": " + canary + "\r\n",
				name + ": " + canary + "\r\nX-Between: 1\r\n" + upper + ":" + canary + "\r\n",
			} {
				resp, _ := r.ask("POST " + path + " HTTP/1.1\r\nHost: localhost\r\n" + lines +
					"AUTHORIZATION: Bearer " + testToken + "\r\nContent-Length: 2\r\n\r\n{}")
				if resp.StatusCode != 200 {
					t.Fatalf("%q: %s", lines, resp.Status)
				}
			}
		}
	}
	heads := up.requests()
	if want := 2 * 4 * len(names); len(heads) != want {
		t.Errorf("%d requests arrived, want %d", len(heads), want)
	}
	for _, head := range heads {
		if strings.Contains(head, canary) || strings.Contains(head, testToken) {
			t.Errorf("the provider got\n%s", head)
		}
	}
}

// The same trap at the token: it is found, and left behind, in every carrier and
// case.
func TestTrapTokenInEveryCase(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("session:"+testToken))
	for _, line := range []string{
		"authorization: bearer " + testToken, "proxy-authorization: " + basic,
		"x-api-key: " + testToken, "api-key: " + testToken, "x-goog-api-key: " + testToken,
	} {
		name, value, _ := strings.Cut(line, ": ")
		for _, form := range []string{name, strings.ToUpper(name), mixed(name)} {
			resp, body := r.ask("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + form + ": " + value + "\r\nContent-Length: 2\r\n\r\n{}")
			if resp.StatusCode != 200 {
				t.Errorf("%s: %s %s", form, resp.Status, body)
			}
		}
	}
	for _, head := range up.requests() {
		if strings.Contains(head, testToken) || strings.Contains(strings.ToLower(head), "basic ") {
			t.Errorf("the provider got\n%s", head)
		}
		if n := strings.Count(head, key("anthropic", 1)); n != 1 {
			t.Errorf("the provider got %d credentials:\n%s", n, head)
		}
	}
}

// The same trap on the way back: what an answer's head says counts, and what must
// stay behind stays behind, in every case.
func TestTrapAnswerHeadersInEveryCase(t *testing.T) {
	for _, form := range []func(string) string{strings.ToLower, strings.ToUpper, mixed} {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = io.WriteString(z, msgStart+msgBlock+msgHello+msgDelta+msgStop)
		_ = z.Close()
		up := newUpstream(t, func(c *upstreamConn) {
			if c.key == key("anthropic", 1) {
				c.write("HTTP/1.1 429 Too Many Requests\r\n%s: 600\r\n%s: %d\r\n%s: close\r\n\r\n%s",
					form("Retry-After"), form("Content-Length"), len(limited), form("Connection"), limited)
				return
			}
			c.write("HTTP/1.1 200 OK\r\n%s: text/event-stream\r\n%s: gzip\r\n%s: chunked\r\n%s: close\r\n%s: a=b\r\n%s: forged\r\n%s: h3\r\n%s: req_1\r\n\r\n",
				form("Content-Type"), form("Content-Encoding"), form("Transfer-Encoding"), form("Connection"),
				form("Set-Cookie"), form("X-Authpool-Subscription"), form("Alt-Svc"), form("Request-Id"))
			c.chunk(packed.String())
			c.last()
		})
		r := newRig(t, up.url(), 2)
		resp := r.send("POST", "/v1/messages", "Accept-Encoding: gzip\r\n", messageS)
		got, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(got, packed.Bytes()) {
			t.Errorf("%s: %d bytes, %v", form("answer"), len(got), err)
		}
		h := resp.Header
		if len(h.Values("X-Authpool-Subscription")) != 1 || h.Get("X-Authpool-Subscription") != "anthropic-2" ||
			h.Get("Set-Cookie") != "" || h.Get("Alt-Svc") != "" || h.Get("Request-Id") != "req_1" || h.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s: head %q", form("answer"), h)
		}
		if e := r.waitEvents(1)[0]; e.Tokens.Input != 12 || e.Tokens.Output != 7 || e.Estimated {
			t.Errorf("%s: event %+v", form("answer"), e)
		}
		for _, s := range r.pool.Status() {
			if until := s.CooldownModels["claude-sonnet-4-5"]; s.ID == "anthropic-1" && time.Until(until) < 9*time.Minute {
				t.Errorf("%s: closed until %v, the provider said ten minutes", form("Retry-After"), until)
			}
		}
	}
}

// Trap: the library accepts both framings at once, folded headers, bare line
// feeds, another host in the target, and dot segments. Each is refused, and what
// stands behind it on the connection is not taken for a request.
func TestTrapSmuggledRequests(t *testing.T) {
	const good = "x-api-key: " + testToken + "\r\n"
	const host = "Host: localhost\r\n" + good
	behind := "POST /v1/messages HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\n{}"
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	for name, request := range map[string]string{
		"length, then chunks":           "POST /v1/messages HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunks, then length":           "POST /v1/messages HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"in other cases":                "POST /v1/messages HTTP/1.1\r\n" + host + "CONTENT-LENGTH: 5\r\ntRaNsFeR-eNcOdInG: chunked\r\n\r\n0\r\n\r\n",
		"folded":                        "POST /v1/messages HTTP/1.1\r\n" + host + "X-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
		"folded by a tab":               "POST /v1/messages HTTP/1.1\r\n" + host + "X-A: b\r\n\tTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
		"bare LF in a header":           "POST /v1/messages HTTP/1.1\r\n" + host + "X-A: b\nContent-Length: 2\r\n\r\n{}",
		"bare LF ends the head":         "POST /v1/messages HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\n{}",
		"bare LF behind the first line": "POST /v1/messages HTTP/1.1\n" + host + "Content-Length: 2\r\n\r\n{}",
		"another host":                  "POST http://other.test/v1/messages HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\n{}",
		"another host as user":          "POST http://localhost@other.test/v1/messages HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\n{}",
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(c, request+behind)
			br := bufio.NewReader(c)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != 400 || resp.Header.Get("X-Authpool-Error") != "bad_request" || !strings.Contains(string(body), "authpool: ") {
				t.Errorf("%s %q: %s", resp.Status, resp.Header, body)
			}
			if rest, _ := io.ReadAll(br); len(rest) > 0 {
				t.Errorf("what stood behind it was answered: %q", rest)
			}
		})
	}
	for _, path := range []string{
		"/v1/messages/../organizations", "/v1/messages/./../organizations", "/v1/messages/%2e%2e/organizations", "/v1/messages/%2E%2e/organizations",
		"/v1/messages/.%2e/organizations", "/v1/messages/..%2forganizations", "/v1/messages/%252e%252e/organizations",
		`/v1/messages/..\organizations`, "/anthropic/v1/%2e%2e/v1/organizations", "/anthropic/../openai/v1/models",
	} {
		if resp, body := r.ask("GET " + path + " HTTP/1.1\r\n" + host + "\r\n"); resp.StatusCode != 400 {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	if got := up.requests(); len(got) > 0 {
		t.Errorf("these reached the provider: %q", got)
	}
}

// Trap: an over-long body is 400 in plain text unless the error handler says
// otherwise, and with StreamRequestBody the limit does not hold at all. In chunks
// there is no length to look at beforehand, and the library has forgotten the
// head, of which the connection keeps the first line.
func TestTrapBodyLimitOfChunks(t *testing.T) {
	const limit = 256 << 10
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", fmt.Sprintf(`{"got":%d}`, len(c.body))) })
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.BodyLimit = limit })
	send := func(path string, size int) (*http.Response, string) {
		c := r.dial()
		defer c.Close()
		go func() { // may be cut off meanwhile
			fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nTransfer-Encoding: chunked\r\n\r\n", path, testToken)
			piece := strings.Repeat(" ", 32<<10)
			for size > 0 {
				n := min(size, len(piece))
				if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", n, piece[:n]); err != nil {
					return
				}
				size -= n
			}
			_, _ = io.WriteString(c, "0\r\n\r\n")
		}()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		return resp, string(body)
	}
	if resp, body := send("/v1/messages", limit); resp.StatusCode != 200 || body != fmt.Sprintf(`{"got":%d}`, limit) {
		t.Errorf("at the limit: %s %s", resp.Status, body)
	}
	for _, path := range []string{"/v1/messages", "/v1/responses"} {
		for _, size := range []int{limit + 1, 32 << 20} {
			resp, body := send(path, size)
			if resp.StatusCode != 413 || resp.Header.Get("Content-Type") != "application/json" || strings.HasPrefix(body, `{"type":"error"`) != (path == "/v1/messages") || !strings.Contains(body, `"error":{`) || !strings.Contains(body, `"message":"authpool: `) {
				t.Errorf("%s with %d bytes: %s %q: %s", path, size, resp.Status, resp.Header.Get("Content-Type"), body)
			}
		}
	}
	if n := len(up.requests()); n != 1 {
		t.Errorf("%d requests reached the provider", n)
	}
}

// Trap: a time-out of the whole answer ends long streams. All that authpool has
// are renewed by progress or are over when the answer begins; package agentconn
// and upstream show the same for minutes, in a bubble.
func TestTrapLongStreamOutlivesEveryLimit(t *testing.T) {
	const events = 12 // three seconds
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for range events {
			<-tick.C
			c.chunk(msgHello)
		}
		c.chunk(msgDelta + msgStop)
		c.last()
	})
	r := newRig(t, up.url(), 1, func(o *rigOptions) {
		o.opts.Idle, o.opts.WriteStall, o.opts.Deadline, o.opts.Hold = 2*time.Second, 2*time.Second, time.Second, time.Second
	})
	if _, _, got := r.post("/v1/messages", messageS); got != msgStart+msgBlock+strings.Repeat(msgHello, events)+msgDelta+msgStop {
		t.Errorf("the agent got %q", got)
	}
}

// Trap: ReadBufferSize is the limit of the head, 4 KB unless told, on both sides.
func TestTrapHeadSizes(t *testing.T) {
	big := strings.Repeat("b", 12<<10)
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "X-Big: "+big+"\r\n", answer) })
	r := newRig(t, up.url(), 1)
	request := func(n int) string {
		return "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: " + testToken + "\r\nanthropic-beta: " + strings.Repeat("b", n) + "\r\nContent-Length: 2\r\n\r\n{}"
	}
	resp, _ := r.ask(request(30 << 10))
	if resp.StatusCode != 200 || resp.Header.Get("X-Big") != big {
		t.Errorf("30 KB there, 12 KB back: %s, %d bytes", resp.Status, len(resp.Header.Get("X-Big")))
	}
	if head := up.requests()[0]; !strings.Contains(head, strings.Repeat("b", 30<<10)) {
		t.Errorf("%d bytes of head reached the provider", len(head))
	}
	resp, body := r.ask(request(33 << 10))
	if resp.StatusCode != 431 || resp.Header.Get("X-Authpool-Error") != "head_too_large" || !strings.Contains(body, "limits_http.header") {
		t.Errorf("over the limit: %s %s", resp.Status, body)
	}
	if n := len(up.requests()); n != 1 {
		t.Errorf("%d requests reached the provider", n)
	}
}

// rude is a provider that answers as soon as it has seen the head, and then
// closes its connection without reading the body.
func rude(t *testing.T, status func(n int, head string) string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			br := bufio.NewReaderSize(c, 512)
			req, err := http.ReadRequest(br)
			if err != nil {
				_ = c.Close()
				continue
			}
			says := status(n, fmt.Sprint(req.Header))
			if strings.HasPrefix(says, "200") {
				_, _ = io.Copy(io.Discard, req.Body)
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Type: application/json\r\n", says)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return "http://" + ln.Addr().String()
}

// Trap: an answer that comes early during a large upload was lost as "connection
// reset", three times out of three: a 429 must lead to the next subscription and
// a 413 be shown.
func TestTrapAnswerDuringALargeUpload(t *testing.T) {
	upload := `{"model":"m","x":"` + strings.Repeat("x", 8<<20) + `"}`
	framed := func(extra, body string) string {
		return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", extra, len(body), body)
	}
	large := `{"type":"error","error":{"type":"request_too_large","message":"too large"}}`
	for i := range 5 {
		url := rude(t, func(_ int, head string) string {
			if strings.Contains(head, key("anthropic", 1)) {
				return "429 Too Many Requests\r\n" + framed("Retry-After: 600\r\n", limited)
			}
			return "200 OK\r\n" + framed("", answer)
		})
		r := newRig(t, url, 2)
		if status, h, body := r.post("/v1/messages", upload); status != 200 || h.Get("X-Authpool-Subscription") != "anthropic-2" {
			t.Errorf("429, round %d: %d %s", i, status, body)
		}
		r = newRig(t, rude(t, func(int, string) string { return "413 Too Large\r\n" + framed("", large) }), 2)
		if status, h, body := r.post("/v1/messages", upload); status != 413 || body != large || h.Get("X-Authpool-Attempts") != "1" {
			t.Errorf("413, round %d: %d %s", i, status, body)
		}
	}
}

// Trap: a peek at the agent's socket never sees the end behind an unread
// pipelined byte, and the provider would go on for nobody.
func TestTrapAgentLeavesBehindAPipelinedRequest(t *testing.T) {
	arrived, closed := make(chan struct{}), make(chan time.Time)
	up := newUpstream(t, func(c *upstreamConn) {
		close(arrived)
		_, _ = io.Copy(io.Discard, c)
		closed <- time.Now()
	})
	r := newRig(t, up.url(), 1)
	c := r.dial()
	_, _ = io.WriteString(c, messageRequest(message))
	<-arrived
	fmt.Fprint(c, "GET /v1/models HTTP/1.1\r\n")
	left := time.Now()
	_ = c.Close()
	select {
	case at := <-closed:
		if d := at.Sub(left); d > time.Second {
			t.Errorf("the upstream call ended after %v", d)
		}
	case <-time.After(time.Minute):
		t.Fatal("the upstream call goes on for an agent that has left")
	}
}

// Trap: after ShutdownWithContext had given up waiting, a live connection served
// another request.
func TestTrapNoRequestAfterShutdown(t *testing.T) {
	begun := make(chan struct{}, 1)
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.body, "late") {
			c.json(200, "", answer)
			return
		}
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		begun <- struct{}{}
		<-c.stop
	})
	r := newRig(t, up.url(), 1)
	late := strings.Replace(message, "hi", "late", 1)
	request := func(body string) string {
		return fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s", testToken, len(body), body)
	}
	idle, busy, slow := r.dial(), r.dial(), r.dial()
	// One has been served before and is kept, one is in the middle of an answer
	// with its next request sent already, one is in the middle of its request.
	br := bufio.NewReader(idle)
	_, _ = io.WriteString(idle, request(late))
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_, _ = io.WriteString(busy, request(messageS)+request(late))
	<-begun
	head := request(late)
	_, _ = io.WriteString(slow, head[:len(head)-5])
	before := len(up.requests())

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- r.server.Shutdown(ctx) }()
	select {
	case err := <-stopped:
		if err == nil {
			t.Error("an answer was cut, and Shutdown does not say so")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Shutdown waits for an answer beyond its time-out")
	}
	for _, c := range []net.Conn{idle, busy} {
		_, _ = io.WriteString(c, request(late)) // closed, as far as this side knows yet
	}
	_, _ = io.WriteString(slow, head[len(head)-5:])
	for name, c := range map[string]net.Conn{"kept": idle, "busy": busy, "slow": slow} {
		if got, err := io.ReadAll(c); strings.Contains(string(got), answer) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s connection got %q, %v after Shutdown", name, got, err)
		}
	}
	if n := len(up.requests()); n != before {
		t.Errorf("%d requests went to the provider after Shutdown: %q", n-before, up.requests()[before:])
	}
}

// Trap: whoever probes holds all others back until it is settled: at its first
// content, not at the end of a ten-minute stream. gobreaker does so half open,
// and so does a cooldown that has ended.
func TestTrapProbeIsSettledAtItsFirstContent(t *testing.T) {
	for name, hold := range map[string]time.Duration{"held": 10 * time.Second, "passed on": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			goOn, begun := make(chan struct{}), make(chan struct{})
			if name == "held" { // the agent sees nothing before the content
				close(begun)
			}
			var mu sync.Mutex
			asked := 0
			up := newUpstream(t, func(c *upstreamConn) {
				mu.Lock()
				asked++
				n := asked
				mu.Unlock()
				switch n {
				case 1: // over the two seconds that are waited for in place
					c.json(429, "retry-after-ms: 2100\r\n", limited)
				case 2: // the probe, and a long one
					c.sse()
					c.chunk(msgStart)
					c.wait(begun)
					c.chunk(msgBlock + msgHello)
					c.wait(goOn)
					c.chunk(msgDelta + msgStop)
					c.last()
				default:
					c.json(200, "", answer)
				}
			})
			r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.Hold = hold; o.pool = pool.Options{Wait: 30 * time.Second} })
			resp := r.send("POST", "/v1/messages", "", messageS)
			for i, want := range []string{msgStart, msgBlock + msgHello} {
				got := make([]byte, len(want))
				if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
					t.Fatalf("the probe: %d %q, %v", resp.StatusCode, got, err)
				}
				if i == 0 && name != "held" {
					close(begun)
				}
			}
			start := time.Now()
			if status, _, body := r.post("/v1/messages", message); status != 200 || time.Since(start) > 20*time.Second {
				t.Errorf("beside the probe's stream: %d after %v: %s", status, time.Since(start), body)
			}
			close(goOn)
			if rest, err := io.ReadAll(resp.Body); string(rest) != msgDelta+msgStop || err != nil {
				t.Errorf("the rest of the probe: %q, %v", rest, err)
			}
		})
	}
}

// Trap: of a body stream that has both Close and CloseWithError the library calls
// both, and an answer would be settled twice: its slot given back twice, its
// usage counted twice.
func TestTrapAnswerIsClosedOnce(t *testing.T) {
	if _, ok := any(&exchange{}).(io.Closer); ok {
		t.Error("exchange has a Close beside its CloseWithError: the library calls both")
	}
	up := newUpstream(t, func(c *upstreamConn) {
		switch {
		case strings.Contains(c.body, "stream"):
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello + msgDelta + msgStop)
			c.last()
		case strings.HasPrefix(c.head, "HEAD"):
			c.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n")
		case strings.Contains(c.body, "none"):
			c.write("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
		case strings.Contains(c.body, "empty"):
			c.json(200, "", "")
		default:
			c.json(200, "", answer)
		}
	})
	r := newRig(t, up.url(), 1)
	for _, body := range []string{message, messageS, strings.Replace(message, "hi", "none", 1), strings.Replace(message, "hi", "empty", 1)} {
		_, _, _ = r.post("/v1/messages", body)
	}
	_ = r.send("HEAD", "/v1/models", "", "").Body.Close()
	for _, s := range r.pool.Status() {
		if s.InFlight < 0 {
			t.Errorf("%s: %d in flight", s.ID, s.InFlight)
		}
	}
	if err := r.server.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	for _, s := range r.pool.Status() {
		if s.InFlight != 0 {
			t.Errorf("%s: %d in flight when all is done", s.ID, s.InFlight)
		}
	}
	seen := map[string]int{}
	for _, e := range r.recorder.all() {
		seen[e.ID]++
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("answer %s was recorded %d times", id, n)
		}
	}
	if len(seen) < 2 {
		t.Errorf("%d answers were recorded", len(seen))
	}
}

// brittleKey panics when it is asked for once it is broken.
type brittleKey struct{ broken atomic.Bool }

func (k *brittleKey) Credential(ctx context.Context) (credential.Credential, error) {
	if k.broken.Load() {
		panic("out of order")
	}
	return fixedKey("sk-brittle-0001").Credential(ctx)
}

func (k *brittleKey) Refresh(ctx context.Context) (credential.Credential, error) {
	return k.Credential(ctx)
}

// Trap: a panic in a handler ends the process.
func TestTrapPanicEndsOneRequestOnly(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	k := &brittleKey{}
	r := newRig(t, up.url(), 0, func(o *rigOptions) {
		o.subs = []pool.Subscription{{ID: "a", Provider: "anthropic", Credential: k, Limits: pool.Limits{Concurrent: 1}}}
	})
	for _, broken := range []bool{true, true, false} {
		k.broken.Store(broken)
		resp := r.send("POST", "/v1/messages", "", message)
		body, _ := io.ReadAll(resp.Body)
		if broken && (resp.StatusCode != 500 || resp.Header.Get("X-Authpool-Error") == "" || !strings.HasPrefix(string(body), `{"type":"error"`) || !resp.Close) {
			t.Errorf("a panic: %s %q: %s", resp.Status, resp.Header, body)
		}
		if !broken && resp.StatusCode != 200 {
			t.Errorf("after two panics: %s %s", resp.Status, body)
		}
	}
	if !strings.Contains(r.log.text(), "out of order") {
		t.Error("the log does not tell about the panic")
	}
	if err := r.server.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// brittleRecorder panics while the first answer's body is written.
type brittleRecorder struct {
	Recorder
	used *atomic.Bool
}

func (r brittleRecorder) Add(e usage.Event) error {
	if !r.used.Swap(true) {
		panic("out of order")
	}
	return r.Recorder.Add(e)
}

// The same while a body is written: the library only logs that, and what the
// request holds must be given back all the same.
func TestTrapPanicInABodyGivesEverythingBack(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1, func(o *rigOptions) {
		o.deps = func(d *Deps) { d.Recorder = brittleRecorder{d.Recorder, new(atomic.Bool)} }
	})
	c := r.dial()
	_, _ = io.WriteString(c, messageRequest(message))
	if got, err := io.ReadAll(c); strings.HasSuffix(string(got), answer) {
		t.Errorf("an answer that was not recorded ended well: %q, %v", got, err)
	}
	if status, _, body := r.post("/v1/messages", message); status != 200 {
		t.Errorf("the next request: %d %s", status, body)
	}
	if err := r.server.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	for _, s := range r.pool.Status() {
		if s.InFlight != 0 {
			t.Errorf("%s: %d in flight when all is done", s.ID, s.InFlight)
		}
	}
}

// Trap: MaxConnsPerHost, 512 unless told, lets long streams starve everybody else.
func TestTrapManyStreamsAtOnce(t *testing.T) {
	const streams = 1100
	goOn := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		c.wait(goOn)
		c.chunk(msgDelta + msgStop)
		c.last()
	})
	r := newRig(t, up.url(), 1)
	r.recorder.added = make(chan struct{}, streams) // nobody waits for these
	conns := make([]net.Conn, streams)
	for i := range conns {
		conns[i] = r.dial()
		fmt.Fprintf(conns[i], "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nX-Authpool-Session: s%d\r\nContent-Length: %d\r\n\r\n%s", testToken, i, len(messageS), messageS)
	}
	answers := make([]io.ReadCloser, streams)
	for i, c := range conns {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("stream %d beside the others: %v, %v", i, resp, err)
		}
		answers[i] = resp.Body
		if _, err := io.ReadFull(resp.Body, make([]byte, len(msgStart+msgBlock+msgHello))); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	close(goOn)
	for i, body := range answers {
		if rest, err := io.ReadAll(body); string(rest) != msgDelta+msgStop || err != nil {
			t.Errorf("stream %d ends with %q, %v", i, rest, err)
		}
	}
}

// Trap: the server answers Expect itself; forwarded, the provider would say 100
// to somebody who does not wait for it.
func TestTrapExpectIsAnsweredHere(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	for _, name := range []string{"Expect", "expect", "EXPECT"} {
		c := r.dial()
		fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\n%s: 100-continue\r\nContent-Length: %d\r\n\r\n", testToken, name, len(message))
		br := bufio.NewReader(c)
		if line, err := br.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
			t.Fatalf("%s: %q, %v", name, line, err)
		}
		_, _ = br.ReadString('\n')
		_, _ = io.WriteString(c, message)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v, %v", name, resp, err)
		}
		_ = resp.Body.Close()
	}
	for _, head := range up.requests() {
		if strings.Contains(strings.ToLower(head), "expect:") {
			t.Errorf("the provider got\n%s", head)
		}
	}
}

// Trap: the library takes the trailers of a chunked request for headers.
func TestTrapTrailersStayBehind(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	resp, body := r.ask("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: " + testToken + "\r\nTrailer: X-Late\r\nTransfer-Encoding: chunked\r\n\r\n" +
		fmt.Sprintf("%x\r\n%s\r\n0\r\n", len(message), message) + "X-Late: after-all\r\n\r\n")
	if resp.StatusCode != 200 {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if head := strings.ToLower(up.requests()[0]); strings.Contains(head, "after-all") || strings.Contains(head, "trailer") || strings.Contains(head, "transfer-encoding") {
		t.Errorf("the provider got\n%s", head)
	}
	// Nor does one stand in for a token.
	resp, _ = r.ask("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-api-key: " + testToken + "\r\n\r\n")
	if resp.StatusCode == 200 || len(up.requests()) != 1 {
		t.Errorf("a token in a trailer: %s", resp.Status)
	}
}

// Trap: normalizing changes what was sent: header names, the path and the query.
func TestTrapBytesAreKeptAsSent(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		c.write("HTTP/1.1 200 Fine\r\nx-lower: 1\r\nX-UPPER: a  b\r\nx-tWICE: 1\r\nx-Twice: 2\r\ncontent-type: application/json;charset=UTF-8\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
	})
	r := newRig(t, up.url(), 1)
	c := r.dial()
	fmt.Fprintf(c, "GET /openai/v1/models/org%%2Fname%%3Av2?Beta=true&q=%%7e+&&z HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\n"+
		"x-lower: One\r\nX-UPPER: a  b\r\nx-tWICE: 1\r\nx-Twice: 2\r\nuser-AGENT: Me/1\r\nConnection: close\r\n\r\n", testToken)
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	head := up.requests()[0]
	if !strings.HasPrefix(head, "GET /v1/models/org%2Fname%3Av2?Beta=true&q=%7e+&&z HTTP/1.1\r\n") {
		t.Errorf("the provider got\n%s", head)
	}
	for _, line := range []string{"x-lower: One", "X-UPPER: a  b", "x-tWICE: 1", "x-Twice: 2", "user-AGENT: Me/1"} {
		if !strings.Contains(head, "\r\n"+line+"\r\n") {
			t.Errorf("%q is not in what the provider got:\n%s", line, head)
		}
	}
	if !strings.HasPrefix(string(got), "HTTP/1.1 200 Fine\r\n") {
		t.Errorf("the agent got\n%s", got)
	}
	for _, line := range []string{"x-lower: 1", "X-UPPER: a  b", "x-tWICE: 1", "x-Twice: 2"} {
		if !strings.Contains(string(got), "\r\n"+line+"\r\n") {
			t.Errorf("%q is not in what the agent got:\n%s", line, got)
		}
	}
	for _, added := range []string{"\r\nServer:", "\r\nDate:", "\r\nUser-Agent:"} {
		if strings.Contains(string(got)+head, added) {
			t.Errorf("%q was added:\n%s%s", added, head, got)
		}
	}
}

// Trap: what the library hands out of a request is valid until the handler
// returns only. On one connection the same memory holds the next request.
func TestTrapNothingOfARequestIsKept(t *testing.T) {
	const n = 8
	up := newUpstream(t, func(c *upstreamConn) {
		c.json(200, "", `{"type":"message","content":[],"usage":{"input_tokens":1,"output_tokens":1}}`)
	})
	r := newRig(t, up.url(), 1)
	c := r.dial()
	br := bufio.NewReader(c)
	for i := range n {
		body := fmt.Sprintf(`{"model":"model-%c","messages":[]}`, 'a'+i)
		fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nX-Authpool-Session: session-%c\r\nContent-Length: %d\r\n\r\n%s", testToken, 'A'+i, len(body), body)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	for i, e := range r.waitEvents(n) {
		if want := fmt.Sprintf("model-%c", 'a'+i); e.Model != want || e.Session != fmt.Sprintf("session-%c", 'A'+i) {
			t.Errorf("event %d: model %q, session %q", i, e.Model, e.Session)
		}
	}
}

// Trap: the library's writer keeps what does not fill it. A body of known length
// is handed on piece by piece too, and the head of a stream before its first
// event, once it is no longer held.
func TestTrapEveryPieceIsFlushed(t *testing.T) {
	next := make(chan struct{})
	t.Run("known length", func(t *testing.T) {
		up := newUpstream(t, func(c *upstreamConn) {
			c.write("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 6\r\nConnection: close\r\n\r\n")
			for range 3 {
				c.write("hi")
				c.wait(next)
			}
		})
		r := newRig(t, up.url(), 1)
		resp := r.send("POST", "/v1/messages", "", message)
		for i := range 3 {
			b := make([]byte, 2)
			if _, err := io.ReadFull(resp.Body, b); err != nil {
				t.Fatalf("piece %d: %v", i, err)
			}
			next <- struct{}{}
		}
	})
	t.Run("head of a stream", func(t *testing.T) {
		up := newUpstream(t, func(c *upstreamConn) {
			c.sse()
			c.wait(next)
			c.chunk(msgStart + msgBlock + msgHello + msgDelta + msgStop)
			c.last()
		})
		r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.Hold = 20 * time.Millisecond })
		resp := r.send("POST", "/v1/messages", "", messageS) // returns with the head
		next <- struct{}{}
		if b, err := io.ReadAll(resp.Body); err != nil || !strings.HasSuffix(string(b), msgStop) {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// Trap: a body stream that one attempt has consumed cannot be sent by the next.
func TestTrapEveryAttemptSendsTheWholeBody(t *testing.T) {
	bodies := make(chan string, 2)
	up := newUpstream(t, func(c *upstreamConn) {
		bodies <- c.body
		if c.key == key("openai", 1) {
			c.json(429, "Retry-After: 600\r\n", `{"error":{"message":"x","type":"requests","code":"rate_limit_exceeded"}}`)
			return
		}
		c.json(200, "", `{}`)
	})
	r := newRig(t, up.url(), 2)
	body := `{"model":"gpt-5","stream":true,"messages":["` + strings.Repeat("x", 300<<10) + `"]}`
	if status, _, got := r.post("/v1/chat/completions", body); status != 200 {
		t.Fatalf("%d %s", status, got)
	}
	want := strings.TrimSuffix(body, "}") + `,"stream_options":{"include_usage":true}}`
	for i := range 2 {
		if got := <-bodies; got != want {
			t.Errorf("attempt %d sent %d bytes, want %d", i+1, len(got), len(want))
		}
	}
}

// Trap: what was pipelined is in the library's buffer already when its request
// begins. A body that comes behind it is no request line, whatever its line ends.
func TestTrapPipelinedBody(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	c := r.dial()
	br := bufio.NewReader(c)
	const pretty = "{\n  \"model\": \"m\"\n}"
	head := "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: " + testToken + "\r\nContent-Length: "
	_, _ = io.WriteString(c, head+"2\r\n\r\n{}"+head+fmt.Sprint(len(pretty))+"\r\n\r\n")
	for i := range 2 {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 200 {
			t.Errorf("request %d: %s %s", i+1, resp.Status, body)
		}
		_, _ = io.WriteString(c, pretty[:len(pretty)*(1-i)])
	}
}
