package pool_test

import (
	"context"
	"errors"
	"io"
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

// start returns a running pool without a fleet; it ends with the test. Inside a
// synctest bubble the test itself has to close it.
func start(opts pool.Options, subs ...pool.Subscription) *pool.Pool {
	return startWith(opts, nil, subs...)
}

func startWith(opts pool.Options, bindings pool.Bindings, subs ...pool.Subscription) *pool.Pool {
	opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
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
	return ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeSubscription, Wait: wait}
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
		time.Sleep(2 * time.Hour)
		if id, source := serve(t, p, ask("s"), ok); id != other || source != pool.SourceBound {
			t.Errorf("after the cooldown: %s (%s), want %s (bound)", id, source, other)
		}
	})
}
