package store_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/store"
)

func TestClaimHasOneWinner(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		var won atomic.Int32
		var asking sync.WaitGroup
		for range 20 {
			asking.Go(func() {
				first, err := s.Claim(ctx, "one", "budget.80:day:1", time.Hour)
				if err != nil {
					t.Error(err)
				}
				if first {
					won.Add(1)
				}
			})
		}
		asking.Wait()
		if won.Load() != 1 {
			t.Errorf("%d of 20 were the first", won.Load())
		}
		for _, other := range [][2]string{{"two", "budget.80:day:1"}, {"one", "budget.80:day:2"}} {
			if first, err := s.Claim(ctx, other[0], other[1], time.Hour); err != nil || !first {
				t.Errorf("%v: %t, %v", other, first, err)
			}
		}
		if left := client.PTTL(ctx, "authpool:{one}:claim:budget.80:day:1").Val(); left <= 0 || left > time.Hour {
			t.Errorf("it is kept for %v, want 1 h", left)
		}
	})
}
