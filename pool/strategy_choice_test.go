package pool_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// used is a good answer that tells of a window.
func used(part float64, ends time.Duration) ratelimit.Verdict {
	return ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{
		{Name: "5h", Kind: "provider", Utilization: part, Reset: time.Now().Add(ends), Seen: time.Now()},
	}}
}

// on serves one request without a session at subscription id.
func on(t *testing.T, p *pool.Pool, id string, v ratelimit.Verdict) {
	t.Helper()
	if got, _ := serve(t, p, ask("", func(r *pool.Request) { r.Owner = id }), v); got != id {
		t.Fatalf("%s served, want %s", got, id)
	}
}

// Each strategy has its own favourite, and a session that is somewhere else stays
// there all the same.
func TestStrategiesChoose(t *testing.T) {
	favourites := map[pool.Strategy]string{
		pool.StrategyBalanced: "idle", pool.StrategyDrainSoonest: "ending", pool.StrategyPriority: "first",
		pool.StrategyLeastUsed: "idle", pool.StrategyRoundRobin: "last",
	}
	for s, want := range favourites {
		t.Run(string(s), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(pool.Options{Strategy: s}, sub("first"), sub("ending"), sub("idle"), sub("last"))
				defer p.Close()
				on(t, p, "first", used(0.6, 3*time.Hour))
				on(t, p, "ending", used(0.8, time.Hour))
				on(t, p, "idle", used(0.1, 4*time.Hour))
				bound := map[string]string{}
				for i := range 8 {
					name := fmt.Sprint("old-", i)
					bound[name], _ = serve(t, p, ask(name), ok)
				}
				on(t, p, "last", used(0.9, 2*time.Hour))
				// In turn it is the one that was asked least.
				for _, id := range []string{"first", "ending", "idle"} {
					on(t, p, id, ok)
					on(t, p, id, ok)
				}
				var trace pool.Trace
				if id, _ := serve(t, p, ask("new", traced(&trace)), ok); id != want {
					t.Errorf("the new session went to %s: %+v", id, trace)
				}
				for name, home := range bound {
					if id, source := serve(t, p, ask(name), ok); id != home || source != pool.SourceBound {
						t.Errorf("session %s of %s went to %s (%s)", name, home, id, source)
					}
				}
				if trace.Strategy != s || len(trace.Candidates) != 4 || trace.Candidates[1].Standing.Used != 0.8 || trace.Candidates[1].Standing.ExpiresIn != time.Hour {
					t.Errorf("%+v", trace)
				}
			})
		})
	}
}

// Whatever strategy and whatever became of the subscriptions: who cannot serve is
// never chosen, somebody who can is, and a session stays while its own can.
func TestNoStrategyChoosesWhoCannotServe(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		strategy := rapid.SampledFrom(everyStrategy).Draw(rt, "strategy")
		n := rapid.IntRange(1, 6).Draw(rt, "subscriptions")
		states := make([]string, n)
		synctest.Test(t, func(t *testing.T) {
			var subs []pool.Subscription
			for i := range n {
				states[i] = rapid.SampledFrom([]string{"good", "used", "limited", "other model", "disabled", "tried"}).Draw(rt, "state")
				subs = append(subs, sub(fmt.Sprint(i), priority(rapid.IntRange(0, 1).Draw(rt, "priority")), func(s *pool.Subscription) {
					s.Disabled = states[i] == "disabled"
					s.Weight = rapid.IntRange(1, 3).Draw(rt, "weight")
				}))
				if states[i] == "other model" {
					models("other-*")(&subs[i])
				}
			}
			p := start(pool.Options{Strategy: strategy}, subs...)
			defer p.Close()
			var failed []string
			able := map[string]bool{}
			for i, state := range states {
				id := fmt.Sprint(i)
				able[id] = state == "good" || state == "used"
				switch state {
				case "used":
					on(t, p, id, used(rapid.Float64Range(0, 1).Draw(rt, "spent"), time.Hour))
				case "limited":
					on(t, p, id, limited(time.Hour))
				case "tried":
					failed = append(failed, id)
				}
			}
			homes := map[string]string{}
			for i := range rapid.IntRange(1, 20).Draw(rt, "requests") {
				name := fmt.Sprint("s", i%7)
				l, err := p.Acquire(context.Background(), ask(name, tried(failed...)))
				if err != nil {
					if slices.Contains(slices.Collect(maps.Values(able)), true) {
						rt.Fatalf("%s, %v: %v", strategy, states, err)
					}
					continue
				}
				id := l.Subscription().ID
				l.Verdict(ok)
				l.Done(usage.Tokens{})
				if home := homes[name]; !able[id] || home != "" && home != id {
					rt.Fatalf("%s, %v: session %s of %q went to %s", strategy, states, name, home, id)
				}
				homes[name] = id
			}
		})
	})
}

// Without Redis every process chooses alike, whatever strategy and whatever it has
// seen before.
func TestStrategiesAgreeInAFleetWithoutRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		for _, s := range everyStrategy {
			subs := []pool.Subscription{sub("s0"), sub("s1"), sub("s2", func(s *pool.Subscription) { s.Weight = 3 })}
			pools, h := fleet(t, client, 2, pool.Options{Strategy: s}, subs...)
			h.away.Store(true)
			on(t, pools[0], "s0", used(0.5, time.Hour))
			on(t, pools[0], "s2", used(0.9, time.Minute))
			on(t, pools[1], "s1", used(0.3, 2*time.Hour))
			seen := map[string]bool{}
			for i := range 20 {
				name := fmt.Sprint(s, i)
				a, _ := serve(t, pools[0], ask(name), ok)
				b, _ := serve(t, pools[1], ask(name), ok)
				if a != b {
					t.Errorf("%s: session %s is at %s in one process, at %s in the other", s, name, a, b)
				}
				seen[a] = true
			}
			if strict := len(seen) == 1; strict != (s == pool.StrategyPriority) {
				t.Errorf("%s: 20 sessions went to %v", s, seen)
			}
		}
	})
}

