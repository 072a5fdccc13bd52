package simulator

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// bucket is a token bucket that holds one minute's worth. A nil bucket has no limit.
type bucket struct {
	limiter *rate.Limiter
	limit   int
}

func newBucket(perMinute int) *bucket {
	if perMinute == 0 {
		return nil
	}
	return &bucket{rate.NewLimiter(rate.Limit(perMinute)/60, perMinute), perMinute}
}

// wait returns how long until n can be taken; what is larger than the bucket waits until it is full.
func (b *bucket) wait(now time.Time, n int) time.Duration {
	if b == nil {
		return 0
	}
	missing := float64(min(n, b.limit)) - b.limiter.TokensAt(now)
	if missing <= 1e-9 {
		return 0
	}
	return time.Duration(math.Ceil(missing / float64(b.limiter.Limit()) * float64(time.Second)))
}

// take takes n, at most all; the caller has seen wait return zero.
func (b *bucket) take(now time.Time, n int) {
	if b != nil {
		b.limiter.ReserveN(now, min(n, b.limit))
	}
}

func (b *bucket) remaining(now time.Time) int {
	return max(0, int(b.limiter.TokensAt(now)+1e-9))
}

// full returns how long until the bucket is full again.
func (b *bucket) full(now time.Time) time.Duration {
	missing := float64(b.limit) - b.limiter.TokensAt(now)
	return max(0, time.Duration(missing/float64(b.limiter.Limit())*float64(time.Second)))
}

// refusal is a limit that is met.
type refusal struct {
	what      string // requests, input tokens, output tokens, window
	limit     int
	used      int
	requested int
	wait      time.Duration
	tooLarge  bool // more than the whole limit at once
	window    bool // a usage window
}
