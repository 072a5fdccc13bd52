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
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// noCapacity is the verdict on an overload; told below zero: without Retry-After.
func noCapacity(told time.Duration) ratelimit.Verdict {
	return ratelimit.Verdict{Signal: ratelimit.Overloaded, Reason: ratelimit.ReasonCapacity, Scope: ratelimit.ScopeProviderModel, Wait: told}
}

func unreached() ratelimit.Verdict {
	return ratelimit.Verdict{Signal: ratelimit.Network, Reason: ratelimit.ReasonConnect, Scope: ratelimit.ScopeSubscription, Wait: -1}
}

func aside(r *pool.Request) { r.Aside = true }

// shop is a provider that answers as it is told, and notes when it is asked.
type shop struct {
	pool    *pool.Pool
	latency time.Duration
	answer  func(subscription string) ratelimit.Verdict

	mu sync.Mutex
	at []time.Time // when requests came in
}

// ask makes one request as an agent does, and tells how it ended.
func (s *shop) ask(r *pool.Request) (ratelimit.Verdict, error) {
	l, err := s.pool.Acquire(context.Background(), r)
	if err != nil {
		return ratelimit.Verdict{}, err
	}
	defer l.Done(usage.Tokens{})
	s.mu.Lock()
	s.at = append(s.at, time.Now())
	s.mu.Unlock()
	pass(s.latency)
	s.mu.Lock()
	v := s.answer(l.Subscription().ID)
	s.mu.Unlock()
	l.Verdict(v)
	return v, nil
}

// between counts the requests that came in from a to b.
func (s *shop) between(a, b time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.at {
		if !at.Before(a) && at.Before(b) {
			n++
		}
	}
	return n
}

// first is when the first request came in at the given time or later.
func (s *shop) first(from time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.at, func(at time.Time) bool { return !at.Before(from) })
	if i < 0 {
		return time.Time{}
	}
	return s.at[i]
}

// While three answers in ten are overloads nobody is kept back: the others are
// served.
func TestPartialOverloadKeepsNobodyBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"), sub("two"))
		defer p.Close()
		luck := rand.New(rand.NewPCG(1, 2))
		served, busy := 0, 0
		s := &shop{pool: p, latency: 300 * time.Millisecond, answer: func(string) ratelimit.Verdict {
			if luck.Float64() < 0.3 {
				busy++
				return noCapacity(-1)
			}
			served++
			return ok
		}}
		var agents sync.WaitGroup
		for i := range 50 {
			agents.Go(func() {
				for range 200 {
					if _, err := s.ask(ask(fmt.Sprint("s", i))); err != nil {
						t.Errorf("kept back: %v", err)
						return
					}
				}
			})
		}
		agents.Wait()
		if served+busy != 50*200 || busy < 2500 {
			t.Errorf("%d served and %d overloads", served, busy)
		}
	})
}

// An overload of everything: two hundred agents leave the provider in peace but
// for one probe at a time, keep waiting, and come back slowly when it has ended.
// Who wants another model notices nothing.
func TestFullOverloadIsWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lasts = 100 * time.Second
		p := start(pool.Options{Wait: 30 * time.Second}, sub("one"), sub("two"), sub("three"))
		defer p.Close()
		began := time.Now()
		from, until := began.Add(10*time.Second), began.Add(10*time.Second+lasts)
		s := &shop{pool: p, latency: 200 * time.Millisecond, answer: func(string) ratelimit.Verdict {
			if now := time.Now(); now.After(from) && now.Before(until) {
				return noCapacity(-1)
			}
			return ok
		}}
		other := &shop{pool: p, latency: 200 * time.Millisecond, answer: func(string) ratelimit.Verdict { return ok }}
		var agents sync.WaitGroup
		end := until.Add(time.Minute)
		for i := range 200 {
			agents.Go(func() {
				r := ask(fmt.Sprint("s", i))
				r.Agent = fmt.Sprint("a", i%20)
				home, _ := serve(t, p, r, ok)
				for time.Now().Before(end) {
					_, err := s.ask(r)
					if u := (*pool.UnavailableError)(nil); errors.As(err, &u) {
						if u.Reason != string(ratelimit.ReasonCapacity) || u.Wait <= 0 || u.Wait > 31*time.Second || !u.Whole() {
							t.Errorf("refused with %s for %v: %v", u.Reason, u.Wait, u)
						}
					} else if err != nil {
						t.Error(err)
					}
					pass(time.Second)
				}
				if id, source := serve(t, p, r, ok); id != home || source != pool.SourceBound {
					t.Errorf("%s is now at %s (%s), was at %s", r.Session, id, source, home)
				}
			})
		}
		agents.Go(func() {
			for time.Now().Before(end) {
				asked := time.Now()
				if _, err := other.ask(ask("other", model("claude-other"))); err != nil || time.Since(asked) != other.latency {
					t.Errorf("another model after %v: %v", time.Since(asked), err)
				}
				pass(time.Second)
			}
		})
		agents.Wait()

		closed := until.Add(-s.latency) // what goes out later is answered when it is over
		if n := s.between(from.Add(2*time.Second), closed); n < 4 || n > 25 {
			t.Errorf("%d requests went out while there was no capacity", n)
		}
		peak := 0
		for at := from.Add(2 * time.Second); !at.Add(time.Second).After(closed); at = at.Add(100 * time.Millisecond) {
			peak = max(peak, s.between(at, at.Add(time.Second)))
		}
		if peak > 1 {
			t.Errorf("up to %d requests a second went out while there was no capacity", peak)
		}
		opened := s.first(closed)
		if late := opened.Sub(until); late > 30*time.Second {
			t.Errorf("the end of the overload was noticed after %v", late)
		}
		// What is without an answer doubles each half second.
		for i, most := range []int{4, 6, 12, 24, 48} {
			at := opened.Add(s.latency + time.Duration(i)*500*time.Millisecond)
			if n := s.between(at, at.Add(500*time.Millisecond)); n > most {
				t.Errorf("in half second %d after it opened: %d requests, want at most %d", i, n, most)
			}
		}
		if n := s.between(opened.Add(20*time.Second), opened.Add(21*time.Second)); n < 100 {
			t.Errorf("20 s after it opened: %d requests a second", n)
		}
		for _, st := range p.Status() {
			if st.State != pool.StateReady || st.Breaker != "closed" {
				t.Errorf("%+v", st)
			}
		}
	})
}

