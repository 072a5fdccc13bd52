package pool_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Settings that change are in force for the next request, and what is known of
// subscriptions and sessions stays.
func TestConfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := sub("one"), sub("two")
		p := start(pool.Options{Strategy: pool.StrategyPriority}, one, two)
		defer p.Close()
		served(t, p, ask("a"), "one")
		served(t, p, ask("b"), "one")

		p.Configure(pool.Options{Strategy: pool.StrategyRoundRobin, SessionBrake: pool.Brake{Requests: 3}})
		counts := map[string]int{}
		for _, session := range []string{"c", "d", "e", "f"} {
			got, _ := serve(t, p, ask(session), ok)
			counts[got]++
		}
		if counts["one"] == 0 || counts["two"] == 0 {
			t.Errorf("in turn: %v", counts)
		}
		served(t, p, ask("a"), "one") // where it was

		r := ask("a")
		for range 3 {
			if err := p.Brake(r.Provider, r.Agent, r.Session); err != nil {
				t.Error(err)
			}
		}
		if err := p.Brake(r.Provider, r.Agent, r.Session); !errors.As(err, new(*pool.BrakeError)) {
			t.Errorf("the new brake: %v", err)
		}
		p.Configure(pool.Options{})
		if err := p.Brake(r.Provider, r.Agent, r.Session); err != nil {
			t.Errorf("no brake any more: %v", err)
		}
	})
}

// Nobody who asks meanwhile sees half of them, or stands still.
func TestConfigureMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"), sub("two"))
		defer p.Close()
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for range 50 {
					serve(t, p, ask(string(rune('a'+i))), ok)
					time.Sleep(time.Millisecond)
				}
			})
		}
		for i := range 50 {
			p.Configure(pool.Options{Wait: time.Duration(i) * time.Second, IdleTimeout: time.Duration(i+1) * time.Minute, Strategy: []pool.Strategy{pool.StrategyBalanced, pool.StrategyLeastUsed}[i%2]})
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
	})
}

func TestConfigureHowLongIsWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one", limits(pool.Limits{Concurrent: 1})))
		defer p.Close()
		busy, err := p.Acquire(context.Background(), ask("a"))
		if err != nil {
			t.Fatal(err)
		}
		wait := func(want time.Duration) {
			t.Helper()
			began := time.Now()
			if _, err := p.Acquire(context.Background(), ask("b")); err == nil {
				t.Fatal("served beyond the limit")
			}
			if got := time.Since(began); got != want {
				t.Errorf("waited %v, want %v", got, want)
			}
		}
		wait(0)
		p.Configure(pool.Options{Wait: time.Minute})
		wait(time.Minute)
		busy.Verdict(ok)
		busy.Done(usage.Tokens{})
	})
}

// A session that was let be idle for a minute keeps its place for half an hour, when
// that is what is said meanwhile.
func TestConfigureLongerIdleTimeoutHoldsPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{IdleTimeout: time.Minute}, sub("one", limits(pool.Limits{Sessions: 1})))
		defer p.Close()
		served(t, p, ask("a"), "one")
		time.Sleep(30 * time.Second)
		p.Configure(pool.Options{IdleTimeout: 30 * time.Minute})
		time.Sleep(20 * time.Minute)
		if _, err := p.Acquire(context.Background(), ask("b")); err == nil {
			t.Error("the place of a session was given away before its idle time-out")
		}
		time.Sleep(10 * time.Minute)
		served(t, p, ask("b"), "one")
	})
}
