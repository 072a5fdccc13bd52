package pool_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// herd is many sessions that ask at once, and what becomes of them.
type herd struct {
	pool *pool.Pool

	mu     sync.Mutex
	leases map[string][]*pool.Lease // by subscription, not done
	failed []error
	wg     sync.WaitGroup
}

// herdOn returns n sessions that stick to the subscription a, which has closed.
func herdOn(t *testing.T, n int, opts pool.Options, subs ...pool.Subscription) *herd {
	t.Helper()
	c := &herd{pool: start(opts, subs...), leases: map[string][]*pool.Lease{}}
	for i := range n {
		if id, _ := serve(t, c.pool, ask(fmt.Sprint("s", i)), ok); id != "a" {
			t.Fatalf("session %d sticks to %s", i, id)
		}
	}
	serve(t, c.pool, ask("s0"), limited(time.Hour))
	return c
}

// ask has sessions from to to ask at once, and goes on when each is served or waits.
func (c *herd) ask(from, to int) {
	for i := from; i < to; i++ {
		c.wg.Go(func() {
			l, err := c.pool.Acquire(context.Background(), ask(fmt.Sprint("s", i)))
			c.mu.Lock()
			defer c.mu.Unlock()
			if err != nil {
				c.failed = append(c.failed, err)
				return
			}
			id := l.Subscription().ID
			c.leases[id] = append(c.leases[id], l)
		})
	}
	synctest.Wait()
}

func (c *herd) at(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.leases[id])
}

// done ends the first n requests under way at id.
func (c *herd) done(id string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.leases[id][:n] {
		l.Verdict(ok)
		l.Done(usage.Tokens{Input: 1})
	}
	c.leases[id] = c.leases[id][n:]
}

// end ends everything, and tells who was not served.
func (c *herd) end(t *testing.T) {
	t.Helper()
	c.wg.Wait()
	for id := range c.leases {
		c.done(id, len(c.leases[id]))
	}
	for _, err := range c.failed {
		t.Error(err)
	}
	c.pool.Close()
}

// Many sessions whose subscription has closed do not come to the next one all at
// once, and nobody who is there already waits for them.
func TestMovedSessionsArriveOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := herdOn(t, 100, pool.Options{Wait: 30 * time.Second}, sub("a"), sub("b", priority(1)))
		defer c.end(t)
		serve(t, c.pool, ask("native", tried("a")), ok)
		c.ask(0, 100)
		for step := range 12 {
			if got := c.at("b"); got != step+1 {
				t.Errorf("step %d: %d of the moved sessions are there, want %d", step, got, step+1)
			}
			begin := time.Now()
			serve(t, c.pool, ask("native"), ok)
			serve(t, c.pool, ask(fmt.Sprint("new", step)), ok)
			if waited := time.Since(begin); waited > 0 {
				t.Errorf("step %d: who is there or comes anew waits for %v", step, waited)
			}
			pass(ratelimit.RampPace)
			synctest.Wait()
		}
		// Who is done makes room.
		before := c.at("b")
		c.done("b", 5)
		synctest.Wait()
		if got := c.at("b"); got != before {
			t.Errorf("%d are under way after five were done, want %d again", got, before)
		}
		pass(ratelimit.RampTime)
		synctest.Wait()
		if got := c.at("b"); got != 95 {
			t.Errorf("%d are under way after the ramp, want the other 95", got)
		}
		// They are at home there now.
		c.done("b", 95)
		if id, source := serve(t, c.pool, ask("s42"), ok); id != "b" || source != pool.SourceBound {
			t.Errorf("then: %s (%s)", id, source)
		}
	})
}

// One session that moves does so at once, whatever moved there before.
func TestOneMovedSessionArrivesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := herdOn(t, 30, pool.Options{Wait: 30 * time.Second}, sub("a"), sub("b", priority(1)))
		defer c.end(t)
		c.ask(0, 20)
		pass(20 * time.Second)
		if got := c.at("b"); got != 20 {
			t.Fatalf("%d are there", got)
		}
		for i := 20; i < 25; i++ { // twenty long answers are still under way
			c.ask(i, i+1)
			if got := c.at("b"); got != i+1 {
				t.Errorf("%d are there, want %d at once", got, i+1)
			}
			pass(ratelimit.RampTime)
		}
	})
}

// With several to go to, each has a ramp of its own.
func TestMovedSessionsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := herdOn(t, 60, pool.Options{Wait: 30 * time.Second}, sub("a"), sub("b", priority(1)), sub("c", priority(2)))
		defer c.end(t)
		c.ask(0, 60)
		for step := range 4 {
			if b, other := c.at("b"), c.at("c"); b != step+1 || other != step+1 {
				t.Errorf("step %d: %d and %d are there, want %d", step, b, other, step+1)
			}
			pass(ratelimit.RampPace)
			synctest.Wait()
		}
	})
}

// The ramp is no reason for an error: who may not wait for it is served at once.
func TestRampOfMovedSessionsYields(t *testing.T) {
	for name, tt := range map[string]struct {
		opts pool.Options
		at   time.Duration // when all are there
	}{
		"no waiting":   {pool.Options{Wait: 0}, 0},
		"a short wait": {pool.Options{Wait: time.Second}, time.Second},
		"a full queue": {pool.Options{Wait: 30 * time.Second, Waiters: 5}, ratelimit.RampTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := herdOn(t, 40, tt.opts, sub("a"), sub("b", priority(1)))
				defer c.end(t)
				c.ask(0, 40)
				if got := c.at("b"); tt.opts.Waiters > 0 && got != 40-5 {
					t.Errorf("%d are there, want all for whom there is no room to wait", got)
				}
				pass(tt.at)
				synctest.Wait()
				if got := c.at("b"); got != 40 {
					t.Errorf("%d are there after %v", got, tt.at)
				}
			})
		})
	}
}