// overload makes so many overloads that a model is closed.
func overload(t *testing.T, p *pool.Pool, told time.Duration) {
	t.Helper()
	for i := range 5 {
		serve(t, p, ask(fmt.Sprint("o", i)), noCapacity(told))
	}
}

func TestOverloadEndsWhenTheProviderSays(t *testing.T) {
	for _, tt := range []struct{ told, least, most time.Duration }{
		{-1, time.Second, 2 * time.Second},
		{7 * time.Second, 7 * time.Second, 7 * time.Second},
		{10 * time.Millisecond, time.Second, time.Second + time.Millisecond},
		{24 * time.Hour, time.Minute, time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := start(pool.Options{}, sub("one"), sub("two"))
			defer p.Close()
			overload(t, p, tt.told)
			u := unavailable(t, p, ask("s"))
			if u.Reason != string(ratelimit.ReasonCapacity) || u.Wait < tt.least || u.Wait > tt.most {
				t.Errorf("told %v: closed for %v (%s)", tt.told, u.Wait, u.Reason)
			}
			// Others go on: what no model runs for, and other models.
			serve(t, p, ask("s", aside), noCapacity(-1))
			serve(t, p, ask("s", model("claude-other")), ok)
			pass(u.Wait)
			// One finds out. While it does the others are told to come soon.
			l, err := p.Acquire(context.Background(), ask("probe"))
			if err != nil {
				t.Fatal(err)
			}
			if u := unavailable(t, p, ask("s")); u.Wait > time.Second {
				t.Errorf("beside the probe: come in %v", u.Wait)
			}
			serve(t, p, ask("s", aside), ok) // says nothing about it
			_ = unavailable(t, p, ask("s"))
			l.Verdict(noCapacity(-1))
			l.Done(usage.Tokens{})
			if u := unavailable(t, p, ask("s")); u.Wait < 2*time.Second || u.Wait > 4*time.Second {
				t.Errorf("after a probe that failed: %v, want it doubled", u.Wait)
			}
			pass(4 * time.Second)
			serve(t, p, ask("probe"), ok)
			serve(t, p, ask("s"), ok)
		})
	}
}

// A probe whose answer takes long is not waited for, and its success still counts:
// else a provider whose answers all take long would stay closed.
func TestSlowProbeCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"))
		defer p.Close()
		overload(t, p, -1)
		pass(2 * time.Second)
		slow, err := p.Acquire(context.Background(), ask("slow"))
		if err != nil {
			t.Fatal(err)
		}
		pass(ratelimit.ProbePatience)
		second, err := p.Acquire(context.Background(), ask("second"))
		if err != nil {
			t.Fatalf("beside a probe that takes long: %v", err)
		}
		_ = unavailable(t, p, ask("third"))
		slow.Verdict(ok)
		serve(t, p, ask("third"), ok)
		second.Verdict(ok)
		slow.Done(usage.Tokens{})
		second.Done(usage.Tokens{})
	})
}

// An agent that leaves while its request probes leaves the probe to the next one.
func TestProbeWithoutAnswerIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"))
		defer p.Close()
		overload(t, p, -1)
		pass(2 * time.Second)
		l, err := p.Acquire(context.Background(), ask("leaves"))
		if err != nil {
			t.Fatal(err)
		}
		_ = unavailable(t, p, ask("s"))
		l.Done(usage.Tokens{})
		serve(t, p, ask("s"), limited(time.Minute)) // says nothing about it
		pass(time.Minute + 2*time.Second)
		serve(t, p, ask("s"), ok)
		serve(t, p, ask("s"), ok)
	})
}

