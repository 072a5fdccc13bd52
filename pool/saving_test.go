package pool_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

func tokens(input int64) func(*pool.Request) {
	return func(r *pool.Request) { r.EstimatedInput = input }
}

// TestLargeRequestsSaveUp: one that wants half of what a minute brings is served in
// its turn, however many small ones want the rest, and nothing is left unused
// meanwhile.
func TestLargeRequestsSaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perMinute, large, small = 60_000, 30_000, 2_000
		p := start(pool.Options{Wait: 2 * time.Minute}, sub("one", limits(pool.Limits{InputTokensPerMinute: perMinute})))
		defer p.Close()
		begin := time.Now()
		end := begin.Add(10 * time.Minute)
		var mu sync.Mutex
		served := map[int64]int64{}
		var wg sync.WaitGroup
		loop := func(name string, size int64) {
			wg.Go(func() {
				for time.Now().Before(end) {
					l, err := p.Acquire(context.Background(), ask(name, agent(name), tokens(size)))
					if err != nil {
						t.Errorf("%s after %s: %v", name, time.Since(begin), err)
						return
					}
					l.Verdict(ok)
					pass(100 * time.Millisecond)
					l.Done(usage.Tokens{Input: size})
					mu.Lock()
					served[size]++
					mu.Unlock()
				}
			})
		}
		loop("large", large)
		for i := range 20 {
			loop(fmt.Sprint("small", i), small)
		}
		wg.Wait()
		if n := served[large]; n < 5 {
			t.Errorf("%d large requests were served", n)
		}
		used := served[large]*large + served[small]*small
		if allowed := int64(float64(perMinute) * (1 + time.Since(begin).Minutes()) * 0.95); used < allowed*97/100 || used > allowed*106/100 {
			t.Errorf("%d tokens were used, allowed are %d", used, allowed)
		}
	})
}

// TestSavingEnds: who leaves while something is kept for it leaves it to the others
// at once.
func TestSavingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("one", limits(pool.Limits{InputTokensPerMinute: 60_000})))
		defer p.Close()
		if l, err := p.Acquire(context.Background(), ask("first", tokens(55_000))); err == nil {
			l.Verdict(ok)
			l.Done(usage.Tokens{Input: 55_000})
		}
		ctx, leave := context.WithCancel(context.Background())
		gone := make(chan error, 1)
		go func() {
			_, err := p.Acquire(ctx, ask("large", agent("large"), tokens(40_000)))
			gone <- err
		}()
		synctest.Wait()
		got := make(chan time.Duration, 1)
		begin := time.Now()
		go func() {
			serve(t, p, ask("small", agent("small"), tokens(100)), ok)
			got <- time.Since(begin)
		}()
		pass(5 * time.Second)
		synctest.Wait()
		select {
		case after := <-got:
			t.Fatalf("the small one had what was kept, after %s", after)
		default:
		}
		leave()
		if err := <-gone; err == nil {
			t.Error("who left was served")
		}
		if after := <-got; after > 5*time.Second+100*time.Millisecond {
			t.Errorf("the small one waited for %s", after)
		}
	})
}
