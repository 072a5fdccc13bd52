package pool_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// plan is a subscription as its provider has it: a window of twelve hours that
// begins anew whether it was used up or not.
type plan struct {
	id        string
	holds     float64       // tokens, in each window
	first     time.Duration // when the first window ends
	elsewhere float64       // what somebody else uses of it, in each minute
	late      time.Duration // how much longer than others it takes to begin an answer

	spent float64
	end   time.Time
}

const planWindow = 12 * time.Hour

// day is what a day came to.
type day struct {
	requests, refused, moves int
	lost                     float64        // tokens of prompt caches that moved sessions left behind
	expired                  float64        // tokens of windows that ended before they were used
	served                   map[string]int // requests, by subscription
	placed                   map[string]int // sessions
	apart                    float64        // mean distance of the fullest window from the emptiest
	astray                   int            // requests of a session that was sent away without need
}

// live lets agents work for a day: a few all the time, and many in a rush that
// comes every few hours. Each session asks once a minute for a quarter of an hour,
// and its prompt grows.
func live(t *testing.T, strategy pool.Strategy, plans []*plan, subs []pool.Subscription, rush int) day {
	var d day
	d.served, d.placed = map[string]int{}, map[string]int{}
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		p := pool.New(pool.Options{Strategy: strategy}, subs, nil)
		byID := map[string]*plan{}
		for _, one := range plans {
			one.spent, one.end = 0, begin.Add(one.first)
			byID[one.id] = one
		}
		type agent struct {
			name string
			left int
			size float64
			home string
		}
		var agents []*agent
		random := rand.New(rand.NewPCG(1, 2))
		for minute := range 24 * 60 {
			now := time.Now()
			least, most := 1.0, 0.0
			for _, one := range plans {
				if !now.Before(one.end) {
					if minute > 0 {
						d.expired += max(0, one.holds-one.spent)
					}
					one.spent, one.end = 0, one.end.Add(planWindow)
				}
				one.spent += one.elsewhere
				least, most = min(least, one.spent/one.holds), max(most, one.spent/one.holds)
			}
			d.apart += (most - least) / (24 * 60)
			come := 1
			if hour := minute % 720; hour >= 570 && hour < 690 {
				come = rush
			}
			for i := range come {
				agents = append(agents, &agent{name: fmt.Sprintf("%d-%d", minute, i), left: 15, size: 5000})
			}
			random.Shuffle(len(agents), func(i, j int) { agents[i], agents[j] = agents[j], agents[i] })
			for _, a := range agents {
				a.left--
				d.requests++
				served := false
				for range len(plans) + 1 {
					l, err := p.Acquire(context.Background(), ask(a.name))
					if err != nil {
						break
					}
					id := l.Subscription().ID
					one := byID[id]
					w := ratelimit.Window{Name: "5h", Kind: "provider", Utilization: one.spent / one.holds, Status: "allowed", Reset: one.end, Seen: now}
					if one.spent >= one.holds {
						w.Status = "rejected"
						l.Verdict(ratelimit.Verdict{
							Signal: ratelimit.Limited, Reason: ratelimit.ReasonWindow, Scope: ratelimit.ScopeSubscription,
							Wait: one.end.Sub(now), Windows: []ratelimit.Window{w},
						})
						l.Done(usage.Tokens{})
						continue
					}
					one.spent += a.size / 10 // most of a prompt is read from its cache
					l.FirstByte(time.Second + one.late)
					l.Verdict(ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{w}})
					l.Done(usage.Tokens{Input: int64(a.size), Output: 100})
					served = true
					d.served[id]++
					switch {
					case a.home == "":
						d.placed[id]++
					case a.home != id:
						d.moves++
						d.lost += a.size
						if former := byID[a.home]; former.spent < former.holds && l.Source() != pool.SourceBound {
							d.astray++
						}
					}
					a.home, a.size = id, a.size+2000
					break
				}
				if !served {
					d.refused++
				}
			}
			agents = slices.DeleteFunc(agents, func(a *agent) bool { return a.left == 0 })
			pass(time.Minute)
		}
		p.Close()
	})
	return d
}