// Those who wait for an overload to end leave room in the queue.
func TestOverloadDoesNotFillTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute, Waiters: 10}, sub("one"))
		defer p.Close()
		overload(t, p, 10*time.Second)
		var waiting sync.WaitGroup
		refused := make(chan error, 20)
		for i := range 20 {
			waiting.Go(func() {
				r := ask(fmt.Sprint("w", i))
				r.Agent = fmt.Sprint("w", i)
				l, err := p.Acquire(context.Background(), r)
				if err != nil {
					refused <- err
					return
				}
				l.Verdict(ok)
				l.Done(usage.Tokens{})
			})
			synctest.Wait()
		}
		if len(refused) != 15 {
			t.Errorf("%d of 20 did not wait, want 15", len(refused))
		}
		serve(t, p, ask("s", model("claude-other")), ok)
		waiting.Wait()
		if len(refused) != 15 {
			t.Errorf("%d of 20 were not served", len(refused))
		}
	})
}

// A base URL that cannot be reached costs one connection at a time, however many
// subscriptions and agents there are, and the sessions stay where they are.
func TestBaseURLThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const subs = 50
		var list []pool.Subscription
		for i := range subs {
			list = append(list, sub(fmt.Sprint("s", i)))
		}
		p := start(pool.Options{Wait: 5 * time.Second}, list...)
		defer p.Close()
		homes := map[string]string{}
		for i := range subs {
			name := fmt.Sprint("s", i)
			homes[name], _ = serve(t, p, ask(name), ok)
		}
		from := time.Now()
		until := from.Add(2 * time.Minute)
		s := &shop{pool: p, latency: 50 * time.Millisecond, answer: func(string) ratelimit.Verdict {
			if time.Now().Before(until) {
				return unreached()
			}
			return ok
		}}
		var agents sync.WaitGroup
		for i := range subs {
			agents.Go(func() {
				for time.Now().Before(until.Add(40 * time.Second)) {
					_, err := s.ask(ask(fmt.Sprint("s", i)))
					if u := (*pool.UnavailableError)(nil); errors.As(err, &u) && (u.Reason != pool.ReasonDown || u.Wait > 31*time.Second) {
						t.Errorf("%s: %v", u.Reason, u)
					}
					pass(500 * time.Millisecond)
				}
			})
		}
		agents.Wait()
		if n := s.between(from.Add(time.Second), until); n < 4 || n > 25 {
			t.Errorf("%d connections were tried within two minutes", n)
		}
		for name, home := range homes {
			if id, source := serve(t, p, ask(name), ok); id != home || source != pool.SourceBound {
				t.Errorf("%s is now at %s (%s), was at %s", name, id, source, home)
			}
		}
	})
}

// Breakers of subscriptions that are all open are one: one probe at a time for all
// of them, and its success is everybody's.
func TestOpenBreakersActAsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"), sub("two"), sub("three"), sub("off", func(s *pool.Subscription) { s.Disabled = true }))
		defer p.Close()
		homes := map[string]string{}
		for i := range 12 {
			name := fmt.Sprint("s", i)
			homes[name], _ = serve(t, p, ask(name), ok)
		}
		works := false
		s := &shop{pool: p, latency: time.Second, answer: func(string) ratelimit.Verdict {
			if works {
				return ok
			}
			return failed()
		}}
		// One of them alone is no reason to keep the others back.
		for range 5 {
			l, err := p.Acquire(context.Background(), ask("", tried("two", "three")))
			if err != nil {
				t.Fatal(err)
			}
			l.Verdict(failed())
			l.Done(usage.Tokens{})
		}
		serve(t, p, ask("", tried("one")), ok)
		for _, others := range [][]string{{"one", "three"}, {"one", "two"}} {
			for range 5 {
				l, err := p.Acquire(context.Background(), ask("", tried(others...)))
				if err != nil {
					t.Fatal(err)
				}
				l.Verdict(failed())
				l.Done(usage.Tokens{})
			}
		}
		began := time.Now()
		var agents sync.WaitGroup
		for i := range 12 {
			agents.Go(func() {
				for time.Since(began) < 2*time.Minute {
					_, err := s.ask(ask(fmt.Sprint("s", i)))
					if u := (*pool.UnavailableError)(nil); errors.As(err, &u) && (u.Reason != pool.ReasonDown && u.Reason != pool.ReasonBreaker || u.Wait <= 0) {
						t.Errorf("%s for %v: %v", u.Reason, u.Wait, u)
					}
					pass(100 * time.Millisecond)
				}
			})
		}
		agents.Wait()
		if n := len(s.at); n < 4 || n > 15 {
			t.Errorf("%d probes within two minutes: %v", n, s.at)
		}
		for i := 1; i < len(s.at); i++ {
			if s.at[i].Before(s.at[i-1].Add(s.latency)) {
				t.Errorf("two probes at once at %v", s.at[i].Sub(began))
			}
		}
		works = true
		pass(time.Minute)
		if _, err := s.ask(ask("s0")); err != nil {
			t.Fatal(err)
		}
		for _, st := range p.Status() {
			if st.ID != "off" && (st.State != pool.StateReady || st.Breaker != "closed") {
				t.Errorf("after the base URL worked again: %s is %s (%s)", st.ID, st.State, st.Reason)
			}
		}
	})
}
