package pool_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

// BenchmarkPlanRebalance plans for 500 subscriptions, half of them with 64 cold sessions
// each that fit nowhere else: then all of it is looked at.
func BenchmarkPlanRebalance(b *testing.B) {
	subs := make([]pool.Subscription, 500)
	other := func(s *pool.Subscription) { s.Models = []string{"other-*"} }
	for i := range subs {
		subs[i] = sub(fmt.Sprint("s", i), limits(pool.Limits{Sessions: 64}))
		if i >= len(subs)/2 {
			other(&subs[i])
		}
	}
	p := pool.New(pool.Options{CacheWarm: time.Nanosecond, IdleTimeout: time.Hour}, subs, nil)
	defer p.Close()
	for i := range 250 * 64 {
		l, err := p.Acquire(b.Context(), ask(fmt.Sprint("session-", i)))
		if err != nil {
			b.Fatal(err)
		}
		l.Verdict(ok)
		l.Done(usage.Tokens{})
	}
	for b.Loop() {
		if plan := p.PlanRebalance(); len(plan) > 0 {
			b.Fatalf("%d moves", len(plan))
		}
	}
}
