package agents_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/pool/recall"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

// memory is where one process keeps its agents.
type memory struct {
	records []store.AgentRecord
	changes int
}

func (m *memory) Healthy() bool { return true }

func (m *memory) PutAgent(_ context.Context, r store.AgentRecord) (int64, error) {
	m.records = append(m.records, r)
	m.changes++
	return r.Version + 1, nil
}

func (m *memory) RemoveAgent(context.Context, string, int64) error { return store.ErrNoAgent }

func (m *memory) Agents(_ context.Context, known string) ([]store.AgentRecord, string, bool, error) {
	state := string(rune('a' + m.changes))
	return m.records, state, state != known, nil
}

func (m *memory) Hear(func(store.Event)) func() { return func() {} }

// ledger is what all processes have counted, by agent and day.
type ledger struct {
	mu    sync.Mutex
	asked int
	days  map[usage.AgentDay]usage.Counts
	err   error
	read  func(ctx context.Context, days int) error // called before it answers, where it is there
}

func (l *ledger) AgentDays(ctx context.Context, days []usage.AgentDay) ([]usage.Counts, error) {
	l.mu.Lock()
	read := l.read
	l.mu.Unlock()
	if read != nil {
		if err := read(ctx, len(days)); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked += len(days)
	out := make([]usage.Counts, len(days))
	for i, d := range days {
		out[i] = l.days[d]
	}
	return out, l.err
}

func (l *ledger) add(agent string, day time.Time, c usage.Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := usage.AgentDay{Agent: agent, Day: day.UTC().Truncate(24 * time.Hour)}
	sum := l.days[key]
	sum.Add(c)
	l.days[key] = sum
}

func (l *ledger) on(read func(ctx context.Context, days int) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read = read
}

func (l *ledger) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// bob starts a Book with an agent of that name, and returns its entry.
func bob(t *testing.T, l *ledger, budgets ...agents.Budget) (*agents.Book, *agents.Entry) {
	t.Helper()
	if l.days == nil {
		l.days = map[usage.AgentDay]usage.Counts{}
	}
	book := agents.New(&memory{}, l, (*recall.File)(nil), slog.New(slog.DiscardHandler))
	if _, _, err := book.Create(t.Context(), agents.Agent{ID: "bob", Budgets: budgets}); err != nil {
		t.Fatal(err)
	}
	book.Start(t.Context())
	e := book.ByID("bob")
	return book, e
}

// ask sends a request that ends, and uses so much.
func ask(book *agents.Book, e *agents.Entry, cost int64) error {
	if err := e.Begin(time.Now()); err != nil {
		return err
	}
	e.Seen(time.Now())
	book.Count(&usage.Event{Agent: "bob", CostNanoUSD: cost, Tokens: usage.Tokens{Input: 10}})
	e.End()
	return nil
}

func TestBudgets(t *testing.T) {
	over := func(t *testing.T, err error, period usage.Period, what string, wait time.Duration) {
		t.Helper()
		o, ok := errors.AsType[*agents.OverError](err)
		if !ok || o.Period != period || o.What != what || o.Wait != wait {
			t.Errorf("%+v, want %s of the %s in %v", err, what, period, wait)
		}
	}
	t.Run("the ledger is believed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { // begins at midnight of a Saturday, 2000-01-01
			book, e := bob(t, &ledger{}, agents.Budget{Period: usage.PeriodDay, Requests: 2}, agents.Budget{Period: usage.PeriodMonth, CostNanoUSD: 7})
			defer book.Close()
			for range 2 {
				if err := ask(book, e, 1); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(10 * time.Hour)
			// It has nothing: what was counted is lost.
			if err := ask(book, e, 1); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("of the fleet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &ledger{days: map[usage.AgentDay]usage.Counts{}}
			start := time.Now()
			book, e := bob(t, l, agents.Budget{Period: usage.PeriodDay, Requests: 5}, agents.Budget{Period: usage.PeriodWeek, Tokens: 100}, agents.Budget{Period: usage.PeriodMonth, CostNanoUSD: 1000})
			defer book.Close()
			if err := ask(book, e, 1); err != nil {
				t.Fatal(err)
			}
			l.add("bob", start, usage.Counts{Requests: 5, Input: 20, CostNanoUSD: 10}) // others' and ours
			time.Sleep(2 * time.Second)
			over(t, ask(book, e, 1), usage.PeriodDay, "requests", 24*time.Hour-2*time.Second)
			time.Sleep(24*time.Hour - 2*time.Second)
			// The next day; the week goes on.
			if err := ask(book, e, 1); err != nil {
				t.Error(err)
			}
			l.add("bob", time.Now(), usage.Counts{Requests: 1, Output: 79, CacheRead: 1})
			time.Sleep(2 * time.Second)
			over(t, ask(book, e, 1), usage.PeriodWeek, "tokens", 24*time.Hour-2*time.Second) // a week begins on Monday
			time.Sleep(24 * time.Hour)
			l.add("bob", start, usage.Counts{CostNanoUSD: 990}) // told late, of a day that is over
			time.Sleep(6 * time.Minute)
			over(t, ask(book, e, 1), usage.PeriodMonth, "cost", 29*24*time.Hour-6*time.Minute-2*time.Second)
		})
	})
	t.Run("requests under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			book, e := bob(t, &ledger{}, agents.Budget{Period: usage.PeriodDay, Requests: 2})
			defer book.Close()
			for range 2 {
				if err := e.Begin(time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			err := e.Begin(time.Now())
			over(t, err, usage.PeriodDay, "requests", time.Second)
			if o, _ := errors.AsType[*agents.OverError](err); o == nil || !o.Busy {
				t.Errorf("%+v", err)
			}
			e.End() // it came to nothing
			if err := e.Begin(time.Now()); err != nil {
				t.Error(err)
			}
			e.End()
			e.End()
		})
	})
	t.Run("the ledger is away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &ledger{err: errors.New("away")}
			book, e := bob(t, l, agents.Budget{Period: usage.PeriodDay, Requests: 3})
			defer book.Close()
			for range 3 {
				if err := ask(book, e, 1); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
			}
			over(t, ask(book, e, 1), usage.PeriodDay, "requests", 24*time.Hour-3*time.Minute)
			l.fail(nil)
			time.Sleep(time.Minute)
			if err := ask(book, e, 1); err != nil {
				t.Errorf("the ledger is back and knows of nothing: %v", err)
			}
		})
	})
	t.Run("what is counted while the ledger is asked stays", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &ledger{}
			book, e := bob(t, l, agents.Budget{Period: usage.PeriodDay, Requests: 1})
			defer book.Close()
			time.Sleep(time.Second)
			synctest.Wait()
			asked := make(chan struct{})
			answer := make(chan struct{})
			l.on(func(context.Context, int) error {
				l.on(func(context.Context, int) error { return errors.New("away") })
				close(asked)
				<-answer
				return nil
			})
			<-asked
			if err := ask(book, e, 1); err != nil {
				t.Fatal(err)
			}
			close(answer)
			time.Sleep(time.Minute)
			over(t, ask(book, e, 1), usage.PeriodDay, "requests", time.Until(time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC)))
		})
	})
	t.Run("a slow ledger is asked for some at a time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &ledger{days: map[usage.AgentDay]usage.Counts{}}
			l.read = func(ctx context.Context, days int) error {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Duration(days) * 10 * time.Millisecond):
					return nil
				}
			}
			book := agents.New(&memory{}, l, (*recall.File)(nil), slog.New(slog.DiscardHandler))
			const many = 400
			for i := range many {
				id := fmt.Sprintf("bob-%d", i)
				if _, _, err := book.Create(t.Context(), agents.Agent{ID: id, Budgets: []agents.Budget{{Period: usage.PeriodDay, Requests: 5}}}); err != nil {
					t.Fatal(err)
				}
				l.add(id, time.Now(), usage.Counts{Requests: 5})
			}
			book.Start(t.Context())
			defer book.Close()
			time.Sleep(time.Minute)
			for i := range many {
				if err := book.ByID(fmt.Sprintf("bob-%d", i)).Begin(time.Now()); err == nil {
					t.Fatalf("what others have spent of agent %d is not known", i)
				}
			}
		})
	})
	t.Run("who is not there costs little", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &ledger{}
			book, _ := bob(t, l, agents.Budget{Period: usage.PeriodDay, Requests: 3})
			defer book.Close()
			time.Sleep(time.Hour)
			if l.mu.Lock(); l.asked > 130 {
				t.Errorf("asked %d times in an hour", l.asked)
			}
			l.mu.Unlock()
		})
	})
}

