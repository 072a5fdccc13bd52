package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// books are what the fleet has counted in the periods that hold now; a test
// writes them. A block has begun when the test says so.
type books struct {
	mu     sync.Mutex
	counts map[usage.PeriodOf]usage.Counts
	block  time.Time
	err    error
	ask    func() // called while they are asked, where it is there
}

func (b *books) InPeriods(_ context.Context, now time.Time, periods []usage.PeriodOf) ([]usage.PeriodCounts, error) {
	b.mu.Lock()
	ask := b.ask
	b.mu.Unlock()
	if ask != nil {
		ask()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return nil, b.err
	}
	out := make([]usage.PeriodCounts, len(periods))
	for i, p := range periods {
		out[i].Start, out[i].End = p.Period.Bounds(now, nil)
		if p.Period == usage.PeriodBlock && !b.block.IsZero() && now.Before(b.block.Add(usage.BlockLength)) {
			out[i].Start, out[i].End = b.block, b.block.Add(usage.BlockLength)
		}
		out[i].Counts = b.counts[p]
	}
	return out, nil
}

func (b *books) set(sub string, period usage.Period, c usage.Counts) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.counts == nil {
		b.counts = map[usage.PeriodOf]usage.Counts{}
	}
	b.counts[usage.PeriodOf{Subscription: sub, Period: period}] = c
}

func (b *books) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func budget(limits ...pool.Budget) func(*pool.Subscription) {
	return func(s *pool.Subscription) { s.Budgets = limits }
}

// spend counts one answer as the recorder does.
func spend(p *pool.Pool, sub string, cost int64, t usage.Tokens) {
	p.Count(&usage.Event{Subscription: sub, CostNanoUSD: cost, Tokens: t})
}

func statusOf(t *testing.T, p *pool.Pool, id string) pool.Status {
	t.Helper()
	all := p.Status()
	i := slices.IndexFunc(all, func(s pool.Status) bool { return s.ID == id })
	if i < 0 {
		t.Fatalf("no status of %s", id)
	}
	return all[i]
}

func TestBudgetDrainsThenCloses(t *testing.T) {
	f := func(name string, limit pool.Budget, fourFifths, rest usage.Counts) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &books{}
				// The other is of a worse tier.
				p := start(pool.Options{Ledger: b}, sub("one", budget(limit)), sub("two", priority(2)))
				defer p.Close()
				if id, _ := serve(t, p, ask("old"), ok); id != "one" {
					t.Fatalf("the first session went to %s", id)
				}
				b.set("one", limit.Period, fourFifths)
				pass(1100 * time.Millisecond)
				if s := statusOf(t, p, "one"); s.State != pool.StateDraining || s.Reason != pool.ReasonBudget || !s.CooldownUntil.IsZero() {
					t.Errorf("at four fifths it is %s (%s) until %v", s.State, s.Reason, s.CooldownUntil)
				}
				if id, _ := serve(t, p, ask("new"), ok); id != "two" {
					t.Errorf("a new session went to %s, which drains", id)
				}
				if id, _ := serve(t, p, ask("old"), ok); id != "one" {
					t.Errorf("the session that was there went to %s", id)
				}
				if id, _ := serve(t, p, ask("other", tried("two")), ok); id != "one" {
					t.Errorf("a new session that nobody else can serve went to %s", id)
				}
				sum := fourFifths
				sum.Add(rest)
				b.set("one", limit.Period, sum)
				pass(1100 * time.Millisecond)
				if id, source := serve(t, p, ask("old"), ok); id != "two" || source != pool.SourceMoved {
					t.Errorf("with nothing left the session was served by %s (%s)", id, source)
				}
				_, end := limit.Period.Bounds(time.Now(), nil)
				u := unavailable(t, p, ask("x", tried("two")))
				if u.Reason != pool.ReasonBudget || !u.Until.Equal(end) || u.Wait != time.Until(end) {
					t.Errorf("refused for %s until %v (%v), want budget until %v", u.Reason, u.Until, u.Wait, end)
				}
				if s := statusOf(t, p, "one"); s.State != pool.StateCooling || s.Reason != pool.ReasonBudget || !s.CooldownUntil.Equal(end) || s.Health != 0 {
					t.Errorf("with nothing left it is %s (%s) until %v, health %d", s.State, s.Reason, s.CooldownUntil, s.Health)
				}
				// Nobody has told of the new period yet, and nobody needs to.
				b.fail(errors.New("away"))
				pass(time.Until(end))
				if id, _ := serve(t, p, ask("y", tried("two")), ok); id != "one" {
					t.Errorf("in the new period %s served", id)
				}
			})
		})
	}
	f("cost of a day", pool.Budget{Period: usage.PeriodDay, CostNanoUSD: 100}, usage.Counts{CostNanoUSD: 80}, usage.Counts{CostNanoUSD: 25})
	f("cost of a week", pool.Budget{Period: usage.PeriodWeek, CostNanoUSD: 100}, usage.Counts{CostNanoUSD: 80}, usage.Counts{CostNanoUSD: 20})
	f("tokens of a week", pool.Budget{Period: usage.PeriodWeek, Tokens: 100},
		usage.Counts{Input: 16, Output: 16, CacheRead: 16, CacheWrite5m: 16, CacheWrite1h: 16}, usage.Counts{Output: 20})
	f("requests of a day", pool.Budget{Period: usage.PeriodDay, Requests: 10}, usage.Counts{Requests: 8}, usage.Counts{Requests: 2})
	f("the tightest of all", pool.Budget{Period: usage.PeriodDay, Requests: 1000, Tokens: 1000, CostNanoUSD: 10},
		usage.Counts{Requests: 1, Output: 1, CostNanoUSD: 8}, usage.Counts{CostNanoUSD: 2})
}

