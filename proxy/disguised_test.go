package proxy

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	chatModel   = "gpt-5-mini"
	chatMessage = `{"model":"gpt-5-mini","messages":[{"role":"user","content":"hi"}]}`
	chatAnswer  = `{"id":"chatcmpl-1","object":"chat.completion","model":"gpt-5-mini","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}`
)

// limitInDisguise is a limit that comes with status 200 (OpenRouter's shape).
const limitInDisguise = `{"error":{"code":429,"message":"Provider returned error","metadata":{"provider_name":"Google"}}}`

// TestErrorWithGoodStatus: an error that is all of a 200 fails over like any
// other, costs nothing, and closes the model for those who come next.
func TestErrorWithGoodStatus(t *testing.T) {
	zipped := func(s string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write([]byte(s))
		_ = w.Close()
		return b.String()
	}
	for _, tt := range []struct {
		name, extra, body string
	}{
		{"at once", "", limitInDisguise},
		{"behind white space", "", strings.Repeat(" \r\n", 100) + limitInDisguise},
		{"compressed", "Content-Encoding: gzip\r\n", zipped(limitInDisguise)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) {
				if c.key == key("openai", 1) {
					c.json(200, tt.extra, tt.body)
					return
				}
				c.json(200, "", chatAnswer)
			})
			r := newRig(t, up.url(), 2)
			status, h, body := r.post("/v1/chat/completions", chatMessage)
			if status != 200 || body != chatAnswer || h.Get("X-Authpool-Subscription") != "openai-2" || h.Get("X-Authpool-Attempts") != "2" {
				t.Errorf("%d from %s after %s attempts: %s", status, h.Get("X-Authpool-Subscription"), h.Get("X-Authpool-Attempts"), body)
			}
			events := r.waitEvents(1)
			if len(events) != 1 || events[0].Subscription != "openai-2" || len(r.recorder.voided) != 1 {
				t.Errorf("recorded %+v, taken back %q", events, r.recorder.voided)
			}
			if status, h, _ := r.post("/v1/chat/completions", chatMessage); status != 200 || h.Get("X-Authpool-Attempts") != "1" || len(up.requests()) != 3 {
				t.Errorf("%d at attempt %s; %d requests in all", status, h.Get("X-Authpool-Attempts"), len(up.requests()))
			}
		})
	}
}

// TestErrorWithGoodStatusIsShown: when nobody else can serve, the agent gets
// what came.
func TestErrorWithGoodStatusIsShown(t *testing.T) {
	const wrong = `{"error": {"code":400,"message":"no such parameter"}}`
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", wrong) })
	r := newRig(t, up.url(), 2)
	status, h, body := r.post("/v1/chat/completions", chatMessage)
	if status != 200 || body != wrong || h.Get("X-Authpool-Attempts") != "1" || len(up.requests()) != 1 {
		t.Errorf("%d at attempt %s, %d requests: %s", status, h.Get("X-Authpool-Attempts"), len(up.requests()), body)
	}
	if n := len(r.recorder.all()); n != 0 {
		t.Errorf("%d events are recorded", n)
	}
}

// TestLateErrorWithGoodStatus: behind white space that lasts longer than the
// hold the error passes, and counts for the subscription.
func TestLateErrorWithGoodStatus(t *testing.T) {
	begun := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		if c.key != key("openai", 1) {
			c.json(200, "", chatAnswer)
			return
		}
		c.write("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n\n", len(limitInDisguise)+1)
		c.wait(begun)
		c.write("%s", limitInDisguise)
	})
	r := newRig(t, up.url(), 2, func(o *rigOptions) { o.opts.Hold = 1 })
	resp := r.send("POST", "/v1/chat/completions", "Content-Type: application/json\r\n", chatMessage)
	close(begun) // the head has come: the hold is over
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil || resp.StatusCode != 200 || b.String() != "\n"+limitInDisguise {
		t.Errorf("%d %q, %v", resp.StatusCode, b.String(), err)
	}
	if status, h, _ := r.post("/v1/chat/completions", chatMessage); status != 200 || h.Get("X-Authpool-Subscription") != "openai-2" {
		t.Errorf("%d from %s", status, h.Get("X-Authpool-Subscription"))
	}
	if got := fmt.Sprint(r.pool.Status()[2].CooldownModels); !strings.Contains(got, chatModel) {
		t.Errorf("closed models: %s", got)
	}
	// It is remembered a moment after the agent has the last byte.
	told, ok := r.server.Explained().Find(resp.Header.Get("X-Authpool-Request-Id"))
	for end := time.Now().Add(20 * time.Second); !ok && time.Now().Before(end); runtime.Gosched() {
		told, ok = r.server.Explained().Find(resp.Header.Get("X-Authpool-Request-Id"))
	}
	if !ok || len(told.Choices) != 1 || told.Choices[0].Attempt.Late == nil || told.Choices[0].Attempt.Late.Signal != "limited" {
		t.Errorf("of the error is told: %+v", told.Choices)
	}
}
