package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
)

// pinging makes a rig whose agents wait long, and see pings at once.
func pinging(wait time.Duration) func(*rigOptions) {
	return func(o *rigOptions) {
		o.opts.Ping = true
		o.pool.Wait = wait
	}
}

// sendPinged sends a request of a rig whose pings begin at once.
func (r *rig) sendPinged(path, headers, body string) *http.Response {
	return r.send("POST", path, "Content-Type: application/json\r\n"+headers, body)
}

// status sends a request and tells the status of the answer, or 0 without one.
func (r *rig) status(path, headers, body string) int {
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		return 0
	}
	defer c.Close()
	_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n%sContent-Length: %d\r\n\r\n%s", path, r.addr, testToken, headers, len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

const (
	chatStreamed      = `{"model":"gpt-5-mini","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}`
	responsesWhole    = `{"model":"gpt-5-mini","input":"hi"}`
	responsesStreamed = `{"model":"gpt-5-mini","stream":true,"input":"hi"}`
)

// TestPingsWhileWaiting: a stream that waits longer than a minute may is begun by
// pings; when somebody can serve, the answer follows, unchanged.
func TestPingsWhileWaiting(t *testing.T) { everyWay(t, testPingsWhileWaiting) }

func testPingsWhileWaiting(t *testing.T, newRig rigMaker) {
	for _, tt := range []struct{ name, path, body, ping, answer string }{
		{"anthropic", "/v1/messages", messageS, "event: ping\ndata: {\"type\": \"ping\"}\n\n", msgStart + msgBlock + msgHello + msgDelta + msgStop},
		{"chat", "/v1/chat/completions", chatStreamed, ": waiting for a subscription\n\n", "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"gpt-5-mini\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\ndata: [DONE]\n\n"},
		{"responses", "/v1/responses", responsesStreamed, ": waiting for a subscription\n\n", "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hello\"}\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			free := make(chan struct{})
			up := newUpstream(t, func(c *upstreamConn) {
				if strings.Contains(strings.ToLower(c.head), "accept-encoding: gzip") {
					t.Error("the provider may compress an answer whose head the agent has already")
				}
				c.sse()
				c.chunk(tt.answer)
				c.wait(free)
				c.last()
			})
			r := newRig(t, up.url(), 1, pinging(time.Hour), oneAtATime)
			r.server.pingAfter, r.server.pingEvery = time.Millisecond, time.Millisecond
			first := r.sendPinged(tt.path, "X-Authpool-Session: one\r\n", tt.body) // has the only place
			second := r.sendPinged(tt.path, "X-Authpool-Session: two\r\nAccept-Encoding: gzip\r\n", tt.body)
			if second.StatusCode != 200 || second.Header.Get("Content-Type") != "text/event-stream" ||
				second.Header.Get("X-Authpool-Request-Id") == "" || second.Header.Get("X-Authpool-Session") != "two" {
				t.Errorf("%d %v", second.StatusCode, second.Header)
			}
			br := bufio.NewReader(second.Body)
			for range 3 {
				got := make([]byte, len(tt.ping))
				if _, err := io.ReadFull(br, got); err != nil || string(got) != tt.ping {
					t.Fatalf("got %q, %v; want a ping", got, err)
				}
			}
			close(free)
			rest, err := io.ReadAll(br)
			if got := strings.ReplaceAll(string(rest), tt.ping, ""); err != nil || got != tt.answer {
				t.Errorf("after the pings came %q, %v; want %q", got, err, tt.answer)
			}
			// It may have waited, too, since choosing and asking took more than a millisecond.
			b, err := io.ReadAll(first.Body)
			if got := strings.ReplaceAll(string(b), tt.ping, ""); err != nil || got != tt.answer {
				t.Errorf("the first request got %q, %v", b, err)
			}
			if n := len(up.requests()); n != 2 {
				t.Errorf("%d requests went out", n)
			}
			r.waitEvents(2)
		})
	}
}

// oneAtATime lets every subscription serve one request at a time.
func oneAtATime(o *rigOptions) {
	for i := range o.subs {
		o.subs[i].Limits.Concurrent = 1
	}
}