// TestBudgetKnowsItsOwnAtOnce: what this process counts needs no reading, is not
// counted twice by one, and goes on while nobody can be asked.
func TestBudgetKnowsItsOwnAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &books{}
		day := func(cost int64) { b.set("one", usage.PeriodDay, usage.Counts{CostNanoUSD: cost}) }
		p := start(pool.Options{Ledger: b}, sub("one", budget(pool.Budget{Period: usage.PeriodDay, CostNanoUSD: 100})))
		defer p.Close()
		day(60)
		spend(p, "one", 60, usage.Tokens{})
		pass(1100 * time.Millisecond) // the ledger has it now
		if _, err := p.Acquire(t.Context(), ask("")); err != nil {
			t.Fatalf("60 of 100 were spent: %v", err)
		}
		b.fail(errors.New("away"))
		spend(p, "one", 39, usage.Tokens{})
		pass(time.Hour)
		if _, err := p.Acquire(t.Context(), ask("")); err != nil {
			t.Fatalf("99 of 100 were spent: %v", err)
		}
		spend(p, "one", 1, usage.Tokens{})
		if u := unavailable(t, p, ask("")); u.Reason != pool.ReasonBudget {
			t.Errorf("refused for %s", u.Reason)
		}
		b.fail(nil)
		day(90) // somebody found out that it was less
		pass(1100 * time.Millisecond)
		if _, err := p.Acquire(t.Context(), ask("")); err != nil {
			t.Errorf("90 of 100 are spent: %v", err)
		}
	})
}

// TestBudgetIsReadAtTheStart: a restart does not give it anew.
func TestBudgetIsReadAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &books{}
		b.set("one", usage.PeriodDay, usage.Counts{Requests: 5})
		p := start(pool.Options{Ledger: b}, sub("one", budget(pool.Budget{Period: usage.PeriodDay, Requests: 5})))
		defer p.Close()
		if u := unavailable(t, p, ask("")); u.Reason != pool.ReasonBudget {
			t.Errorf("refused for %s", u.Reason)
		}
	})
}

// TestBudgetCountsRequestsUnderWay: the last requests of a budget go to as many
// as there are, and one that comes to nothing leaves its part to the next.
func TestBudgetCountsRequestsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("one", budget(pool.Budget{Period: usage.PeriodDay, Requests: 3})))
		defer p.Close()
		var leases []*pool.Lease
		for range 3 {
			l, err := p.Acquire(t.Context(), ask(""))
			if err != nil {
				t.Fatal(err)
			}
			leases = append(leases, l)
		}
		got := make(chan error)
		go func() {
			_, err := p.Acquire(t.Context(), ask(""))
			got <- err
		}()
		synctest.Wait()
		select {
		case err := <-got:
			t.Fatalf("a fourth request did not wait: %v", err)
		default:
		}
		leases[0].Done(usage.Tokens{}) // nothing was counted for it
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		for _, l := range leases[1:] {
			spend(p, "one", 0, usage.Tokens{})
			l.Done(usage.Tokens{})
		}
		if u := unavailable(t, p, ask("")); u.Reason != pool.ReasonBudget {
			t.Errorf("refused for %s", u.Reason)
		}
	})
}