// Who looks at one agent has the ledger asked of that alone: it is slow, and a fleet may
// have thousands.
func TestFindAsksOfOneAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{}
		day := agents.Budget{Period: usage.PeriodDay, Requests: 5}
		book, _ := bob(t, l, day)
		defer book.Close()
		if _, _, err := book.Create(t.Context(), agents.Agent{ID: "eve", Budgets: []agents.Budget{day}}); err != nil {
			t.Fatal(err)
		}
		l.add("bob", time.Now(), usage.Counts{Requests: 3})
		l.mu.Lock()
		before := l.asked
		l.mu.Unlock()
		bob, ok, fresh := book.Find(t.Context(), "bob")
		if !ok || !fresh || len(bob.Spent) != 1 || bob.Spent[0].Requests != 3 {
			t.Errorf("%+v, %v, %v", bob, ok, fresh)
		}
		if l.mu.Lock(); l.asked != before+1 {
			t.Errorf("the ledger was asked of %d days, want 1", l.asked-before)
		}
		l.mu.Unlock()
		if u, ok, fresh := book.Find(t.Context(), "adam"); ok || !fresh {
			t.Errorf("nobody: %+v, %v, %v", u, ok, fresh)
		}
		l.fail(store.ErrAway)
		if bob, ok, fresh := book.Find(t.Context(), "bob"); !ok || fresh || bob.Spent[0].Requests != 3 {
			t.Errorf("without a ledger: %+v, %v, %v", bob, ok, fresh)
		}
	})
}

