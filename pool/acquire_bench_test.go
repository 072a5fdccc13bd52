package pool_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

// A request of a bound session, as nearly all are.
func BenchmarkAcquireBound(b *testing.B) {
	p := start(pool.Options{}, sub("one", limits(pool.Limits{Concurrent: 1000})), sub("two"))
	defer p.Close()
	ctx := context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := ask("s")
		for pb.Next() {
			l, err := p.Acquire(ctx, r)
			if err != nil {
				b.Fatal(err)
			}
			l.Verdict(ok)
			l.Done(usage.Tokens{Input: 1, Output: 1})
		}
	})
}

// A session's first request, which has to choose among many.
func BenchmarkAcquireNew(b *testing.B) {
	for _, n := range []int{3, 500} {
		b.Run(fmt.Sprint(n, " subscriptions"), func(b *testing.B) {
			var subs []pool.Subscription
			for i := range n {
				subs = append(subs, sub(fmt.Sprint("s", i)))
			}
			p := start(pool.Options{}, subs...)
			defer p.Close()
			ctx := context.Background()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				l, err := p.Acquire(ctx, ask(fmt.Sprint("s", i%50_000)))
				if err != nil {
					b.Fatal(err)
				}
				l.Verdict(ok)
				l.Done(usage.Tokens{Input: 1, Output: 1})
			}
		})
	}
}
