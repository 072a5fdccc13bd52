package pool_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
)

func owned(by string) func(*pool.Request) { return func(r *pool.Request) { r.Owner = by } }

func madeBy(sub string, ids ...string) (list []pool.Made) {
	for _, id := range ids {
		list = append(list, pool.Made{Resource: pool.Resource{ID: id, Subscription: sub, Agent: "a"}, Keep: time.Hour})
	}
	return list
}

func TestOwnedIsServedByItsOwnerAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 30 * time.Second},
			sub("a1", domain("org")), sub("a2", domain("org"), priority(1)), sub("b", priority(2), models("claude-*")))
		defer p.Close()
		// A new session sticks to the owner, whatever would be better.
		if id, source := serve(t, p, ask("new", owned("b")), ok); id != "b" || source != pool.SourceNew {
			t.Errorf("new session: %s, %s", id, source)
		}
		if id, source := serve(t, p, ask("new"), ok); id != "b" || source != pool.SourceBound {
			t.Errorf("its next request: %s, %s", id, source)
		}
		// A session that is somewhere else stays there. What holds it in its domain
		// does not hold what names another's thing.
		serve(t, p, ask("s"), ok)
		if id, source := serve(t, p, ask("s", pinned, owned("b")), ok); id != "b" || source != pool.SourceElsewhere {
			t.Errorf("another's: %s, %s", id, source)
		}
		if id, source := serve(t, p, ask("s"), ok); id != "a1" || source != pool.SourceBound {
			t.Errorf("afterwards: %s, %s", id, source)
		}
		// A domain is not enough.
		u := unavailable(t, p, ask("s", owned("a1"), tried("a1")))
		if !u.Owned || u.FirstSubscription != "a1" || u.Count != 1 || !u.Until.IsZero() {
			t.Errorf("it has failed: %+v", u)
		}
		// It waits for the owner and for nobody else, or says how long that would be.
		serve(t, p, ask("s"), limited(20*time.Second))
		begin := time.Now()
		if id, _ := serve(t, p, ask("t", owned("a1")), ok); id != "a1" || time.Since(begin) < 20*time.Second {
			t.Errorf("%s after %v, want a1 after 20s", id, time.Since(begin))
		}
		serve(t, p, ask("t"), limited(time.Hour))
		if u := unavailable(t, p, ask("t", owned("a1"))); !strings.HasPrefix(u.Error(), `subscription "a1", which alone has what this request names, is limited (throttled); free in `) {
			t.Errorf("%v", u)
		}
		// Nobody is asked in place of an owner that will not serve.
		for _, r := range []*pool.Request{ask("s", owned("gone")), ask("s", owned("b"), model("gpt-x"))} {
			if u := unavailable(t, p, r); u.Reason != pool.ReasonUnfit || !u.Until.IsZero() || u.FirstSubscription != r.Owner {
				t.Errorf("%+v", u)
			}
		}
	})
}

func TestOwnerIsKnownToTheFleet(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		other := sub("other")
		other.Provider = "openai"
		pools, h := fleet(t, client, 2, pool.Options{}, sub("one"), sub("two"), other)
		want := func(p *pool.Pool, owner string, ids ...string) {
			t.Helper()
			if got := ownerOf(t, p, "anthropic", ids); got.Subscription != owner || owner != "" && got.Agent != "a" {
				t.Errorf("Owners(%v) = %+v, want %s", ids, got, owner)
			}
		}
		pools[0].Learn(t.Context(), madeBy("two", "file_1", "file_2"))
		want(pools[1], "", "file_3")
		want(pools[1], "two", "file_3", "file_2")
		// The same id at another provider is another thing.
		pools[0].Learn(t.Context(), madeBy("other", "file_4"))
		want(pools[1], "", "file_4")
		want(pools[1], "two", "file_4", "file_1")

		// Without Redis each knows what it has met, and tells the others later.
		h.away.Store(true)
		pools[0].Learn(t.Context(), madeBy("one", "file_5"))
		want(pools[0], "one", "file_5")
		want(pools[1], "two", "file_2")
		want(pools[1], "", "file_5")
		h.away.Store(false)
		eventually(t, 10*time.Second, "the other one knows file_5", func() bool {
			return ownerOf(t, pools[1], "anthropic", []string{"file_5"}).Subscription == "one"
		})
	})
}

// slow is a Redis that answers nothing. It is there for less than a turn of the
// keeper, which asks it for nothing.
type slow struct {
	pool.Bindings
	health *health
}

func (s slow) Healthy() bool { return s.health.Healthy() }

func (slow) Watch(ctx context.Context, _ func(store.Event)) { <-ctx.Done() }

func (slow) Own(ctx context.Context, _ []store.Made) error { <-ctx.Done(); return ctx.Err() }

func (slow) Owners(ctx context.Context, ids []string) ([]store.Resource, error) {
	<-ctx.Done()
	return make([]store.Resource, len(ids)), ctx.Err()
}

func TestOwnerDoesNotWaitForASlowRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &health{}
		h.away.Store(true)
		p := startWith(pool.Options{}, slow{health: h}, sub("one"))
		h.away.Store(false)
		within := func(what string, d time.Duration, f func()) {
			t.Helper()
			begin := time.Now()
			if f(); time.Since(begin) != d {
				t.Errorf("%s took %v, want %v", what, time.Since(begin), d)
			}
		}
		within("learning", 50*time.Millisecond, func() { p.Learn(t.Context(), madeBy("one", "file_1")) })
		within("a known id", 0, func() {
			if ownerOf(t, p, "anthropic", []string{"file_1"}).Subscription != "one" {
				t.Error("forgotten")
			}
		})
		within("an unknown id", 50*time.Millisecond, func() { ownerOf(t, p, "anthropic", []string{"file_2"}) })
		h.away.Store(true)
		within("an unknown id without Redis", 0, func() { ownerOf(t, p, "anthropic", []string{"file_2"}) })
		p.Close()
	})
}

func TestOwnersAreBounded(t *testing.T) {
	p := start(pool.Options{}, sub("one"))
	t.Cleanup(p.Close)
	const most = 32 << 10
	p.Learn(t.Context(), madeBy("one", "first", "second"))
	for i := range most - 1 {
		if i == 1000 {
			ownerOf(t, p, "anthropic", []string{"first"}) // in use
		}
		p.Learn(t.Context(), madeBy("one", fmt.Sprint("id-", i)))
	}
	for id, want := range map[string]string{"first": "one", "second": ""} {
		if got := ownerOf(t, p, "anthropic", []string{id}); got.Subscription != want {
			t.Errorf("%s: %+v, want %q", id, got, want)
		}
	}
}

// ownerOf is the first of the resources that is known.
func ownerOf(t *testing.T, p *pool.Pool, provider string, ids []string) pool.Resource {
	t.Helper()
	owned, _ := p.Owners(t.Context(), provider, ids)
	if len(owned) == 0 {
		return pool.Resource{}
	}
	return owned[0]
}
