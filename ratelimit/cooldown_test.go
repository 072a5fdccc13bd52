package ratelimit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func verdict(signal Signal, reason Reason, scope Scope, wait time.Duration) Verdict {
	return Verdict{Signal: signal, Reason: reason, Scope: scope, Wait: wait}
}

// fixed returns open cooldowns whose jitter is always the given part.
func fixed(jitter float64) *Cooldowns {
	c := NewCooldowns()
	c.jitter = func() float64 { return jitter }
	return c
}

func TestRefuseClosesWhatTheVerdictSays(t *testing.T) {
	f := func(v Verdict, wantWhole, wantModel time.Duration) {
		t.Helper()
		c := fixed(0.5)
		change := c.refuse(t0, t0, "m", v)
		if wantWhole == 0 && wantModel == 0 != change.None() {
			t.Errorf("%+v: change %+v", v, change)
		}
		whole, _ := c.Whole(t0)
		if got := until(whole.Until); got != wantWhole {
			t.Errorf("%+v closes the whole for %v, want %v", v, got, wantWhole)
		}
		if got := until(c.Models(t0)["m"]); got != wantModel {
			t.Errorf("%+v closes the model for %v, want %v", v, got, wantModel)
		}
	}
	f(verdict(Limited, ReasonThrottled, ScopeModel, 7*time.Second), 0, 7*time.Second)
	f(verdict(Limited, ReasonThrottled, ScopeSubscription, 7*time.Second), 7*time.Second, 0)
	// A window's end is spread by a twentieth at most, and ten seconds at most.
	f(verdict(Limited, ReasonWindow, ScopeSubscription, time.Minute), time.Minute+1500*time.Millisecond, 0)
	f(verdict(Limited, ReasonWindow, ScopeModel, time.Hour), 0, time.Hour+5*time.Second)
	f(verdict(Limited, ReasonBare, ScopeModel, -1), 0, time.Second)
	f(verdict(Quota, ReasonCredit, ScopeSubscription, -1), time.Hour, 0)
	f(verdict(Quota, ReasonSpendLimit, ScopeSubscription, 2*time.Hour), 2*time.Hour+5*time.Second, 0)
	// What an answer states is believed up to a bound.
	f(verdict(Limited, ReasonThrottled, ScopeSubscription, 1000*time.Hour), throttleMost, 0)
	f(verdict(Limited, ReasonWindow, ScopeSubscription, 10000*time.Hour), windowMost+5*time.Second, 0)
	// Not a limit of the subscription.
	f(verdict(Limited, ReasonRequest, ScopeRequest, time.Hour), 0, 0)
	f(verdict(Limited, ReasonThrottled, ScopeProviderModel, time.Hour), 0, 0)
	f(verdict(Limited, ReasonThrottled, ScopeProvider, time.Hour), 0, 0)
}

func until(end time.Time) time.Duration {
	if end.IsZero() {
		return 0
	}
	return end.Sub(t0)
}

func TestBareRefusalsInARowDouble(t *testing.T) {
	f := func(jitter float64, want ...time.Duration) {
		t.Helper()
		c := fixed(jitter)
		now := t0
		for i, w := range want {
			change := c.refuse(now, now, "m", verdict(Limited, ReasonBare, ScopeModel, -1))
			if change.Wait != w {
				t.Errorf("refusal %d closes for %v, want %v", i+1, change.Wait, w)
			}
			if change.Shared != (i > 0) {
				t.Errorf("refusal %d: shared %v; only the first is local", i+1, change.Shared)
			}
			// Others that were under way then say nothing new.
			if late := c.refuse(now, now.Add(-time.Millisecond), "m", verdict(Limited, ReasonBare, ScopeModel, -1)); !late.None() {
				t.Errorf("a refusal of a request from before changed %+v", late)
			}
			now = change.Until
			if probe, r := c.allow(now, "m"); !probe.isProbe() || r.Why != Open {
				t.Fatalf("the end of the cooldown allows no probe: %+v", r)
			}
		}
	}
	s := time.Second
	f(1, 1*s, 2*s, 4*s, 8*s, 16*s, 32*s, 60*s, 60*s)
	f(0, 1*s, 1*s, 1*s, 1*s)

	c := fixed(1)
	c.refuse(t0, t0, "m", verdict(Limited, ReasonBare, ScopeModel, -1))
	at := t0.Add(time.Second)
	probe, _ := c.allow(at, "m")
	c.open(probe, at, at.Add(RampTime), RampPace)
	if change := c.refuse(at, at, "m", verdict(Limited, ReasonBare, ScopeModel, -1)); change.Wait != time.Second {
		t.Errorf("after a success the row begins again: %v, want 1s", change.Wait)
	}
}

