package pool_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

func draining(s *pool.Subscription) { s.Draining = true }

func switchedOff(s *pool.Subscription) { s.Disabled, s.Reason = true, "disabled by an operator" }

// with is s changed.
func with(s pool.Subscription, change ...func(*pool.Subscription)) pool.Subscription {
	for _, f := range change {
		f(&s)
	}
	return s
}

func apply(t *testing.T, p *pool.Pool, want pool.Changes, subs ...pool.Subscription) {
	t.Helper()
	if diff := cmp.Diff(want, p.Apply(subs)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func served(t *testing.T, p *pool.Pool, r *pool.Request, want string) {
	t.Helper()
	if got, source := serve(t, p, r, ok); got != want {
		t.Errorf("session %s is served by %s (%s), want %s", r.Session, got, source, want)
	}
}

func stateOf(p *pool.Pool, id string) (state pool.State, reason string) {
	for _, s := range p.Status() {
		if s.ID == id {
			return s.State, s.Reason
		}
	}
	return "", ""
}

func TestApplyAddsAndRemoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := sub("one"), sub("two")
		p := start(pool.Options{}, one)
		defer p.Close()
		served(t, p, ask("s"), "one")
		apply(t, p, pool.Changes{}, one)
		apply(t, p, pool.Changes{Added: []string{"two"}}, one, two)
		served(t, p, ask("s"), "one") // stays

		// One that is under way when its subscription goes is settled as ever.
		under, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		apply(t, p, pool.Changes{Removed: []string{"one"}}, two)
		served(t, p, ask("s"), "two")
		under.Verdict(ok)
		under.Done(usage.Tokens{Input: 1})
		if _, err := under.Credential(context.Background()); err != nil {
			t.Errorf("a lease of one that is gone: %v", err)
		}
		served(t, p, ask("s"), "two")

		// It comes back as another one; so does a provider.
		apply(t, p, pool.Changes{Added: []string{"one", "lab"}, Removed: []string{"two"}}, one, sub("lab", func(s *pool.Subscription) { s.Provider = "openai" }))
		served(t, p, ask("s"), "one")
		served(t, p, ask("s", func(r *pool.Request) { r.Provider = "openai" }), "lab")
		apply(t, p, pool.Changes{Changed: []string{"lab"}, Removed: []string{"one"}}, sub("lab"))
		served(t, p, ask("s"), "lab")
		_, err = p.Acquire(context.Background(), ask("s", func(r *pool.Request) { r.Provider = "openai" }))
		if _, none := errors.AsType[*pool.NoSubscriptionError](err); !none {
			t.Errorf("a provider that has nobody any more: %v", err)
		}
		apply(t, p, pool.Changes{Removed: []string{"lab"}})
		if p.Ready() || len(p.Status()) != 0 {
			t.Error("the empty pool is ready")
		}
	})
}

func TestApplySwitches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := sub("one"), sub("two", priority(2))
		p := start(pool.Options{}, one, two)
		defer p.Close()
		served(t, p, ask("bound"), "one")
		apply(t, p, pool.Changes{Changed: []string{"one"}}, with(one, draining), two)
		served(t, p, ask("bound"), "one")
		served(t, p, ask("new"), "two")
		served(t, p, ask("child", func(r *pool.Request) { r.Parent = "bound" }), "two")
		served(t, p, ask("new2", func(r *pool.Request) { r.Owner = "one" }), "one") // what it alone has
		if state, reason := stateOf(p, "one"); state != pool.StateDraining || reason != pool.ReasonDraining {
			t.Errorf("drained: %s, %s", state, reason)
		}
		// Nobody is pushed onto it, even when nobody else is there.
		apply(t, p, pool.Changes{Changed: []string{"two"}}, with(one, draining), with(two, switchedOff))
		served(t, p, ask("bound"), "one")
		if e := unavailable(t, p, ask("third")); e.Reason != pool.ReasonDraining && e.Reason != "disabled by an operator" {
			t.Errorf("nobody takes it because of %q", e.Reason)
		}
		apply(t, p, pool.Changes{Changed: []string{"one", "two"}}, with(one, switchedOff), two)
		served(t, p, ask("bound"), "two")
		if state, reason := stateOf(p, "one"); state != pool.StateDisabled || reason != "disabled by an operator" {
			t.Errorf("disabled: %s, %s", state, reason)
		}
		apply(t, p, pool.Changes{Changed: []string{"one"}}, one, two)
		served(t, p, ask("fourth"), "one")
	})
}

