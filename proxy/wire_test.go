package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/ratelimit/usage"
)

// exchangeRaw writes one request and reads its answer as raw bytes, up to the
// answer to a second request that it sends behind it on the same connection:
// whatever the first answer leaves behind spoils the second.
func (r *rig) exchangeRaw(request, method string) (first *http.Response, body string) {
	r.t.Helper()
	c := r.dial()
	br := bufio.NewReader(c)
	for i, req := range []string{request, "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
		_, _ = io.WriteString(c, req)
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			r.t.Fatalf("answer %d: %v", i+1, err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			r.t.Fatalf("answer %d: %v", i+1, err)
		}
		if i == 0 {
			first, body = resp, string(b)
			if n := br.Buffered(); n > 0 {
				rest, _ := br.Peek(n)
				r.t.Errorf("%q stands behind the answer", rest)
			}
			method = "GET"
			continue
		}
		if resp.StatusCode != 401 && resp.StatusCode != 404 {
			r.t.Errorf("the next answer on the connection: %d", resp.StatusCode)
		}
	}
	return first, body
}

// Answers without a body leave the connection clean, whatever their head says.
func TestAnswersWithoutBody(t *testing.T) {
	const auth = "Host: localhost\r\nx-api-key: " + testToken + "\r\nanthropic-version: 2023-06-01\r\n"
	tests := []struct {
		name, method, head string
		status             int
		length             string
	}{
		{"HEAD with a length", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n", 200, "77"},
		{"HEAD of chunks", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", 200, ""},
		{"HEAD without either", "HEAD", "HTTP/1.1 200 OK\r\nX-A: b\r\n", 200, ""},
		{"HEAD of an error", "HEAD", "HTTP/1.1 404 Not Found\r\nContent-Length: 12\r\n", 404, "12"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n", 204, ""},
		{"204 with a length", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n", 204, ""},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n", 304, ""},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n", 304, ""},
		{"304 of chunks", "GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n", 304, ""},
		{"200 of no bytes", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", 200, "0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) { c.write("%s\r\n", tt.head) })
			r := newRig(t, up.url(), 1)
			resp, body := r.exchangeRaw(tt.method+" /v1/models HTTP/1.1\r\n"+auth+"\r\n", tt.method)
			if resp.StatusCode != tt.status || body != "" || resp.Header.Get("X-Authpool-Subscription") != "anthropic-1" {
				t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
			}
			if got := resp.Header.Get("Content-Length"); got != tt.length {
				t.Errorf("Content-Length %q, want %q", got, tt.length)
			}
			if r.pool.Status()[0].InFlight != 0 {
				t.Error("the lease was not given back")
			}
		})
	}
}

// A redirect is the agent's to follow: authpool would send the credential along.
func TestRedirectIsPassedOn(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		c.write("HTTP/1.1 307 Temporary Redirect\r\nLocation: https://elsewhere.test/x?y=1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nmoved")
	})
	r := newRig(t, up.url(), 2)
	status, h, body := r.post("/v1/messages", message)
	if status != 307 || h.Get("Location") != "https://elsewhere.test/x?y=1" || body != "moved" || len(up.requests()) != 1 {
		t.Errorf("%d %q %q after %d requests", status, h.Get("Location"), body, len(up.requests()))
	}
}

// Informational answers are between the provider and authpool; one that leaves
// HTTP is an error.
func TestInformationalAnswers(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		c.write("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
		if strings.Contains(c.body, "switch") {
			c.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
			return
		}
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 1)
	if status, _, body := r.post("/v1/messages", message); status != 200 || body != answer {
		t.Errorf("%d %s", status, body)
	}
	if status, h, body := r.post("/v1/messages", strings.Replace(message, "hi", "switch", 1)); status != 502 || h.Get("X-Authpool-Error") != "upstream_failed" {
		t.Errorf("%d %s", status, body)
	}
}

