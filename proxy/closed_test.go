package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

const chat = `{"model":"gpt-x","messages":[{"role":"user","content":"hi"}]}`

// nextTry reads when an answer asks to come again, told in both ways.
func nextTry(t *testing.T, h http.Header) time.Duration {
	t.Helper()
	s, err := strconv.Atoi(h.Get("Retry-After"))
	ms, err2 := strconv.Atoi(h.Get("Retry-After-Ms"))
	if err != nil || err2 != nil || s < 1 || ms > 1000*s {
		t.Errorf("Retry-After %q, retry-after-ms %q", h.Get("Retry-After"), h.Get("Retry-After-Ms"))
	}
	return time.Duration(ms) * time.Millisecond
}

// TestOverloadIsNotSent: once it is known that the provider has no capacity for a
// model, agents are told so in its own shape, with the time of the next try, and
// nothing is sent; other models go on.
func TestOverloadIsNotSent(t *testing.T) {
	for _, tt := range []struct {
		path, body, other string
		overload          func(c *upstreamConn)
		status            int
		shape             string
	}{
		{
			"/v1/messages", message, strings.Replace(message, "sonnet", "haiku", 1),
			func(c *upstreamConn) { c.json(529, "Retry-After: 60\r\n", busy) },
			529, `{"type":"error","error":{"type":"overloaded_error","message":"authpool: provider anthropic has no capacity for claude-sonnet-4-5; next try in `,
		},
		{
			"/v1/chat/completions", chat, strings.Replace(chat, "gpt-x", "gpt-y", 1),
			func(c *upstreamConn) {
				c.json(503, "Retry-After: 60\r\n", `{"error":{"message":"overloaded","type":"server_error","code":"server_is_overloaded"}}`)
			},
			503, `"message":"authpool: provider openai has no capacity for gpt-x; next try in `,
		},
	} {
		t.Run(tt.path, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) {
				if c.body != tt.body {
					c.json(200, "", answer)
					return
				}
				tt.overload(c)
			})
			r := newRig(t, up.url(), 3)
			// Each of another conversation; the first ones are repeated elsewhere.
			for i := range 10 {
				r.send("POST", tt.path, fmt.Sprintf("X-Authpool-Session: s%d\r\n", i), tt.body)
			}
			sent := len(up.requests())
			if sent > 9 {
				t.Errorf("%d requests were sent before it was known", sent)
			}
			for i := range 20 {
				resp := r.send("POST", tt.path, fmt.Sprintf("X-Authpool-Session: t%d\r\n", i), tt.body)
				body := make([]byte, 4096)
				n, _ := resp.Body.Read(body)
				if next := nextTry(t, resp.Header); resp.StatusCode != tt.status || next > time.Minute ||
					resp.Header.Get("X-Authpool-Error") != codeOverloaded || resp.Header.Get("X-Should-Retry") != "" {
					t.Fatalf("%d %v: %s", resp.StatusCode, resp.Header, body[:n])
				}
				if !strings.Contains(string(body[:n]), tt.shape) {
					t.Fatalf("%s, want %s", body[:n], tt.shape)
				}
			}
			if n := len(up.requests()); n != sent {
				t.Errorf("%d requests were sent although there is no capacity", n-sent)
			}
			if status, _, body := r.post(tt.path, tt.other); status != 200 {
				t.Errorf("another model: %d %s", status, body)
			}
			if tt.path == "/v1/messages" {
				// No model runs for a count of tokens. It is answered, well or not.
				if status, h, _ := r.post(tt.path+"/count_tokens", message); h.Get("X-Authpool-Error") != "" || len(up.requests()) < sent+2 {
					t.Errorf("a count of tokens was not sent: %d %v", status, h)
				}
			}
			for _, s := range r.pool.Status() {
				if s.State != pool.StateReady {
					t.Errorf("%s is %s (%s)", s.ID, s.State, s.Reason)
				}
			}
		})
	}
}

// TestOverloadIsWaitedOutByAgents: with failover.wait the agents notice nothing of
// a short overload, however many they are, and the provider is asked by one of
// them.
func TestOverloadIsWaitedOutByAgents(t *testing.T) {
	var healthy atomic.Bool
	up := newUpstream(t, func(c *upstreamConn) {
		if !healthy.Load() {
			c.json(529, "", busy)
			return
		}
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 3, func(o *rigOptions) { o.pool.Wait = 50 * time.Second })
	overloaded := ratelimit.Verdict{Signal: ratelimit.Overloaded, Reason: ratelimit.ReasonCapacity, Scope: ratelimit.ScopeProviderModel, Wait: time.Second}
	for range 8 {
		l, err := r.pool.Acquire(t.Context(), &pool.Request{Provider: "anthropic", Agent: "default", Model: "claude-sonnet-4-5"})
		if err != nil {
			t.Fatal(err)
		}
		l.Verdict(overloaded)
		l.Done(usage.Tokens{})
	}
	healthy.Store(true)
	var agents sync.WaitGroup
	var bad atomic.Int32
	for i := range 40 {
		agents.Go(func() {
			resp := r.send("POST", "/v1/messages", fmt.Sprintf("X-Authpool-Session: s%d\r\n", i), message)
			if resp.StatusCode != 200 || resp.Header.Get("X-Authpool-Attempts") != "1" {
				bad.Add(1)
			}
		})
	}
	agents.Wait()
	if bad.Load() > 0 || len(up.requests()) != 40 {
		t.Errorf("%d of 40 agents noticed; %d requests were sent", bad.Load(), len(up.requests()))
	}
}

// TestDeadBaseURL: a provider that nobody can connect to is asked a few times,
// however many subscriptions there are, and then by one request at a time.
func TestDeadBaseURL(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, url, 20)
	attempts, refused := 0, 0
	for i := range 30 {
		resp := r.send("POST", "/v1/messages", fmt.Sprintf("X-Authpool-Session: s%d\r\n", i), message)
		n, err := strconv.Atoi(resp.Header.Get("X-Authpool-Attempts"))
		if err != nil {
			t.Fatal(err)
		}
		attempts += n
		body := make([]byte, 4096)
		m, _ := resp.Body.Read(body)
		switch {
		case n > 0 && resp.StatusCode == 502:
		case n == 0 && resp.StatusCode == 503:
			refused++
			nextTry(t, resp.Header)
			if text := string(body[:m]); !strings.Contains(text, "authpool: provider anthropic fails whichever subscription asks (last: network, connect)") {
				t.Errorf("%s", text)
			}
		default:
			t.Errorf("%d after %d attempts: %s", resp.StatusCode, n, body[:m])
		}
	}
	if attempts < 5 || attempts > 12 || refused < 15 {
		t.Errorf("%d connections were tried, %d of 30 requests were refused at once", attempts, refused)
	}
	for _, s := range r.pool.Status() {
		if s.Breaker != "closed" {
			t.Errorf("the breaker of %s is %s", s.ID, s.Breaker)
		}
	}
}

