package pool_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

// perMinute are limits on requests.
func perMinute(n int) func(*pool.Subscription) { return limits(pool.Limits{RequestsPerMinute: n}) }

// storm has every pool make requests at once, each of a session of its own, and
// returns how many were served and the errors of the others.
func storm(t *testing.T, pools []*pool.Pool, requests int) (served int, failed []*pool.UnavailableError) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			l, err := pools[i%len(pools)].Acquire(context.Background(), ask(fmt.Sprint("s", i)))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				served++
				l.Verdict(ok)
				l.Done(usage.Tokens{Input: 1})
				return
			}
			var u *pool.UnavailableError
			if !errors.As(err, &u) {
				t.Error(err)
				return
			}
			failed = append(failed, u)
		})
	}
	wg.Wait()
	return served, failed
}

// Four processes together send what one may send, whether or not requests may
// wait; who gets none is told when there will be more.
func TestFleetKeepsTheLimitPerMinute(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const limit = 40
		pools, _ := fleet(t, client, 4, pool.Options{}, sub("one", perMinute(limit)))
		begin := time.Now()
		for i, p := range pools {
			serve(t, p, ask(fmt.Sprint("first ", i)), ok)
		}
		served, failed := storm(t, pools, 3*limit)
		served += len(pools)
		if most := float64(limit) * (1 + time.Since(begin).Minutes()); float64(served) > most || served < limit-1 {
			t.Errorf("%d requests were served, want %.1f at most, and the %d that the bucket held", served, most, limit)
		}
		for _, u := range failed {
			// Four processes wait for one request each, of which a second and a half
			// brings one.
			if u.Reason != pool.ReasonRate || u.Wait <= 0 || u.Wait > 10*time.Second {
				t.Errorf("refused: %v, reason %s, wait %v; want the rate, and some seconds", u, u.Reason, u.Wait)
				break
			}
		}
	})
}

// Requests that wait go out when there is more, in all processes.
func TestFleetServesWhatWaitsForTheLimitPerMinute(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const limit = 1200
		pools, _ := fleet(t, client, 3, pool.Options{Wait: time.Minute}, sub("one", perMinute(limit)))
		begin := time.Now()
		const requests = limit + 60
		served, failed := storm(t, pools, requests)
		if took, least := time.Since(begin), 59*time.Minute/limit; served != requests || took < least {
			t.Errorf("%d of %d were served in %v (%v), want all, and the last not before %v", served, requests, took, failed, least)
		}
	})
}

// Who may not wait is served by what the fleet has, and by the subscription that
// the rules name, though this process holds nothing of it yet.
func TestFirstRequestGetsItsPartOfTheRate(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 2, pool.Options{}, sub("one", perMinute(2)), sub("two", priority(1)))
		for i, p := range pools {
			if id, _ := serve(t, p, ask(fmt.Sprint("s", i)), ok); id != "one" {
				t.Errorf("process %d uses %s, want the lower tier, which has room", i, id)
			}
		}
		// It has no more: the next tier serves at once.
		for i, p := range pools {
			if id, _ := serve(t, p, ask(fmt.Sprint("t", i)), ok); id != "two" {
				t.Errorf("process %d uses %s, which has nothing left", i, id)
			}
			if id, source := serve(t, p, ask(fmt.Sprint("s", i)), ok); id != "two" || source != pool.SourceElsewhere {
				t.Errorf("process %d: the session that sticks to one is served by %s as %s", i, id, source)
			}
		}
		if n := client.HLen(context.Background(), "authpool:{one}:rates").Val(); n == 0 {
			t.Error("Redis keeps no rates")
		}
		if ttl := client.PTTL(context.Background(), "authpool:{one}:rates").Val(); ttl <= 0 {
			t.Error("the rates never expire")
		}
	})
}

