package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/authpool/authpool/bench/simulator"
)

// TestFaultsBehindGoSDKs: whatever one subscription answers, the client finishes
// its turn without a repetition of its own as long as another one can serve, and
// the provider is asked no more often than that takes. Only what breaks after
// the agent has content is for the agent to repeat.
func TestFaultsBehindGoSDKs(t *testing.T) {
	t.Parallel()
	turns := make(map[string]turn)
	for _, turn := range goTurns() {
		turns[turn.name] = turn
	}
	for _, tt := range []struct {
		name  string
		fault simulator.Fault
	}{
		{"401", simulator.Fault{Kind: simulator.Status, Status: http.StatusUnauthorized}},
		{"429", simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 600}},
		{"429 without a time", simulator.Fault{Kind: simulator.RateLimit}},
		{"used-up window", simulator.Fault{Kind: simulator.Window, RetryAfter: 3600}},
		{"used-up credit", simulator.Fault{Kind: simulator.Quota}},
		{"overload", simulator.Fault{Kind: simulator.Overloaded}},
		{"500", simulator.Fault{Kind: simulator.Status, Status: http.StatusInternalServerError}},
		{"error event", simulator.Fault{Kind: simulator.ErrorEvent}},
		{"error event behind content", simulator.Fault{Kind: simulator.LateErrorEvent}},
		{"cut before content", simulator.Fault{Kind: simulator.EarlyCut}},
		{"cut behind content", simulator.Fault{Kind: simulator.Cut}},
	} {
		// One turn of each provider: a second fault would close its second subscription, too.
		for _, names := range [][]string{
			{"anthropic stream", "openai responses stream"},
			{"anthropic json", "openai responses json"},
			{"openai chat stream that does not ask"},
		} {
			t.Run(tt.name+"/"+strings.Join(names, ", "), func(t *testing.T) {
				t.Parallel()
				p := startProvider(t, simulator.Options{Keys: keysOf(pairs), Watch: []string{"apa_"}})
				straight := startProvider(t, simulator.Options{}) // the same seed, so the same answers
				a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
				for _, name := range names {
					finishes(t, turns[name], tt.fault, p, straight, a)
				}
			})
		}
	}
}

// finishes checks that a turn is finished though the fault meets its first request.
func finishes(t *testing.T, turn turn, fault simulator.Fault, p, straight *provider, a *authpool) {
	t.Helper()
	client := httpClient(t)
	want, err := turn.run(t.Context(), straight.url, "any", client)
	if err != nil {
		t.Fatalf("%s, without authpool: %v", turn.name, err)
	}
	before := len(p.Arrivals())
	if err := p.Inject(simulator.Injection{Fault: fault}); err != nil {
		t.Fatal(err)
	}
	got, err := turn.run(t.Context(), a.url, a.token, client)
	var late bool // the agent has content by then
	switch fault.Kind {
	case simulator.Cut:
		late = true
	case simulator.EarlyCut: // a JSON answer goes out as it comes
		late = strings.HasSuffix(turn.name, " json")
	case simulator.LateErrorEvent:
		// A JSON answer has no such thing; and authpool may see the error together with the first content, in time.
		late = err != nil
	default:
	}
	if late {
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

// keysAsked tells with which keys the provider was asked since.
func keysAsked(p *provider, since int) string {
	text := ""
	for _, a := range p.Arrivals()[since:] {
		text += fmt.Sprintf("%s %s with %s; ", a.Method, a.Path, a.Key)
	}
	return text
}