// A ledger that does not answer keeps nobody from hearing that an agent was revoked.
func TestRevocationWaitsForNoLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := &hinting{}
		l := &ledger{read: func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }}
		book := agents.New(records, l, (*recall.File)(nil), slog.New(slog.DiscardHandler))
		_, secret, err := book.Create(t.Context(), agents.Agent{ID: "bob", Budgets: []agents.Budget{{Period: usage.PeriodDay, Requests: 5}}})
		if err != nil {
			t.Fatal(err)
		}
		book.Start(t.Context())
		defer book.Close()
		time.Sleep(1500 * time.Millisecond) // it is being asked
		records.mu.Lock()
		records.records, records.changes = nil, 2
		records.mu.Unlock()
		records.hint(store.Event{Agents: true})
		synctest.Wait()
		if book.ByHash(hash(secret.Reveal())) != nil {
			t.Error("the token is known while the ledger is asked")
		}
	})
}

// hinting is a memory that others change.
type hinting struct {
	mu sync.Mutex
	memory
	hint func(store.Event)
}

func (h *hinting) Agents(ctx context.Context, known string) ([]store.AgentRecord, string, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.memory.Agents(ctx, known)
}

func (h *hinting) Hear(f func(store.Event)) func() {
	h.hint = f
	return func() {}
}