// However an agent sends its body, the provider gets it whole with its length.
func TestRequestBodies(t *testing.T) {
	bodies := make(chan string, 1)
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(strings.ToLower(c.head), "expect") || strings.Contains(strings.ToLower(c.head), "transfer-encoding") {
			t.Errorf("the agent's own framing went on:\n%s", c.head)
		}
		bodies <- c.body
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 1)
	const auth = "Host: localhost\r\nx-api-key: " + testToken + "\r\n"
	chunked := fmt.Sprintf("%x;ext=1\r\n%s\r\n%x\r\n%s\r\n0\r\nX-Trailer: t\r\n\r\n", 10, message[:10], len(message)-10, message[10:])
	tests := []struct{ name, head, body string }{
		{"chunks and a trailer", auth + "Transfer-Encoding: chunked\r\n", chunked},
		{"lower case", strings.ToLower("Host: localhost\r\n") + "x-api-key: " + testToken + "\r\ntransfer-encoding: chunked\r\n", chunked},
		{"Expect", auth + "Expect: 100-continue\r\nContent-Length: " + fmt.Sprint(len(message)) + "\r\n", message},
		{"expect in lower case", auth + "expect: 100-Continue\r\nContent-Length: " + fmt.Sprint(len(message)) + "\r\n", message},
		{"Expect and chunks", auth + "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", chunked},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := r.dial()
			br := bufio.NewReader(c)
			_, _ = io.WriteString(c, "POST /v1/messages HTTP/1.1\r\n"+tt.head+"\r\n")
			if strings.Contains(strings.ToLower(tt.head), "expect") {
				// The agent sends nothing more until it is asked to.
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				resp, err := http.ReadResponse(br, nil)
				if err != nil || resp.StatusCode != 100 {
					t.Fatalf("%v %v", resp, err)
				}
			}
			_, _ = io.WriteString(c, tt.body)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != answer {
				t.Fatalf("%d %s", resp.StatusCode, b)
			}
			if got := <-bodies; got != message {
				t.Errorf("the provider got %q", got)
			}
		})
	}
}

// A body over the limit is told so in whatever way it is sent.
func TestChunkedBodyLimit(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.BodyLimit = 2 << 20 })
	for token, want := range map[string]int{testToken: 413, "wrong": 413} {
		c := r.dial()
		go func() {
			fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nTransfer-Encoding: chunked\r\n\r\n", token)
			block := strings.Repeat("x", 1<<20)
			for range 8 {
				fmt.Fprintf(c, "%x\r\n%s\r\n", len(block), block)
			}
		}()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != want || !strings.Contains(string(b), "limits_http.body") {
			t.Errorf("token %s: %d %s", token, resp.StatusCode, b)
		}
	}
}

// Requests sent without waiting are answered one after the other, in order, and
// what stands in the second one's body is not taken for a request line.
func TestPipelining(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.body, "stream") {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello + msgDelta + msgStop)
			c.last()
			return
		}
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 1)
	c := r.dial()
	second := messageRequest("{\n\"model\": \"claude-sonnet-4-5\",\n\"stream\": false,\n\"messages\": []\n}")
	cut := len(second) - 20 // within the body, in front of a bare line feed
	_, _ = io.WriteString(c, messageRequest(messageS)+second[:cut])
	br := bufio.NewReader(c)
	for i, want := range []string{msgStart + msgBlock + msgHello + msgDelta + msgStop, answer, answer} {
		if i == 1 {
			_, _ = io.WriteString(c, second[cut:]+messageRequest(message))
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != want && i == 0 || err != nil {
			t.Fatalf("answer %d: %d %s, %v", i, resp.StatusCode, b, err)
		}
	}
}

// The provider may bill the input of a stream that breaks before its content,
// although the agent gets nothing of it.
func TestUsageOfAHeldStream(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart)
	})
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.Attempts = 1 })
	status, h, body := r.post("/v1/messages", messageS)
	if status != 502 || h.Get("X-Authpool-Error") != "upstream_failed" {
		t.Errorf("%d %s", status, body)
	}
	if e := r.waitEvents(1)[0]; !e.Estimated || e.Tokens.Input != 12 || e.ID != h.Get("X-Authpool-Request-Id") {
		t.Errorf("event %+v", e)
	}
}

