package ratelimit_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/ratelimit"
)

func gate(rates ratelimit.Rates) *ratelimit.Gate {
	return ratelimit.NewGate("team-a", rates, ratelimit.NewCooldowns())
}

// now is the clock of a synctest bubble, and pass lets it go on. The gate takes
// its time as a parameter; the breaker inside it does not.
func now() time.Time { return time.Now() }

func pass(d time.Duration) { time.Sleep(d) }

// attempt lets one request through and settles it.
func attempt(t *testing.T, g *ratelimit.Gate, v ratelimit.Verdict) ratelimit.Change {
	t.Helper()
	pass, r := g.Allow(now(), "m", 0, 0)
	if r.Why != ratelimit.Open {
		t.Fatalf("refused: %v until %v", r.Why, r.Until)
	}
	change := pass.Verdict(now(), v)
	pass.Done(now(), 0, 0, true)
	return change
}

var (
	ok         = ratelimit.Verdict{Signal: ratelimit.OK}
	failed     = ratelimit.Verdict{Signal: ratelimit.ServerError, Reason: ratelimit.ReasonUpstream, Scope: ratelimit.ScopeSubscription, Wait: -1}
	overloaded = ratelimit.Verdict{Signal: ratelimit.Overloaded, Reason: ratelimit.ReasonCapacity, Scope: ratelimit.ScopeProviderModel, Wait: -1}
	refused    = ratelimit.Verdict{Signal: ratelimit.ClientError, Reason: ratelimit.ReasonRefused, Scope: ratelimit.ScopeRequest, Wait: -1}
)

func TestBreakerOpensOnFailuresInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(ratelimit.Rates{})
		for i := range 5 {
			if change := attempt(t, g, failed); change.Opened != (i == 4) {
				t.Errorf("failure %d: opened %v", i+1, change.Opened)
			}
		}
		_, r := g.Allow(now(), "m", 0, 0)
		if r.Why != ratelimit.Broken {
			t.Fatalf("after five failures: %v, want breaker", r.Why)
		}
		if wait := r.Until.Sub(now()); wait < 10*time.Second || wait > 11*time.Second {
			t.Errorf("opens in %v, want about 10s", wait)
		}

		// Half open: one request finds out, the others stay out until it is
		// settled.
		pass(r.Until.Sub(now()))
		probe, r := g.Allow(now(), "m", 0, 0)
		if r.Why != ratelimit.Open {
			t.Fatalf("no probe after the wait: %v", r.Why)
		}
		if _, r := g.Allow(now(), "m", 0, 0); r.Why != ratelimit.Broken {
			t.Errorf("a second request beside the probe: %v, want breaker", r.Why)
		}
		probe.Verdict(now(), failed)
		if g.Breaker() != "open" {
			t.Errorf("after a failed probe: %s, want open", g.Breaker())
		}
		pass(11 * time.Second)
		attempt(t, g, ok)
		if g.Breaker() != "closed" {
			t.Errorf("after a good probe: %s, want closed", g.Breaker())
		}
	})
}

// A trap of gobreaker: half open, everybody waits until the one request is
// settled. So an answer is settled when its head is known, and one whose agent
// left is settled too.
func TestHalfOpenProbeIsSettledBeforeItsAnswerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(ratelimit.Rates{})
		for range 5 {
			attempt(t, g, failed)
		}
		pass(11 * time.Second)
		left, _ := g.Allow(now(), "m", 0, 0)
		left.Done(now(), 0, 0, true) // the agent left: counts for nothing
		if g.Breaker() != "half-open" {
			t.Fatalf("after an agent left: %s, want half-open", g.Breaker())
		}
		stream, r := g.Allow(now(), "m", 0, 0)
		if r.Why != ratelimit.Open {
			t.Fatalf("the place of the probe was not given back: %v", r.Why)
		}
		stream.Verdict(now(), ok) // its answer goes on for ten minutes
		attempt(t, g, ok)
	})
}

// A trial whose answer takes minutes to begin holds nobody back for minutes.
func TestSlowTrialMakesRoomForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(ratelimit.Rates{})
		for range 5 {
			attempt(t, g, failed)
		}
		pass(11 * time.Second)
		slow, _ := g.Allow(now(), "m", 0, 0)
		_, r := g.Allow(now(), "m", 0, 0)
		if wait := r.Until.Sub(now()); r.Why != ratelimit.Broken || wait != 10*time.Second {
			t.Fatalf("beside the trial: %v for %v, want breaker for 10s", r.Why, wait)
		}
		pass(10 * time.Second)
		attempt(t, g, ok)
		slow.Verdict(now(), failed) // old news
		slow.Done(now(), 0, 0, true)
		if g.Breaker() != "closed" {
			t.Errorf("the breaker is %s, want closed by the second trial", g.Breaker())
		}
	})
}

func TestErrorRateForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(ratelimit.Rates{})
		for range 4 {
			attempt(t, g, failed)
		}
		if rate := g.ErrorRate(); rate != 0.4 {
			t.Errorf("four failures: %v, want 0.4 of the least count", rate)
		}
		pass(2 * time.Minute)
		if rate := g.ErrorRate(); rate != 0 {
			t.Errorf("two minutes later: %v, want 0", rate)
		}
	})
}

func TestBreakerCountsOnlyWhatIsBroken(t *testing.T) {
	f := func(v ratelimit.Verdict) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			g := gate(ratelimit.Rates{})
			for range 50 {
				attempt(t, g, v)
			}
			if g.Breaker() != "closed" {
				t.Errorf("50 times %v: the breaker is %s", v.Signal, g.Breaker())
			}
		})
	}
	f(ok)
	f(overloaded)
	f(refused)
	f(ratelimit.Verdict{Signal: ratelimit.Auth, Scope: ratelimit.ScopeSubscription, Wait: -1})
	f(ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonRequest, Scope: ratelimit.ScopeRequest, Wait: -1})
}

func TestBreakerOpensOnAHighShareOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(ratelimit.Rates{})
		for i := 0; g.Breaker() == "closed"; i++ {
			if i > 40 {
				t.Fatal("two failures out of three do not open the breaker")
			}
			v := failed
			if i%3 == 0 {
				v = ok
			}
			attempt(t, g, v)
		}
	})
}

func TestOverloadedChangesNothing(t *testing.T) {
	g := gate(ratelimit.Rates{})
	if change := attempt(t, g, overloaded); !change.None() {
		t.Errorf("overloaded changed %+v", change)
	}
	if r := g.Check(now(), "m", 0, 0); r.Why != ratelimit.Open {
		t.Errorf("after overloaded the gate is closed: %v", r.Why)
	}
}

func TestGatesOfOneDomainCloseTogether(t *testing.T) {
	shared := ratelimit.NewCooldowns()
	a, b := ratelimit.NewGate("a", ratelimit.Rates{}, shared), ratelimit.NewGate("b", ratelimit.Rates{}, shared)
	attempt(t, a, ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeDomain, Wait: time.Hour})
	if r := b.Check(now(), "m", 0, 0); r.Why != ratelimit.Cooling {
		t.Errorf("the other gate of the domain: %v, want cooling", r.Why)
	}
}

// Whom a limit closes, by its scope: the gate that met it, another of its domain,
// and the models of either.
func TestScopes(t *testing.T) {
	for _, tt := range []struct {
		scope                              ratelimit.Scope
		own, ownOther, domain, domainOther bool // closed: for the model that met it, and for another
	}{
		{ratelimit.ScopeRequest, false, false, false, false},
		{ratelimit.ScopeModel, true, false, true, false},
		{ratelimit.ScopeSubscription, true, true, false, false},
		{ratelimit.ScopeDomain, true, true, true, true},
	} {
		shared := ratelimit.NewCooldowns()
		a, b := ratelimit.NewGate("a", ratelimit.Rates{}, shared), ratelimit.NewGate("b", ratelimit.Rates{}, shared)
		change := attempt(t, a, ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonCredit, Scope: tt.scope, Wait: time.Hour})
		if change.Scope != tt.scope || change.None() != (tt.scope == ratelimit.ScopeRequest) {
			t.Errorf("%v: %+v", tt.scope, change)
		}
		for _, one := range []struct {
			g     *ratelimit.Gate
			model string
			want  bool
		}{{a, "m", tt.own}, {a, "n", tt.ownOther}, {b, "m", tt.domain}, {b, "n", tt.domainOther}} {
			if r := one.g.Check(now(), one.model, 0, 0); (r.Why == ratelimit.Cooling) != one.want {
				t.Errorf("%v: model %s: %v", tt.scope, one.model, r.Why)
			}
			if _, r := one.g.Allow(now(), one.model, 0, 0); (r.Why == ratelimit.Cooling) != one.want {
				t.Errorf("%v: model %s: %v", tt.scope, one.model, r.Why)
			}
		}
	}
}