// An agent gets only what it may use, by id or by label.
func TestAgentsUseWhatTheyMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		label := func(names ...string) func(*pool.Subscription) {
			return func(s *pool.Subscription) { s.Labels = names }
		}
		p := start(pool.Options{}, sub("one"), sub("two", priority(2), label("batch", "night")), sub("three", priority(3), label("night")))
		defer p.Close()
		may := func(names ...string) func(*pool.Request) { return func(r *pool.Request) { r.Allowed = names } }
		served(t, p, ask("a", may("night")), "two")
		served(t, p, ask("b", may("three", "none")), "three")
		served(t, p, ask("c", may("batch"), tried("three")), "two")
		served(t, p, ask("d"), "one")
		served(t, p, ask("d", may("night")), "two") // for this request: it may not use where the session is
		_, err := p.Acquire(context.Background(), ask("e", may("day")))
		if _, none := errors.AsType[*pool.NoSubscriptionError](err); !none {
			t.Errorf("nothing that it may use: %v", err)
		}
	})
}

// What is known of a subscription stays with its id.
func TestApplyKeepsWhatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := sub("one"), sub("two", priority(2))
		p := start(pool.Options{}, one, two)
		defer p.Close()
		serve(t, p, ask("s"), limited(time.Hour))
		for _, changed := range []pool.Subscription{
			with(one, priority(1)), with(one, limits(pool.Limits{Concurrent: 3})), with(one, limits(pool.Limits{Sessions: 2, RequestsPerMinute: 7})),
		} {
			apply(t, p, pool.Changes{Changed: []string{"one"}}, changed, two)
			if state, _ := stateOf(p, "one"); state != pool.StateCooling {
				t.Errorf("with %+v it is %s", changed.Limits, state)
			}
			served(t, p, ask("n"), "two")
		}
		// Nor does another limit make sessions move.
		for n := range 5 {
			apply(t, p, pool.Changes{Changed: []string{"two"}}, with(one, limits(pool.Limits{Sessions: 2, RequestsPerMinute: 7})), with(two, limits(pool.Limits{Sessions: n + 1})))
			if id, source := serve(t, p, ask("n"), ok); id != "two" || source != pool.SourceBound {
				t.Errorf("with another limit: %s, %s", id, source)
			}
		}
		apply(t, p, pool.Changes{Changed: []string{"one", "two"}}, with(one, limits(pool.Limits{Sessions: 2})), with(two, switchedOff))
		if err := p.Enable(context.Background(), "one"); err != nil {
			t.Fatal(err)
		}
		served(t, p, ask("a"), "one")
		if e := unavailable(t, p, ask("b")); e.Reason != pool.ReasonSessions {
			t.Errorf("a limit that was lowered: %q", e.Reason)
		}
	})
}

// A secret that was rotated opens what the former one had closed, at once.
func TestApplyTakesAnotherCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := sub("one")
		p := start(pool.Options{}, one)
		defer p.Close()
		serve(t, p, ask("s"), ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonCredential, Scope: ratelimit.ScopeSubscription})
		if state, _ := stateOf(p, "one"); state != pool.StateDisabled {
			t.Fatalf("a refused credential leaves it %s", state)
		}
		apply(t, p, pool.Changes{Changed: []string{"one"}}, with(one, func(s *pool.Subscription) { s.Credential = &key{secret: "sk-rotated"} }))
		l, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		if c, err := l.Credential(context.Background()); err != nil || c.Secret.Reveal() != "sk-rotated" {
			t.Errorf("lent: %v, %v", c.Secret.Reveal(), err)
		}
		l.Done(usage.Tokens{})
		apply(t, p, pool.Changes{Changed: []string{"one"}}, with(one, func(s *pool.Subscription) { s.Credential = &key{err: errors.New("sealed with another key")} }))
		if state, reason := stateOf(p, "one"); state != pool.StateDisabled || reason != pool.ReasonUnreadable {
			t.Errorf("one that cannot be read: %s, %s", state, reason)
		}
	})
}

