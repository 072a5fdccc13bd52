package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit/usage"
)

// TestUsageEqualsTheSimulatorsLedger compares what is counted of Gemini's and
// Bedrock's dialects with what the simulator billed, which shares no code with it:
// whole, streamed, thinking, calling a tool, compressed, and from the cache.
func TestUsageEqualsTheSimulatorsLedger(t *testing.T) {
	const (
		gemini   = `{"contents":[{"role":"user","parts":[{"text":"a long beginning of %d"}]},{"role":"user","parts":[{"text":"hello"}]}]}`
		converse = `{"messages":[{"role":"user","content":[{"text":"a long beginning of %d"},{"cachePoint":{"type":"default"}}]},{"role":"user","content":[{"text":"hello"}]}]}`
		invoke   = `{"anthropic_version":"bedrock-2023-05-31","max_tokens":1000,"messages":[{"role":"user","content":[{"type":"text","text":"a long beginning of %d","cache_control":{"type":"ephemeral"}}]},{"role":"user","content":"hello"}]}`
	)
	endpoints := []struct{ path, body string }{
		{"/gemini/v1beta/models/MODEL:generateContent", gemini},
		{"/gemini/v1beta/models/MODEL:streamGenerateContent?alt=sse", gemini},
		{"/gemini/v1beta/models/MODEL:streamGenerateContent", gemini},
		{"/bedrock/model/MODEL/converse", converse},
		{"/bedrock/model/MODEL/converse-stream", converse},
		{"/bedrock/model/MODEL/invoke", invoke},
		{"/bedrock/model/MODEL/invoke-with-response-stream", invoke},
	}
	for i, end := range endpoints {
		t.Run(end.path, func(t *testing.T) {
			sim, r := simulated(t)
			send := func(model, coding string) {
				t.Helper()
				resp := r.send("POST", strings.Replace(end.path, "MODEL", model, 1),
					"Content-Type: application/json\r\nAccept-Encoding: "+coding+"\r\n", fmt.Sprintf(end.body, i))
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
					t.Fatalf("%s: %s %v", model, resp.Status, err)
				}
			}
			for _, coding := range []string{"identity", "gzip", "br"} {
				for _, model := range []string{"m-1", "sim-thinking", "sim-tool", "sim-tokens-300"} {
					send(model, coding)
				}
			}
			events := r.waitEvents(12)
			ledger := sim.Ledger()
			if len(ledger) != len(events) {
				t.Fatalf("%d answers billed, %d counted", len(ledger), len(events))
			}
			for i, e := range ledger {
				want := usage.Tokens{Input: e.Input, Output: e.Output, CacheRead: e.CacheRead, CacheWrite5m: e.CacheWrite5m, CacheWrite1h: e.CacheWrite1h}
				got := events[i].Tokens
				got.Reasoning = 0 // the ledger does not tell it apart
				if diff := cmp.Diff(want, got); diff != "" || events[i].Estimated || events[i].Unknown || events[i].Model != e.Model {
					t.Errorf("answer %d of %s, counted for %s (-billed +counted):\n%s", i, e.Model, events[i].Model, diff)
				}
			}
		})
	}
}

// simulated is a proxy in front of the simulator's Gemini and Bedrock.
func simulated(t *testing.T) (*simulator.Simulator, *rig) {
	t.Helper()
	sim, err := simulator.New(simulator.Options{Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- sim.Serve(ln) }()
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return sim, newRig(t, "http://"+ln.Addr().String(), 0, func(o *rigOptions) {
		o.providers = nil
		for name, family := range map[string]provider.Family{"gemini": provider.Gemini, "bedrock": provider.Bedrock} {
			o.providers = append(o.providers, provider.Options{Name: name, Family: family, BaseURL: "http://" + ln.Addr().String(), AllowPlaintext: true, AskUsage: true})
			o.subs = append(o.subs, pool.Subscription{ID: name, Provider: name, Credential: fixedKey(key(name, 1))})
		}
	})
}