// The text of an error is not waited for for ever; what there is of the answer
// passes.
func TestErrorWithoutItsText(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		c.write("HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"type\":")
		c.wait(nil)
	})
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.Hold = 50 * time.Millisecond })
	c := r.dial()
	_, _ = io.WriteString(c, messageRequest(message))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 400 || resp.Header.Get("X-Authpool-Error") != "" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	b := make([]byte, 8)
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != `{"type":` {
		t.Errorf("%q %v", b, err)
	}
}

// The key of a server of one's own can be anything.
func TestShortCredential(t *testing.T) {
	for _, secret := range []string{"*", "t", "***", "json", "************"} {
		h := "X-Debug: ********** ************** json\r\n"
		up := newUpstream(t, func(c *upstreamConn) { c.json(200, h, answer) })
		r := newRig(t, up.url(), 0, func(o *rigOptions) {
			o.subs = []pool.Subscription{{ID: "own", Provider: "anthropic", Credential: fixedKey(secret)}}
		})
		status, head, body := r.post("/v1/messages", message)
		if status != 200 || body != answer || head.Get("Content-Type") != "application/json" || head.Get("X-Debug") != "********** ************** json" {
			t.Errorf("credential %q: %d %v %s", secret, status, head, body)
		}
	}
}

// A panic costs the request in which it happens and nothing else: its lease is
// given back, the server can stop, and the next request is served.
func TestPanic(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.body, "stream") {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello)
			c.chunk(msgDelta + msgStop)
			c.last()
			return
		}
		c.json(200, "", answer)
	})
	var broken atomic.Bool
	broken.Store(true)
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.deps = func(d *Deps) { d.Prices = panicPrices{broken: &broken} } })
	for _, body := range []string{message, messageS, message} {
		c := r.dial()
		_, _ = io.WriteString(c, messageRequest(body))
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("the connection is not closed: %v", err)
		}
	}
	if n := strings.Count(r.log.text(), "BUG: a request failed"); n != 3 {
		t.Errorf("%d panics logged:\n%s", n, r.log.text())
	}
	if n := r.pool.Status()[0].InFlight; n != 0 {
		t.Errorf("%d leases were not given back", n)
	}
	broken.Store(false)
	if status, _, body := r.post("/v1/messages", message); status != 200 || body != answer {
		t.Errorf("%d %s", status, body)
	}

	r = newRig(t, up.url(), 1, func(o *rigOptions) { o.subs[0].Credential = panicKey{&broken} })
	broken.Store(true)
	status, h, body := r.post("/v1/messages", message)
	if status != 500 || h.Get("X-Authpool-Error") == "" || !strings.Contains(body, `"api_error"`) {
		t.Errorf("%d %v %s", status, h, body)
	}
}

// Refusals have the provider's shape also where the head is refused.
func TestShapeOfHeadRefusals(t *testing.T) {
	r := newRig(t, "http://127.0.0.1:1", 1)
	for path, want := range map[string]string{"/v1/messages": `{"type":"error",`, "/anthropic/v1/models": `{"type":"error",`, "/v1/responses": `{"error":{`} {
		resp := r.send("POST", path, "Origin: https://evil.test\r\n", "{}")
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 403 || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, b)
		}
	}
}

// A body that was large is not kept with the connection that brought it.
func TestLargeBodiesAreGivenBack(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	body := `{"model":"m","x":"` + strings.Repeat("x", 30<<20) + `"}`
	for range 4 {
		c := r.dial()
		_, _ = io.WriteString(c, messageRequest(body))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(resp.Body)
	}
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 80<<20 {
		t.Errorf("%d MB are in use when four agents have sent 30 MB each", m.HeapAlloc>>20)
	}
}