// Who waits is served as soon as there is somebody who can.
func TestApplyWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := sub("one")
		p := start(pool.Options{Wait: time.Minute}, one)
		defer p.Close()
		serve(t, p, ask("s"), limited(30*time.Second))
		began := time.Now()
		var by string
		done := make(chan struct{})
		go func() {
			defer close(done)
			by, _ = serve(t, p, ask("s"), ok)
		}()
		time.Sleep(5 * time.Second)
		apply(t, p, pool.Changes{Added: []string{"two"}}, one, sub("two"))
		<-done
		if took := time.Since(began); by != "two" || took > 6*time.Second {
			t.Errorf("served by %s after %s", by, took)
		}
	})
}

// Whatever is applied, in whatever order: nobody is served by what is not there or
// switched off, and a drained one gets no new session.
func TestApplyAtRandom(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		keys := map[string]*key{}
		now := map[string]pool.Subscription{}
		home := map[string]string{}
		p := start(pool.Options{})
		defer p.Close()
		for range rapid.IntRange(1, 30).Draw(r, "steps") {
			if rapid.Bool().Draw(r, "apply") {
				now = map[string]pool.Subscription{}
				var subs []pool.Subscription
				for i := range 4 {
					id := fmt.Sprint("s", i)
					if keys[id] == nil {
						keys[id] = &key{secret: "sk-" + id}
					}
					s := sub(id, func(s *pool.Subscription) { s.Credential = keys[id] })
					switch rapid.SampledFrom([]string{"out", "on", "on", "drained", "off", "limited"}).Draw(r, id) {
					case "out":
						continue
					case "drained":
						s.Draining = true
					case "off":
						s.Disabled = true
					case "limited":
						s.Limits.Concurrent = 2
					}
					now[id] = s
					subs = append(subs, s)
				}
				p.Apply(subs)
				continue
			}
			session := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "session")
			l, err := p.Acquire(context.Background(), ask(session))
			if err != nil {
				for id, s := range now {
					if !s.Disabled && (!s.Draining || home[session] == id) {
						r.Fatalf("nobody serves %s, but %s could: %v", session, id, err)
					}
				}
				continue
			}
			id := l.Subscription().ID
			l.Verdict(ok)
			l.Done(usage.Tokens{})
			if s, there := now[id]; !there || s.Disabled || s.Draining && home[session] != id {
				r.Fatalf("%s is served by %s, which is %+v (there: %v)", session, id, s, there)
			}
			home[session] = id
		}
	})
}

// Requests and changes at the same time; for -race.
func TestApplyWhileServing(t *testing.T) {
	subs := make([]pool.Subscription, 6)
	for i := range subs {
		subs[i] = sub(fmt.Sprint("s", i))
	}
	p := start(pool.Options{}, subs...)
	defer p.Close()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				if l, err := p.Acquire(context.Background(), ask(fmt.Sprint(g, i%20))); err == nil {
					l.Verdict(ok)
					l.Done(usage.Tokens{Input: 1})
				} else if _, expected := errors.AsType[*pool.UnavailableError](err); !expected {
					t.Error(err)
				}
				p.Status()
			}
		})
	}
	wg.Go(func() {
		for i := range 300 {
			next := append([]pool.Subscription(nil), subs[i%5:]...)
			next[0].Draining = i%3 == 0
			next[0].Limits.Concurrent = i % 4 * 10
			p.Apply(next)
		}
	})
	wg.Wait()
	p.Apply(subs)
	for _, s := range p.Status() {
		if s.InFlight != 0 {
			t.Errorf("%s: %d under way", s.ID, s.InFlight)
		}
	}
}