// Whoever joins another domain while it is probed, or while it opens, opens no
// faster for it.
func TestRampGoesAlongToAnotherDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, early := range []bool{true, false} { // before the probe's verdict, or after it
			former, next := ratelimit.NewCooldowns(), ratelimit.NewCooldowns()
			g := ratelimit.NewGate("a", ratelimit.Rates{}, former)
			attempt(t, g, ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeModel, Wait: time.Second})
			pass(time.Second)
			move := func() {
				next.Join(now(), former)
				g.Share(next)
			}
			probe, r := g.Allow(now(), "m", 0, 0)
			if r.Why != ratelimit.Open {
				t.Fatalf("no probe: %v", r.Why)
			}
			if early {
				move()
			}
			probe.Verdict(now(), ok)
			probe.Done(now(), 0, 0, true)
			if !early {
				move()
			}
			if _, r := g.Allow(now(), "m", 0, 0); r.Why != ratelimit.Open {
				t.Errorf("early %t: the first is refused: %v", early, r.Why)
			}
			if _, r := g.Allow(now(), "m", 0, 0); r.Why != ratelimit.Ramping && r.Why != ratelimit.Probing {
				t.Errorf("early %t: two at once: %v", early, r.Why)
			}
		}
	})
}

// The later of the two closures counts, and each has a probe and a ramp of its own.
func TestOwnCooldownBesideTheDomains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := ratelimit.NewCooldowns()
		a, b := ratelimit.NewGate("a", ratelimit.Rates{}, shared), ratelimit.NewGate("b", ratelimit.Rates{}, shared)
		p, _ := a.Allow(now(), "m", 0, 0)
		limit := ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeDomain, Wait: 10 * time.Second}
		p.Verdict(now(), limit)
		limit.Scope, limit.Wait = ratelimit.ScopeSubscription, 20*time.Second
		p.Late(now(), limit)
		p.Done(now(), 0, 0, true)
		if c, ok := a.Cooldown(now()); !ok || c.Until.Sub(now()) != 20*time.Second {
			t.Errorf("%+v, want what ends later", c)
		}
		if c, ok := b.Cooldown(now()); !ok || c.Until.Sub(now()) != 10*time.Second {
			t.Errorf("%+v, want the domain's", c)
		}
		pass(10 * time.Second)
		if r := a.Check(now(), "m", 0, 0); r.Why != ratelimit.Cooling || r.Until.Sub(now()) != 10*time.Second {
			t.Errorf("%+v, want its own", r)
		}
		p, r := b.Allow(now(), "m", 0, 0)
		if own, domain, _ := p.Probes(); r.Why != ratelimit.Open || own || !domain {
			t.Fatalf("%+v: probes its own %v, its domain's %v", r, own, domain)
		}
		p.Verdict(now(), ok)
		p.Done(now(), 0, 0, true)
		pass(10 * time.Second)
		p, r = a.Allow(now(), "m", 0, 0)
		if own, domain, _ := p.Probes(); r.Why != ratelimit.Open || !own || domain {
			t.Fatalf("%+v: probes its own %v, its domain's %v", r, own, domain)
		}
		if r := a.Check(now(), "n", 0, 0); r.Why != ratelimit.Probing {
			t.Errorf("%+v, want one probe at a time", r)
		}
		if r := b.Check(now(), "m", 0, 0); r.Why != ratelimit.Open {
			t.Errorf("%+v: the other one waits for a probe that is not its own", r)
		}
		p.Verdict(now(), ok)
		p.Done(now(), 0, 0, true)

		// A request that may go out for the one and not for the other leaves the probe
		// to another.
		p, _ = a.Allow(now(), "m", 0, 0)
		limit.Scope, limit.Wait = ratelimit.ScopeDomain, 10*time.Second
		p.Verdict(now(), limit)
		limit.Scope, limit.Wait = ratelimit.ScopeSubscription, 20*time.Second
		p.Late(now(), limit)
		p.Done(now(), 0, 0, true)
		pass(10 * time.Second)
		if _, r := a.Allow(now(), "m", 0, 0); r.Why != ratelimit.Cooling {
			t.Errorf("%+v, want its own cooldown", r)
		}
		p, r = b.Allow(now(), "m", 0, 0)
		if _, domain, _ := p.Probes(); r.Why != ratelimit.Open || !domain {
			t.Fatalf("%+v: probes %v", r, domain)
		}
		// Another process has it: that says nothing of a's own.
		p.Elsewhere(ratelimit.ScopeDomain, now().Add(ratelimit.ProbePatience))
		p.Cancel(now())
		if r := b.Check(now(), "m", 0, 0); r.Why != ratelimit.Probing {
			t.Errorf("%+v, want a probe elsewhere", r)
		}
		b.Ask()
		if _, r := b.Allow(now(), "m", 0, 0); r.Why != ratelimit.Open {
			t.Errorf("%+v: after news it is not asked again", r)
		}
	})
}