// TestCodexAgainstAnOverload: codex' thirty tries, each timed by the answer to the
// one before, against a provider that has no capacity for two minutes, with and
// without waiting in the queue.
func TestCodexAgainstAnOverload(t *testing.T) {
	for _, wait := range []time.Duration{0, 30 * time.Second} {
		t.Run(wait.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				m := newMemoryRig(t, 3, func(o *rigOptions) { o.pool.Wait = wait }, func(c *upstreamConn) {
					if time.Since(begun) < 2*time.Minute {
						c.json(503, "", `{"error":{"message":"overloaded","type":"server_error","code":"server_is_overloaded"}}`)
						return
					}
					c.json(200, "", answer)
				})
				tries, status := 0, 0
				for round := 0; round < 6 && status != 200; round++ {
					for _, pause := range []time.Duration{200, 400, 800, 1600, 1200} {
						tries++
						resp, _ := m.send("/v1/chat/completions", "X-Authpool-Session: codex\r\n", chat)
						if status = resp.StatusCode; status == 200 {
							break
						}
						if status != 503 {
							t.Errorf("try %d: %d", tries, status)
						}
						time.Sleep(pause * time.Millisecond)
					}
				}
				sent := len(m.up.requests())
				t.Logf("%d tries in %v; %d requests were sent; the last answer was %d", tries, time.Since(begun), sent, status)
				if wait == 0 && (sent > 10 || sent < triesFree) {
					t.Errorf("%d requests were sent within 25 s", sent)
				}
				if wait > 0 && sent > 15 {
					t.Errorf("%d requests were sent within two minutes", sent)
				}
				if wait > 0 && status != 200 {
					t.Errorf("with the queue codex did not outlast two minutes: %d", status)
				}
			})
		})
	}
}

// memoryRig is a rig without sockets, for tests in a bubble.
type memoryRig struct {
	*rig
	up   *fakeUpstream
	door *memory
}

func newMemoryRig(t *testing.T, n int, change func(*rigOptions), serve func(c *upstreamConn)) *memoryRig {
	t.Helper()
	// fasthttp's worker pool sees only at its next wake-up that it was stopped.
	t.Cleanup(func() { time.Sleep(11 * time.Second) })
	back := newMemory()
	m := &memoryRig{up: newUpstreamAt(t, back, serve), door: newMemory()}
	m.rig = newRig(t, "http://provider.test", n, func(o *rigOptions) {
		o.listener = m.door
		o.transport.Dial = func(context.Context, string) (net.Conn, error) { return back.dial() }
		if change != nil {
			change(o)
		}
	})
	return m
}

// send makes one request and returns the whole answer.
func (m *memoryRig) send(path, headers, body string) (*http.Response, string) {
	m.t.Helper()
	c, err := m.door.dial()
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	go func() {
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%sContent-Length: %d\r\n\r\n%s", path, testToken, headers, len(body), body)
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		m.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return resp, string(text)
}

// TestNextTryOfTheProvidersError: where the provider's own error says nothing of the
// time and nobody else can serve, authpool adds when it will try again.
func TestNextTryOfTheProvidersError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemoryRig(t, 2, nil, func(c *upstreamConn) { c.json(529, "", busy) })
		timed := 0
		for i := range 10 {
			resp, body := m.send("/v1/messages", fmt.Sprintf("X-Authpool-Session: s%d\r\n", i), message)
			if body != busy || resp.Header.Get("Retry-After") == "" {
				continue
			}
			timed++
			if next := nextTry(t, resp.Header); next <= 0 || next > time.Minute {
				t.Errorf("next try in %s", next)
			}
		}
		if timed == 0 {
			t.Error("no error of the provider says when to come back")
		}
	})
}

// A server that is told to stop before it has begun does not serve, which is no failure.
func TestServeAfterShutdown(t *testing.T) {
	r := newRig(t, "http://127.0.0.1:1", 1)
	if err := r.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.server.Serve(ln, nil); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if ln.Close() == nil {
		t.Error("the listener was left open")
	}
}
