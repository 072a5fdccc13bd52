package proxy

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

func TestMessage(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "request-id: req_1\r\nX-Authpool-Subscription: forged\r\n", answer) })
	r := newRig(t, up.url(), 1)
	status, h, body := r.post("/v1/messages", message)
	if status != 200 || body != answer {
		t.Fatalf("%d %s", status, body)
	}
	for name, want := range map[string]string{
		"X-Authpool-Subscription": "anthropic-1", "X-Authpool-Attempts": "1", "Request-Id": "req_1",
		"Content-Type": "application/json",
	} {
		if got := h.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	e := r.waitEvents(1)[0]
	want := usage.Event{
		ID: h.Get("X-Authpool-Request-Id"), Time: e.Time, Provider: "anthropic", Subscription: "anthropic-1",
		Agent: "default", Session: h.Get("X-Authpool-Session"), Model: "claude-sonnet-4-5",
		Tokens: usage.Tokens{Input: 12, CacheRead: 100, Output: 7}, Unpriced: true, PriceVersion: "none",
	}
	if e != want || e.ID == "" || !strings.HasPrefix(e.Session, "h-") {
		t.Errorf("event %+v, want %+v", e, want)
	}
	head := up.requests()[0]
	if !strings.Contains(head, "x-api-key: "+key("anthropic", 1)+"\r\n") || strings.Contains(head, testToken) {
		t.Errorf("upstream head:\n%s", head)
	}
}

// Each event reaches the agent before the next one is sent.
func TestStreamIsNotDelayed(t *testing.T) { everyWay(t, testStreamIsNotDelayed) }

func testStreamIsNotDelayed(t *testing.T, newRig rigMaker) {
	events := []string{msgStart, msgBlock, msgHello, msgHello, msgDelta, msgStop}
	received := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		for i, e := range events {
			c.chunk(e)
			if i > 0 { // the first is held until content comes
				c.wait(received)
			}
		}
		c.last()
	})
	r := newRig(t, up.url(), 1)
	resp := r.send("POST", "/v1/messages", "", messageS)
	br := bufio.NewReader(resp.Body)
	for i, e := range events {
		b := make([]byte, len(e))
		if _, err := io.ReadFull(br, b); err != nil || string(b) != e {
			t.Fatalf("event %d: %q, %v", i, b, err)
		}
		if i > 0 {
			received <- struct{}{}
		}
	}
	if rest, err := io.ReadAll(br); len(rest) > 0 || err != nil {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	if e := r.waitEvents(1)[0]; e.Tokens != (usage.Tokens{Input: 12, CacheRead: 100, Output: 7}) || e.Estimated {
		t.Errorf("event %+v", e)
	}
}

// The event is recorded before the agent can see that the answer has ended.
func TestUsageIsRecordedBeforeTheEnd(t *testing.T) {
	for name, body := range map[string]func(c *upstreamConn){
		"stream": func(c *upstreamConn) {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello + msgDelta)
			c.chunk(msgStop)
			c.last()
		},
		"json": func(c *upstreamConn) { c.json(200, "", answer) },
		"chunked": func(c *upstreamConn) {
			c.write("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
			c.chunk(answer)
			c.last()
		},
		"no framing": func(c *upstreamConn) { c.write("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + answer) },
	} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, body)
			r := newRig(t, up.url(), 1)
			resp := r.send("POST", "/v1/messages", "", messageS)
			all, _ := io.ReadAll(resp.Body)
			// Whoever has read the last byte finds the event there already.
			if n := len(r.recorder.all()); n != 1 {
				t.Errorf("%d events after the whole answer (%q)", n, all)
			}
		})
	}
}

