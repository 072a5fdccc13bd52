package ratelimit_test

import (
	"math"
	"testing"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// What one process tells the fleet, and asks of it.
func TestDraw(t *testing.T) {
	now := noon
	absent := false
	g := gate(ratelimit.Rates{Requests: 600})
	g.LeaseRates(func() bool { return absent })
	type amounts = ratelimit.Amounts
	draw := func(want *ratelimit.Draw) (d ratelimit.Draw) {
		t.Helper()
		d, ok := g.Draw(now, 1, false)
		if ok != (want != nil) {
			t.Fatalf("asks is %t: %+v", ok, d)
		}
		if ok && (d.Spent != want.Spent || d.Debt != want.Debt || d.Keep != want.Keep || d.Need != want.Need || d.Want != want.Want) {
			t.Errorf("asks for %+v, want %+v", d, *want)
		}
		return d
	}
	allow := func(n int, wait time.Duration, short bool) {
		t.Helper()
		for range n {
			if _, r := g.Allow(now, "m", 0, 0); r.Why != ratelimit.Open {
				t.Fatalf("refused: %+v", r)
			}
		}
		_, r := g.Allow(now, "m", 0, 0)
		if got := r.Until.Sub(now); r.Why != ratelimit.Metered || r.Short != short || got < wait || got > wait+2*time.Millisecond {
			t.Errorf("%v for %v, short %t; want the rate for %v, %t", r.Why, got, r.Short, wait, short)
		}
	}
	utilization := func(want float64) {
		t.Helper()
		if got := g.Utilization(now); math.Abs(got-want) > 1e-9 {
			t.Errorf("utilization %v, want %v", got, want)
		}
	}

	draw(nil) // nobody asked
	utilization(0)
	allow(0, 100*time.Millisecond, true)
	if !g.Demand(now, 0, 0) {
		t.Error("a request that lacks its part does not have the fleet asked")
	}
	d := draw(&ratelimit.Draw{Need: amounts{1}, Want: amounts{1}})
	if g.Demand(now, 0, 0) {
		t.Error("the fleet is asked again at once")
	}
	if !g.Drawn(now, now, d, ratelimit.Drawn{Granted: true, Held: amounts{3}, Left: amounts{297}, Others: 3}) {
		t.Error("nobody hears of what was granted")
	}
	utilization(0.5)
	allow(3, 100*time.Millisecond, true)
	utilization(1 - 297.0/600)

	// Refused by the fleet, it waits until there is more, and goes on asking.
	now = now.Add(50 * time.Millisecond)
	g.Demand(now, 0, 0)
	d = draw(&ratelimit.Draw{Spent: amounts{3}, Need: amounts{1}, Want: amounts{1}})
	g.Drawn(now, now, d, ratelimit.Drawn{Wait: 400 * time.Millisecond, Left: amounts{-3}, Others: 3})
	allow(0, 401*time.Millisecond, false)
	if g.Demand(now, 0, 0) {
		t.Error("the fleet is asked for what it has refused")
	}
	now = now.Add(250 * time.Millisecond)
	draw(nil)
	now = now.Add(150 * time.Millisecond)
	d = draw(&ratelimit.Draw{Spent: amounts{3}, Need: amounts{1}, Want: amounts{5}}) // and what the next second will take
	g.Drawn(now, now, d, ratelimit.Drawn{Granted: true, Held: amounts{6}, Left: amounts{0}, Others: 3})
	allow(6, 101*time.Millisecond, false)

	// What it does not use goes back, and what it holds ends.
	now = now.Add(300 * time.Millisecond)
	g.Demand(now, 0, 0)
	d, _ = g.Draw(now, 1, false)
	g.Drawn(now, now, d, ratelimit.Drawn{Granted: true, Held: amounts{5}, Left: amounts{0}, Others: 3})
	now = now.Add(2 * time.Second)
	d, ok := g.Draw(now, 0, false)
	if !ok || d.Keep[0] >= 5 {
		t.Errorf("two seconds unused, it keeps %d of 5 (%t)", d.Keep[0], ok)
	}
	g.Drawn(now, now, d, ratelimit.Drawn{Granted: true, Held: amounts{2}, Left: amounts{100}, Others: 3})
	now = now.Add(ratelimit.RateLease)
	allow(0, 100*time.Millisecond, true)

	// Without the fleet: a quarter of the limit, of which what was left is there.
	absent = true
	allow(50, 400*time.Millisecond, false) // 100 and ten seconds' 100, by four
	utilization(1)
	now = now.Add(time.Minute)
	utilization(0)
	allow(150, 400*time.Millisecond, false)
	absent = false
	d, _ = g.Draw(now, 1, false)
	if d.Debt != (amounts{150}) || d.Keep != (amounts{}) {
		t.Errorf("when it is back it owes %v and keeps %v, want its part of a minute and nothing", d.Debt, d.Keep)
	}
	g.Drawn(now, now, d, ratelimit.Drawn{Granted: true, Left: amounts{10}, Others: 3})

	// Who sends nothing any more takes leave once.
	now = now.Add(31 * time.Second)
	d, ok = g.Draw(now, 0, false)
	if !ok || d.Want != (amounts{}) || d.Keep != (amounts{}) {
		t.Errorf("idle, it asks %t for %+v", ok, d)
	}
	g.Drawn(now, now, d, ratelimit.Drawn{Granted: true, Others: 3})
	now = now.Add(time.Hour)
	draw(nil)
}

// What a process gives back may be drawn by another one before the answer is there:
// it is not spent meanwhile.
func TestWhatGoesBackIsNotSpent(t *testing.T) {
	for name, leaves := range map[string]bool{"takes leave": true, "needs less": false} {
		t.Run(name, func(t *testing.T) {
			now := noon
			g := gate(ratelimit.Rates{Requests: 60})
			g.LeaseRates(func() bool { return false })
			served := func() bool {
				_, r := g.Allow(now, "m", 0, 0)
				return r.Why == ratelimit.Open
			}
			if served() || !g.Demand(now, 0, 0) {
				t.Fatal("it has something before the fleet was asked")
			}
			d, ok := g.Draw(now, 1, false)
			if !ok {
				t.Fatal("it does not ask")
			}
			g.Drawn(now, now, d, ratelimit.Drawn{Granted: true, Held: ratelimit.Amounts{5}})
			now = now.Add(time.Second)
			back, ok := g.Draw(now, 0, leaves)
			if !ok || back.Keep != (ratelimit.Amounts{}) {
				t.Fatalf("it gives nothing back: %+v, %t", back, ok)
			}
			if served() {
				t.Error("it spends what it has given back")
			}
			g.Drawn(now, now, back, ratelimit.Drawn{Granted: true, Held: ratelimit.Amounts{2}})
			if !served() {
				t.Error("it does not spend what the fleet says that it holds")
			}
		})
	}
}