// One that was taken out by mistake and comes back has its sessions and their places:
// nobody loses a prompt cache, and the cap holds.
func TestApplyTakesBackWhoWasRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := with(sub("one"), func(s *pool.Subscription) { s.Limits.Sessions, s.Priority = 1, 1 })
		two := with(sub("two"), func(s *pool.Subscription) { s.Priority = 2 })
		p := start(pool.Options{}, one, two)
		defer p.Close()
		served(t, p, ask("s"), "one")
		apply(t, p, pool.Changes{Removed: []string{"one"}}, two)
		apply(t, p, pool.Changes{Added: []string{"one"}}, one, two)
		served(t, p, ask("other"), "two") // the place is taken
		if got, source := serve(t, p, ask("s"), ok); got != "one" || source != pool.SourceBound {
			t.Errorf("it went on at %s (%s)", got, source)
		}
	})
}

// Another limit forgets neither the breaker, nor how fast answers came, nor what the
// provider told of its windows, nor what is spent of a budget.
func TestAnotherLimitForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := sub("one", budget(pool.Budget{Period: usage.PeriodDay, CostNanoUSD: 100}))
		p := start(pool.Options{}, one)
		defer p.Close()
		for range 10 {
			l, err := p.Acquire(context.Background(), ask("s"))
			if err != nil {
				t.Fatal(err)
			}
			l.FirstByte(time.Second)
			l.Verdict(ratelimit.Verdict{Windows: []ratelimit.Window{{Name: "5h", Kind: "provider", Utilization: 0.5, Reset: time.Now().Add(time.Hour), Seen: time.Now()}}})
			l.Done(usage.Tokens{})
		}
		for range 20 {
			if l, err := p.Acquire(context.Background(), ask("s")); err == nil {
				l.Verdict(failed())
				l.Done(usage.Tokens{})
			}
		}
		spend(p, "one", 60, usage.Tokens{Input: 1})
		before := statusOf(t, p, "one")
		if before.Breaker != "open" || before.FirstByte == 0 || len(before.Windows) == 0 {
			t.Fatalf("%+v", before)
		}
		apply(t, p, pool.Changes{Changed: []string{"one"}}, with(one, limits(pool.Limits{Concurrent: 7, RequestsPerMinute: 1000}), budget(
			pool.Budget{Period: usage.PeriodDay, CostNanoUSD: 50})))
		after := statusOf(t, p, "one")
		if after.Breaker != before.Breaker || after.FirstByte != before.FirstByte {
			t.Errorf("breaker %s, first byte in %s; want %s, %s", after.Breaker, after.FirstByte, before.Breaker, before.FirstByte)
		}
		if diff := cmp.Diff(before.Windows, after.Windows); diff != "" {
			t.Error(diff)
		}
		if after.Reason != pool.ReasonBudget {
			t.Errorf("60 are spent of 50, and the reason is %q", after.Reason)
		}
	})
}

// The series of who is gone are gone, too; those of the others stay.
func TestRemovedSubscriptionHasNoMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone, stays := sub("metrics-gone"), sub("metrics-stays", priority(2))
		p := start(pool.Options{}, gone, stays)
		defer p.Close()
		serve(t, p, ask("s"), limited(time.Hour))
		served(t, p, ask("s"), "metrics-stays")
		names := []string{"authpool_subscription_leases_total", "authpool_subscription_verdicts_total"}
		for _, name := range names {
			if metric(t, name, "subscription", "metrics-gone") == 0 {
				t.Fatalf("%s has nothing of it", name)
			}
		}
		apply(t, p, pool.Changes{Removed: []string{"metrics-gone"}}, stays)
		for _, name := range names {
			if n := metric(t, name, "subscription", "metrics-gone"); n != 0 {
				t.Errorf("%s is %v", name, n)
			}
			if metric(t, name, "subscription", "metrics-stays") == 0 {
				t.Errorf("%s is gone for the one that stays", name)
			}
		}
	})
}
