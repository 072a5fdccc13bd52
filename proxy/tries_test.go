package proxy

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

var overloaded = ratelimit.Verdict{Signal: ratelimit.Overloaded, Reason: ratelimit.ReasonCapacity, Scope: ratelimit.ScopeProviderModel, Wait: -1}

// tryFor makes one try against a provider that fails, and returns how often it
// was asked.
func tryFor(t *tries, key tryKey) (asked int) {
	failures, answer := t.again(key, time.Now())
	if answer != nil {
		return 0
	}
	call := provider.Call{RetryCount: failures}
	for asked = 1; provider.Repeatable(overloaded, &call, provider.Attempt{Failures: asked - 1}); asked++ {
	}
	t.failed(key, &kept{verdict: overloaded, status: 529}, time.Now())
	return asked
}

// How clients repeat a request that is always answered 529: the times of their
// requests, as measured.
func TestClientsAgainstAnOverload(t *testing.T) {
	codex := []time.Duration{}
	for round, begin := 0, time.Duration(0); round < 6; round++ {
		for _, at := range []time.Duration{0, 200, 600, 1400, 3000} {
			codex = append(codex, begin+at*time.Millisecond)
		}
		begin += 4200 * time.Millisecond
	}
	seconds := func(at ...float64) (out []time.Duration) {
		for _, s := range at {
			out = append(out, time.Duration(s*float64(time.Second)))
		}
		return out
	}
	for _, client := range []struct {
		name string
		at   []time.Duration
		most int // that reach the provider: the first one is repeated elsewhere
	}{
		{"codex", codex, 10},
		{"claude-code", seconds(0, .7, 1.9, 4.2, 8.7, 17, 35, 67), 9},
		{"npm SDKs", seconds(0, .5, 1.3), 4},
		{"opencode", seconds(0, 5, 10, 20, 37), 6},
		{"gemini-cli", seconds(0, 4.9, 11.8, 20, 31), 6},
	} {
		t.Run(client.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tr tries
				begin, asked, damped := time.Now(), 0, 0
				for _, at := range client.at {
					time.Sleep(time.Until(begin.Add(at)))
					n := tryFor(&tr, tryKey{"p", "a", "s", "m"})
					if asked += n; n == 0 {
						damped++
					}
				}
				t.Logf("%d tries reached the provider %d times, %d were answered from memory", len(client.at), asked, damped)
				if asked > client.most {
					t.Errorf("%d tries reached the provider %d times, want at most %d", len(client.at), asked, client.most)
				}
				if client.name != "codex" && damped > 0 {
					t.Errorf("%d tries of a patient client were answered from memory", damped)
				}
			})
		})
	}
}

func TestTriesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr tries
		key := tryKey{"p", "a", "s", "m"}
		for range 2 * triesFree {
			tryFor(&tr, key)
		}
		if tryFor(&tr, key) != 0 {
			t.Error("the provider is not left in peace")
		}
		for _, other := range []tryKey{{"p2", "a", "s", "m"}, {"p", "a2", "s", "m"}, {"p", "a", "s2", "m"}, {"p", "a", "s", "m2"}} {
			if n := tryFor(&tr, other); n != 2 {
				t.Errorf("%v suffers for another conversation: %d attempts", other, n)
			}
		}
		if n := tryFor(&tr, tryKey{"p", "a", "", "m"}); n != 2 {
			t.Errorf("a request without a conversation: %d attempts", n)
		}
		tr.served(key)
		if n := tryFor(&tr, key); n != 2 {
			t.Errorf("after an answer: %d attempts, want 2", n)
		}
		time.Sleep(triesKeep)
		if n := tryFor(&tr, key); n != 2 {
			t.Errorf("after a while: %d attempts, want 2", n)
		}
		for i := range 3 * triesMost {
			tryFor(&tr, tryKey{"p", "a", fmt.Sprint(i), "m"})
		}
		if len(tr.of) > triesMost || len(tr.of) != tr.order.Len() || int(tr.count.Load()) != len(tr.of) {
			t.Errorf("%d conversations are remembered (%d, %d)", len(tr.of), tr.order.Len(), tr.count.Load())
		}
	})
}

// TestTriesAreNotMultiplied: thirty tries of one conversation, as fast as they
// can be made.
func TestTriesAreNotMultiplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var healthy atomic.Bool
		m := newMemoryRig(t, 3, nil, func(c *upstreamConn) {
			if !healthy.Load() {
				c.json(529, "request-id: req_9\r\n", busy)
				return
			}
			c.json(200, "", answer)
		})
		try := func(session string) (int, string, string) {
			resp, body := m.send("/v1/messages", "X-Authpool-Session: "+session+"\r\nx-stainless-retry-count: 0\r\n", message)
			return resp.StatusCode, resp.Header.Get("Request-Id"), body
		}
		for range 30 {
			if status, id, body := try("one"); status != 529 || id != "req_9" || body != busy {
				t.Fatalf("%d %q: %s, want the provider's own error", status, id, body)
			}
		}
		if n := len(m.up.requests()); n > 10 || n < triesFree {
			t.Errorf("30 tries reached the provider %d times", n)
		}
		healthy.Store(true)
		time.Sleep(2 * time.Second) // by then one may find out
		if status, _, body := try("another"); status != 200 {
			t.Errorf("another conversation: %d %s", status, body)
		}
	})
}

// TestOverloadWithoutAnAnswer: where the overload came as an event of a stream there
// is no answer to show again, and the error is of the provider's kind all the same.
func TestOverloadWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemoryRig(t, 2, nil, func(c *upstreamConn) {
			c.sse()
			c.chunk(msgStart + msgError)
			c.last()
		})
		told := 0
		for range 10 {
			resp, body := m.send("/v1/messages", "X-Authpool-Session: one\r\n", messageS)
			if resp.StatusCode == 200 {
				continue // the stream with its event
			}
			told++
			if resp.StatusCode != 529 || resp.Header.Get("X-Authpool-Error") != "overloaded" || !strings.Contains(body, `"overloaded_error"`) {
				t.Errorf("%d %s: %s", resp.StatusCode, resp.Header.Get("X-Authpool-Error"), body)
			}
		}
		if told == 0 {
			t.Error("every try reached the provider")
		}
	})
}
