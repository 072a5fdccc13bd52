package ratelimit

import (
	"fmt"
	"testing"
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
			if probes, r := c.allow(now, "m"); !probes || r.Why != Open {
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
	c.allow(at, "m")
	c.succeed("m", at)
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
	if probes, r := c.allow(end, "m"); !probes || r.Why != Open {
		t.Fatalf("the first after the end: probes %v, %+v", probes, r)
	}
	if _, r := c.allow(end.Add(time.Second), "other"); r.Why != Probing {
		t.Errorf("the second while the first is out: %v, want probing", r.Why)
	}
	if cooldown, ok := c.Whole(end); !ok || !cooldown.Probing {
		t.Errorf("Whole = %+v, %v; want probing", cooldown, ok)
	}
	// A probe without a result leaves the place to the next one.
	c.giveUp("m", end)
	if probes, _ := c.allow(end.Add(2*time.Second), "m"); !probes {
		t.Error("after a probe without a result the next request is no probe")
	}
	// One that takes long holds nobody back for ever.
	next := end.Add(2 * time.Second).Add(probePatience)
	if probes, r := c.allow(next, "m"); !probes || r.Why != Open {
		t.Errorf("after the patience: probes %v, %+v", probes, r)
	}
	c.succeed("m", next)
	for range 3 {
		if probes, r := c.allow(next, "m"); probes || r.Why != Open {
			t.Errorf("after the success: probes %v, %+v", probes, r)
		}
	}
	if c.closed.Load() != 0 {
		t.Errorf("%d closures are counted after the last has ended", c.closed.Load())
	}
}

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
	if change := c.refuse(t0, t0, "one more", limited); !change.Whole {
		t.Errorf("one model too many: %+v, want the whole subscription closed", change)
	}
	// Models that nobody asks for any more make room.
	later := t0.Add(time.Hour)
	if change := c.refuse(later, later, "yet one more", limited); change.Whole || change.Model != "yet one more" {
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
			at     time.Time
			model  string
			probes bool
		}
		var under []out
		model := rapid.SampledFrom([]string{"", "a", "b"})
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30_000).Draw(t, "ms")) * time.Millisecond)
			m := model.Draw(t, "model")
			probes, r := c.allow(now, m)
			if r.Why == Open {
				under = append(under, out{now, m, probes})
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
				if o.probes {
					c.succeed(o.model, o.at)
				}
				continue
			}
			c.refuse(now, o.at, o.model, v)
			if o.probes {
				c.giveUp(o.model, o.at)
			}
		}
		now = now.Add(2 * windowMost)
		for _, m := range []string{"", "a", "b"} {
			if _, r := c.allow(now, m); r.Why == Open {
				c.succeed(m, now)
			} else if r.Why != Probing {
				t.Fatalf("model %q is still closed long after: %+v", m, r)
			}
		}
		for _, m := range []string{"", "a", "b"} {
			if _, r := c.allow(now, m); r.Why != Open {
				t.Fatalf("model %q is not open after a success: %+v", m, r)
			}
		}
		if n := c.closed.Load(); n != 0 {
			t.Fatalf("%d closures are left", n)
		}
	})
}
