package pool_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

// TestAnEndThatIsKnownALittleTooEarly: two answers of one process tell of the same
// limit, and the second says a little more. The others hold the end that they heard
// first for the same; when it has come Redis says no, and they believe that instead
// of asking again as fast as Redis answers.
func TestAnEndThatIsKnownALittleTooEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mini := miniredis.NewMiniRedis()
		stop := make(chan struct{})
		var clock sync.WaitGroup
		clock.Go(func() { run(mini, 0, stop) })
		opts := pool.Options{Wait: time.Minute}
		one, two := newSidecar(mini, opts, sub("s")), newSidecar(mini, opts, sub("s"))
		defer func() {
			one.close()
			two.close()
			close(stop)
			clock.Wait()
			mini.Close()
		}()
		var leases [2]*pool.Lease
		for i := range leases {
			var err error
			if leases[i], err = one.pool.Acquire(context.Background(), ask("a")); err != nil {
				t.Fatal(err)
			}
		}
		for i, wait := range []time.Duration{3 * time.Second, 3100 * time.Millisecond} {
			leases[i].Verdict(limited(wait))
			leases[i].Done(usage.Tokens{})
			pass(100 * time.Millisecond)
		}
		counter := &commands{}
		two.client.AddHook(counter)
		l, err := two.pool.Acquire(context.Background(), ask("b"))
		if err != nil {
			t.Fatal(err)
		}
		l.Verdict(ok)
		l.Done(usage.Tokens{})
		if n := counter.n.Load(); n > 40 {
			t.Errorf("one request that waited for a cooldown's end cost %d commands", n)
		}
	})
}
