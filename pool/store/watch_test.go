package store_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
)

func TestWatchersAreCounted(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		s := store.New(client, client, nil, "watchers")
		expect := func(want int) {
			t.Helper()
			end := time.After(time.Minute)
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				n, err := s.Watchers(t.Context())
				if err == nil && n == want {
					return
				}
				select {
				case <-tick.C:
				case <-end:
					t.Fatalf("%d processes watch (%v), want %d", n, err, want)
				}
			}
		}
		expect(0)
		var watching sync.WaitGroup
		defer watching.Wait()
		one, leave := context.WithCancel(t.Context())
		defer leave()
		two, end := context.WithCancel(t.Context())
		defer end()
		for _, ctx := range []context.Context{one, two} {
			watching.Go(func() { s.Watch(ctx, func(store.Event) {}) })
		}
		expect(2)
		leave()
		expect(1)
	})
}
