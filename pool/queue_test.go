package pool_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

// queued starts requests one after another that wait, and returns a function
// that tells who was served so far, in order.
func queued(ctx context.Context, p *pool.Pool, requests ...*pool.Request) (served func() []string, wait func()) {
	var mu sync.Mutex
	var order []string
	var wg sync.WaitGroup
	for _, r := range requests {
		wg.Go(func() {
			l, err := p.Acquire(ctx, r)
			mu.Lock()
			if err != nil {
				order = append(order, r.Session+": "+err.Error())
			} else {
				order = append(order, r.Session)
			}
			mu.Unlock()
			if err == nil {
				l.Verdict(ok)
				pass(time.Second)
				l.Done(usage.Tokens{Input: 1})
			}
		})
		synctest.Wait()
	}
	return func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(order)
	}, wg.Wait
}

func TestQueueServesInOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("one", limits(pool.Limits{Concurrent: 1})))
		defer p.Close()
		var requests []*pool.Request
		var want []string
		for i := range 20 {
			requests = append(requests, ask(fmt.Sprint("s", i)))
			want = append(want, fmt.Sprint("s", i))
		}
		served, wait := queued(context.Background(), p, requests...)
		begin := time.Now()
		wait()
		if got := served(); !slices.Equal(got, want) {
			t.Errorf("served in the order %v", got)
		}
		if took := time.Since(begin); took != 20*time.Second {
			t.Errorf("20 answers of a second, one at a time, took %v", took)
		}
	})
}

// Who wants something else is not held up by those before it.
func TestQueueHoldsUpNobodyWhoWantsSomethingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute},
			sub("opus", models("opus")), sub("haiku", models("haiku")))
		defer p.Close()
		serve(t, p, ask("x", model("opus")), limited(40*time.Second))
		serve(t, p, ask("x", model("haiku")), limited(10*time.Second))
		served, wait := queued(context.Background(), p,
			ask("a", model("opus")), ask("b", model("haiku")), ask("c", model("opus")))
		pass(10 * time.Second)
		if got := served(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("after 10s: %v, want b", got)
		}
		wait()
		if got := served(); !slices.Equal(got, []string{"b", "a", "c"}) {
			t.Errorf("at last: %v", got)
		}
	})
}

func TestWaitingEndsAtTheFirstThatOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 30 * time.Second}, sub("one"), sub("two"))
		defer p.Close()
		serve(t, p, ask("x", tried("two")), limited(25*time.Second))
		serve(t, p, ask("x", tried("one")), limited(10*time.Minute))
		begin := time.Now()
		if id, _ := serve(t, p, ask("s"), ok); id != "one" || time.Since(begin) != 25*time.Second {
			t.Errorf("%s after %v, want one after 25s", id, time.Since(begin))
		}
	})
}

func TestWaitingHasBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 30 * time.Second, Waiters: 2}, sub("one", limits(pool.Limits{Concurrent: 1})))
		defer p.Close()
		holder, err := p.Acquire(context.Background(), ask("holder"))
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		ctx, leave := context.WithCancel(context.Background())
		served, wait := queued(ctx, p, ask("a"), ask("b"))
		if u := unavailable(t, p, ask("c")); u.Reason != pool.ReasonQueue || u.Until.IsZero() || time.Since(begin) != 0 {
			t.Errorf("one too many: %+v after %v", u, time.Since(begin))
		}
		leave()
		wait()
		if got := served(); len(got) != 2 || time.Since(begin) != 0 {
			t.Errorf("agents that left: %v after %v", got, time.Since(begin))
		}
		// The time runs out: an honest error.
		u := unavailable(t, p, ask("d"))
		if time.Since(begin) != 30*time.Second || u.Reason != pool.ReasonConcurrency || u.Wait <= 0 {
			t.Errorf("%+v after %v", u, time.Since(begin))
		}
		// The request's own deadline is shorter.
		short, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		begin = time.Now()
		if _, err := p.Acquire(short, ask("e")); err == nil || time.Since(begin) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		holder.Verdict(ok)
		holder.Done(usage.Tokens{})
		serve(t, p, ask("f"), ok)
	})
}

func TestCloseEndsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("one", limits(pool.Limits{Concurrent: 1})))
		holder, err := p.Acquire(context.Background(), ask("holder"))
		if err != nil {
			t.Fatal(err)
		}
		failed := make(chan error)
		go func() {
			_, err := p.Acquire(context.Background(), ask("s"))
			failed <- err
		}()
		synctest.Wait()
		p.Close()
		if err := <-failed; !errors.Is(err, pool.ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
		holder.Verdict(ok)
		holder.Done(usage.Tokens{}) // leases outlive the pool
	})
}

func TestConfiguredRateIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 30 * time.Second}, sub("one", limits(pool.Limits{RequestsPerMinute: 6})))
		defer p.Close()
		begin := time.Now()
		for range 6 {
			serve(t, p, ask("s"), ok)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the first minute's requests waited %v", took)
		}
		serve(t, p, ask("s"), ok)
		if took := time.Since(begin); took < 10*time.Second || took > 10100*time.Millisecond {
			t.Errorf("the next one came after %v, want 10s", took)
		}
	})
}

// An answer that is well changes nothing for those who wait for it to end: they try
// when it has. A round that is under way by then lets one in the middle go first.
func TestGoodAnswersDisturbNobodyWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("one", limits(pool.Limits{Concurrent: 1})))
		defer p.Close()
		l, err := p.Acquire(context.Background(), ask("a"))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		trace := &pool.Trace{}
		wg.Go(func() { serve(t, p, ask("b", func(r *pool.Request) { r.Trace = trace }), ok) })
		synctest.Wait()
		trace.Home = "as it was" // a try begins it anew
		l.Verdict(ok)
		synctest.Wait()
		if trace.Home != "as it was" {
			t.Error("who waits has tried although nothing opened")
		}
		l.Done(usage.Tokens{Input: 1})
		wg.Wait()
	})
}