// What a process holds and what it may take goes back when it ends.
func TestClosedProcessGivesItsRatesBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 1, pool.Options{}, sub("one", perMinute(60)))
		for i := range 20 {
			serve(t, pools[0], ask(fmt.Sprint("s", i)), ok)
		}
		pools[0].Close()
		all := client.HGetAll(context.Background(), "authpool:{one}:rates").Val()
		var level, at int64
		if _, err := fmt.Sscan(all["requests"], &level, &at); err != nil || len(all) != 1 {
			t.Fatalf("Redis keeps %v, want the bucket alone", all)
		}
		if left := level / 60_000; left < 40 {
			t.Errorf("%d requests are left of 60, of which 20 were used", left)
		}
	})
}

// Redis going away stops nobody: each process has its part.
func TestLimitPerMinuteWithoutRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const limit = 120
		pools, h := fleet(t, client, 2, pool.Options{}, sub("one", perMinute(limit)))
		begin := time.Now()
		before, _ := storm(t, pools, 2*limit)
		h.away.Store(true)
		// What was drawn too late for those requests is held.
		served, _ := storm(t, pools, 2*limit)
		if most := limit + limit/3 + limit*time.Since(begin).Minutes(); float64(before+served) > most {
			t.Errorf("%d were served, and %d at once without Redis, want %.1f at most", before, served, most)
		}
		for _, p := range pools {
			eventually(t, time.Minute, "the process serves on", func() bool {
				n, _ := storm(t, []*pool.Pool{p}, 1)
				return n == 1
			})
		}

		// Who never reached it has all of the limit.
		h = &health{}
		h.away.Store(true)
		p := startWith(pool.Options{}, store.New(client, client, h, "other"), sub("one", perMinute(limit)))
		defer p.Close()
		begin = time.Now()
		n, _ := storm(t, []*pool.Pool{p}, 2*limit)
		if most := limit * (1 + time.Since(begin).Minutes()); n < limit || float64(n) > most {
			t.Errorf("%d were served, want %d to %.1f", n, limit, most)
		}
	})
}

// lost is a fleet whose rates lie on a node that is away, or answers nothing.
type lost struct {
	pool.Bindings
	silent bool
	asked  atomic.Int64
}

func (l *lost) DrawRates(ctx context.Context, _ string, draws []store.RateDraw) []store.RateDrawn {
	l.asked.Add(1)
	if l.silent {
		<-ctx.Done()
	}
	drawn := make([]store.RateDrawn, len(draws))
	for i := range drawn {
		drawn[i].Err = store.ErrAway
	}
	return drawn
}

// A node of a cluster that is away, or a Redis that is silent, stops nobody: the
// process goes by what it knows, and asks again.
func TestLimitPerMinuteOnALostNode(t *testing.T) {
	for _, silent := range []bool{false, true} {
		client := redistest.Mini(t)
		bindings := &lost{Bindings: store.New(client, client, &health{}, "authpool"), silent: silent}
		p := startWith(pool.Options{Wait: 20 * time.Second}, bindings, sub("one", perMinute(60)))
		begin := time.Now()
		for i := range 62 {
			serve(t, p, ask(fmt.Sprint("s", i)), ok)
		}
		if took := time.Since(begin); took < time.Second {
			t.Errorf("silent %t: 62 requests of 60 a minute were served in %v", silent, took)
		}
		eventually(t, inTime, "it asks again", func() bool { return bindings.asked.Load() > 1 })
		p.Close()
	}
}

// With the whole limit for itself a process asks nobody.
func TestOneProcessKeepsItsLimitPerMinuteItself(t *testing.T) {
	client := redistest.Mini(t)
	p := startWith(pool.Options{Whole: true}, store.New(client, client, &health{}, "authpool"), sub("one", perMinute(10)))
	defer p.Close()
	if n, _ := storm(t, []*pool.Pool{p}, 20); n != 10 {
		t.Errorf("%d were served of 10", n)
	}
	if n := client.Exists(context.Background(), "authpool:{one}:rates").Val(); n != 0 {
		t.Error("it keeps its rates in Redis")
	}
}
