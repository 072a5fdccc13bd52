package pool_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Four processes together send what one may send: the minute's worth that the
// bucket holds, and what comes in meanwhile.
func TestFleetKeepsTheLimitPerMinute(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const limit, n = 40, 4
		pools, _ := fleet(t, client, n, pool.Options{}, sub("one", limits(pool.Limits{RequestsPerMinute: limit})))
		begin := time.Now()
		var mu sync.Mutex
		served, early, late := map[int]int{}, 0, time.Duration(0)
		var wg sync.WaitGroup
		for i := range 4 * limit {
			wg.Go(func() {
				l, err := pools[i%n].Acquire(context.Background(), ask(fmt.Sprint("s", i)))
				if err != nil {
					u := err.(*pool.UnavailableError)
					mu.Lock()
					defer mu.Unlock()
					if u.Reason != pool.ReasonRate || u.Wait <= 0 {
						early++
					}
					late = max(late, u.Wait)
					return
				}
				l.Verdict(ok)
				l.Done(usage.Tokens{Input: 1})
				mu.Lock()
				defer mu.Unlock()
				served[i%n]++
			})
		}
		wg.Wait()
		sum := 0
		for _, k := range served {
			sum += k
		}
		most := float64(limit) * (1 + time.Since(begin).Minutes())
		t.Log(served, sum, most, early, late, time.Since(begin))
		if float64(sum) > most {
			t.Errorf("%d requests were served, the limit is %.1f", sum, most)
		}
		if float64(sum) < 0.97*float64(limit) {
			t.Errorf("%d requests were served of %d that the bucket held", sum, limit)
		}
	})
}
