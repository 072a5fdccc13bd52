package pool_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

func by(agent string) func(*pool.Request) { return func(r *pool.Request) { r.Agent = agent } }

func childOf(parent string) func(*pool.Request) { return func(r *pool.Request) { r.Parent = parent } }

// list names the sessions that p tells of, as agent/session@subscription.
func list(t *testing.T, p *pool.Pool, f pool.SessionFilter) (names []string, all []pool.SessionStatus) {
	t.Helper()
	all, whole, err := p.Sessions(context.Background(), f)
	if err != nil || !whole {
		t.Fatalf("Sessions(%+v): %v, whole: %v", f, err, whole)
	}
	for _, s := range all {
		names = append(names, s.Agent+"/"+s.Session+"@"+s.Subscription)
	}
	return names, all
}

func TestSessionsOfTheFleet(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		other := func(s *pool.Subscription) { s.Provider = "openai" }
		pools, h := fleet(t, client, 2, pool.Options{}, sub("one"), sub("two", priority(1)), sub("gpt", other))
		at := func(r *pool.Request) { r.Provider = "openai" }
		serve(t, pools[0], ask("s"), ok)
		serve(t, pools[0], ask("child", childOf("s")), ok)
		serve(t, pools[1], ask("s", by("b"), tried("one")), ok)
		serve(t, pools[1], ask("s", at), ok)
		// Reserved, by one who died before it bound anything.
		if err := client.ZAdd(context.Background(), "authpool:{one}:sessions", redis.Z{Member: "anthropic/a/orphan", Score: float64(time.Now().Add(time.Hour).UnixMilli())}).Err(); err != nil {
			t.Fatal(err)
		}
		f := func(filter pool.SessionFilter, want ...string) {
			t.Helper()
			for i, p := range pools {
				if got, _ := list(t, p, filter); !slices.Equal(got, want) {
					t.Errorf("process %d: Sessions(%+v) = %q, want %q", i, filter, got, want)
				}
			}
		}
		f(pool.SessionFilter{}, "a/child@one", "a/s@one", "a/s@gpt", "b/s@two")
		f(pool.SessionFilter{Agent: "a", Provider: "anthropic"}, "a/child@one", "a/s@one")
		f(pool.SessionFilter{Session: "s"}, "a/s@one", "a/s@gpt", "b/s@two")
		f(pool.SessionFilter{Agent: "a", Session: "s"}, "a/s@one", "a/s@gpt")
		f(pool.SessionFilter{Agent: "a", Session: "s", Provider: "openai"}, "a/s@gpt")
		f(pool.SessionFilter{Subscription: "two"}, "b/s@two")
		f(pool.SessionFilter{Subscription: "none"})
		f(pool.SessionFilter{Agent: "a", Session: "orphan"})
		f(pool.SessionFilter{Agent: "a", Session: "s:{}/../x"})
		for i, p := range pools {
			_, all := list(t, p, pool.SessionFilter{Agent: "a", Session: "child"})
			if s := all[0]; s.Parent != "s" || time.Since(s.Since) > time.Minute || time.Since(s.Last) > time.Minute || time.Until(s.Until) <= 0 {
				t.Errorf("process %d: %+v", i, s)
			}
		}

		// Without Redis each tells what it knows.
		h.away.Store(true)
		defer h.away.Store(false)
		all, whole, err := pools[1].Sessions(context.Background(), pool.SessionFilter{})
		if whole || err != nil || len(all) != 2 {
			t.Errorf("without Redis: %+v, whole: %v, %v", all, whole, err)
		}
	})
}

// Who is idle has no place and is not in the list, but is remembered; after the
// affinity it is not.
func TestIdleSessionsEndByThemselves(t *testing.T) {
	inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
		opts := pool.Options{IdleTimeout: time.Minute, Affinity: 5 * time.Minute}
		s := newSidecar(mini, opts, sub("one"))
		defer s.close()
		other := newSidecar(mini, opts, sub("one"))
		defer other.close()
		serve(t, s.pool, ask("s"), ok)
		pass(59 * time.Second)
		for _, p := range []*pool.Pool{s.pool, other.pool} {
			if got, _ := list(t, p, pool.SessionFilter{}); !slices.Equal(got, []string{"a/s@one"}) {
				t.Errorf("after 59 s: %q", got)
			}
		}
		pass(2 * time.Second)
		for _, p := range []*pool.Pool{s.pool, other.pool} {
			if got, _ := list(t, p, pool.SessionFilter{}); len(got) > 0 {
				t.Errorf("after 61 s: %q", got)
			}
			got, all := list(t, p, pool.SessionFilter{Agent: "a", Session: "s"})
			if !slices.Equal(got, []string{"a/s@one"}) || !all[0].Until.IsZero() {
				t.Errorf("after 61 s: %+v; want it remembered without a place", all)
			}
		}
		// It holds nothing back, and can be moved and come back.
		if mini.Exists("authpool:{one}:sessions") {
			t.Error("a place has outlived its session")
		}
		pass(5 * time.Minute)
		if got := mini.Keys(); slices.Contains(got, "authpool:session:{anthropic/a/s}") {
			t.Errorf("after the affinity there is %q", got)
		}
		if got, _ := list(t, other.pool, pool.SessionFilter{Agent: "a", Session: "s"}); len(got) > 0 {
			t.Errorf("after the affinity: %q", got)
		}
	})
}

