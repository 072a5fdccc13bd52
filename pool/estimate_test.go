package pool_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

// TestRatesAreTakenBeforeAndSettledAfter: a request takes what it will probably
// use when it goes out, not when its answer ends, and what answers told of a
// model makes the next guess.
func TestRatesAreTakenBeforeAndSettledAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one", limits(pool.Limits{InputTokensPerMinute: 1000})))
		defer p.Close()
		sized := func(model string, bytes int64) *pool.Request {
			return ask("", func(r *pool.Request) { r.Model, r.Bytes = model, bytes })
		}
		answer := func(r *pool.Request, tokens usage.Tokens) {
			t.Helper()
			l, err := p.Acquire(context.Background(), r)
			if err != nil {
				t.Fatalf("%s of %d bytes: %v", r.Model, r.Bytes, err)
			}
			l.Verdict(ok)
			l.Done(tokens)
		}
		refused := func(r *pool.Request, want time.Duration) {
			t.Helper()
			u := unavailable(t, p, r)
			if u.Reason != pool.ReasonRate || u.Wait.Round(time.Second) != want {
				t.Errorf("%s of %d bytes: refused for %s for %v, want rate for %v", r.Model, r.Bytes, u.Reason, u.Wait, want)
			}
		}
		// Four bytes a token until something is known.
		first, err := p.Acquire(context.Background(), sized("a", 2000))
		if err != nil {
			t.Fatal(err)
		}
		refused(sized("a", 2400), 9*time.Second) // 600 of the 500 that are left, and 50 are not to be taken
		first.Verdict(ok)
		first.Done(usage.Tokens{Input: 200, CacheRead: 5000, Output: 1}) // ten bytes a token; the cache is free
		answer(sized("a", 7500), usage.Tokens{Input: 750, Output: 1})    // all that is left
		refused(sized("a", 1000), 6*time.Second)                         // 100
		refused(sized("b", 1000), 15*time.Second)                        // another model: 250
		pass(time.Minute)
		answer(sized("a", 1000), usage.Tokens{Input: 1500, Output: 1}) // far more than was foretold: a debt
		refused(sized("a", 0), 33*time.Second)
		pass(2 * time.Minute)
		// An agent that left and an answer without usage keep or give back as before.
		l, err := p.Acquire(context.Background(), sized("b", 2000))
		if err != nil {
			t.Fatal(err)
		}
		l.Done(usage.Tokens{})
		answer(sized("b", 4000), usage.Tokens{Input: 1000, Output: 1})
	})
}