// Stopping does not wait for answers that are read on for agents who have left.
func TestShutdownWhileDraining(t *testing.T) {
	for _, head := range []bool{false, true} {
		arrived := make(chan struct{})
		up := newUpstream(t, func(c *upstreamConn) {
			if head {
				c.sse()
				c.chunk(msgStart + msgBlock + msgHello)
			}
			close(arrived)
			_, _ = io.Copy(io.Discard, c)
		})
		r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.DrainOnLeave = true })
		c := r.dial()
		_, _ = io.WriteString(c, messageRequest(messageS))
		<-arrived
		if head {
			_, _ = c.Read(make([]byte, 1))
		}
		_ = c.Close()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			_ = r.server.Shutdown(ctx)
		}()
		select {
		case <-stopped:
		case <-time.After(10 * time.Second):
			t.Fatal("Shutdown waits for a provider that is silent")
		}
	}
}

// panicPrices fails as only a bug does.
type panicPrices struct{ broken *atomic.Bool }

func (p panicPrices) Cost(string, string, usage.Tokens, usage.Service) (int64, bool) {
	if p.broken.Load() {
		panic("prices")
	}
	return 0, false
}

func (panicPrices) Version() string { return "broken" }

// panicKey is a credential that breaks after the start.
type panicKey struct{ broken *atomic.Bool }

func (k panicKey) Credential(ctx context.Context) (credential.Credential, error) {
	if k.broken.Load() {
		panic("credential")
	}
	return fixedKey("sk-canary").Credential(ctx)
}

func (k panicKey) Refresh(ctx context.Context) (credential.Credential, error) {
	return k.Credential(ctx)
}

// What is taken out of an answer shortens it: a length that the provider gave
// no longer holds.
func TestUsageChunkOutOfAMeasuredAnswer(t *testing.T) {
	const (
		one   = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n"
		count = "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,\"total_tokens\":12}}\n\n"
		done  = "data: [DONE]\n\n"
	)
	goOn := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(one+count+done), one)
		c.wait(goOn)
		c.write("%s", count+done)
	})
	r := newRig(t, up.url(), 1)
	body := `{"model":"gpt-5","stream":true,"messages":[]}`
	for range 2 { // once in pieces, once at a time
		c := r.dial()
		_, _ = io.WriteString(c, strings.Replace(messageRequest(body), "/v1/messages", "/v1/chat/completions", 1))
		br := bufio.NewReader(c)
		if _, err := br.Peek(1); err != nil {
			t.Fatal(err)
		}
		select {
		case <-goOn:
		default:
			close(goOn)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(resp.Body); string(got) != one+done || err != nil || br.Buffered() > 0 {
			t.Errorf("%q, %v", got, err)
		}
	}
	for _, e := range r.waitEvents(2) {
		if e.Tokens.Output != 3 {
			t.Errorf("event %+v", e)
		}
	}
}

// Agents that leave in the middle of a request, and take their descriptors'
// numbers with them, disturb nobody else's.
func TestConnectionsComeAndGo(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.body, "stream") {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello)
			_, _ = io.Copy(io.Discard, c)
			return
		}
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.quiet = true })
	turn := func(stay bool) error {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		br := bufio.NewReader(c)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if !stay {
			_, err := io.WriteString(c, messageRequest(messageS))
			return err
		}
		for range 2 {
			if _, err := io.WriteString(c, messageRequest(message)); err != nil {
				return err
			}
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				return err
			}
			if b, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != answer || err != nil {
				return fmt.Errorf("%d %s, %w", resp.StatusCode, b, err)
			}
		}
		return nil
	}
	const agents, turns = 16, 40
	errs := make(chan error, agents)
	for i := range agents {
		go func() {
			var all error
			for n := range turns {
				all = errors.Join(all, turn((i+n)%2 == 0))
			}
			errs <- all
		}()
	}
	for range agents {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
