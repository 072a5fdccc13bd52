package pool_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// key is a credential source whose secret and error a test can change.
type key struct {
	mu     sync.Mutex
	secret string
	err    error
}

func (k *key) Credential(context.Context) (credential.Credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return credential.Credential{Scheme: credential.APIKey, Secret: credential.NewSecret(k.secret)}, k.err
}

func (k *key) Refresh(ctx context.Context) (credential.Credential, error) { return k.Credential(ctx) }

func (k *key) set(secret string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.secret, k.err = secret, err
}

// sub is a plain subscription of provider "anthropic"; change alters it.
func sub(id string, change ...func(*pool.Subscription)) pool.Subscription {
	s := pool.Subscription{ID: id, Provider: "anthropic", Credential: &key{secret: "sk-" + id}}
	for _, f := range change {
		f(&s)
	}
	return s
}

func limits(l pool.Limits) func(*pool.Subscription) {
	return func(s *pool.Subscription) { s.Limits = l }
}

func priority(n int) func(*pool.Subscription) { return func(s *pool.Subscription) { s.Priority = n } }

func domain(name string) func(*pool.Subscription) {
	return func(s *pool.Subscription) { s.Domain = name }
}

func models(globs ...string) func(*pool.Subscription) {
	return func(s *pool.Subscription) { s.Models = globs }
}

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) { time.Sleep(d) }

// start returns a running pool without a fleet; it ends with the test. Inside a
// synctest bubble the test itself has to close it.
func start(opts pool.Options, subs ...pool.Subscription) *pool.Pool {
	return startWith(opts, nil, subs...)
}

func startWith(opts pool.Options, bindings pool.Bindings, subs ...pool.Subscription) *pool.Pool {
	opts.Logger = slog.New(slog.DiscardHandler)
	p := pool.New(opts, subs, bindings)
	p.Start(context.Background())
	return p
}

// ask is a request of one session; change alters it.
func ask(session string, change ...func(*pool.Request)) *pool.Request {
	r := &pool.Request{ID: "r", Provider: "anthropic", Agent: "a", Session: session, Model: "claude-x"}
	for _, f := range change {
		f(r)
	}
	return r
}

func tried(ids ...string) func(*pool.Request) { return func(r *pool.Request) { r.Tried = ids } }

func model(name string) func(*pool.Request) { return func(r *pool.Request) { r.Model = name } }

func pinned(r *pool.Request) { r.Pinned = true }

func seals(r *pool.Request) { r.Seals = true }

// serve makes one request and answers it with v; it returns who served.
func serve(t *testing.T, p *pool.Pool, r *pool.Request, v ratelimit.Verdict) (id string, source pool.Source) {
	t.Helper()
	l, err := p.Acquire(context.Background(), r)
	if err != nil {
		t.Fatalf("Acquire(%+v): %v", r, err)
	}
	if _, err := l.Credential(context.Background()); err != nil {
		t.Fatalf("Credential: %v", err)
	}
	l.Verdict(v)
	l.Done(usage.Tokens{Input: 10, Output: 10})
	return l.Subscription().ID, l.Source()
}

var ok = ratelimit.Verdict{Signal: ratelimit.OK}

func limited(wait time.Duration) ratelimit.Verdict {
	return ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeDomain, Wait: wait}
}

func failed() ratelimit.Verdict {
	return ratelimit.Verdict{Signal: ratelimit.ServerError, Reason: ratelimit.ReasonUpstream, Scope: ratelimit.ScopeSubscription, Wait: -1}
}

func unavailable(t *testing.T, p *pool.Pool, r *pool.Request) *pool.UnavailableError {
	t.Helper()
	l, err := p.Acquire(context.Background(), r)
	var u *pool.UnavailableError
	if !errors.As(err, &u) {
		t.Fatalf("Acquire(%+v) = %v, %v; want an UnavailableError", r, l, err)
	}
	return u
}

