package pool

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var strategies = []Strategy{StrategyBalanced, StrategyDrainSoonest, StrategyPriority, StrategyLeastUsed, StrategyRoundRobin}

func TestStrategiesCompare(t *testing.T) {
	// f wants a before b by s, whatever their claims are.
	f := func(s Strategy, a, b candidate) {
		t.Helper()
		for _, claims := range [][2]float64{{1, 2}, {2, 1}, {0, 0}} {
			a.claim, b.claim = claims[0], claims[1]
			if !s.before(&a, &b) || s.before(&b, &a) {
				t.Errorf("%s: %+v is not before %+v", s, a, b)
			}
		}
	}
	good := candidate{total: 99, Standing: Standing{ExpiresIn: time.Hour}}
	for _, s := range strategies {
		lower, upper := candidate{priority: 2}, good
		upper.priority, lower.order, upper.order = 3, 1, 0
		f(s, lower, upper)
		if s == StrategyPriority {
			continue
		}
		draining := good
		draining.draining = true
		f(s, candidate{total: 1, priority: 3}, draining)
		if s != StrategyBalanced {
			doubtful := good
			doubtful.doubtful = true
			f(s, candidate{total: 1, order: 1, Standing: Standing{Used: 0.9, Sessions: 9, Turn: 9, ExpiresIn: 9 * time.Hour}}, doubtful)
		}
	}
	f(StrategyBalanced, candidate{total: 80}, candidate{total: 70})
	f(StrategyDrainSoonest, candidate{total: 1, Standing: Standing{ExpiresIn: time.Hour}}, candidate{total: 99, Standing: Standing{ExpiresIn: 3 * time.Hour}})
	f(StrategyDrainSoonest, candidate{total: 1, Standing: Standing{ExpiresIn: 9 * time.Hour}}, candidate{total: 99})
	f(StrategyDrainSoonest, candidate{total: 80, Standing: Standing{ExpiresIn: time.Hour + 2*time.Second}}, candidate{total: 70, Standing: Standing{ExpiresIn: time.Hour}})
	f(StrategyPriority, candidate{order: 0, draining: true, doubtful: true}, candidate{order: 1, total: 99})
	f(StrategyLeastUsed, candidate{weight: 1, Standing: Standing{Used: 0.2, Sessions: 9}}, candidate{weight: 1, total: 99, Standing: Standing{Used: 0.3}})
	f(StrategyLeastUsed, candidate{weight: 1, Standing: Standing{Used: 0.205, Sessions: 1}}, candidate{weight: 1, Standing: Standing{Used: 0.201, Sessions: 2}})
	f(StrategyLeastUsed, candidate{weight: 3, Standing: Standing{Sessions: 5}}, candidate{weight: 1, Standing: Standing{Sessions: 2}})
	f(StrategyLeastUsed, candidate{weight: 1, Standing: Standing{InFlight: 1}}, candidate{weight: 1, Standing: Standing{InFlight: 2}})
	f(StrategyRoundRobin, candidate{Standing: Standing{Turn: 1}}, candidate{total: 99, Standing: Standing{Turn: 1.5}})
	// As good as equal: the claim decides.
	for _, s := range strategies {
		a, b := candidate{claim: 5, weight: 1, total: 80.1}, candidate{claim: 1, weight: 1, total: 80.9, order: 1}
		if !s.before(&a, &b) || s.before(&b, &a) {
			t.Errorf("%s: %+v is not before %+v", s, a, b)
		}
	}
}

func anyCandidate(t *rapid.T, order int) candidate {
	few := rapid.Float64Range(0, 3)
	return candidate{
		draining: rapid.Bool().Draw(t, "draining"), doubtful: rapid.Bool().Draw(t, "doubtful"),
		priority: rapid.IntRange(0, 1).Draw(t, "priority"), order: order,
		weight: rapid.IntRange(1, 3).Draw(t, "weight"), total: few.Draw(t, "total"), claim: rapid.Float64().Draw(t, "claim"),
		Standing: Standing{
			Used: rapid.Float64Range(0, 0.03).Draw(t, "used"), Turn: rapid.Float64Range(0, 2).Draw(t, "turn"),
			ExpiresIn: time.Duration(rapid.Int64Range(0, int64(3*time.Minute)).Draw(t, "expires")),
			Sessions:  rapid.Int64Range(0, 3).Draw(t, "sessions"), InFlight: rapid.Int64Range(0, 3).Draw(t, "in flight"),
		},
	}
}

// Every strategy is an order: the same one is chosen, in whatever order they are
// looked at.
func TestStrategiesAreOrders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom(strategies).Draw(t, "strategy")
		list := make([]candidate, rapid.IntRange(2, 8).Draw(t, "candidates"))
		for i := range list {
			list[i] = anyCandidate(t, i)
			list[i].claim += float64(i) // claims differ
		}
		first := func(list []candidate) candidate {
			best := list[0]
			for i := range list {
				if s.before(&list[i], &best) {
					best = list[i]
				}
			}
			return best
		}
		want := first(list)
		if got := first(rapid.Permutation(slices.Clone(list)).Draw(t, "in another order")); got.order != want.order {
			t.Fatalf("%s: %+v, and in another order %+v", s, want, got)
		}
	})
}

// Whatever strategy, without Redis the choice hangs on the session's name and
// what every process was configured with: before is then asked of candidates that
// know nothing else.
func TestStrategiesAgreeWithoutRedis(t *testing.T) {
	for _, s := range strategies {
		a, b := candidate{claim: 2, order: 1, weight: 1}, candidate{claim: 1, order: 2, weight: 7}
		if !s.before(&a, &b) || s.before(&b, &a) {
			t.Errorf("%s does not go by the claim", s)
		}
	}
}