// TestBudgetsHold: whatever comes, no request is let through that a budget has nothing
// left for, and none is refused without cause.
func TestBudgetsHold(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limit := agents.Budget{
			Period:   usage.PeriodMonth,
			Requests: rapid.Int64Range(0, 5).Draw(rt, "requests"), Tokens: rapid.Int64Range(0, 60).Draw(rt, "tokens"),
			CostNanoUSD: rapid.Int64Range(1, 20).Draw(rt, "cost"),
		}
		book := agents.New(&memory{}, &ledger{}, (*recall.File)(nil), slog.New(slog.DiscardHandler))
		if _, _, err := book.Create(context.Background(), agents.Agent{ID: "bob", Budgets: []agents.Budget{limit}}); err != nil {
			rt.Fatal(err)
		}
		e := book.ByID("bob")
		var requests, tokens, cost, busy int64
		rt.Repeat(map[string]func(*rapid.T){
			"begin": func(rt *rapid.T) {
				full := limit.Requests > 0 && requests+busy >= limit.Requests || limit.Tokens > 0 && tokens >= limit.Tokens || cost >= limit.CostNanoUSD
				if err := e.Begin(time.Now()); (err != nil) != full {
					rt.Fatalf("%v, with %d requests, %d tokens, %d cost, %d under way of %+v", err, requests, tokens, cost, busy, limit)
				} else if err == nil {
					busy++
				}
			},
			"end": func(rt *rapid.T) {
				if busy == 0 {
					rt.Skip()
				}
				if n := rapid.Int64Range(0, 9).Draw(rt, "n"); n > 0 {
					book.Count(&usage.Event{Agent: "bob", CostNanoUSD: n, Tokens: usage.Tokens{Output: 3 * n}})
					requests, tokens, cost = requests+1, tokens+3*n, cost+n
				}
				e.End()
				busy--
			},
			"another": func(*rapid.T) { book.Count(&usage.Event{Agent: "ann", CostNanoUSD: 1000}) },
		})
	})
}

func TestCheck(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	f := func(a agents.Agent, want string) {
		t.Helper()
		got := ""
		if err := a.Check(now); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%+v:\n got %s\nwant %s", a, got, want)
		}
	}
	id := func(id string) agents.Agent { return agents.Agent{ID: id} }
	f(id("bob-1_x"), "")
	const allowed = "1 to 63 of a-z, 0-9, _ and -, the first a letter or a digit"
	for _, bad := range []string{"", "Bob", "-b", "a:b", "a/b", "../b", "a\nb"} {
		if err := (&agents.Agent{ID: bad}).Check(now); err == nil {
			t.Errorf("%q is an agent's name", bad)
		}
	}
	long := make([]byte, 10<<20)
	for i := range long {
		long[i] = 'a'
	}
	f(id(string(long)), `"`+string(long[:80])+`"... is no agent's name: want `+allowed)
	f(agents.Agent{ID: "b", Expires: now}, "expires: 2026-11-22T12:00:00Z is over: want a later moment")
	f(agents.Agent{ID: "b", Rights: agents.Rights{Providers: []string{"a", "a"}}}, "providers: a stands there twice")
	f(agents.Agent{ID: "b", Rights: agents.Rights{Models: []string{"claude opus"}}}, `models: "claude opus" is none: want printable ASCII without spaces, with * and ? for what may be anything`)
	f(agents.Agent{ID: "b", Rights: agents.Rights{Models: []string{"a*", "claude-["}}}, `models: "claude-[" is no glob, and would fit no model: want a model name with *, ? or [a-z], such as "claude-*"`)
	f(agents.Agent{ID: "b", Rights: agents.Rights{Models: []string{"claude-[a-z]*"}}}, "")
	f(agents.Agent{ID: "b", Rights: agents.Rights{Subscriptions: []string{"*"}}}, `subscriptions: "*" is none: want an id or a label: `+allowed)
	f(agents.Agent{ID: "b", Rights: agents.Rights{Models: make([]string, 65)}}, "models: there are 65: at most 64 are allowed")
	f(agents.Agent{ID: "b", Budgets: []agents.Budget{{Period: "day"}}}, "budgets: that of a day limits nothing: want cost, tokens or requests above zero")
	f(agents.Agent{ID: "b", Budgets: []agents.Budget{{Period: "day", Tokens: -1}}}, "budgets: that of a day has a limit below zero")
}
