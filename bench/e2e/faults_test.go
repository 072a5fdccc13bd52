package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/authpool/authpool/bench/simulator"
)

// TestFaultsBehindGoSDKs: whatever one subscription answers, the client finishes
// its turn without a repetition of its own as long as another one can serve, and
// the provider is asked no more often than that takes. Only what breaks after
// the agent has content is for the agent to repeat.
func TestFaultsBehindGoSDKs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fault simulator.Fault
		late  bool // the agent has content by then
	}{
		{"401", simulator.Fault{Kind: simulator.Status, Status: http.StatusUnauthorized}, false},
		{"429", simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 600}, false},
		{"429 without a time", simulator.Fault{Kind: simulator.RateLimit}, false},
		{"used-up window", simulator.Fault{Kind: simulator.Window, RetryAfter: 3600}, false},
		{"used-up credit", simulator.Fault{Kind: simulator.Quota}, false},
		{"overload", simulator.Fault{Kind: simulator.Overloaded}, false},
		{"500", simulator.Fault{Kind: simulator.Status, Status: http.StatusInternalServerError}, false},
		{"error event", simulator.Fault{Kind: simulator.ErrorEvent}, false},
		{"cut", simulator.Fault{Kind: simulator.Cut}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := startProvider(t, simulator.Options{Keys: keysOf(pairs), Watch: []string{"apa_"}})
			straight := startProvider(t, simulator.Options{}) // the same seed, so the same answers
			a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
			client := httpClient(t)
			for _, turn := range goTurns() {
				if turn.name != "anthropic stream" && turn.name != "openai responses stream" {
					continue
				}
				want, err := turn.run(t.Context(), straight.url, "any", client)
				if err != nil {
					t.Fatalf("%s, without authpool: %v", turn.name, err)
				}
				before := len(p.Arrivals())
				if err := p.Inject(simulator.Injection{Fault: tt.fault}); err != nil {
					t.Fatal(err)
				}
				got, err := turn.run(t.Context(), a.url, a.token, client)
				if tt.late {
					if err == nil {
						t.Errorf("%s: the client takes %q for whole", turn.name, got.text)
					}
					if n := len(p.Arrivals()) - before; n != 1 {
						t.Errorf("%s: the provider was asked %d times for what the agent had begun to read", turn.name, n)
					}
					got, err = turn.run(t.Context(), a.url, a.token, client)
				}
				if err != nil || got.text != want.text {
					t.Errorf("%s: %q, %v, want %q", turn.name, got.text, err, want.text)
				}
				if n := len(p.Arrivals()) - before; n != 2 {
					t.Errorf("%s: the provider was asked %d times, want 2: %s", turn.name, n, keysAsked(p, before))
				}
			}
		})
	}
}

// keysAsked tells with which keys the provider was asked since.
func keysAsked(p *provider, since int) string {
	text := ""
	for _, a := range p.Arrivals()[since:] {
		text += fmt.Sprintf("%s %s with %s; ", a.Method, a.Path, a.Key)
	}
	return text
}