// Whose limits turn out to be shared bring what they know with them.
func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		alone, shared := ratelimit.NewCooldowns(), ratelimit.NewCooldowns()
		a, b := ratelimit.NewGate("a", ratelimit.Rates{}, alone), ratelimit.NewGate("b", ratelimit.Rates{}, shared)
		limit := ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeModel, Wait: time.Minute}
		before, _ := a.Allow(now(), "m", 0, 0)
		attempt(t, a, limit)
		shared.Join(now(), alone)
		a.Share(shared)
		for _, g := range []*ratelimit.Gate{a, b} {
			if r := g.Check(now(), "m", 0, 0); r.Why != ratelimit.Cooling {
				t.Errorf("%v, want cooling", r.Why)
			}
		}
		// What went out before is settled where it began, and closes where it is now.
		limit.Scope, limit.Wait = ratelimit.ScopeDomain, time.Hour
		before.Verdict(now(), limit)
		before.Done(now(), 0, 0, true)
		if r := b.Check(now(), "n", 0, 0); r.Why != ratelimit.Cooling {
			t.Errorf("%v, want cooling", r.Why)
		}
		a.Share(ratelimit.NewCooldowns())
		if r := a.Check(now(), "m", 0, 0); r.Why != ratelimit.Open {
			t.Errorf("%v, want open: the limits were those of the domain that it has left", r.Why)
		}
	})
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := func(rates ratelimit.Rates, in, out int64, passes int, wait time.Duration) {
			t.Helper()
			g := gate(rates)
			for i := range passes {
				if _, r := g.Allow(now(), "m", in, out); r.Why != ratelimit.Open {
					t.Fatalf("%+v: request %d was refused: %v", rates, i+1, r.Why)
				}
			}
			_, r := g.Allow(now(), "m", in, out)
			if r.Why != ratelimit.Metered {
				t.Fatalf("%+v: request %d: %v, want rate", rates, passes+1, r.Why)
			}
			if got := r.Until.Sub(now()); got < wait || got > wait+10*time.Millisecond {
				t.Errorf("%+v: next in %v, want %v", rates, got, wait)
			}
			pass(r.Until.Sub(now()))
			if _, r := g.Allow(now(), "m", in, out); r.Why != ratelimit.Open {
				t.Errorf("%+v: refused at the time that it named: %v until %v", rates, r.Why, r.Until.Sub(now()))
			}
		}
		f(ratelimit.Rates{Requests: 60}, 0, 0, 60, time.Second)
		// Of tokens a twentieth is left for answers that come to more.
		f(ratelimit.Rates{InputTokens: 6000}, 950, 0, 6, 9500*time.Millisecond)
		f(ratelimit.Rates{OutputTokens: 6000}, 0, 2850, 2, 28500*time.Millisecond)
		// The tightest of several counts.
		f(ratelimit.Rates{Requests: 60, InputTokens: 6000}, 1900, 0, 3, 19*time.Second)
		// Larger than the limit: sent when the bucket is full, and the rest is
		// a debt. A trap of x/time/rate, which never allows it.
		f(ratelimit.Rates{InputTokens: 6000}, 15000, 0, 1, 150*time.Second)
	})
}

func TestRatesAreSettledByWhatWasUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := func(estimate, used int64, settled bool, want float64) {
			t.Helper()
			g := gate(ratelimit.Rates{InputTokens: 1000})
			pass, _ := g.Allow(now(), "m", estimate, 0)
			pass.Verdict(now(), ok)
			pass.Done(now(), used, 0, settled)
			if got := g.Utilization(now()); math.Abs(got-want) > 1e-9 {
				t.Errorf("estimated %d, used %d: utilization %v, want %v", estimate, used, got, want)
			}
		}
		f(500, 200, true, 0.2)
		f(500, 0, true, 0)
		f(500, 0, false, 0.5) // usage unknown: the estimate stands
		f(0, 700, true, 0.7)
		f(0, 5500, true, 5.5) // a settlement above the bucket is not lost
		f(3000, 100, true, 0.1)

		g := gate(ratelimit.Rates{Requests: 10, InputTokens: 1000})
		pass, _ := g.Allow(now(), "m", 600, 0)
		pass.Cancel(now())
		if got := g.Utilization(now()); got != 0 {
			t.Errorf("after Cancel: utilization %v, want 0", got)
		}
	})
}