// TestPingsEndWithAnErrorEvent: what would have been an error's status becomes an
// event that the dialect's clients take for an error.
func TestPingsEndWithAnErrorEvent(t *testing.T) {
	const text = "authpool: the only subscription for MODEL is limited; first free in 60m (ID)"
	for _, tt := range []struct{ name, path, headers, whole, body, want string }{
		{"anthropic", "/v1/messages", "", message, messageS, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"rate_limit_error\",\"message\":\"" + text + "\"},\"request_id\":\"REQUEST\"}\n\n"},
		{"chat", "/v1/chat/completions", "", chatMessage, chatStreamed, "data: {\"error\":{\"message\":\"" + text + "\",\"type\":\"rate_limit_error\",\"param\":null,\"code\":\"rate_limit_exceeded\"}}\n\n"},
		{"responses", "/v1/responses", "", responsesWhole, responsesStreamed, "event: error\ndata: {\"type\":\"error\",\"code\":\"rate_limit_exceeded\",\"message\":\"" + text + "\",\"param\":null,\"sequence_number\":0}\n\n"},
		{"codex", "/v1/responses", "originator: codex_exec\r\n", responsesWhole, responsesStreamed, "event: response.failed\ndata: {\"type\":\"response.failed\",\"sequence_number\":0,\"response\":{\"id\":\"resp_REQUEST\",\"object\":\"response\",\"status\":\"failed\",\"output\":[],\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"" + text + "\"}}}\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked, held := make(chan struct{}, 2), make(chan struct{})
			up := newUpstream(t, func(c *upstreamConn) {
				asked <- struct{}{}
				c.wait(held)
				c.json(429, "Retry-After: 3600\r\n", limited)
			})
			r := newRig(t, up.url(), 1, pinging(30*time.Minute), oneAtATime)
			r.server.pingAfter, r.server.pingEvery = time.Millisecond, time.Millisecond
			first := make(chan int, 1)
			go func() { first <- r.status(tt.path, tt.headers+"X-Authpool-Session: one\r\n", tt.whole) }()
			<-asked
			second := r.sendPinged(tt.path, tt.headers+"X-Authpool-Session: two\r\n", tt.body)
			close(held) // now it is known that nobody opens in time
			b, err := io.ReadAll(second.Body)
			id, model := "anthropic-1", "claude-sonnet-4-5"
			if tt.name != "anthropic" {
				id, model = "openai-1", "gpt-5-mini"
			}
			want := strings.NewReplacer("MODEL", model, "ID", id, "REQUEST", second.Header.Get("X-Authpool-Request-Id")).Replace(tt.want)
			if i := strings.Index(string(b), want[:strings.Index(want, "data")+8]); i < 0 || err != nil || string(b)[i:] != want {
				t.Errorf("got %q, %v; want it to end with %q", b, err, want)
			}
			if status := <-first; status != 429 {
				t.Errorf("the request that was not waiting got %d", status)
			}
		})
	}
}

// TestPingsEndWithTheProvidersError: an answer that no other subscription would
// mend is told in an event, too, without the credential that it repeats.
func TestPingsEndWithTheProvidersError(t *testing.T) {
	free := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.head, "X-Mark: first") {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello)
			c.wait(free)
			c.chunk(msgDelta + msgStop)
			c.last()
			return
		}
		c.json(400, "", `{"type":"error","error":{"type":"invalid_request_error","message":"no `+c.key+`"}}`)
	})
	r := newRig(t, up.url(), 1, pinging(time.Hour), oneAtATime)
	r.server.pingAfter, r.server.pingEvery = time.Millisecond, time.Hour
	_ = r.sendPinged("/v1/messages", "X-Mark: first\r\n", messageS)
	second := r.sendPinged("/v1/messages", "", messageS)
	close(free)
	b, err := io.ReadAll(second.Body)
	if got := string(b); err != nil || !strings.Contains(got, "event: error\n") || !strings.Contains(got, "invalid_request_error") ||
		!strings.Contains(got, "answered 400") || !strings.Contains(got, "no ****") || strings.Contains(got, key("anthropic", 1)) {
		t.Errorf("%q, %v", b, err)
	}
}

