package pool

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestRate(t *testing.T) {
	f := func(in Factors, health, total float64) {
		t.Helper()
		s := in.Rate()
		if math.Abs(s.Health-health) > 0.01 || math.Abs(s.Total-total) > 0.01 {
			t.Errorf("%+v: health %.2f, total %.2f; want %.2f, %.2f", in, s.Health, s.Total, health, total)
		}
	}
	f(Factors{Availability: 1}, 100, 100)
	f(Factors{}, 0, 0)
	f(Factors{Availability: 0.5}, 50, 50)
	f(Factors{Availability: 1, Utilization: 0.3}, 70, 70)
	f(Factors{Availability: 1, Utilization: 1.4}, 0, 0)
	f(Factors{Availability: 1, ErrorRate: 0.25}, 75, 75)
	f(Factors{Availability: 1, InFlight: 1}, 100, 50)
	f(Factors{Availability: 1, InFlight: 3, Weight: 3}, 100, 50)
	f(Factors{Availability: 1, Sessions: 4}, 100, 50)
	f(Factors{Availability: 1, InFlight: -5, Sessions: -1, Weight: -2}, 100, 100)
	f(Factors{Availability: math.NaN(), Utilization: math.NaN()}, 0, 0)
	f(Factors{Availability: math.Inf(1), Utilization: math.Inf(-1), ErrorRate: math.Inf(-1)}, 100, 100)
}

func anyFactors(t *rapid.T) Factors {
	number := rapid.OneOf(rapid.Float64(), rapid.Float64Range(0, 1),
		rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1), 0, 1, math.MaxFloat64}))
	return Factors{
		Availability: number.Draw(t, "availability"),
		Utilization:  number.Draw(t, "utilization"),
		ErrorRate:    number.Draw(t, "error rate"),
		InFlight:     rapid.Int64().Draw(t, "in flight"),
		Sessions:     rapid.Int64().Draw(t, "sessions"),
		Weight:       rapid.Int().Draw(t, "weight"),
	}
}

func TestRateIsClampedWhateverComes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := anyFactors(t)
		s := in.Rate()
		for name, v := range map[string]float64{
			"total": s.Total / 100, "health": s.Health / 100, "availability": s.Availability,
			"headroom": s.Headroom, "soundness": s.Soundness, "idleness": s.Idleness,
		} {
			if !(v >= 0 && v <= 1) { // also false for NaN
				t.Fatalf("%+v: %s is %v", in, name, v)
			}
		}
		if s.Total > s.Health {
			t.Fatalf("%+v: total %v is above health %v", in, s.Total, s.Health)
		}
	})
}

func TestRateIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.Float64Range(0, 1)
		count := rapid.Int64Range(0, 1000)
		in := Factors{
			Availability: unit.Draw(t, "availability"), Utilization: unit.Draw(t, "utilization"),
			ErrorRate: unit.Draw(t, "error rate"), InFlight: count.Draw(t, "in flight"),
			Sessions: count.Draw(t, "sessions"), Weight: rapid.IntRange(1, 100).Draw(t, "weight"),
		}
		worse := map[string]Factors{}
		change := func(name string, f func(*Factors)) {
			w := in
			f(&w)
			worse[name] = w
		}
		by, more := unit.Draw(t, "by"), count.Draw(t, "more")
		change("availability", func(f *Factors) { f.Availability *= by })
		change("utilization", func(f *Factors) { f.Utilization += by })
		change("error rate", func(f *Factors) { f.ErrorRate += by })
		change("in flight", func(f *Factors) { f.InFlight += more })
		change("sessions", func(f *Factors) { f.Sessions += more })
		change("weight", func(f *Factors) { f.Weight = max(1, f.Weight-int(more)) })
		for name, w := range worse {
			if a, b := in.Rate().Total, w.Rate().Total; b > a {
				t.Fatalf("worse %s: %v, before %v", name, b, a)
			}
		}
	})
}

