package ratelimit

import (
	"math"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// Traps of golang.org/x/time/rate, which these pins name one by one: what bucket
// does about them stops working, or stops being needed, should one change.
func TestTrapReserveN(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	const burst = 10
	left := func(lim *rate.Limiter, want float64) {
		t.Helper()
		if got := lim.TokensAt(now); math.Abs(got-want) > 1e-9 {
			t.Errorf("%v tokens are left, want %v", got, want)
		}
	}
	lim := rate.NewLimiter(1, burst)

	// More than the burst is never OK, and is silently not booked.
	if lim.ReserveN(now, burst+1).OK() {
		t.Error("a reservation above the burst is OK: bucket.take need not cut it")
	}
	left(lim, burst)

	// At the burst it is, again and again: that makes the debt.
	for range 3 {
		if !lim.ReserveN(now, burst).OK() {
			t.Error("a reservation of the burst is refused")
		}
	}
	left(lim, -2*burst)

	// A negative one gives back, which is documented nowhere.
	if !lim.ReserveN(now, -25).OK() {
		t.Error("a negative reservation is refused: nothing can be given back")
	}
	left(lim, 5)

	// It may go over the burst for the moment; the next look at a later time
	// takes that away.
	lim.ReserveN(now, -100)
	now = now.Add(time.Millisecond)
	if got := lim.TokensAt(now); got > burst {
		t.Errorf("%v tokens after giving back too much, most is %d", got, burst)
	}
}

// The bucket falls into none of them: a settlement above the burst is booked
// whole, and giving back more than was taken does not fill it over the brim.
func TestTrapBucketBooksEverything(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	b := newBucket(60, 0)
	for _, step := range []struct {
		take int64
		used float64
	}{{60, 1}, {61, 121.0 / 60}, {600, 721.0 / 60}, {-600, 121.0 / 60}, {-121, 0}, {30, 0.5}} {
		b.take(now, step.take)
		if got := b.used(now); math.Abs(got-step.used) > 1e-9 {
			t.Errorf("after %+d: %v used, want %v", step.take, got, step.used)
		}
	}
	b.take(now, -1000)
	now = now.Add(time.Millisecond)
	if got := b.used(now); got < -1e-9 {
		t.Errorf("given back too much: %v used", got)
	}
	b.take(now, 60)
	if free := b.free(now, 1); !free.After(now) {
		t.Error("a whole bucket was taken, and there is more")
	}
}

// Requests read the clock before they get the lock, so their times come out of
// order. A Limiter that is asked for an earlier time credits what came in since
// once more; the bucket does not.
func TestTrapTimeGoesBack(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	lim, b := rate.NewLimiter(1, 60), newBucket(60, 0)
	lim.ReserveN(now, 60)
	b.take(now, 60)
	for range 10 {
		for _, d := range []time.Duration{time.Second, 0} {
			lim.ReserveN(now.Add(d), 0)
			b.take(now.Add(d), 0)
			if free := b.free(now, 0); free.After(now) {
				t.Fatalf("nothing is free only at %v, asked at %v", free, now)
			}
		}
	}
	now = now.Add(time.Second)
	if got := lim.TokensAt(now); got < 10 {
		t.Errorf("after a second of one token each it has %v: bucket.at is not needed any more", got)
	}
	if got := 60 * (1 - b.used(now)); math.Abs(got-1) > 1e-9 {
		t.Errorf("after a second of one token each the bucket has %v, want 1", got)
	}
}