// TestPingsBeforeWhatIsNoStream: an answer that cannot follow the head that the agent
// has is not shown as if it could; what it used is counted.
func TestPingsBeforeWhatIsNoStream(t *testing.T) {
	free := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.head, "X-Mark: first") {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello)
			c.wait(free)
			c.chunk(msgDelta + msgStop)
			c.last()
			return
		}
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 1, pinging(time.Hour), oneAtATime)
	r.server.pingAfter, r.server.pingEvery = time.Millisecond, time.Hour
	_ = r.sendPinged("/v1/messages", "X-Mark: first\r\n", messageS)
	second := r.sendPinged("/v1/messages", "", messageS)
	close(free)
	b, err := io.ReadAll(second.Body)
	if got := string(b); err != nil || !strings.Contains(got, "event: error\n") || !strings.Contains(got, "no plain event stream") || strings.Contains(got, "msg_1") {
		t.Errorf("%q, %v", b, err)
	}
	if events := r.waitEvents(2); len(events) != 2 {
		t.Errorf("recorded %+v", events)
	}
}

// TestPanicBehindPings: it ends one stream, with an error event, and gives back what
// the request holds.
func TestPanicBehindPings(t *testing.T) {
	free := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		c.wait(free)
		c.chunk(msgDelta + msgStop)
		c.last()
	})
	k := &brittleKey{}
	r := newRig(t, up.url(), 0, pinging(time.Hour), func(o *rigOptions) {
		o.subs = []pool.Subscription{{ID: "a", Provider: "anthropic", Credential: k, Limits: pool.Limits{Concurrent: 1}}}
	})
	r.server.pingAfter, r.server.pingEvery = time.Millisecond, time.Hour
	_ = r.sendPinged("/v1/messages", "", messageS)
	second := r.sendPinged("/v1/messages", "", messageS)
	k.broken.Store(true)
	close(free)
	b, err := io.ReadAll(second.Body)
	if got := string(b); err != nil || !strings.Contains(got, "event: error\n") || !strings.Contains(got, "internal error") {
		t.Errorf("%q, %v", b, err)
	}
	k.broken.Store(false)
	if status, _, body := r.post("/v1/messages", message); status != 200 {
		t.Errorf("then %d %s", status, body)
	}
	if !strings.Contains(r.log.text(), "out of order") {
		t.Error("the log does not tell about the panic")
	}
}

// TestNoPings: what does not wait for a subscription keeps its own status, however
// long the provider takes; so does what is no stream, and what an HTTP/1.0 agent
// asks.
func TestNoPings(t *testing.T) {
	asked, slow := make(chan struct{}), make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		asked <- struct{}{}
		c.wait(slow)
		c.json(400, "", limited)
	})
	r := newRig(t, up.url(), 1, pinging(time.Hour))
	r.server.pingAfter, r.server.pingEvery = time.Nanosecond, time.Nanosecond
	for _, body := range []string{messageS, message} {
		got := make(chan int, 1)
		go func() { got <- r.status("/v1/messages", "", body) }()
		<-asked
		slow <- struct{}{}
		if status := <-got; status != 400 {
			t.Errorf("got %d for %s", status, body)
		}
	}
}

// TestAgentLeavesWhilePinged: it makes room in the queue at once. There is no answer
// yet to be drained.
func TestAgentLeavesWhilePinged(t *testing.T) {
	for _, drain := range []bool{false, true} {
		t.Run(fmt.Sprint("drain ", drain), func(t *testing.T) { leaveWhilePinged(t, drain) })
	}
}

func leaveWhilePinged(t *testing.T, drain bool) {
	t.Helper()
	free := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		c.wait(free)
		c.chunk(msgDelta + msgStop)
		c.last()
	})
	r := newRig(t, up.url(), 1, pinging(time.Hour), oneAtATime, func(o *rigOptions) { o.pool.Waiters, o.opts.DrainOnLeave = 1, drain })
	r.server.pingAfter, r.server.pingEvery = time.Millisecond, time.Millisecond
	_ = r.sendPinged("/v1/messages", "", messageS)
	c := r.dial()
	_, _ = fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", r.addr, testToken, len(messageS), messageS)
	if _, err := io.ReadFull(c, make([]byte, 300)); err != nil { // the head and a ping
		t.Fatal(err)
	}
	_ = c.Close()
	// Until it has gone nobody else has room to wait.
	gone := time.Now().Add(20 * time.Second)
	for strings.Count(r.log.text(), "msg=request") == 0 {
		if time.Now().After(gone) {
			t.Fatal("the request still waits")
		}
		runtime.Gosched()
	}
	if text := r.log.text(); !strings.Contains(text, "status=499") {
		t.Errorf("the log says: %s", text)
	}
	if n := len(up.requests()); n != 1 {
		t.Errorf("%d requests went out", n)
	}
	close(free)
}
