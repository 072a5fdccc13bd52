package pool

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestRate(t *testing.T) {
	f := func(in Factors, health, total float64) {
		t.Helper()
		s := in.Rate(Health{})
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
	// A reset that is far away changes nothing, a near one much; what is spent in
	// whole serves nobody however near it is.
	f(Factors{Availability: 1, Utilization: 0.9, ResetIn: 7 * 24 * time.Hour}, 10.01, 10.01)
	f(Factors{Availability: 1, Utilization: 0.9, ResetIn: time.Minute}, 55, 55)
	f(Factors{Availability: 1, Utilization: 0.9, ResetIn: 15 * time.Second}, 82, 82)
	f(Factors{Availability: 1, Utilization: 1, ResetIn: time.Second}, 0, 0)
	// Twice the usual is still usual.
	f(Factors{Availability: 1, Slowness: 0.2}, 100, 100)
	f(Factors{Availability: 1, Slowness: 2}, 100, 100)
	f(Factors{Availability: 1, Slowness: 8}, 25, 25)
	f(Factors{Availability: 1, Slowness: math.Inf(1)}, 0, 0)
	f(Factors{Availability: 1, Slowness: math.NaN()}, 100, 100)
}

// What the operator says of health is what counts.
func TestRateByOtherConstants(t *testing.T) {
	h := Health{Nearly: 0.5, ResetSoon: time.Hour, Slow: 4, SessionLoad: 1}
	f := Factors{Availability: 1, Utilization: 0.6, ResetIn: time.Hour, Slowness: 8, Sessions: 1}
	if s := f.Rate(h); s.Headroom != 0.7 || s.Swiftness != 0.5 || s.Idleness != 0.5 || !s.Nearly {
		t.Errorf("%+v", s)
	}
	if s := f.Rate(Health{}); s.Nearly || s.Swiftness != 0.25 || s.Idleness != 0.8 {
		t.Errorf("%+v", s)
	}
	if s := (Factors{Availability: 1, Utilization: 0.1, Fullest: 0.95}).Rate(Health{}); !s.Nearly || s.Headroom != 0.9 {
		t.Errorf("%+v", s)
	}
}

// anyNumber is one that is no share of anything, too.
func anyNumber() *rapid.Generator[float64] {
	return rapid.OneOf(rapid.Float64(), rapid.Float64Range(0, 1),
		rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1), 0, 1, math.MaxFloat64, math.SmallestNonzeroFloat64}))
}

func anyFactors(t *rapid.T) Factors {
	number := anyNumber()
	return Factors{
		Availability: number.Draw(t, "availability"),
		Utilization:  number.Draw(t, "utilization"),
		ResetIn:      time.Duration(rapid.Int64().Draw(t, "reset")),
		Fullest:      number.Draw(t, "fullest"),
		ErrorRate:    number.Draw(t, "error rate"),
		Slowness:     number.Draw(t, "slowness"),
		InFlight:     rapid.Int64().Draw(t, "in flight"),
		Sessions:     rapid.Int64().Draw(t, "sessions"),
		Weight:       rapid.Int().Draw(t, "weight"),
	}
}

func anyHealth(t *rapid.T) Health {
	number := anyNumber()
	return Health{
		Probing: number.Draw(t, "probing"), Nearly: number.Draw(t, "nearly"), Slow: number.Draw(t, "slow"),
		SessionLoad: number.Draw(t, "session load"), ResetSoon: time.Duration(rapid.Int64().Draw(t, "soon")),
	}
}

func TestRateIsClampedWhateverComes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in, by := anyFactors(t), anyHealth(t)
		s := in.Rate(by)
		for name, v := range map[string]float64{
			"total": s.Total / 100, "health": s.Health / 100, "availability": s.Availability,
			"headroom": s.Headroom, "soundness": s.Soundness, "swiftness": s.Swiftness, "idleness": s.Idleness,
		} {
			if !(v >= 0 && v <= 1) { // also false for NaN
				t.Fatalf("%+v by %+v: %s is %v", in, by, name, v)
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
			ResetIn:   time.Duration(rapid.Int64Range(1, int64(7*24*time.Hour)).Draw(t, "reset")),
			ErrorRate: unit.Draw(t, "error rate"), Slowness: rapid.Float64Range(0, 100).Draw(t, "slowness"),
			InFlight: count.Draw(t, "in flight"),
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
		change("reset", func(f *Factors) { f.ResetIn += time.Duration(more) * time.Minute })
		change("reset that is not known", func(f *Factors) { f.ResetIn = 0 })
		change("error rate", func(f *Factors) { f.ErrorRate += by })
		change("slowness", func(f *Factors) { f.Slowness += by * 10 })
		change("in flight", func(f *Factors) { f.InFlight += more })
		change("sessions", func(f *Factors) { f.Sessions += more })
		change("weight", func(f *Factors) { f.Weight = max(1, f.Weight-int(more)) })
		for name, w := range worse {
			if a, b := in.Rate(Health{}).Total, w.Rate(Health{}).Total; b > a {
				t.Fatalf("worse %s: %v, before %v", name, b, a)
			}
		}
	})
}

func TestLatency(t *testing.T) {
	now := time.Unix(1_795_348_800, 0)
	var l latency
	learn := func(n int, took time.Duration) {
		for range n {
			l.learn(now, took, latencyOwn)
		}
	}
	near := func(want time.Duration) {
		t.Helper()
		if got := l.typical(now); math.Abs(float64(got-want)) > float64(want)/10 {
			t.Errorf("typical is %s, want about %s", got, want)
		}
	}
	learn(latencyLeast-1, time.Second)
	if got := l.typical(now); got != 0 {
		t.Errorf("%d answers tell %s", latencyLeast-1, got)
	}
	learn(20, time.Second)
	near(time.Second)
	learn(1, time.Minute) // one that stalls is no habit
	near(1670 * time.Millisecond)
	learn(100, 4*time.Second)
	near(4 * time.Second)
	now = now.Add(latencyLife + 1)
	if got := l.typical(now); got != 0 {
		t.Errorf("%s is still known long after", got)
	}
	learn(latencyLeast, 100*time.Millisecond) // what was before does not count
	near(100 * time.Millisecond)
}

// Whatever is told, a latency stays one.
func TestLatencyIsFinite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var own, usual latency
		now := time.Unix(1_795_348_800, 0)
		for _, took := range rapid.SliceOfN(rapid.Int64(), latencyLeast, 50).Draw(t, "took") {
			own.learn(now, time.Duration(took), latencyOwn)
			usual.learn(now, time.Duration(took/2), latencyUsual)
		}
		m := &member{latency: latency{}, usual: &usual}
		m.latency.mean.Store(own.mean.Load())
		m.latency.count.Store(own.count.Load())
		m.latency.last.Store(own.last.Load())
		if s := m.slowness(now); !(s > 0) || math.IsInf(s, 0) || own.typical(now) < 1 {
			t.Fatalf("slowness %v, typical %s", s, own.typical(now))
		}
	})
}