// All take their turns as often as they weigh; who was closed for a while does not
// get all that it has missed.
func TestRoundRobinGoesByWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		weight := func(n int) func(*pool.Subscription) { return func(s *pool.Subscription) { s.Weight = n } }
		p := start(pool.Options{Strategy: pool.StrategyRoundRobin}, sub("one", weight(1)), sub("two", weight(2)), sub("three", weight(3)))
		defer p.Close()
		next := 0
		place := func(n int) map[string]int {
			got := map[string]int{}
			for range n {
				next++
				id, _ := serve(t, p, ask(fmt.Sprint("s", next)), ok)
				got[id]++
			}
			return got
		}
		for round := range 10 {
			if got := place(6); got["one"] != 1 || got["two"] != 2 || got["three"] != 3 {
				t.Errorf("round %d: %v", round, got)
			}
		}
		on(t, p, "three", limited(time.Hour))
		if got := place(30); got["one"] != 10 || got["two"] != 20 {
			t.Errorf("while three is closed: %v", got)
		}
		pass(2 * time.Hour)
		if got := place(6); got["three"] == 0 {
			t.Errorf("it is not asked whether it opened: %v", got)
		}
		pass(time.Hour)
		if got := place(12); got["three"] > 8 {
			t.Errorf("it makes up for what it has missed: %v", got)
		}
	})
}

// Who fails is used little for it, and must not be liked for that.
func TestLeastUsedIsNotWhoFails(t *testing.T) {
	for _, s := range []pool.Strategy{pool.StrategyLeastUsed, pool.StrategyDrainSoonest, pool.StrategyRoundRobin} {
		synctest.Test(t, func(t *testing.T) {
			p := start(pool.Options{Strategy: s}, sub("good"), sub("fails"))
			defer p.Close()
			on(t, p, "good", used(0.5, 2*time.Hour))
			for range 4 { // a fifth in a row would open its breaker
				on(t, p, "fails", failed())
			}
			on(t, p, "fails", used(0, time.Hour))
			for range 4 {
				on(t, p, "fails", failed())
			}
			for i := range 10 {
				if id, _ := serve(t, p, ask(fmt.Sprint("s", i)), ok); id != "good" {
					t.Fatalf("%s: session %d went to the one that fails", s, i)
				}
			}
		})
	}
}

// To use a budget up, drain_soonest goes on where the others keep the rest of it
// for the sessions that are there, and priority does not look at it at all.
func TestDrainSoonestUsesBudgetsUp(t *testing.T) {
	f := func(s pool.Strategy, spent int64, state pool.State, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			p := start(pool.Options{Strategy: s}, sub("day", func(s *pool.Subscription) {
				s.Budgets = []pool.Budget{{Period: usage.PeriodDay, Requests: 100}}
			}), sub("week", priority(1)))
			defer p.Close()
			for range spent {
				p.Count(&usage.Event{Subscription: "day"})
			}
			if got := p.Status()[0].State; got != state {
				t.Errorf("%s at %d %%: %s, want %s", s, spent, got, state)
			}
			if id, _ := serve(t, p, ask("s"), ok); id != want {
				t.Errorf("%s at %d %%: %s served, want %s", s, spent, id, want)
			}
		})
	}
	f(pool.StrategyBalanced, 79, pool.StateReady, "day")
	f(pool.StrategyBalanced, 80, pool.StateDraining, "week")
	f(pool.StrategyDrainSoonest, 94, pool.StateReady, "day")
	f(pool.StrategyDrainSoonest, 95, pool.StateDraining, "week")
	f(pool.StrategyPriority, 99, pool.StateReady, "day")
	f(pool.StrategyPriority, 100, pool.StateCooling, "week")
}

// A window that is nearly spent keeps new sessions away no longer than it has to:
// before its reset its health is nearly whole again.
func TestHealthKnowsTheReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"))
		defer p.Close()
		on(t, p, "one", used(0.9, time.Hour))
		health := func() int { return p.Status()[0].Health }
		if got := health(); got != 11 {
			t.Errorf("an hour before the reset: %d", got)
		}
		pass(59 * time.Minute)
		if got := health(); got != 55 {
			t.Errorf("a minute before the reset: %d", got)
		}
		pass(time.Minute)
		if got := health(); got != 100 {
			t.Errorf("after the reset: %d", got)
		}
	})
}

// What an operator says of health is what subscriptions are rated by.
func TestHealthByOtherConstants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Health: pool.Health{Nearly: 0.5, ResetSoon: time.Hour}}, sub("one"), sub("two", priority(1)))
		defer p.Close()
		on(t, p, "one", used(0.5, time.Hour))
		if got := p.Status()[0].Health; got != 75 {
			t.Errorf("health %d, want 75", got)
		}
		if id, _ := serve(t, p, ask("s"), ok); id != "two" {
			t.Errorf("%s served", id)
		}
	})
}
