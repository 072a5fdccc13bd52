package ratelimit

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// bucket is one configured limit per minute: a token bucket that holds one
// minute's worth and refills evenly. The caller holds the gate's lock, so that
// asking all buckets and taking from all is one step.
type bucket struct {
	lim *rate.Limiter
	// rest is not for requests to take, but only for what they use beyond their
	// estimates.
	rest float64
	last time.Time // the latest that it was asked for
}

// at is the time to ask for: now, but never one before the last. Requests read the
// clock before they get the lock, and a Limiter that is asked for an earlier time
// credits once more what came in since.
func (b *bucket) at(now time.Time) time.Time {
	b.last = later(b.last, now)
	return b.last
}

// newBucket returns the bucket of a limit; zero or less is no limit.
func newBucket(perMinute int, rest float64) bucket {
	if perMinute <= 0 {
		return bucket{}
	}
	return bucket{lim: rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute), rest: rest}
}

// newPart returns the bucket of one process's part of a limit, which may be less
// than one. It holds one at least, so that the process can go on.
func newPart(perMinute, rest float64) bucket {
	return bucket{lim: rate.NewLimiter(rate.Limit(perMinute/60), max(int(perMinute), 1)), rest: rest}
}

// set makes the bucket hold n, which may be negative.
func (b *bucket) set(now time.Time, n float64) {
	now = b.at(now)
	b.take(now, int64(math.Floor(b.lim.TokensAt(now)-math.Floor(n))))
}

// missing is how much the bucket lacks until it is full.
func (b *bucket) missing(now time.Time) int64 {
	return int64(math.Ceil(float64(b.lim.Burst()) - b.lim.TokensAt(b.at(now))))
}

// free tells when n can be taken: at now or later. More than the bucket holds
// needs a full bucket and no more, because a request that is larger than the
// limit has to go out some day.
func (b *bucket) free(now time.Time, n int64) time.Time {
	if b.lim == nil {
		return now
	}
	at := b.at(now)
	need := math.Min(float64(n)+b.rest, float64(b.lim.Burst()))
	// A thousandth of a token is a rounding error, and waiting for it would
	// give a wait of no time.
	lack := need - b.lim.TokensAt(at)
	if lack < 1e-3 {
		return now
	}
	return at.Add(time.Duration(lack/float64(b.lim.Limit())*float64(time.Second)) + time.Millisecond)
}

// take books n, positive or negative, whatever is left: a bucket below zero is
// a debt that later requests wait for. ReserveN refuses more than a full bucket
// at once (and books nothing), so a large n goes in parts. A negative one gives
// back, which works undocumented; the bucket never holds more than its size.
func (b *bucket) take(now time.Time, n int64) {
	if b.lim == nil {
		return
	}
	now = b.at(now)
	burst := int64(b.lim.Burst())
	for ; n > burst; n -= burst {
		b.lim.ReserveN(now, int(burst))
	}
	b.lim.ReserveN(now, int(n))
}

// used is the spent fraction, above 1 in debt; 0 without a limit.
func (b *bucket) used(now time.Time) float64 {
	if b.lim == nil {
		return 0
	}
	return 1 - b.lim.TokensAt(b.at(now))/float64(b.lim.Burst())
}