func TestOneProbeAfterACooldown(t *testing.T) {
	c := fixed(0)
	c.refuse(t0, t0, "m", verdict(Limited, ReasonThrottled, ScopeSubscription, time.Minute))
	if r := c.check(t0.Add(59*time.Second), "other"); r.Why != Cooling || !r.Until.Equal(t0.Add(time.Minute)) || r.Reason != ReasonThrottled {
		t.Errorf("before the end: %+v", r)
	}
	end := t0.Add(time.Minute)
	probe, r := c.allow(end, "m")
	if !probe.isProbe() || r.Why != Open {
		t.Fatalf("the first after the end: %+v, %+v", probe, r)
	}
	if _, r := c.allow(end.Add(time.Second), "other"); r.Why != Probing {
		t.Errorf("the second while the first is out: %v, want probing", r.Why)
	}
	if cooldown, ok := c.Whole(end); !ok || !cooldown.Probing {
		t.Errorf("Whole = %+v, %v; want probing", cooldown, ok)
	}
	// A probe without a result leaves the place to the next one.
	c.giveUp(probe, end)
	if probe, _ := c.allow(end.Add(2*time.Second), "m"); !probe.isProbe() {
		t.Error("after a probe without a result the next request is no probe")
	}
	// One that takes long holds nobody back for ever.
	next := end.Add(2 * time.Second).Add(ProbePatience)
	probe, r = c.allow(next, "m")
	if !probe.isProbe() || r.Why != Open {
		t.Errorf("after the patience: %+v, %+v", probe, r)
	}
	c.open(probe, next, next.Add(RampTime), RampPace)
	if _, ok := c.Whole(next); ok {
		t.Error("after the success the whole is still closed")
	}
	next = next.Add(RampTime)
	for range 3 {
		if turn, r := c.allow(next, "m"); turn != noTurn || r.Why != Open {
			t.Errorf("after the ramp: %+v, %+v", turn, r)
		}
	}
	if c.closed.Load() != 0 {
		t.Errorf("%d closures are counted after the last has ended", c.closed.Load())
	}
}

// noTurn is what a request holds that was let through by no closure.
var noTurn turn

func TestAdoptTakesTheLaterEnd(t *testing.T) {
	c := fixed(0)
	if !c.Adopt(t0, "", t0.Add(time.Minute), Limited, ReasonWindow) {
		t.Error("a new cooldown was not adopted")
	}
	if c.Adopt(t0, "", t0.Add(time.Second), Limited, ReasonWindow) {
		t.Error("an earlier end was adopted")
	}
	if c.Adopt(t0, "", t0.Add(time.Minute+100*time.Millisecond), Limited, ReasonWindow) {
		t.Error("the echo of the same end was adopted")
	}
	if c.Adopt(t0, "m", t0, Limited, ReasonWindow) {
		t.Error("an end that has passed was adopted")
	}
	if !c.Adopt(t0, "", t0.Add(time.Hour), Quota, ReasonCredit) {
		t.Error("a later end was not adopted")
	}
	if cooldown, _ := c.Whole(t0); cooldown.Signal != Quota || !cooldown.Until.Equal(t0.Add(time.Hour)) {
		t.Errorf("Whole = %+v", cooldown)
	}
}

func TestModelsAreBounded(t *testing.T) {
	c := fixed(0)
	limited := verdict(Limited, ReasonThrottled, ScopeModel, time.Minute)
	for i := range modelsMost {
		c.refuse(t0, t0, fmt.Sprint("m", i), limited)
	}
	if change := c.refuse(t0, t0, "one more", limited); change.Scope != ScopeDomain {
		t.Errorf("one model too many: %+v, want the whole subscription closed", change)
	}
	// Models that nobody asks for any more make room.
	later := t0.Add(time.Hour)
	if change := c.refuse(later, later, "yet one more", limited); change.Scope != ScopeModel || change.Model != "yet one more" {
		t.Errorf("after the others have ended: %+v", change)
	}
}