// TestBudgetOfABlock: it begins with its first answer; the ledger may know of an
// earlier one.
func TestBudgetOfABlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &books{}
		p := start(pool.Options{Ledger: b}, sub("one", budget(pool.Budget{Period: usage.PeriodBlock, CostNanoUSD: 10})))
		defer p.Close()
		pass(90 * time.Minute)
		b.fail(errors.New("away"))
		began := time.Now().Truncate(time.Hour)
		spend(p, "one", 10, usage.Tokens{})
		if u := unavailable(t, p, ask("")); !u.Until.Equal(began.Add(usage.BlockLength)) {
			t.Errorf("closed until %v, want %v", u.Until, began.Add(usage.BlockLength))
		}
		b.fail(nil)
		b.block = began.Add(-time.Hour)
		b.set("one", usage.PeriodBlock, usage.Counts{CostNanoUSD: 12})
		pass(1100 * time.Millisecond)
		u := unavailable(t, p, ask(""))
		if want := began.Add(usage.BlockLength - time.Hour); !u.Until.Equal(want) {
			t.Errorf("closed until %v, want %v", u.Until, want)
		}
		b.set("one", usage.PeriodBlock, usage.Counts{})
		pass(time.Until(u.Until))
		if _, err := p.Acquire(t.Context(), ask("")); err != nil {
			t.Errorf("after the block: %v", err)
		}
	})
}

// TestNewSessionsLeaveWhatIsNearlySpent: before a provider's window or bucket is
// empty new sessions go elsewhere, however busy that is, and old ones stay.
func TestNewSessionsLeaveWhatIsNearlySpent(t *testing.T) {
	f := func(name string, w ratelimit.Window, away bool) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(pool.Options{}, sub("one"), sub("two", priority(2)))
				defer p.Close()
				w.Name, w.Seen = "w", time.Now()
				serve(t, p, ask("old"), ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{w}})
				for i := range 20 {
					want := map[bool]string{true: "two", false: "one"}[away]
					if id, _ := serve(t, p, ask(fmt.Sprint("new-", i)), ok); id != want {
						t.Fatalf("new session %d went to %s", i, id)
					}
				}
				if id, _ := serve(t, p, ask("old"), ok); id != "one" {
					t.Errorf("the old session went to %s", id)
				}
				if id, _ := serve(t, p, ask("other", tried("two")), ok); id != "one" {
					t.Errorf("what nobody else can serve went to %s", id)
				}
			})
		})
	}
	f("a window", ratelimit.Window{Kind: "provider", Utilization: 0.95}, true)
	f("a window with room", ratelimit.Window{Kind: "provider", Utilization: 0.94}, false)
	f("remaining requests", ratelimit.Window{Kind: "bucket", Utilization: 0.98}, true)
	f("what is no number", ratelimit.Window{Kind: "provider", Utilization: math.NaN()}, false)
}

// TestLevelsAreMadeKnownOnce: of a budget and of a provider's window, each level
// once, and again in the next period.
func TestLevelsAreMadeKnownOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := pool.New(pool.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))},
			[]pool.Subscription{sub("one", budget(pool.Budget{Period: usage.PeriodDay, CostNanoUSD: 100}))}, nil)
		p.Start(t.Context())
		defer p.Close()
		told := func() (levels []string) {
			pass(3100 * time.Millisecond)
			synctest.Wait()
			for _, m := range regexp.MustCompile(`msg="a (budget|usage window) .* window=(\S+) level_percent=(\d+)`).FindAllStringSubmatch(log.String(), -1) {
				levels = append(levels, m[2]+" "+m[3])
			}
			log.Reset()
			return levels
		}
		f := func(cost int64, utilization float64, want ...string) {
			t.Helper()
			spend(p, "one", cost, usage.Tokens{})
			if l, err := p.Acquire(t.Context(), ask("")); err == nil {
				l.Verdict(ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{
					{Name: "5h", Kind: "provider", Utilization: utilization, Seen: time.Now()},
					{Name: "requests", Kind: "bucket", Utilization: utilization, Seen: time.Now()},
				}})
				l.Done(usage.Tokens{})
			}
			if got := told(); !slices.Equal(got, want) {
				t.Errorf("%d more spent, window at %v: told %q, want %q", cost, utilization, got, want)
			}
		}
		f(49, 0.49)
		f(1, 0.5, "day 50", "5h 50")
		f(0, 0.6)
		f(46, 0.97, "day 95", "5h 95")
		f(0, 0.1)
		f(0, 0.8, "5h 80")
		f(10, 0.8, "day 100")
		pass(24 * time.Hour)
		f(80, 0.1, "day 80")
	})
}

