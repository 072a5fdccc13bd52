package ratelimit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

var noCapacity = Verdict{Signal: Overloaded, Reason: ReasonCapacity, Scope: ScopeProviderModel, Wait: -1}

// judge makes one request and tells whether it went out.
func judge(p *Provider, model string, v Verdict) (News, bool) {
	q, r := p.Allow(time.Now(), Asked{model, true})
	if r.Why != Open {
		return News{}, false
	}
	news := q.Verdict(time.Now(), v)
	q.Done(time.Now())
	return news, true
}

// Whatever models agents name, a bounded number is remembered, and nothing a
// minute after the last failure.
func TestProviderForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProvider("p")
		for i := range 10 * suspectsMost {
			judge(p, fmt.Sprint("m", i), noCapacity)
		}
		if len(p.models) != suspectsMost || int(p.count.Load()) != suspectsMost {
			t.Errorf("%d models are looked at (%d)", len(p.models), p.count.Load())
		}
		time.Sleep(calmAfter)
		judge(p, "new", noCapacity)
		if len(p.models) != 1 || p.count.Load() != 1 {
			t.Errorf("after a minute %d models are looked at (%d), want the new one", len(p.models), p.count.Load())
		}
		time.Sleep(calmAfter)
		judge(p, "other", Verdict{Signal: OK})
		if len(p.models) != 0 || p.count.Load() != 0 {
			t.Errorf("after another minute %d models are looked at (%d)", len(p.models), p.count.Load())
		}
	})
}

// A model that is closed and that nobody asks for any more is forgotten, too: else
// such models would cost every request something, and take the room of others.
func TestProviderForgetsWhatIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProvider("p")
		for i := range suspectsMost {
			for range tripRow {
				judge(p, fmt.Sprint("m", i), noCapacity)
			}
		}
		time.Sleep(calmAfter)
		if _, yes := judge(p, "m0", noCapacity); !yes {
			t.Fatal("no probe")
		}
		if _, yes := judge(p, "m0", noCapacity); yes {
			t.Error("one that was just probed is forgotten")
		}
		time.Sleep(openMost + calmAfter)
		for range tripRow {
			judge(p, "new", noCapacity)
		}
		if _, yes := judge(p, "new", noCapacity); yes {
			t.Error("there is no room for one more model")
		}
		time.Sleep(openMost + calmAfter)
		judge(p, "other", Verdict{Signal: OK})
		if n := p.count.Load(); n != 0 {
			t.Errorf("%d models are looked at that nobody asks for", n)
		}
	})
}

// What closes a model, and what does not.
func TestProviderTrips(t *testing.T) {
	unreached := Verdict{Signal: Network, Reason: ReasonConnect, Wait: -1}
	repeat := func(n int, list ...Verdict) (all []Verdict) {
		for range n {
			all = append(all, list...)
		}
		return all
	}
	good := Verdict{Signal: OK}
	failed := Verdict{Signal: ServerError, Reason: ReasonUpstream, Scope: ScopeSubscription, Wait: -1}
	limited := Verdict{Signal: Limited, Reason: ReasonThrottled, Scope: ScopeModel, Wait: time.Second}
	for _, tt := range []struct {
		name     string
		verdicts []Verdict
		closes   Why
	}{
		{"overloads in a row", repeat(tripRow, noCapacity), Busy},
		{"one less", repeat(tripRow-1, noCapacity), Open},
		{"with limits in between", repeat(tripRow, noCapacity, limited), Busy},
		{"as many after some that were served", append(repeat(1, noCapacity, good), repeat(mixedRow-1, noCapacity)...), Open},
		{"more after some that were served", append(repeat(1, noCapacity, good), repeat(mixedRow, noCapacity)...), Busy},
		{"three of five", repeat(10, noCapacity, good, noCapacity, good, noCapacity), Busy},
		{"half", repeat(100, noCapacity, good), Open},
		{"a row after many that were served", append(append(repeat(1, noCapacity), repeat(50, good)...), repeat(mixedRow, noCapacity)...), Open},
		{"a long row after many that were served", append(append(repeat(1, noCapacity), repeat(200, good)...), repeat(aloneRow, noCapacity)...), Busy},
		{"no connection", repeat(tripRow, unreached), Down},
		{"answers in between", repeat(100, unreached, limited), Open},
		{"failures that a subscription may be to blame for", repeat(100, failed), Open},
		{"connections that broke", repeat(100, Verdict{Signal: Network, Reason: ReasonReset}), Open},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := NewProvider("p")
			closed := Open
			for _, v := range tt.verdicts {
				news, sent := judge(p, "m", v)
				if !sent {
					break
				}
				closed = max(closed, news.Closed)
			}
			if closed != tt.closes {
				t.Errorf("%s: closes %q, want %q", tt.name, closed, tt.closes)
			}
			if r := p.Check(time.Now(), Asked{"m", true}); r.Why != tt.closes {
				t.Errorf("%s: %q, want %q", tt.name, r.Why, tt.closes)
			}
		})
	}
}

// What was sent before the end of an overload was noticed says nothing about the
// time after it.
func TestProviderIgnoresLateOverloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProvider("p")
		var late []ProviderPass
		for range 3 * aloneRow {
			q, _ := p.Allow(time.Now(), Asked{"m", true})
			late = append(late, q)
		}
		for range tripRow {
			judge(p, "m", noCapacity)
		}
		time.Sleep(2 * openFirst)
		if news, sent := judge(p, "m", Verdict{Signal: OK}); !sent || news.Opened != Busy {
			t.Fatalf("the probe: %v, %+v", sent, news)
		}
		for _, q := range late {
			q.Verdict(time.Now(), noCapacity)
			q.Done(time.Now())
		}
		if r := p.Check(time.Now(), Asked{"m", true}); r.Why != Open {
			t.Errorf("late overloads close it again: %v", r.Why)
		}
	})
}

func TestProviderCostsNothingWhileAllIsWell(t *testing.T) {
	p := NewProvider("p")
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		if p.Check(now, Asked{"m", true}).Why != Open {
			t.Fatal("closed")
		}
		q, _ := p.Allow(now, Asked{"m", true})
		q.Verdict(now, Verdict{Signal: OK})
		q.Done(now)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