func TestFailover(t *testing.T) {
	first := func(bad func(c *upstreamConn), good func(c *upstreamConn)) func(c *upstreamConn) {
		return func(c *upstreamConn) {
			if c.key == key("anthropic", 1) {
				bad(c)
			} else {
				good(c)
			}
		}
	}
	json := func(c *upstreamConn) { c.json(200, "", answer) }
	stream := func(c *upstreamConn) { c.sse(); c.chunk(msgStart + msgBlock + msgHello + msgDelta + msgStop); c.last() }
	tests := []struct {
		name string
		bad  func(c *upstreamConn)
		good func(c *upstreamConn)
		body string
	}{
		{"429 with a time", func(c *upstreamConn) { c.json(429, "Retry-After: 600\r\n", limited) }, json, message},
		{"429 without", func(c *upstreamConn) { c.json(429, "", limited) }, json, message},
		{"529", func(c *upstreamConn) { c.json(529, "", busy) }, json, message},
		{"500", func(c *upstreamConn) { c.json(500, "", `{"type":"error","error":{"type":"api_error","message":"x"}}`) }, json, message},
		{"401", func(c *upstreamConn) {
			c.json(401, "", `{"type":"error","error":{"type":"authentication_error","message":"x"}}`)
		}, json, message},
		{"402", func(c *upstreamConn) {
			c.json(402, "", `{"type":"error","error":{"type":"billing_error","message":"x"}}`)
		}, json, message},
		{"reset without an answer", func(c *upstreamConn) {}, json, message},
		{"error event before content", func(c *upstreamConn) { c.sse(); c.chunk(msgStart + msgPing); c.chunk(msgError); c.last() }, stream, messageS},
		{"limit event before content", func(c *upstreamConn) { c.sse(); c.chunk(msgStart + msgLimit); c.last() }, stream, messageS},
		{"cut before content", func(c *upstreamConn) { c.sse(); c.chunk(msgStart) }, stream, messageS},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, first(tt.bad, tt.good))
			r := newRig(t, up.url(), 2)
			status, h, body := r.post("/v1/messages", tt.body)
			if status != 200 || h.Get("X-Authpool-Subscription") != "anthropic-2" || h.Get("X-Authpool-Attempts") != "2" {
				t.Fatalf("%d by %q at attempt %q: %s", status, h.Get("X-Authpool-Subscription"), h.Get("X-Authpool-Attempts"), body)
			}
		})
	}
}

// An agent sees no limit while another subscription can serve, however many
// have to be asked, and an honest one when none can.
func TestLimits(t *testing.T) {
	const n = 6
	up := newUpstream(t, func(c *upstreamConn) {
		if c.key == key("anthropic", n) {
			c.json(200, "", answer)
			return
		}
		c.json(429, "Retry-After: 600\r\n", limited)
	})
	r := newRig(t, up.url(), n)
	if status, h, body := r.post("/v1/messages", message); status != 200 || h.Get("X-Authpool-Attempts") != fmt.Sprint(n) {
		t.Fatalf("%d after %s attempts: %s", status, h.Get("X-Authpool-Attempts"), body)
	}
	r = newRig(t, up.url(), n-1)
	status, h, body := r.post("/v1/messages", message)
	if status != 429 || h.Get("Retry-After") != "600" && h.Get("Retry-After") != "601" || h.Get("X-Authpool-Error") != "limited" || h.Get("x-should-retry") != "false" {
		t.Errorf("%d, Retry-After %q, %q: %s", status, h.Get("Retry-After"), h.Get("X-Authpool-Error"), body)
	}
	if !strings.Contains(body, `"type":"error"`) || !strings.Contains(body, `"rate_limit_error"`) || !strings.Contains(body, "authpool: all 5 subscriptions for claude-sonnet-4-5 are limited; first free in 10m") {
		t.Errorf("body %s", body)
	}
	asked := len(up.requests())
	if status, _, _ = r.post("/v1/messages", message); status != 429 || len(up.requests()) != asked {
		t.Errorf("%d; %d requests went to limited subscriptions", status, len(up.requests())-asked)
	}
}