// TestBurnIsMadeKnownOnce: a half-spent budget or window that will not last at the
// rate of the last minutes is told, once in a period; one that will is not.
func TestBurnIsMadeKnownOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := pool.New(pool.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))},
			[]pool.Subscription{sub("one", budget(pool.Budget{Period: usage.PeriodDay, CostNanoUSD: 1000}))}, nil)
		p.Start(t.Context())
		defer p.Close()
		pass(500 * time.Millisecond) // between two looks of the pool
		reset := time.Now().Add(5 * time.Hour)
		// burn lets minutes pass in each of which so much goes, and tells what was told.
		burn := func(minutes int, cost int64, window, grows float64) (told []string) {
			for range minutes {
				spend(p, "one", cost, usage.Tokens{})
				if l, err := p.Acquire(t.Context(), ask("")); err == nil {
					window += grows
					l.Verdict(ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{
						{Name: "5h", Kind: "provider", Utilization: window, Seen: time.Now(), Reset: reset},
					}})
					l.Done(usage.Tokens{})
				}
				pass(time.Minute)
			}
			synctest.Wait()
			for _, m := range regexp.MustCompile(`msg="a (budget|usage window) will not last" .* window=(\S+) spent_percent=(\d+) empty=(\S+)`).FindAllStringSubmatch(log.String(), -1) {
				at, err := time.Parse(time.RFC3339, m[4])
				if err != nil {
					t.Fatal(err)
				}
				told = append(told, fmt.Sprintf("%s at %s%% empty after %s", m[2], m[3], time.Until(at).Round(time.Minute)))
			}
			log.Reset()
			return told
		}
		f := func(minutes int, cost int64, window, grows float64, want ...string) {
			t.Helper()
			if got := burn(minutes, cost, window, grows); !slices.Equal(got, want) {
				t.Errorf("told %q, want %q", got, want)
			}
		}
		f(1, 550, 0, 0)   // half of the budget at once: no rate yet
		f(20, 0, 0, 0.01) // a fifth of the window: too early to say
		f(40, 0, 0.2, 0.01, "5h at 50% empty after 39m0s")
		f(20, 0, 0.6, 0.0001) // told already; and now it lasts
		f(9, 1, 0.602, 0, "day at 55% empty after 20h41m0s")
		f(20, 10, 0.602, 0.01) // both were told
		pass(24 * time.Hour)
		reset = time.Now().Add(5 * time.Hour)
		f(60, 10, 0, 0.01, "day at 50% empty after 36m0s", "5h at 50% empty after 39m0s")
	})
}

// What is counted while the ledger is asked is in no answer yet, and not forgotten when
// there is no other answer.
func TestBudgetCountsWhileItIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &books{}
		p := start(pool.Options{Ledger: b}, sub("one", budget(pool.Budget{Period: usage.PeriodDay, CostNanoUSD: 100})))
		defer p.Close()
		time.Sleep(100 * time.Millisecond)
		b.mu.Lock()
		asked := make(chan struct{})
		b.ask = func() {
			b.mu.Lock()
			b.ask = func() { b.fail(errors.New("away")) }
			b.mu.Unlock()
			spend(p, "one", 100, usage.Tokens{Input: 1})
			close(asked)
		}
		b.mu.Unlock()
		<-asked
		time.Sleep(time.Minute)
		if got := statusOf(t, p, "one"); got.Reason != pool.ReasonBudget {
			t.Errorf("its budget is spent, and it is %s, %s", got.State, got.Reason)
		}
	})
}