// Who runs away is seen, with a brake or without.
func TestRunawaySessionsAreSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for limit, over := range map[int64]string{0: "", 100: "", 3: "tokens"} {
			p := start(pool.Options{SessionBrake: pool.Brake{Tokens: limit}}, sub("one"))
			for range 2 {
				if err := p.Brake("anthropic", "a", "s"); err != nil {
					t.Fatal(err)
				}
				serve(t, p, ask("s"), ok)
			}
			p.Count(&usage.Event{Provider: "anthropic", Agent: "a", Session: "s", Subscription: "one", Tokens: usage.Tokens{Input: 7}, CostNanoUSD: 5})
			serve(t, p, ask("quiet"), ok)
			f := func(want pool.Spent, over string) {
				t.Helper()
				_, all := list(t, p, pool.SessionFilter{Agent: "a", Session: "s"})
				if all[0].Hour != want || all[0].Over != over {
					t.Errorf("limit %d: %+v over %q, want %+v over %q", limit, all[0].Hour, all[0].Over, want, over)
				}
			}
			f(pool.Spent{Requests: 2, Tokens: 7, CostNanoUSD: 5}, over)
			pass(61 * time.Minute)
			f(pool.Spent{}, "")
			p.Close()
		}
	})
}

// asked counts what Redis is asked about sessions that are not known here.
type asked struct {
	pool.Bindings
	mu    sync.Mutex
	names []string
}

func (a *asked) Lookup(ctx context.Context, session string) (string, error) {
	a.mu.Lock()
	a.names = append(a.names, session)
	a.mu.Unlock()
	return a.Bindings.Lookup(ctx, session)
}

// Whatever an agent does, it pushes nobody else's sessions out of memory, and what
// happens on one subscription none of those on another.
func TestNobodyPushesOutTheSessionsOfOthers(t *testing.T) {
	client := redistest.Mini(t)
	a := &asked{Bindings: store.New(client, client, &health{}, "authpool")}
	p := startWith(pool.Options{Sessions: 100}, a, sub("one"), sub("two"))
	defer p.Close()
	var quiet []*pool.Request
	for i := range 20 {
		quiet = append(quiet, ask(fmt.Sprint("q", i), by("quiet"), tried("two")))
	}
	for i := range 30 { // its own too, where they are apart from its noise
		quiet = append(quiet, ask(fmt.Sprint("q", i), by("noisy"), tried("one")))
	}
	for _, r := range quiet {
		serve(t, p, r, ok)
	}
	for i := range 1000 {
		serve(t, p, ask(fmt.Sprint("n", i), by("noisy"), tried("two")), ok)
	}
	a.names = nil
	for _, r := range quiet {
		serve(t, p, r, ok)
	}
	if len(a.names) > 0 {
		t.Errorf("%d of %d sessions were forgotten: %q", len(a.names), len(quiet), a.names)
	}
	// Of its own the ones used last are known.
	serve(t, p, ask("n999", by("noisy"), tried("two")), ok)
	if len(a.names) > 0 {
		t.Errorf("the newest session was forgotten: %q", a.names)
	}
	serve(t, p, ask("n0", by("noisy"), tried("two")), ok)
	if !slices.Equal(a.names, []string{"anthropic/noisy/n0"}) {
		t.Errorf("asked for were %q, want the oldest of the noisy agent: memory is bounded", a.names)
	}
}

// A place that was given by a longer idle time-out, before a reload or by a process
// that has another one, does not make its session look as if it was used just now.
func TestLastUseUnderAnotherIdleTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
		s := newSidecar(mini, pool.Options{IdleTimeout: time.Hour}, sub("one"))
		defer s.close()
		other := newSidecar(mini, pool.Options{IdleTimeout: time.Minute}, sub("one"))
		defer other.close()
		serve(t, s.pool, ask("s"), ok)
		pass(10 * time.Minute)
		_, all := list(t, other.pool, pool.SessionFilter{})
		if len(all) != 1 || time.Since(all[0].Last) < 9*time.Minute {
			t.Errorf("after 10 minutes: %+v", all)
		}
	})
}

// Status tells the places of the whole fleet once they are counted, also on what this
// process has placed nobody on.
func TestCountSessions(t *testing.T) {
	inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
		opts := pool.Options{IdleTimeout: time.Hour}
		s := newSidecar(mini, opts, sub("one"))
		defer s.close()
		other := newSidecar(mini, opts, sub("one"))
		defer other.close()
		f := func(want int) {
			t.Helper()
			for _, p := range []*pool.Pool{s.pool, other.pool} {
				p.CountSessions(t.Context())
				if got := p.Status()[0].Sessions; got != want {
					t.Errorf("%d sessions hold a place, want %d", got, want)
				}
			}
		}
		serve(t, s.pool, ask("s"), ok)
		serve(t, s.pool, ask("t"), ok)
		pass(time.Second)
		f(2)
		if _, err := s.pool.ReleaseSession(t.Context(), pool.SessionKey{Provider: "anthropic", Agent: "a", Session: "s"}); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		f(1)
	})
}
