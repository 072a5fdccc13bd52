package proxy

import (
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// value is what a counter, or the count of a histogram, stands at.
func value(t *testing.T, m any) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.(prometheus.Metric).Write(&out); err != nil {
		t.Fatal(err)
	}
	if h := out.GetHistogram(); h != nil {
		return float64(h.GetSampleCount())
	}
	return out.GetCounter().GetValue()
}

func TestSpentIsCounted(t *testing.T) {
	e := usage.Event{
		Provider: "anthropic", Subscription: "spent-test", CostNanoUSD: 1_500_000_000,
		Tokens: usage.Tokens{Input: 1, Output: 2, CacheRead: 3, CacheWrite5m: 4, CacheWrite1h: 5},
	}
	countSpent(&e)
	countSpent(&e)
	e.Provider = "openai" // another subscription, for all that the id is the same
	countSpent(&e)
	e.Batch = "batch_1" // may be read again and again
	countSpent(&e)
	for kind, want := range map[string]float64{"input": 2, "output": 4, "cache_read": 6, "cache_write_5m": 8, "cache_write_1h": 10} {
		if got := value(t, tokensTotal.WithLabelValues("anthropic", "spent-test", kind)); got != want {
			t.Errorf("%s: got %v, want %v", kind, got, want)
		}
	}
	for provider, want := range map[string]float64{"anthropic": 3, "openai": 1.5} {
		if got := value(t, costTotal.WithLabelValues(provider, "spent-test")); math.Abs(got-want) > 1e-9 {
			t.Errorf("%s: cost %v, want %v", provider, got, want)
		}
	}
}

// TestFailoversAreCounted by what the first subscription said.
func TestFailoversAreCounted(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		if c.key == key("anthropic", 1) {
			c.json(429, "Retry-After: 600\r\n", limited)
		} else {
			c.json(200, "", answer)
		}
	})
	r := newRig(t, up.url(), 2)
	failovers := failoversTotal.WithLabelValues("anthropic", string(ratelimit.ReasonThrottled))
	requests := requestSeconds.WithLabelValues("anthropic")
	output := tokensTotal.WithLabelValues("anthropic", "anthropic-2", "output")
	before := []float64{value(t, failovers), value(t, requests), value(t, output)}
	for range 2 { // the second goes there at once
		if status, h, body := r.post("/v1/messages", message); status != 200 || h.Get("X-Authpool-Subscription") != "anthropic-2" {
			t.Fatalf("%d %q %s", status, h, body)
		}
	}
	// The agent has its answer a moment before the exchange ends.
	for end := time.Now().Add(20 * time.Second); value(t, requests) < before[1]+2 && time.Now().Before(end); {
		runtime.Gosched()
	}
	after := []float64{value(t, failovers), value(t, requests), value(t, output)}
	if after[0] != before[0]+1 || after[1] != before[1]+2 || after[2] <= before[2] {
		t.Errorf("failovers, requests and tokens of output were %v and are %v", before, after)
	}
}

// TestSpentAllocatesNothing once a subscription is known.
func TestSpentAllocatesNothing(t *testing.T) {
	e := usage.Event{Provider: "anthropic", Subscription: "spent-test", CostNanoUSD: 1, Tokens: usage.Tokens{Input: 1, Output: 2, CacheRead: 3}}
	if n := testing.AllocsPerRun(100, func() { countSpent(&e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSpent(b *testing.B) {
	e := usage.Event{Provider: "anthropic", Subscription: "spent-test", CostNanoUSD: 1, Tokens: usage.Tokens{Input: 1, Output: 2, CacheRead: 3}}
	b.ReportAllocs()
	for b.Loop() {
		countSpent(&e)
		requestSeconds.WithLabelValues(e.Provider).Observe(1)
	}
}