func TestWhatIsNotRepeated(t *testing.T) {
	tests := []struct {
		name   string
		path   string
		header string
		body   string
		serve  func(c *upstreamConn)
		status int
		want   string
	}{
		{"a wrong request", "/v1/messages", "", message, func(c *upstreamConn) {
			c.json(400, "", `{"type":"error","error":{"type":"invalid_request_error","message":"x"}}`)
		}, 400, `{"type":"error","error":{"type":"invalid_request_error","message":"x"}}`},
		{"500 of an SDK's own repetition", "/v1/messages", "x-stainless-retry-count: 1\r\n", message, func(c *upstreamConn) { c.json(529, "", busy) }, 529, busy},
		{"500 of a background response", "/v1/responses", "", `{"model":"gpt-5","input":"x","background":true}`, func(c *upstreamConn) { c.json(500, "", `{"error":{}}`) }, 500, `{"error":{}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, tt.serve)
			r := newRig(t, up.url(), 3)
			resp := r.send("POST", tt.path, tt.header, tt.body)
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || string(body) != tt.want || len(up.requests()) != 1 {
				t.Errorf("%d after %d requests: %s", resp.StatusCode, len(up.requests()), body)
			}
		})
	}
}

// What the agent has begun to read is not begun anew: the error passes as it is.
func TestErrorAfterContent(t *testing.T) {
	read := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		c.wait(read)
		c.chunk(msgError)
		c.last()
	})
	r := newRig(t, up.url(), 2)
	resp := r.send("POST", "/v1/messages", "", messageS)
	first := make([]byte, len(msgStart+msgBlock+msgHello))
	_, _ = io.ReadFull(resp.Body, first)
	close(read)
	rest, err := io.ReadAll(resp.Body)
	if string(rest) != msgError || err != nil || len(up.requests()) != 1 {
		t.Errorf("%q, %v after %d requests", rest, err, len(up.requests()))
	}
}

// When every attempt failed on the provider's side, its own last error is shown.
func TestProvidersOwnErrorIsShown(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(529, "request-id: req_9\r\n", busy) })
	r := newRig(t, up.url(), 3)
	status, h, body := r.post("/v1/messages", message)
	if status != 529 || body != busy || h.Get("Request-Id") != "req_9" || h.Get("X-Authpool-Error") != "" {
		t.Errorf("%d %q: %s", status, h, body)
	}
	if n := len(up.requests()); n != 2 {
		t.Errorf("%d requests; an overload is repeated once", n)
	}
}

func TestUnreachableProvider(t *testing.T) {
	up := newUpstream(t, nil)
	url := up.url()
	up.close()
	r := newRig(t, url, 2)
	for path, want := range map[string]string{"/v1/messages": `"type":"error"`, "/v1/chat/completions": `{"error":{`} {
		status, h, body := r.post(path, `{"model":"m"}`)
		if status != 502 || h.Get("X-Authpool-Error") != "upstream_failed" || !strings.Contains(body, want) || !strings.Contains(body, "authpool: ") || !strings.Contains(body, "refused") {
			t.Errorf("%s: %d %s: %s", path, status, h.Get("X-Authpool-Error"), body)
		}
	}
}

// The agent leaves while the upstream says nothing: its call ends within a
// second, before the head as well as in the middle of a stream.
func TestAgentLeavesInSilence(t *testing.T) { everyWay(t, testAgentLeavesInSilence) }

func testAgentLeavesInSilence(t *testing.T, newRig rigMaker) {
	tests := []struct {
		name   string
		before func(c *upstreamConn)
		tokens usage.Tokens
	}{
		{"before the head", func(c *upstreamConn) {}, usage.Tokens{}},
		{"while lifecycle events are held", func(c *upstreamConn) { c.sse(); c.chunk(msgStart) }, usage.Tokens{Input: 12, CacheRead: 100}},
		{"in the stream", func(c *upstreamConn) { c.sse(); c.chunk(msgStart + msgBlock + msgHello) }, usage.Tokens{Input: 12, CacheRead: 100}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			arrived := make(chan struct{})
			closed := make(chan time.Time)
			up := newUpstream(t, func(c *upstreamConn) {
				tt.before(c)
				close(arrived)
				_, _ = io.Copy(io.Discard, c)
				closed <- time.Now()
			})
			r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.Hold = 30 * time.Second })
			c := r.dial()
			_, _ = io.WriteString(c, messageRequest(messageS))
			<-arrived
			if tt.name == "in the stream" {
				_, _ = c.Read(make([]byte, 1))
			}
			left := time.Now()
			_ = c.Close()
			if d := (<-closed).Sub(left); d > time.Second {
				t.Errorf("the upstream call ended after %v", d)
			}
			// The provider may bill it however early the agent left: what it told
			// is counted, and what it sent too late is unknown.
			e := r.waitEvents(1)[0]
			want := tt.tokens
			if e.Unknown && tt.name != "in the stream" {
				want = usage.Tokens{}
			}
			told, guessed := e.Tokens, e.Tokens.Output
			told.Output = 0
			if !e.Estimated || told != want || e.Unknown != (want == usage.Tokens{}) || e.Unknown != (guessed == 0) {
				t.Errorf("event %+v", e)
			}
		})
	}
}

func TestDrainOnLeave(t *testing.T) {
	goOn := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		c.wait(goOn)
		c.chunk(msgDelta + msgStop)
		c.last()
	})
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.DrainOnLeave = true })
	c := r.dial()
	_, _ = io.WriteString(c, messageRequest(messageS))
	_, _ = c.Read(make([]byte, 1))
	_ = c.Close()
	close(goOn)
	if e := r.waitEvents(1)[0]; e.Estimated || e.Tokens.Output != 7 {
		t.Errorf("event %+v", e)
	}
}

// A slow agent slows the provider down; nothing piles up in between.
func TestSlowAgent(t *testing.T) {
	const chunk = 64 << 10
	stuck := make(chan int)
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		text := strings.Repeat("x", chunk)
		for i := range 4096 { // 256 MB, if nobody stops it
			_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(text), text); err != nil {
				stuck <- i
				return
			}
		}
		stuck <- 4096
	})
	r := newRig(t, up.url(), 1)
	resp := r.send("POST", "/v1/messages", "", messageS)
	_, _ = resp.Body.Read(make([]byte, 1))
	if n := <-stuck; n*chunk > 64<<20 {
		t.Errorf("the provider could send %d MB to an agent that reads nothing", n*chunk>>20)
	}
}

func TestLargeAnswerInConstantMemory(t *testing.T) {
	const size = 100 << 20
	up := newUpstream(t, func(c *upstreamConn) {
		c.write("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", size+len(answer))
		block := []byte(strings.Repeat(" ", 1<<20))
		for range size >> 20 {
			_, _ = c.Write(block)
		}
		c.write(answer)
	})
	r := newRig(t, up.url(), 1)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	resp := r.send("POST", "/v1/messages", "", message)
	n, err := io.Copy(io.Discard, resp.Body)
	runtime.ReadMemStats(&after)
	if err != nil || n != size+int64(len(answer)) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
		t.Errorf("%d MB allocated for an answer of 100 MB", grown>>20)
	}
	if e := r.waitEvents(1)[0]; e.Tokens.Output != 7 {
		t.Errorf("event %+v", e)
	}
}

func TestEchoedCredentialIsMasked(t *testing.T) {
	secret := key("anthropic", 1)
	stars := strings.Repeat("*", len(secret))
	up := newUpstream(t, func(c *upstreamConn) {
		switch {
		case strings.Contains(c.body, "error"):
			c.json(400, "X-Debug: key="+secret+"\r\n", `{"type":"error","error":{"type":"invalid_request_error","message":"bad `+secret+`"}}`)
		case strings.Contains(c.body, "split"):
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello + "data: " + secret[:9])
			c.chunk(secret[9:] + "\n\n")
			c.last()
		default:
			c.json(200, "X-Debug: "+secret+"\r\n", strings.Replace(answer, "Hello", secret, 1))
		}
	})
	r := newRig(t, up.url(), 1)
	for _, body := range []string{message, strings.Replace(messageS, "hi", "split", 1), strings.Replace(message, "hi", "error", 1)} {
		_, h, got := r.post("/v1/messages", body)
		if all := fmt.Sprint(h) + got; strings.Contains(all, secret) || !strings.Contains(all, stars) {
			t.Errorf("answer to %s: %s", body, all)
		}
	}
	if strings.Contains(r.log.text(), secret) {
		t.Error("the log holds the credential")
	}
}

// authpool asks for the usage chunk that the agent did not want, and takes it
// out again: the agent gets exactly what it would have got.
func TestUsageChunkIsTakenOut(t *testing.T) {
	const (
		one   = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"gpt-5\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Hi\"},\"finish_reason\":null}],\"usage\":null}\n\n"
		two   = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"gpt-5\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n"
		count = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"gpt-5\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,\"total_tokens\":12,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n"
		done  = "data: [DONE]\n\n"
	)
	bodies := make(chan string, 2)
	up := newUpstream(t, func(c *upstreamConn) {
		bodies <- c.body
		c.sse()
		for _, e := range []string{one, two, count, done} {
			c.chunk(e)
		}
		c.last()
	})
	r := newRig(t, up.url(), 1)
	_, _, got := r.post("/v1/chat/completions", `{"model":"gpt-5","stream":true,"messages":[]}`)
	if got != one+two+done {
		t.Errorf("agent got %q", got)
	}
	if b := <-bodies; b != `{"model":"gpt-5","stream":true,"messages":[],"stream_options":{"include_usage":true}}` {
		t.Errorf("upstream got %s", b)
	}
	asks := `{"model":"gpt-5","stream":true,"stream_options":{"include_usage":true},"messages":[]}`
	if _, _, got = r.post("/v1/chat/completions", asks); got != one+two+count+done {
		t.Errorf("an agent that asked got %q", got)
	}
	if b := <-bodies; b != asks {
		t.Errorf("upstream got %s", b)
	}
	for _, e := range r.waitEvents(2) {
		if e.Tokens != (usage.Tokens{Input: 5, CacheRead: 4, Output: 3}) {
			t.Errorf("event %+v", e)
		}
	}
}

func TestBodyLimit(t *testing.T) { everyWay(t, testBodyLimit) }

func testBodyLimit(t *testing.T, newRig rigMaker) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", fmt.Sprintf(`{"got":%d}`, len(c.body))) })
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.BodyLimit = 3 << 20 })
	body := func(n int) string { return `{"model":"m","x":"` + strings.Repeat("x", n-20) + `"}` }
	if status, _, got := r.post("/v1/messages", body(3<<20)); status != 200 || got != fmt.Sprintf(`{"got":%d}`, 3<<20) {
		t.Errorf("at the limit: %d %s", status, got)
	}
	status, h, got := r.post("/v1/messages", body(40<<20))
	if status != 413 || h.Get("X-Authpool-Error") != "payload_too_large" || !strings.Contains(got, "limits_http.body") || !strings.Contains(got, `"request_too_large"`) {
		t.Errorf("over the limit: %d %s", status, got)
	}
	c := r.dial()
	go func() {
		fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: wrong\r\nContent-Length: %d\r\n\r\n", 40<<20)
		_, _ = io.CopyN(c, rand.Reader, 40<<20)
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 401 {
		t.Errorf("a stranger's large body: %v, %v", resp, err)
	}
}

func TestRefusals(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", `{}`) })
	good := "x-api-key: " + testToken + "\r\n"
	tests := []struct {
		name    string
		request string
		status  int
		want    string
	}{
		{"no token", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", 401, "authpool env"},
		{"wrong token", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: nope\r\nContent-Length: 2\r\n\r\n{}", 401, "authentication_error"},
		{"wrong token, openai", "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer nope\r\nContent-Length: 2\r\n\r\n{}", 401, `"error":{"message":"authpool: `},
		{"no route", "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n" + good + "\r\n", 404, "/v1/messages"},
		{"administration", "GET /v1/organizations/me HTTP/1.1\r\nHost: localhost\r\n" + good + "anthropic-version: 2023-06-01\r\n\r\n", 403, "authpool: "},
		{"dot segments", "GET /v1/messages/../organizations HTTP/1.1\r\nHost: localhost\r\n" + good + "\r\n", 400, "authpool: "},
		{"encoded dot segments", "GET /v1/messages/%2e%2e/organizations HTTP/1.1\r\nHost: localhost\r\n" + good + "\r\n", 400, "authpool: "},
		{"upgrade", "GET /v1/responses HTTP/1.1\r\nHost: localhost\r\n" + good + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 426, "authpool: "},
		{"web page", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "Origin: https://evil.test\r\nContent-Length: 2\r\n\r\n{}", 403, "Origin"},
		{"rebound name", "POST /v1/messages HTTP/1.1\r\nHost: evil.test\r\n" + good + "Content-Length: 2\r\n\r\n{}", 403, "Host"},
		{"length and chunks", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Transfer-Encoding"},
		{"two lengths", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, "authpool: "},
		{"folded header", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "X-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}", 400, "authpool: "},
		{"bare LF in a header", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "X-A: b\nContent-Length: 2\r\n\r\n{}", 400, "authpool: "},
		{"bare LF behind the request line", "POST /v1/messages HTTP/1.1\nHost: localhost\r\n" + good + "Content-Length: 2\r\n\r\n{}", 400, "authpool: "},
		{"another host in the target", "POST http://other.test/v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "Content-Length: 2\r\n\r\n{}", 400, "authpool: "},
		{"two hosts", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n" + good + "Content-Length: 2\r\n\r\n{}", 400, "authpool: "},
		{"space before the colon", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "X-A : b\r\nContent-Length: 2\r\n\r\n{}", 400, "authpool: "},
		{"body of a GET", "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + good + "Content-Length: 2\r\n\r\n{}", 400, "authpool: "},
		{"CONNECT without a token", "CONNECT api.anthropic.com:443 HTTP/1.1\r\nHost: api.anthropic.com:443\r\n\r\n", 407, "authpool: "},
		{"CONNECT elsewhere", "CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n" + good + "\r\n", 403, "no provider's"},
		{"lower-case method", "post /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "Content-Length: 2\r\n\r\n{}", 405, "authpool: "},
		{"model named twice", "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + good + "Content-Length: 25\r\n\r\n{\"model\":\"a\",\"model\":\"b\"}", 400, "model"},
	}
	r := newRig(t, up.url(), 1)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := r.dial()
			_, _ = io.WriteString(c, tt.request)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.want) || resp.Header.Get("X-Authpool-Error") == "" {
				t.Errorf("%d %q: %s", resp.StatusCode, resp.Header.Get("X-Authpool-Error"), body)
			}
		})
	}
	if got := up.requests(); len(got) > 0 {
		t.Errorf("these reached the provider: %q", got)
	}
}

// What a plain client sends in absolute form to authpool's own address is a
// request like any other.
func TestAbsoluteForm(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", `{}`) })
	r := newRig(t, up.url(), 1)
	c := r.dial()
	fmt.Fprintf(c, "GET http://%s/v1/models?limit=2 HTTP/1.1\r\nHost: %s\r\nx-api-key: %s\r\nanthropic-version: 2023-06-01\r\n\r\n", r.addr, r.addr, testToken)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	if head := up.requests()[0]; !strings.HasPrefix(head, "GET /v1/models?limit=2 HTTP/1.1\r\n") {
		t.Errorf("upstream head %q", head)
	}
}

// One connection serves many requests, and a broken one does not spoil the next
// agent's.
func TestKeepAlive(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	c := r.dial()
	br := bufio.NewReader(c)
	for i := range 3 {
		_, _ = io.WriteString(c, messageRequest(message))
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != answer {
			t.Errorf("request %d: %s", i, b)
		}
	}
}

func TestShutdown(t *testing.T) { everyWay(t, testShutdown) }

func testShutdown(t *testing.T, newRig rigMaker) {
	goOn := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		c.wait(goOn)
		c.chunk(msgDelta + msgStop)
		c.last()
	})
	t.Run("answers end in the grace", func(t *testing.T) {
		r := newRig(t, up.url(), 1)
		resp := r.send("POST", "/v1/messages", "", messageS)
		_, _ = resp.Body.Read(make([]byte, 1))
		done := make(chan error)
		go func() { done <- r.server.Shutdown(context.Background()) }()
		goOn <- struct{}{}
		if rest, err := io.ReadAll(resp.Body); err != nil || !strings.HasSuffix(string(rest), msgStop) {
			t.Errorf("%q, %v", rest, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if e := r.waitEvents(1)[0]; e.Estimated {
			t.Errorf("event %+v", e)
		}
	})
	t.Run("answers are cut after it", func(t *testing.T) {
		r := newRig(t, up.url(), 1)
		resp := r.send("POST", "/v1/messages", "", messageS)
		_, _ = resp.Body.Read(make([]byte, 1))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := r.server.Shutdown(ctx); err == nil {
			t.Error("answers were cut, and Shutdown does not say so")
		}
		if e := r.recorder.all(); len(e) != 1 || !e[0].Estimated || e[0].Tokens.Input != 12 {
			t.Errorf("events %+v: what was used must be recorded when Shutdown returns", e)
		}
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("the cut answer looks whole")
		}
		close(goOn)
	})
}

// Concurrency of one connection's exchanges under -race, with agents leaving at
// random places.
func TestManyAgents(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		for range 20 {
			c.chunk(msgHello)
		}
		c.chunk(msgDelta + msgStop)
		c.last()
	})
	r := newRig(t, up.url(), 3)
	const agents = 100
	done := make(chan bool, agents)
	for i := range agents {
		go func() {
			c := r.dial()
			defer c.Close()
			session := make([]byte, 4)
			_, _ = rand.Read(session)
			fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nX-Authpool-Session: %s\r\nContent-Length: %d\r\n\r\n%s",
				testToken, hex.EncodeToString(session), len(messageS), messageS)
			if i%3 == 0 {
				_, _ = io.CopyN(io.Discard, c, int64(i*17))
				done <- true
				return
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				done <- false
				return
			}
			b, err := io.ReadAll(resp.Body)
			done <- err == nil && strings.HasSuffix(string(b), msgStop) && strings.Count(string(b), "Hello") == 20
		}()
	}
	for range agents {
		if !<-done {
			t.Error("an agent did not get its answer")
		}
	}
}