// Whatever comes, every cooldown ends: after its end one request is let
// through, never two at a time, and a success opens.
func TestCooldownsAlwaysEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCooldowns()
		now := t0
		type out struct {
			at    time.Time
			model string
			turn  turn
		}
		var under []out
		model := rapid.SampledFrom([]string{"", "a", "b"})
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30_000).Draw(t, "ms")) * time.Millisecond)
			m := model.Draw(t, "model")
			turn, r := c.allow(now, m)
			if r.Why == Open {
				under = append(under, out{now, m, turn})
			} else if !r.Until.After(now) {
				t.Fatalf("closed until %v, which has passed at %v", r.Until, now)
			}
			if len(under) == 0 || rapid.Bool().Draw(t, "leave it under way") {
				continue
			}
			i := rapid.IntRange(0, len(under)-1).Draw(t, "who")
			o := under[i]
			under = append(under[:i], under[i+1:]...)
			v := verdict(
				rapid.SampledFrom([]Signal{OK, Limited, Quota}).Draw(t, "signal"),
				rapid.SampledFrom([]Reason{ReasonWindow, ReasonThrottled, ReasonBare}).Draw(t, "reason"),
				rapid.SampledFrom([]Scope{ScopeRequest, ScopeModel, ScopeSubscription}).Draw(t, "scope"),
				time.Duration(rapid.IntRange(-1, 100_000).Draw(t, "wait"))*time.Millisecond)
			if v.Signal == OK {
				c.open(o.turn, now, now.Add(RampTime), RampPace)
			} else {
				c.refuse(now, o.at, o.model, v)
				c.giveUp(o.turn, o.at)
			}
			c.leave(o.turn)
		}
		now = now.Add(2 * windowMost)
		for _, m := range []string{"", "a", "b"} {
			probe, r := c.allow(now, m)
			if r.Why != Open {
				t.Fatalf("model %q is still closed long after: %+v", m, r)
			}
			c.open(probe, now, now.Add(RampTime), RampPace)
			c.leave(probe)
		}
		now = now.Add(RampTime)
		for _, m := range []string{"", "a", "b"} {
			if turn, r := c.allow(now, m); r.Why != Open || turn != noTurn {
				t.Fatalf("model %q is not open after a success: %+v", m, r)
			}
		}
		if n := c.closed.Load(); n != 0 {
			t.Fatalf("%d closures are left", n)
		}
	})
}

// After a cooldown there is one request under way, and one more every quarter of
// a second, until there may be any number.
func TestRampAfterACooldown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate("team-a", Rates{}, NewCooldowns())
		out := func() (list []Pass) { // as many as there is room for
			for len(list) < 1000 {
				p, r := g.Allow(time.Now(), "m", 0, 0)
				if r.Why != Open {
					if r.Why != Ramping || !r.Until.After(time.Now()) || time.Until(r.Until) > RampPace {
						t.Errorf("refused: %+v", r)
					}
					break
				}
				list = append(list, p)
			}
			return list
		}
		limited, _ := g.Allow(time.Now(), "m", 0, 0)
		limited.Verdict(time.Now(), verdict(Limited, ReasonThrottled, ScopeSubscription, time.Minute))
		limited.Done(time.Now(), 0, 0, true)
		time.Sleep(time.Minute)
		probe, _ := g.Allow(time.Now(), "m", 0, 0)
		probe.Verdict(time.Now(), verdict(OK, ReasonNone, ScopeRequest, -1)) // its answer goes on
		for step, want := range []int{1, 1, 1, 1} {
			if got := out(); len(got) != want {
				t.Errorf("step %d: %d more are let through, want %d", step, len(got), want)
			}
			time.Sleep(RampPace)
		}
		// Who is done makes room.
		first := out()
		if len(first) != 1 {
			t.Fatalf("%d more after a second, want 1", len(first))
		}
		first[0].Done(time.Now(), 0, 0, true)
		if got := out(); len(got) != 1 {
			t.Errorf("%d more after one is done, want 1", len(got))
		}
		time.Sleep(RampTime - 4*RampPace)
		if got := out(); len(got) != 1000 {
			t.Errorf("%d more after the ramp, want no limit", len(got))
		}
	})
}

// A limit that is met on the ramp closes anew.
func TestRefusalOnTheRamp(t *testing.T) {
	c := fixed(0)
	limit := verdict(Limited, ReasonBare, ScopeModel, -1)
	c.refuse(t0, t0, "m", limit)
	now := t0.Add(time.Second)
	probe, _ := c.allow(now, "m")
	c.open(probe, now, now.Add(RampTime), RampPace)
	step, r := c.allow(now, "m")
	if r.Why != Open {
		t.Fatalf("%+v", r)
	}
	if change := c.refuse(now, now, "m", limit); change.Wait != time.Second || change.Shared {
		t.Errorf("%+v, want a first refusal: one was served since", change)
	}
	c.leave(step)
	if r := c.check(now, "m"); r.Why != Cooling {
		t.Errorf("%+v, want cooling", r)
	}
}