var everyStrategy = []pool.Strategy{
	pool.StrategyBalanced, pool.StrategyDrainSoonest, pool.StrategyPriority, pool.StrategyLeastUsed, pool.StrategyRoundRobin,
}

// dayOfAll lets four subscriptions live by each strategy. The windows of two end
// three hours before those of the others, and half an hour before the rush. The
// first is also what first says.
func dayOfAll(t *testing.T, rush int, first plan) map[pool.Strategy]day {
	days := map[pool.Strategy]day{}
	for _, s := range everyStrategy {
		var plans []*plan
		var subs []pool.Subscription
		for i := range 4 {
			one := &plan{id: fmt.Sprint("p", i), holds: 1e7, first: time.Duration(9+3*(i/2)) * time.Hour}
			plans, subs = append(plans, one), append(subs, sub(one.id))
		}
		plans[0].elsewhere, plans[0].late = first.elsewhere, first.late
		d := live(t, s, plans, subs, rush)
		days[s] = d
		t.Logf("%-14s %d requests, %.2f%% refused, %d moves, %.1fM tokens of cache lost, %.2fM expired, %.2f apart, served %v, placed %v",
			s, d.requests, 100*float64(d.refused)/float64(d.requests), d.moves, d.lost/1e6, d.expired/1e6, d.apart, d.served, d.placed)
		if d.astray > 0 {
			t.Errorf("%s: %d requests were sent away from where their sessions are, which could serve", s, d.astray)
		}
	}
	return days
}

// In a day with a rush there is not enough for all. Whoever spent what ends first
// has the other windows left for it; what that costs is moves.
func TestADayWithARush(t *testing.T) {
	days := dayOfAll(t, 10, plan{})
	drain := days[pool.StrategyDrainSoonest]
	for s, d := range days {
		if s != pool.StrategyDrainSoonest && (d.refused < drain.refused*5/4 || d.expired < drain.expired*1.5) {
			t.Errorf("%s refuses %d and lets %.0f expire, drain_soonest %d and %.0f", s, d.refused, d.expired, drain.refused, drain.expired)
		}
	}
}

// In a calm day, what a strategy is for shows in who serves.
func TestACalmDay(t *testing.T) {
	days := dayOfAll(t, 4, plan{})
	for s, d := range days {
		if d.refused > 0 {
			t.Errorf("%s refuses %d", s, d.refused)
		}
		least, most := d.placed["p0"], d.placed["p0"]
		for _, n := range d.placed {
			least, most = min(least, n), max(most, n)
		}
		if even := most-least <= 1; even != (s == pool.StrategyRoundRobin) {
			t.Errorf("%s places from %d to %d sessions", s, least, most)
		}
		first, last := float64(d.served["p0"])/float64(d.requests), float64(d.served["p3"])/float64(d.requests)
		if strict := first > 0.4 && last < 0.05; strict != (s == pool.StrategyPriority) {
			t.Errorf("%s has the first serve %.2f of all, the last %.2f", s, first, last)
		}
	}
}

// Where somebody else uses a subscription too, least_used comes nearest to all
// being used alike.
func TestADayWithUseElsewhere(t *testing.T) {
	days := dayOfAll(t, 4, plan{elsewhere: 10_000})
	least := days[pool.StrategyLeastUsed]
	for s, d := range days {
		if s != pool.StrategyLeastUsed && d.apart < least.apart*1.1 {
			t.Errorf("%s: %.2f apart, least_used %.2f", s, d.apart, least.apart)
		}
	}
}

// One subscription answers late: who looks at its health has it serve least.
func TestADayWithASlowOne(t *testing.T) {
	days := dayOfAll(t, 4, plan{late: 10 * time.Second})
	balanced := days[pool.StrategyBalanced]
	for _, s := range []pool.Strategy{pool.StrategyPriority, pool.StrategyLeastUsed, pool.StrategyRoundRobin} {
		if d := days[s]; balanced.served["p0"] > d.served["p0"]*3/4 {
			t.Errorf("the slow one serves %d requests by %s, and %d by balanced", d.served["p0"], s, balanced.served["p0"])
		}
	}
}
