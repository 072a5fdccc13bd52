package pool_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

func agent(name string) func(*pool.Request) { return func(r *pool.Request) { r.Agent = name } }

// crowd is agents that ask again as soon as they were served, each with so many
// requests at once, for 20 minutes, of one subscription that serves four at a time
// for about a second each. It returns how long the requests of each agent waited.
func crowd(t *testing.T, opts pool.Options, parallel map[string]int) map[string][]time.Duration {
	t.Helper()
	waits := map[string][]time.Duration{}
	synctest.Test(t, func(t *testing.T) {
		p := start(opts, sub("one", limits(pool.Limits{Concurrent: 4})))
		defer p.Close()
		end := time.Now().Add(20 * time.Minute)
		var mu sync.Mutex
		var wg sync.WaitGroup
		for name, n := range parallel {
			for i := range n {
				wg.Go(func() {
					for time.Now().Before(end) {
						begin := time.Now()
						l, err := p.Acquire(context.Background(), ask(fmt.Sprint(name, i), agent(name)))
						if u, full := errors.AsType[*pool.UnavailableError](err); full {
							if opts.Waiters == 0 {
								t.Errorf("%s: %v", name, u)
							}
							pass(time.Second)
							continue
						}
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						waits[name] = append(waits[name], time.Since(begin))
						mu.Unlock()
						l.Verdict(ok)
						pass(800*time.Millisecond + rand.N(400*time.Millisecond))
						l.Done(usage.Tokens{Input: 1})
					}
				})
			}
		}
		wg.Wait()
	})
	return waits
}

// p95 of the waits of all agents but the one named.
func p95(waits map[string][]time.Duration, but string) time.Duration {
	var all []time.Duration
	for name, w := range waits {
		if name != but {
			all = append(all, w...)
		}
	}
	slices.Sort(all)
	return all[len(all)*95/100]
}

// TestGreedyAgent: nine agents with one request at a time, and one with a
// hundred. The share of the nine is what they wait when the tenth is like them.
func TestGreedyAgent(t *testing.T) {
	agents := map[string]int{"greedy": 1}
	for i := range 9 {
		agents[fmt.Sprint("polite", i)] = 1
	}
	opts := pool.Options{Wait: 5 * time.Minute}
	share := p95(crowd(t, opts, agents), "greedy")
	agents["greedy"] = 100
	waits := crowd(t, opts, agents)
	got := p95(waits, "greedy")
	t.Logf("p95 of the others' wait: %v, with a greedy agent %v", share, got)
	if share == 0 || got > 2*share {
		t.Errorf("a greedy agent raises the others' wait from %v to %v", share, got)
	}
	// And it has its own share: a tenth, and what the others cannot take.
	n, all := len(waits["greedy"]), 0
	for _, w := range waits {
		all += len(w)
	}
	if n < all/11 || n > all/5 {
		t.Errorf("the greedy agent was served %d of %d times, want a tenth and what the others leave", n, all)
	}
}

// TestGreedyAgentDoesNotFillTheQueue: the limit on waiters is its own fault.
func TestGreedyAgentDoesNotFillTheQueue(t *testing.T) {
	agents := map[string]int{"greedy": 100, "polite0": 1, "polite1": 2}
	waits := crowd(t, pool.Options{Wait: 5 * time.Minute, Waiters: 10}, agents)
	// Three agents, four places: nobody has to wait longer than a second or so.
	if got := p95(waits, "greedy"); got > 2*time.Second {
		t.Errorf("the others waited %v", got)
	}
	for _, name := range []string{"polite0", "polite1"} {
		if n := len(waits[name]); n < 1200/3 {
			t.Errorf("%s was served %d times in 20 minutes", name, n)
		}
	}
}

// TestWhoGivesUpCostsItsAgentNothing: only what was served counts.
func TestWhoGivesUpCostsItsAgentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("one", limits(pool.Limits{Concurrent: 1})))
		defer p.Close()
		holder, err := p.Acquire(context.Background(), ask("holder", agent("c")))
		if err != nil {
			t.Fatal(err)
		}
		leaving, leave := context.WithCancel(context.Background())
		var requests []*pool.Request
		for i := range 50 {
			requests = append(requests, ask(fmt.Sprint("gone", i), agent("a")))
		}
		_, gone := queued(leaving, p, requests...)
		served, wait := queued(context.Background(), p,
			ask("a1", agent("a")), ask("b1", agent("b")), ask("a2", agent("a")), ask("b2", agent("b")), ask("a3", agent("a")))
		leave()
		gone()
		holder.Verdict(ok)
		holder.Done(usage.Tokens{})
		wait()
		if got := served(); !slices.Equal(got, []string{"a1", "b1", "a2", "b2", "a3"}) {
			t.Errorf("served in the order %v", got)
		}
	})
}

// TestFullQueueMakesRoomForWhoHasLess puts out the last of the longest line,
// and tells it why.
func TestFullQueueMakesRoomForWhoHasLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute, Waiters: 4}, sub("one", limits(pool.Limits{Concurrent: 1})))
		defer p.Close()
		holder, err := p.Acquire(context.Background(), ask("holder", agent("c")))
		if err != nil {
			t.Fatal(err)
		}
		served, wait := queued(context.Background(), p, ask("a1"), ask("a2"), ask("a3"), ask("a4"),
			ask("a5"),             // has the longest line: no room
			ask("b1", agent("b")), // in place of a4
			ask("b2", agent("b")), // in place of a3
			ask("b3", agent("b"))) // has as many: no room
		const crowded = ": the only subscription for claude-x is limited; first free in 1s (one)"
		if got, want := served(), []string{"a5" + crowded, "a4" + crowded, "a3" + crowded, "b3" + crowded}; !slices.Equal(got, want) {
			t.Errorf("refused %q, want %q", got, want)
		}
		holder.Verdict(ok)
		holder.Done(usage.Tokens{})
		wait()
		if got := served()[4:]; !slices.Equal(got, []string{"a1", "b1", "a2", "b2"}) {
			t.Errorf("served in the order %v", got)
		}
	})
}