func TestRendezvousSharesByWeightAndMovesOnlyWhoMust(t *testing.T) {
	weights := map[string]int{"a": 1, "b": 1, "c": 2}
	pick := func(session string, without string) string {
		best, top := "", -1.0
		for id, w := range weights {
			if id == without {
				continue
			}
			if claim := rendezvous(session, id, w); claim > top {
				best, top = id, claim
			}
		}
		return best
	}
	const n = 20_000
	got := map[string]int{}
	for i := range n {
		session := fmt.Sprint("anthropic/a/session-", i)
		home := pick(session, "")
		got[home]++
		if other := pick(session, "b"); home != "b" && other != home {
			t.Fatalf("without b the session moved from %s to %s", home, other)
		}
	}
	for id, w := range weights {
		if share := float64(got[id]) / n * 4 / float64(w); math.Abs(share-1) > 0.05 {
			t.Errorf("%s of weight %d got %d of %d", id, w, got[id], n)
		}
	}
}

func TestBetter(t *testing.T) {
	f := func(a, b candidate) {
		t.Helper()
		if !a.better(b) || b.better(a) {
			t.Errorf("%+v is not better than %+v", a, b)
		}
	}
	f(candidate{priority: 1, total: 1}, candidate{priority: 2, total: 99})
	f(candidate{total: 80}, candidate{total: 70, claim: 5})
	f(candidate{total: 80.1, claim: 5}, candidate{total: 80.9, claim: 1}) // as good as equal
}

func TestMatches(t *testing.T) {
	f := func(glob, name string, want bool) {
		t.Helper()
		if got := matches(glob, name); got != want {
			t.Errorf("matches(%q, %q) = %v", glob, name, got)
		}
	}
	f("claude-*", "claude-opus-5", true)
	f("claude-*", "claude-", true)
	f("claude-*", "claude", false)
	f("*", "", true)
	f("*", "anthropic/claude", true) // a star crosses slashes
	f("*/claude-*-5", "anthropic/claude-opus-5", true)
	f("*/claude-*-5", "anthropic/claude-opus-5-x", false)
	f("gpt-?", "gpt-5", true)
	f("gpt-?", "gpt-", false)
	f("gpt-5", "gpt-5", true)
	f("gpt-5", "gpt-5-mini", false)
	f("a*b*c", "aXbbYc", true)
	f("a*b*c", "aXcY", false)
	f("", "", true)
	f("", "x", false)
}

func FuzzMatches(f *testing.F) {
	f.Add("claude-*", "claude-opus-5")
	f.Add("*a*a*a*b", "aaaaaaaaaaaaaaaaaaaa")
	f.Add("??*", "x")
	f.Fuzz(func(t *testing.T, glob, name string) {
		if !matches("*", name) || !matches(glob+"*", glob+name) && !hasMeta(glob) {
			t.Errorf("%q, %q", glob, name)
		}
		if matches(glob, name) && !matches("*"+glob+"*", "x"+name+"y") {
			t.Errorf("%q fits %q, but not with anything around it", glob, name)
		}
	})
}

func hasMeta(glob string) bool {
	for i := range len(glob) {
		if glob[i] == '*' || glob[i] == '?' {
			return true
		}
	}
	return false
}

func TestUnavailableErrorWords(t *testing.T) {
	f := func(want string, e UnavailableError) {
		t.Helper()
		if e.Error() != want {
			t.Errorf("%q, want %q", e.Error(), want)
		}
	}
	e := UnavailableError{Provider: "p", Model: "m", Count: 3, FirstSubscription: "team-a", Reason: "window"}
	f("all 3 subscriptions for m are unavailable (team-a: window)", e)
	wait := func(d time.Duration, want string) {
		t.Helper()
		w := e
		w.Until, w.Wait = time.Unix(1, 0), d
		f("all 3 subscriptions for m are limited; first free in "+want+" (team-a)", w)
	}
	wait(time.Millisecond, "1s")
	wait(1001*time.Millisecond, "2s")
	wait(90*time.Second, "90s")
	wait(12*time.Minute, "12m")
	wait(12*time.Minute+time.Second, "13m")
	wait(2*time.Hour, "2h")
	wait(3*time.Hour+10*time.Minute, "3h10m")
	wait(49*time.Hour, "2d1h")
	e.Model, e.Count = "", 1
	f("the only subscription for provider p is unavailable (team-a: window)", e)
}
