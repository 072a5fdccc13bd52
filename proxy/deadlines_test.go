package proxy

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A provider that is silent too long: before its head the agent is told so,
// and nothing is tried again, since it may be at work; within the answer the
// answer is cut, and what was used until then is recorded.
func TestSilentProvider(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.body, "stream") {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello)
		}
		c.wait(nil)
	})
	r := newRig(t, up.url(), 2, func(o *rigOptions) {
		o.transport.FirstByte, o.opts.Idle = 50*time.Millisecond, 50*time.Millisecond
	})
	status, h, body := r.post("/v1/messages", message)
	if status != 504 || h.Get("X-Authpool-Error") != "upstream_timeout" || len(up.requests()) != 1 {
		t.Errorf("%d after %d requests: %s", status, len(up.requests()), body)
	}
	resp := r.send("POST", "/v1/messages", "", messageS)
	if got, err := io.ReadAll(resp.Body); string(got) != msgStart+msgBlock+msgHello || err == nil {
		t.Errorf("%q, %v", got, err)
	}
	// The provider may have worked on the first request; nobody knows.
	events := r.waitEvents(2)
	if e := events[0]; !e.Estimated || !e.Unknown {
		t.Errorf("event %+v", e)
	}
	if e := events[1]; !e.Estimated || e.Tokens.Input != 12 || e.Tokens.Output < 1 {
		t.Errorf("event %+v", e)
	}
	if !strings.Contains(r.log.text(), "end=cut") || !strings.Contains(r.log.text(), "timeout") {
		t.Errorf("log: %s", r.log.text())
	}
}

// Lifecycle events are held for a failover no longer than Hold.
func TestHoldEnds(t *testing.T) {
	goOn := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart)
		c.wait(goOn)
		c.chunk(msgBlock + msgHello + msgDelta + msgStop)
		c.last()
	})
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.Hold = 20 * time.Millisecond })
	resp := r.send("POST", "/v1/messages", "", messageS)
	first := make([]byte, len(msgStart))
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != msgStart {
		t.Fatalf("%q, %v", first, err)
	}
	close(goOn)
	if rest, err := io.ReadAll(resp.Body); string(rest) != msgBlock+msgHello+msgDelta+msgStop || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}

// An agent that accepts nothing for too long has left.
func TestStuckAgent(t *testing.T) { everyWay(t, testStuckAgent) }

func testStuckAgent(t *testing.T, newRig rigMaker) {
	ended := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		defer close(ended)
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		text := strings.Repeat("x", 1<<20)
		for {
			if _, err := io.WriteString(c, "100000\r\n"+text+"\r\n"); err != nil {
				return
			}
		}
	})
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.opts.WriteStall = 100 * time.Millisecond })
	resp := r.send("POST", "/v1/messages", "", messageS)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.StatusCode)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the provider is still read for an agent that takes nothing")
	}
	if e := r.waitEvents(1)[0]; !e.Estimated || e.Tokens.Input != 12 {
		t.Errorf("event %+v", e)
	}
	if s := r.pool.Status()[0]; s.Reason != "" {
		t.Errorf("the subscription is blamed: %+v", s)
	}
}
