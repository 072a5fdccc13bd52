package proxy

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/authpool/authpool/ratelimit/usage"
)

// The series of a subscription that is gone are gone, and begin anew when it comes back.
func TestForgetMetrics(t *testing.T) {
	e := usage.Event{Provider: "anthropic", Subscription: "forgotten", Tokens: usage.Tokens{Input: 7}, CostNanoUSD: 1}
	countSpent(&e)
	if series, sum := tokensOf(t, "forgotten"); series == 0 || sum != 7 {
		t.Fatalf("%d series with %v", series, sum)
	}
	ForgetMetrics("forgotten")
	if series, sum := tokensOf(t, "forgotten"); series != 0 {
		t.Errorf("%d series with %v are left", series, sum)
	}
	countSpent(&e)
	if series, sum := tokensOf(t, "forgotten"); series == 0 || sum != 7 {
		t.Errorf("it is back: %d series with %v", series, sum)
	}
}

// tokensOf are the series of a subscription's tokens, and their sum.
func tokensOf(t *testing.T, subscription string) (series int, sum float64) {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "authpool_tokens_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "subscription" && l.GetValue() == subscription {
					series, sum = series+1, sum+m.GetCounter().GetValue()
				}
			}
		}
	}
	return series, sum
}
