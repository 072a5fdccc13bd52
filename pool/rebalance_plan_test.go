package pool

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// world is a state of the fleet that only rebalancing changes.
type world struct {
	desks []desk
	seats []seat
}

func drawWorld(t *rapid.T) *world {
	w := &world{}
	for i := range rapid.IntRange(1, 7).Draw(t, "desks") {
		w.desks = append(w.desks, desk{
			id: fmt.Sprint("d", i), provider: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "provider"),
			priority: rapid.IntRange(0, 1).Draw(t, "priority"), weight: rapid.IntRange(1, 5).Draw(t, "weight"),
			most: rapid.SampledFrom([]int{0, 0, 3, 9}).Draw(t, "most"), closed: rapid.IntRange(0, 4).Draw(t, "closed") == 0,
			takes: rapid.IntRange(0, 4).Draw(t, "takes") > 0,
		})
	}
	for i := range rapid.IntRange(0, 60).Draw(t, "seats") {
		on := rapid.IntRange(0, len(w.desks)-1).Draw(t, "on")
		if d := &w.desks[on]; d.most > 0 && d.sessions >= d.most {
			continue
		}
		w.desks[on].sessions++
		mask := rapid.IntRange(0, 1<<len(w.desks)-1).Draw(t, "fits") | rapid.SampledFrom([]int{0, 127}).Draw(t, "anywhere")
		w.seats = append(w.seats, seat{
			key: SessionKey{w.desks[on].provider, "a", fmt.Sprint("s", i)}, on: on, cold: rapid.Bool().Draw(t, "cold"),
			cache: rapid.Int64Range(0, 3).Draw(t, "cache"), fits: func(desk int) bool { return mask&(1<<desk) != 0 },
		})
	}
	return w
}

// plan plans on copies, and checks what holds for every plan.
func (w *world) plan(t *rapid.T, even bool, most int) []PlannedMove {
	plan := planMoves(slices.Clone(w.desks), slices.Clone(w.seats), even, most)
	if len(plan) > most {
		t.Fatalf("%d moves, at most %d are allowed", len(plan), most)
	}
	return plan
}

func (w *world) apply(t *rapid.T, plan []PlannedMove) {
	for _, m := range plan {
		seat := slices.IndexFunc(w.seats, func(s seat) bool { return s.key == m.Session })
		to := slices.IndexFunc(w.desks, func(d desk) bool { return d.id == m.To })
		s := &w.seats[seat]
		from, there := &w.desks[s.on], &w.desks[to]
		switch {
		case from.id != m.From || from == there:
			t.Fatalf("%+v: it is on %s", m, from.id)
		case !s.fits(to) || from.provider != there.provider || !there.room():
			t.Fatalf("%+v: it cannot be there", m)
		case from.closed != (m.Why == WhyClosed):
			t.Fatalf("%+v: closed is %v", m, from.closed)
		case m.Why == WhyUneven && (!s.cold || from.priority != there.priority):
			t.Fatalf("%+v moves a warm session, or to another tier", m)
		case m.Why == WhyUneven && there.load(1) > from.load(-1):
			t.Fatalf("%+v is more than what the imbalance asks for", m)
		}
		from.sessions--
		there.sessions++
		s.on = to
	}
}

func (w *world) state() string {
	on := make([]int, len(w.seats))
	for i, s := range w.seats {
		on[i] = s.on
	}
	return fmt.Sprint(on)
}

// Whatever the state is, rebalancing comes to an end, and on its way no state comes
// twice.
func TestRebalancingDoesNotOscillate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		most := rapid.IntRange(1, 20).Draw(t, "most")
		seen := map[string]bool{w.state(): true}
		for {
			plan := w.plan(t, true, most)
			if len(plan) == 0 {
				break
			}
			w.apply(t, plan)
			if seen[w.state()] {
				t.Fatal("the state comes again")
			}
			seen[w.state()] = true
		}
	})
}

func TestWithoutEvenOnlyWhoHasToMoves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, m := range w.plan(t, false, 100) {
			if m.Why != WhyClosed {
				t.Fatalf("%+v", m)
			}
		}
	})
}

func TestPlanMoves(t *testing.T) {
	anywhere := func(int) bool { return true }
	seats := func(on, n int, cold bool) (list []seat) {
		for i := range n {
			list = append(list, seat{key: SessionKey{"p", "a", fmt.Sprint("s", on, i)}, on: on, cold: cold, cache: int64(10 - i), fits: anywhere})
		}
		return list
	}
	two := func(a, b int) []desk {
		return []desk{
			{id: "a", provider: "p", weight: 1, sessions: a, takes: true},
			{id: "b", provider: "p", weight: 1, sessions: b, takes: true},
		}
	}
	closed := two(3, 0)
	closed[0].closed = true
	for _, test := range []struct {
		name  string
		desks []desk
		cold  bool
		most  int
		want  int
		why   string
	}{
		{"half of the difference", two(10, 0), true, 20, 5, WhyUneven},
		{"no more than the bound", two(10, 0), true, 3, 3, WhyUneven},
		{"nobody who is warm", two(10, 0), false, 20, 0, ""},
		{"nobody for a small difference", two(10, 8), true, 20, 0, ""},
		{"nobody who would only change sides", two(1, 0), true, 20, 0, ""},
		{"also the warm from a closed one", closed, false, 20, 3, WhyClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			plan := planMoves(test.desks, seats(0, test.desks[0].sessions, test.cold), true, test.most)
			if len(plan) != test.want {
				t.Fatalf("%d moves, want %d: %+v", len(plan), test.want, plan)
			}
			for i, m := range plan {
				if m.From != "a" || m.To != "b" || m.Why != test.why || i > 0 && m.CacheTokens < plan[i-1].CacheTokens {
					t.Errorf("move %d: %+v", i, m)
				}
			}
		})
	}
}

// Who has to leave goes to the best tier that has room, and is spread there by weight.
func TestRefuge(t *testing.T) {
	desks := []desk{
		{id: "closed", provider: "p", weight: 1, sessions: 6, closed: true, takes: true},
		{id: "later", provider: "p", weight: 9, priority: 2, takes: true},
		{id: "small", provider: "p", weight: 1, priority: 1, takes: true},
		{id: "big", provider: "p", weight: 2, priority: 1, takes: true},
		{id: "other", provider: "q", weight: 9, takes: true},
	}
	var seats []seat
	for i := range 6 {
		seats = append(seats, seat{key: SessionKey{"p", "a", fmt.Sprint("s", i)}, fits: func(int) bool { return true }})
	}
	to := map[string]int{}
	for _, m := range planMoves(desks, seats, true, 20) {
		to[m.To]++
	}
	if to["small"] != 2 || to["big"] != 4 || len(to) != 2 {
		t.Errorf("6 sessions of a closed subscription go to %v, want 2 to small and 4 to big", to)
	}
}
