package ratelimit_test

import (
	"testing"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// One attempt that goes well, as nearly all do.
func BenchmarkGate(b *testing.B) {
	many := ratelimit.Rates{Requests: 1e9, InputTokens: 1e12, OutputTokens: 1e12}
	leased := ratelimit.NewGate("leased", many, ratelimit.NewCooldowns())
	leased.LeaseRates(func() bool { return false })
	leased.Demand(noon, 100, 100)
	d, _ := leased.Draw(noon, 1, false)
	leased.Drawn(noon, noon, d, ratelimit.Drawn{Granted: true, Held: ratelimit.Amounts{1e12, 1e12, 1e12}})
	told := gate(ratelimit.Rates{})
	p, _ := told.Allow(noon, "m", 0, 0)
	p.Verdict(noon, ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{left("tokens", 1e15, 1e14, noon, time.Minute)}})
	p.Done(noon, 0, 0, true)
	for _, c := range []struct {
		name string
		gate *ratelimit.Gate
	}{
		{"without limits", gate(ratelimit.Rates{})}, {"limits", gate(many)}, {"limits of a fleet", leased}, {"the provider's word", told},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, r := c.gate.Allow(noon, "m", 100, 100)
				if r.Why != ratelimit.Open {
					b.Fatal(r.Why)
				}
				p.Verdict(noon, ratelimit.Verdict{Signal: ratelimit.OK})
				p.Done(noon, 100, 50, true)
			}
		})
	}
}
