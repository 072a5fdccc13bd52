package main

import (
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
)

// redisIs is the health of a Redis as a test wants it.
type redisIs bool

func (r redisIs) Healthy() bool { return bool(r) }

// One of a fleet tells that a budget has reached a level, also when they disagree by
// seconds about a window's end; what each sees of its own all of them tell.
func TestOneOfAFleetTells(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		resets := time.Now().Truncate(time.Hour).Add(3 * time.Hour)
		told := func(e event.Event, healthy redisIs) (n int) {
			var mu sync.Mutex
			var fleet sync.WaitGroup
			for i := range 8 {
				fleet.Go(func() {
					var c claims
					c.store.Store(store.New(client, client, healthy, "authpool"))
					mine := e
					if !e.Until.IsZero() {
						mine.Until = e.Until.Add(time.Duration(i-4) * time.Second)
					}
					if c.claim(mine) {
						mu.Lock()
						n++
						mu.Unlock()
					}
				})
			}
			fleet.Wait()
			return n
		}
		budget := event.Event{Kind: event.Budget80, Subscription: "one", Window: "day", Until: resets}
		for _, c := range []struct {
			what  string
			event event.Event
			redis redisIs
			want  int
		}{
			{"the level", budget, true, 1},
			{"again, as after a restart", budget, true, 0},
			{"the next period", event.Event{Kind: event.Budget80, Subscription: "one", Window: "day", Until: resets.Add(24 * time.Hour)}, true, 1},
			{"another subscription", event.Event{Kind: event.Budget80, Subscription: "two", Window: "day", Until: resets}, true, 1},
			{"a higher level", event.Event{Kind: event.Budget95, Subscription: "one", Window: "day", Until: resets}, true, 1},
			{"without Redis", budget, false, 8},
			{"a limit", event.Event{Kind: event.SubscriptionLimited, Subscription: "one", Until: resets}, true, 8},
		} {
			if n := told(c.event, c.redis); n != c.want {
				t.Errorf("%s: %d of 8 tell, want %d", c.what, n, c.want)
			}
		}
	})
}