// What an operator ends is what he can have known of.
func TestEnd(t *testing.T) {
	c := fixed(0)
	c.refuse(t0, t0, "m", verdict(Limited, ReasonWindow, ScopeSubscription, time.Hour))
	c.refuse(t0.Add(time.Second), t0.Add(time.Second), "m", verdict(Limited, ReasonWindow, ScopeModel, time.Hour))
	now := t0.Add(2 * time.Second)
	c.End(now, t0)
	if _, ok := c.Whole(now); ok || len(c.Models(now)) != 1 {
		t.Errorf("closed: %v, models %v; want the model that was closed later", ok, c.Models(now))
	}
	c.End(now, now)
	if len(c.Models(now)) != 0 {
		t.Errorf("models %v, want none", c.Models(now))
	}
	if turn, r := c.allow(now, "m"); r.Why != Open || turn.isProbe() {
		t.Errorf("%+v, %+v: want a request on the ramp", turn, r)
	}
	if _, r := c.allow(now, "m"); r.Why != Ramping {
		t.Errorf("%+v, want a ramp", r)
	}
	// The operator was wrong, and the provider's new end is before the former.
	if change := c.refuse(now, now, "m", verdict(Limited, ReasonThrottled, ScopeModel, time.Minute)); change.None() {
		t.Error("what was ended cannot be closed any more")
	}
	if r := c.check(now, "m"); r.Why != Cooling || !r.Until.Equal(now.Add(time.Minute)) {
		t.Errorf("%+v, want a cooldown of a minute", r)
	}
}

// What an operator has ended may be closed again by what another process met, but
// not by the news of it that was on its way.
func TestAdoptAfterEnd(t *testing.T) {
	c := fixed(0)
	c.Adopt(t0, "", t0.Add(time.Hour), Limited, ReasonWindow)
	c.End(t0, t0)
	if c.Adopt(t0, "", t0.Add(time.Hour), Limited, ReasonWindow) {
		t.Error("closed by what was ended")
	}
	now := t0.Add(RampTime)
	if !c.Adopt(now, "", now.Add(time.Minute), Limited, ReasonWindow) {
		t.Error("not closed by what another process met")
	}
}

// A probe that another process makes keeps those here out until it is over, there
// is news, or it has had its time.
func TestProbeOfAnotherProcess(t *testing.T) {
	g := NewGate("team-a", Rates{}, fixed(0.5))
	limit := func() {
		g.Cooldowns().refuse(t0, t0, "m", verdict(Limited, ReasonWindow, ScopeDomain, 8*time.Second))
	}
	limit()
	now := t0.Add(9 * time.Second)
	ask := func() (Pass, bool) {
		p, r := g.Allow(now, "m", 0, 0)
		own, whole, model := p.Probes()
		if own || model || whole != (r.Why == Open) && r.Why != Probing {
			t.Errorf("probes %v, %v; %+v", whole, model, r)
		}
		return p, r.Why == Open
	}
	p, _ := ask()
	if r := p.Elsewhere(ScopeDomain, now.Add(ProbePatience)); r.Why != Probing || r.Reason != ReasonWindow || !r.Until.Equal(now.Add(ProbePatience)) {
		t.Errorf("%+v", r)
	}
	p.Cancel(now)
	if _, yes := ask(); yes {
		t.Error("two processes probe")
	}
	g.Cooldowns().Ask()
	p, yes := ask()
	if !yes {
		t.Error("after news it is not asked again")
	}
	// It has opened two seconds ago, and this is the third process.
	if r := p.Opened(ScopeDomain, now, 2*time.Second, RampPace, 3); r.Why != Ramping || !r.Until.Equal(now.Add(RampPace)) {
		t.Errorf("before its turn: %+v", r)
	}
	p.Cancel(now)
	now = now.Add(RampPace)
	let := 0
	for now.Before(t0.Add(9*time.Second + RampTime - 2*time.Second)) {
		if _, r := g.Allow(now, "m", 0, 0); r.Why == Open {
			let++
		}
		now = now.Add(RampPace / 2)
	}
	if let != 4 { // 2750 ms in steps of 750
		t.Errorf("%d requests on the ramp of the third process, want 4", let)
	}

	// Nobody can be asked: an own part of the wait is added.
	g.Cooldowns().refuse(now, now, "m", verdict(Limited, ReasonThrottled, ScopeDomain, 8*time.Second))
	now = now.Add(8 * time.Second)
	p, _ = ask()
	if r := p.Alone(ScopeDomain, now); r.Why != Probing || !r.Until.Equal(now.Add(time.Second)) {
		t.Errorf("alone: %+v, want a second later", r)
	}
	p.Cancel(now)
	now = now.Add(time.Second)
	p, _ = ask()
	if r := p.Alone(ScopeDomain, now); r.Why != Open {
		t.Errorf("alone, a second later: %+v", r)
	}
}