func TestSessionSticksAndMovesOnlyWhenItsSubscriptionCannotServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"), sub("two"))
		defer p.Close()
		home, source := serve(t, p, ask("s"), ok)
		if source != pool.SourceNew {
			t.Errorf("the first request came from %q, want new", source)
		}
		other := map[string]string{"one": "two", "two": "one"}[home]
		for range 20 {
			if id, source := serve(t, p, ask("s"), ok); id != home || source != pool.SourceBound {
				t.Fatalf("served by %s (%s), want the session's own %s", id, source, home)
			}
		}

		// One failure is this request's bad luck, not the session's.
		serve(t, p, ask("s"), failed())
		if id, source := serve(t, p, ask("s", tried(home)), ok); id != other || source != pool.SourceElsewhere {
			t.Errorf("the repeat was served by %s (%s), want %s (elsewhere)", id, source, other)
		}
		if id, source := serve(t, p, ask("s"), ok); id != home || source != pool.SourceBound {
			t.Errorf("after a repeat elsewhere: %s (%s), want %s (bound)", id, source, home)
		}

		// A long cooldown moves it, for good.
		serve(t, p, ask("s"), limited(time.Hour))
		if id, source := serve(t, p, ask("s"), ok); id != other || source != pool.SourceMoved {
			t.Errorf("while its own is cooling: %s (%s), want %s (moved)", id, source, other)
		}
		pass(2 * time.Hour)
		if id, source := serve(t, p, ask("s"), ok); id != other || source != pool.SourceBound {
			t.Errorf("after the cooldown: %s (%s), want %s (bound)", id, source, other)
		}
	})
}

func TestModelThatItsSubscriptionMayNotServeGoesElsewhereOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("sonnet", models("claude-sonnet-*", "claude-haiku-?")), sub("all", priority(1)))
		defer p.Close()
		sonnet, opus := model("claude-sonnet-5"), model("claude-opus-5")
		if id, _ := serve(t, p, ask("s", sonnet), ok); id != "sonnet" {
			t.Fatalf("served by %s, want the lower tier sonnet", id)
		}
		if id, source := serve(t, p, ask("s", opus), ok); id != "all" || source != pool.SourceElsewhere {
			t.Errorf("the other model: %s (%s), want all (elsewhere)", id, source)
		}
		if id, source := serve(t, p, ask("s", sonnet), ok); id != "sonnet" || source != pool.SourceBound {
			t.Errorf("back again: %s (%s), want sonnet (bound)", id, source)
		}
		// Requests without a model ignore the globs.
		if id, _ := serve(t, p, ask("none", model("")), ok); id != "sonnet" {
			t.Errorf("without a model: %s, want sonnet", id)
		}
	})
}

func TestNoSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("one", models("claude-*")))
		defer p.Close()
		f := func(r *pool.Request, want string) {
			t.Helper()
			_, err := p.Acquire(context.Background(), r)
			if !errors.Is(err, pool.ErrNoSubscription) || err.Error() != want {
				t.Errorf("Acquire(%+v) = %v, want %s", r, err, want)
			}
		}
		f(ask("s", func(r *pool.Request) { r.Provider = "openai" }), `no subscription for provider "openai"`)
		f(ask("s", model("gpt-5")), `no subscription for provider "anthropic" allows the model "gpt-5"`)
	})
}

func TestUnavailableTellsWhoOpensFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 30 * time.Second}, sub("one"), sub("two"), sub("three"))
		defer p.Close()
		for id, wait := range map[string]time.Duration{"one": time.Hour, "two": 12 * time.Minute, "three": 90 * time.Minute} {
			serve(t, p, ask("make "+id, tried(except(id)...)), limited(wait))
		}
		begin := time.Now()
		u := unavailable(t, p, ask("s"))
		if waited := time.Since(begin); waited != 0 {
			t.Errorf("it waited %v for something that comes too late", waited)
		}
		if want := "all 3 subscriptions for claude-x are limited; first free in 12m (two)"; u.Error() != want {
			t.Errorf("error %q, want %q", u, want)
		}
		if u.Count != 3 || u.FirstSubscription != "two" || u.Wait != 12*time.Minute || u.Reason != "throttled" ||
			!u.Until.Equal(begin.Add(12*time.Minute)) || u.LastVerdict == nil || u.LastVerdict.Wait != 12*time.Minute {
			t.Errorf("%+v", u)
		}
	})
}

// except is every subscription of one, two and three but id.
func except(id string) []string {
	var out []string
	for _, one := range []string{"one", "two", "three"} {
		if one != id {
			out = append(out, one)
		}
	}
	return out
}

func TestShortThrottleIsWaitedOutInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 30 * time.Second}, sub("one"), sub("two"))
		defer p.Close()
		home, _ := serve(t, p, ask("s"), ok)
		serve(t, p, ask("s"), limited(1500*time.Millisecond))
		begin := time.Now()
		id, source := serve(t, p, ask("s"), ok)
		if id != home || source != pool.SourceBound || time.Since(begin) != 1500*time.Millisecond {
			t.Errorf("%s (%s) after %v, want %s (bound) after 1.5s", id, source, time.Since(begin), home)
		}
		// A new session does not wait for it.
		serve(t, p, ask("s"), limited(1500*time.Millisecond))
		begin = time.Now()
		if id, _ := serve(t, p, ask("new"), ok); id == home || time.Since(begin) != 0 {
			t.Errorf("a new session: %s after %v, want the other one at once", id, time.Since(begin))
		}
	})
}

// While one probe is out after a short throttle, the session's other requests
// wait two seconds, then go elsewhere; the session stays.
func TestProbeHoldsTheOthersBackForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 30 * time.Second}, sub("one"), sub("two"))
		defer p.Close()
		home, _ := serve(t, p, ask("s"), ok)
		serve(t, p, ask("s"), limited(time.Second))
		pass(time.Second)
		probe, err := p.Acquire(context.Background(), ask("s"))
		if err != nil || probe.Subscription().ID != home {
			t.Fatal(probe, err)
		}
		begin := time.Now()
		if id, source := serve(t, p, ask("s"), ok); id == home || source != pool.SourceElsewhere || time.Since(begin) != 2*time.Second {
			t.Errorf("beside the probe: %s (%s) after %v, want elsewhere after 2s", id, source, time.Since(begin))
		}
		done := make(chan string)
		go func() {
			l, err := p.Acquire(context.Background(), ask("s"))
			if err != nil {
				t.Error(err)
				close(done)
				return
			}
			l.Done(usage.Tokens{})
			done <- l.Subscription().ID
		}()
		synctest.Wait()
		probe.Verdict(ok) // its answer is far from over
		if id := <-done; id != home {
			t.Errorf("after the probe's success: %s, want %s", id, home)
		}
		probe.Done(usage.Tokens{Input: 1})
	})
}

func TestNoHopInsideALimitedDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("a1", domain("org")), sub("a2", domain("org")), sub("b", priority(1)))
		defer p.Close()
		first, _ := serve(t, p, ask("s"), limited(time.Hour))
		if first == "b" {
			t.Fatal("the higher tier was used first")
		}
		if id, _ := serve(t, p, ask("s"), ok); id != "b" {
			t.Errorf("after a limit of the organisation: %s, want b", id)
		}
		// A failure is not the organisation's.
		serve(t, p, ask("t", tried("a1", "a2")), failed())
		pass(2 * time.Hour)
		serve(t, p, ask("u", tried("b")), ok)
		one, _ := serve(t, p, ask("u", tried("b")), failed())
		if id, _ := serve(t, p, ask("u", tried("b", one)), ok); id != "a1" && id != "a2" {
			t.Errorf("after a failure: %s, want the other one of the organisation", id)
		}
	})
}

func TestDomainOfAnotherProviderIsAnotherDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("a", domain("org")), sub("o", domain("org"), func(s *pool.Subscription) { s.Provider = "openai" }))
		defer p.Close()
		serve(t, p, ask("s"), limited(time.Hour))
		if id, _ := serve(t, p, ask("s", func(r *pool.Request) { r.Provider = "openai" }), ok); id != "o" {
			t.Errorf("served by %s, want o", id)
		}
	})
}

func TestPinnedStaysInItsDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 30 * time.Second}, sub("a1", domain("org")), sub("a2", domain("org"), priority(1)), sub("b", priority(2)))
		defer p.Close()
		if id, _ := serve(t, p, ask("s"), ok); id != "a1" {
			t.Fatalf("bound to %s, want a1", id)
		}
		if id, _ := serve(t, p, ask("s", pinned, tried("a1")), ok); id != "a2" {
			t.Errorf("repeated on %s, want a2 of the same domain", id)
		}
		u := unavailable(t, p, ask("s", pinned, tried("a1", "a2")))
		if u.Count != 2 || !u.Until.IsZero() || u.Reason != pool.ReasonTried {
			t.Errorf("nobody in the domain: %+v", u)
		}
		// It waits for its own rather than to leave the domain.
		serve(t, p, ask("s"), limited(20*time.Second))
		begin := time.Now()
		if id, _ := serve(t, p, ask("s", pinned), ok); id == "b" || time.Since(begin) != 20*time.Second {
			t.Errorf("%s after %v, want one of the domain after 20s", id, time.Since(begin))
		}
		// Too long to wait: an honest error, and the session is where it was.
		serve(t, p, ask("s"), limited(time.Hour))
		if u := unavailable(t, p, ask("s", pinned)); u.Wait != time.Hour || u.Count != 2 {
			t.Errorf("%+v", u)
		}
		// A session that nobody remembers is bound anywhere.
		if id, _ := serve(t, p, ask("new", pinned), ok); id != "b" {
			t.Errorf("a new pinned session: %s, want b", id)
		}
	})
}