func TestUtilizationFollowsTheTightestWindow(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	later, before := now.Add(time.Hour), now.Add(-time.Second)
	w := func(name, kind, status string, u float64, reset time.Time) ratelimit.Window {
		return ratelimit.Window{Name: name, Kind: kind, Status: status, Utilization: u, Reset: reset, Seen: now.Add(-time.Minute)}
	}
	f := func(want float64, windows ...ratelimit.Window) {
		t.Helper()
		g := gate(ratelimit.Rates{})
		pass, _ := g.Allow(now, "m", 0, 0)
		pass.Verdict(now, ratelimit.Verdict{Signal: ratelimit.OK, Windows: windows})
		if got := g.Utilization(now); got != want {
			t.Errorf("%+v: utilization %v, want %v", windows, got, want)
		}
	}
	f(0)
	f(0.7, w("5h", "provider", "allowed", 0.3, later), w("7d", "provider", "allowed", 0.7, later))
	f(0.3, w("5h", "provider", "allowed", 0.3, later), w("7d", "provider", "allowed", 0.9, before)) // reset
	f(1, w("5h", "provider", "rejected", 0.98, later))
	f(1.2, w("5h", "provider", "rejected", 1.2, later))
	f(0, w("5h", "provider", "allowed", math.NaN(), later))
	f(0, w("5h", "provider", "allowed", -3, later))
	// Not about every request.
	f(0, w("overage", "provider", "rejected", 1, later), w("7d_oi", "provider", "rejected", 1, later))
	// Per minute, and without a reset: believed for a minute.
	f(0, w("input_tokens", "bucket", "", 0.9, time.Time{}))
	f(0.9, w("5h", "provider", "", 0.9, time.Time{}))
}

// Rates never let more through than they allow: in any stretch of time at most
// one full bucket and what it refilled.
func TestRatesHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 200).Draw(t, "limit")
		g := gate(ratelimit.Rates{Requests: limit})
		now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
		begin, passed := now, 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * time.Millisecond)
			pass, r := g.Allow(now, "m", 0, 0)
			if r.Why == ratelimit.Open {
				passed++
				pass.Done(now, 0, 0, true)
			} else if !r.Until.After(now) {
				t.Fatalf("refused until %v, which is not after %v", r.Until, now)
			}
			if most := float64(limit) * (1 + now.Sub(begin).Minutes()); float64(passed) > most+0.01 {
				t.Fatalf("%d requests passed in %v, most is %v", passed, now.Sub(begin), most)
			}
		}
	})
}

func TestWindowsAreRememberedByName(t *testing.T) {
	t0 := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	g := gate(ratelimit.Rates{})
	told := func(windows ...ratelimit.Window) {
		pass, _ := g.Allow(t0, "m", 0, 0)
		pass.Verdict(t0, ratelimit.Verdict{Signal: ratelimit.OK, Windows: windows})
		pass.Done(t0, 0, 0, true)
	}
	told(ratelimit.Window{Name: "7d", Utilization: 0.1, Status: "allowed", Seen: t0},
		ratelimit.Window{Name: "5h", Utilization: 0.2, Status: "allowed", Seen: t0})
	told(ratelimit.Window{Name: "5h", Utilization: 0.9, Status: "allowed_warning", Seen: t0.Add(time.Second)})
	told(ratelimit.Window{Name: "7d", Utilization: 0.05, Seen: t0.Add(-time.Second)}) // an answer that took longer
	got := g.Windows()
	if len(got) != 2 || got[0].Name != "5h" || got[0].Utilization != 0.9 || got[0].Status != "allowed_warning" ||
		got[1].Name != "7d" || got[1].Utilization != 0.1 {
		t.Errorf("%+v", got)
	}
	for i := range 100 {
		told(ratelimit.Window{Name: string(rune('a' + i)), Seen: t0})
	}
	if n := len(g.Windows()); n > 32 {
		t.Errorf("%d windows are remembered, want a bound", n)
	}
}