func TestSessionFollowsWhatOnlyItsMakerCanRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("a"), sub("b", priority(1)))
		defer p.Close()
		if id, _ := serve(t, p, ask("s", seals), failed()); id != "a" {
			t.Fatalf("served by %s, want a", id)
		}
		if id, source := serve(t, p, ask("s", seals, tried("a")), ok); id != "b" || source != pool.SourceMoved {
			t.Errorf("the repeat: %s (%s), want b (moved)", id, source)
		}
		if id, source := serve(t, p, ask("s", seals, pinned), ok); id != "b" || source != pool.SourceBound {
			t.Errorf("with what b made: %s (%s), want b (bound)", id, source)
		}
		// What it has brought along cannot follow.
		if u := unavailable(t, p, ask("s", seals, pinned, tried("b"))); u.Count != 1 {
			t.Errorf("%+v", u)
		}
	})
}

func TestRefusedCredentialDisablesUntilItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := &key{secret: "sk-old"}
		p := start(pool.Options{}, sub("one", func(s *pool.Subscription) { s.Credential = one }), sub("two", priority(1)))
		defer p.Close()
		auth := ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonCredential, Scope: ratelimit.ScopeSubscription, Wait: -1}
		serve(t, p, ask("s"), auth)
		if s := p.Status()[0]; s.State != pool.StateDisabled || s.Reason != "credential" || s.Health != 0 {
			t.Errorf("after a refused credential: %+v", s)
		}
		if id, source := serve(t, p, ask("s"), ok); id != "two" || source != pool.SourceMoved {
			t.Errorf("the session: %s (%s), want two (moved)", id, source)
		}
		pass(time.Hour)
		if s := p.Status()[0]; s.State != pool.StateDisabled {
			t.Errorf("an hour later with the same secret: %s", s.State)
		}
		one.set("sk-new", nil)
		pass(5 * time.Second)
		if s := p.Status()[0]; s.State != pool.StateReady {
			t.Errorf("after the secret changed: %+v", s)
		}

		// Replaced while the request was under way: the refusal is old news.
		l, err := p.Acquire(context.Background(), ask("t"))
		if err != nil || l.Subscription().ID != "one" {
			t.Fatal(l, err)
		}
		if _, err := l.Credential(context.Background()); err != nil {
			t.Fatal(err)
		}
		one.set("sk-newer", nil)
		l.Verdict(auth)
		l.Done(usage.Tokens{})
		if s := p.Status()[0]; s.State != pool.StateReady {
			t.Errorf("a refusal of the former secret disabled the new one: %+v", s)
		}
	})
}

func TestUnreadableCredentialDisablesUntilItCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := &key{err: errors.New("no such file")}
		p := start(pool.Options{}, sub("one", func(s *pool.Subscription) { s.Credential = one }))
		defer p.Close()
		if s := p.Status()[0]; s.State != pool.StateDisabled || s.Reason != pool.ReasonUnreadable || p.Ready() {
			t.Errorf("at the start: %+v, ready %v", s, p.Ready())
		}
		if u := unavailable(t, p, ask("s")); !u.Until.IsZero() || u.Reason != pool.ReasonUnreadable {
			t.Errorf("%+v", u)
		}
		one.set("sk-1", nil)
		pass(5 * time.Second)
		if s := p.Status()[0]; s.State != pool.StateReady || !p.Ready() {
			t.Errorf("when it can be read: %+v, ready %v", s, p.Ready())
		}
		l, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		one.set("", errors.New("gone"))
		var c *pool.CredentialError
		if _, err := l.Credential(context.Background()); !errors.As(err, &c) || c.Subscription != "one" {
			t.Errorf("Credential: %v", err)
		}
		l.Done(usage.Tokens{})
		if p.Ready() {
			t.Error("ready without any credential")
		}
	})
}

func TestQuotaDisablesForAnHourAndProbesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"))
		defer p.Close()
		serve(t, p, ask("s"), ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonCredit, Scope: ratelimit.ScopeSubscription, Wait: -1})
		s := p.Status()[0]
		if s.State != pool.StateDisabled || s.Reason != "credit" || !s.CooldownUntil.Equal(time.Now().Add(time.Hour)) || !p.Ready() {
			t.Errorf("%+v, ready %v", s, p.Ready())
		}
		if u := unavailable(t, p, ask("s")); u.Wait != time.Hour {
			t.Errorf("%+v", u)
		}
		pass(time.Hour)
		if s := p.Status()[0]; s.State != pool.StateProbing {
			t.Errorf("after the hour: %s", s.State)
		}
		probe, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		_ = unavailable(t, p, ask("t"))
		probe.Verdict(ok)
		probe.Done(usage.Tokens{})
		if s := p.Status()[0]; s.State != pool.StateReady {
			t.Errorf("after the probe: %s", s.State)
		}
	})
}

func TestOverloadedLeavesEverythingAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"), sub("two"))
		defer p.Close()
		home, _ := serve(t, p, ask("s"), ok)
		for range 30 {
			serve(t, p, ask("s"), ratelimit.Verdict{Signal: ratelimit.Overloaded, Reason: ratelimit.ReasonCapacity, Scope: ratelimit.ScopeProviderModel, Wait: time.Minute})
			serve(t, p, ask("s"), ok) // in between some are served
		}
		if id, source := serve(t, p, ask("s"), ok); id != home || source != pool.SourceBound {
			t.Errorf("after 30 overloads: %s (%s), want %s (bound)", id, source, home)
		}
		for _, s := range p.Status() {
			if s.State != pool.StateReady || s.Breaker != "closed" {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestAgentThatLeftCountsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one", limits(pool.Limits{Concurrent: 1})))
		defer p.Close()
		for range 50 {
			l, err := p.Acquire(context.Background(), ask("s"))
			if err != nil {
				t.Fatal(err)
			}
			if n := p.Status()[0].InFlight; n != 1 {
				t.Fatalf("%d under way, want 1", n)
			}
			l.Done(usage.Tokens{})
			l.Done(usage.Tokens{}) // counts once
			l.Verdict(failed())    // comes too late
		}
		if s := p.Status()[0]; s.InFlight != 0 || s.Breaker != "closed" || s.Health != 100 {
			t.Errorf("%+v", s)
		}
	})
}

func TestVerdictCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"))
		defer p.Close()
		l, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			l.Verdict(failed())
		}
		l.Done(usage.Tokens{})
		if s := p.Status()[0]; s.Breaker != "closed" {
			t.Errorf("one failure told ten times: the breaker is %s", s.Breaker)
		}
	})
}

func TestIdleSessionsFreeTheirPlacesInOneProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cap1 := limits(pool.Limits{Sessions: 1})
		p := start(pool.Options{IdleTimeout: 10 * time.Minute}, sub("one", cap1), sub("two", cap1, priority(1)))
		defer p.Close()
		serve(t, p, ask("first"), ok)
		serve(t, p, ask("second"), ok)
		u := unavailable(t, p, ask("third"))
		if u.Reason != pool.ReasonSessions || u.Wait <= 0 || u.Wait > 10*time.Minute {
			t.Errorf("%+v", u)
		}
		for range 5 {
			pass(8 * time.Minute)
			serve(t, p, ask("second"), ok)
		}
		// The first was idle for long, the second never.
		if id, _ := serve(t, p, ask("third"), ok); id != "one" {
			t.Errorf("the third session: %s, want the first one's place on one", id)
		}
		pass(time.Hour)
		// Its subscription is remembered though its place was not.
		if id, source := serve(t, p, ask("second"), ok); id != "two" || source != pool.SourceBound {
			t.Errorf("back after an hour: %s (%s), want two (bound)", id, source)
		}
		if id, source := serve(t, p, ask("first"), ok); id != "one" || source != pool.SourceBound {
			t.Errorf("back after hours: %s (%s), want one (bound)", id, source)
		}
		// Whose place is taken meanwhile moves.
		pass(time.Hour)
		serve(t, p, ask("first"), ok)
		if id, source := serve(t, p, ask("third"), ok); id != "two" || source != pool.SourceMoved {
			t.Errorf("its place is taken: %s (%s), want two (moved)", id, source)
		}
	})
}

// An answer that takes longer than the idle time-out does not lose its place.
func TestLongAnswerKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{IdleTimeout: time.Minute}, sub("one", limits(pool.Limits{Sessions: 1})))
		defer p.Close()
		l, err := p.Acquire(context.Background(), ask("long"))
		if err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Minute)
		_ = unavailable(t, p, ask("other"))
		l.Verdict(ok)
		l.Done(usage.Tokens{})
		pass(61 * time.Second)
		serve(t, p, ask("other"), ok)
	})
}

func TestChildBeginsWhereItsParentIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subs := []pool.Subscription{sub("one"), sub("two"), sub("three")}
		child := func(r *pool.Request) { r.Parent = "parent" }
		p := start(pool.Options{}, subs...)
		defer p.Close()
		home, _ := serve(t, p, ask("parent"), ok)
		for _, name := range []string{"c1", "c2", "c3", "c4", "c5", "c6"} {
			if id, _ := serve(t, p, ask(name, child), ok); id != home {
				t.Errorf("child %s: %s, want its parent's %s", name, id, home)
			}
		}
		q := start(pool.Options{SpreadChildren: true}, subs...)
		defer q.Close()
		serve(t, q, ask("parent"), ok)
		seen := map[string]bool{}
		for _, name := range []string{"c1", "c2", "c3", "c4", "c5", "c6"} {
			id, _ := serve(t, q, ask(name, child), ok)
			seen[id] = true
		}
		if len(seen) < 2 {
			t.Errorf("spread children all went to %v", seen)
		}
	})
}

func TestSessionsOfOtherAgentsAreOtherSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"), sub("two"))
		defer p.Close()
		serve(t, p, ask("s"), ok)
		if _, source := serve(t, p, ask("s", func(r *pool.Request) { r.Agent = "b" }), ok); source != pool.SourceNew {
			t.Errorf("the same id of another agent: %s, want new", source)
		}
	})
}

func TestMemoryOfSessionsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Sessions: 3, Affinity: time.Hour}, sub("one"))
		defer p.Close()
		for _, name := range []string{"a", "b", "c", "a", "d"} { // b is the least recently used
			serve(t, p, ask(name), ok)
		}
		f := func(name string, want pool.Source) {
			t.Helper()
			if _, source := serve(t, p, ask(name), ok); source != want {
				t.Errorf("session %s: %s, want %s", name, source, want)
			}
		}
		f("a", pool.SourceBound)
		f("c", pool.SourceBound)
		f("d", pool.SourceBound)
		f("b", pool.SourceNew)
		pass(61 * time.Minute)
		f("d", pool.SourceNew) // beyond the affinity
	})
}

func TestDisabledSubscriptionIsNeverOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("off", func(s *pool.Subscription) { s.Disabled, s.Reason = true, "switched off" }))
		defer p.Close()
		u := unavailable(t, p, ask("s"))
		if !u.Until.IsZero() || u.Error() != "the only subscription for claude-x is unavailable (off: switched off)" {
			t.Errorf("%v", u)
		}
		if p.Ready() {
			t.Error("ready with nothing but a disabled subscription")
		}
	})
}

// An idle request on a bound session is decided from memory, and cheaply.
func TestAllocationsOfABoundSession(t *testing.T) {
	p := start(pool.Options{}, sub("one", limits(pool.Limits{Concurrent: 10, Sessions: 10, RequestsPerMinute: 1 << 30, InputTokensPerMinute: 1 << 30})))
	defer p.Close()
	r := ask("s")
	serve(t, p, r, ok)
	ctx := context.Background()
	n := testing.AllocsPerRun(1000, func() {
		l, err := p.Acquire(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		l.Done(usage.Tokens{Input: 1})
	})
	if n > 2 {
		t.Errorf("Acquire and Done make %v allocations, want 2 at most", n)
	}
}

func TestStatusTellsTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"))
		defer p.Close()
		f := func(state pool.State, reason, breaker string) {
			t.Helper()
			if s := p.Status()[0]; s.State != state || s.Reason != reason || s.Breaker != breaker {
				t.Errorf("%s (%s), breaker %s; want %s (%s), %s", s.State, s.Reason, s.Breaker, state, reason, breaker)
			}
		}
		f(pool.StateReady, "", "closed")
		for range 5 {
			serve(t, p, ask("s"), failed())
		}
		f(pool.StateCooling, pool.ReasonBreaker, "open")
		if u := unavailable(t, p, ask("s")); u.Reason != pool.ReasonBreaker || u.Wait < 10*time.Second || u.Wait > 11*time.Second {
			t.Errorf("%+v", u)
		}
		pass(11 * time.Second)
		f(pool.StateProbing, pool.ReasonBreaker, "half-open")
		serve(t, p, ask("s"), ok)
		f(pool.StateReady, "", "closed")
	})
}
