package usage

import (
	"math/rand/v2"
	"time"
)

// The bounds of a backoff.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// backoff spaces out attempts at something that fails: each wait is twice the one
// before, less up to a half at random, so that a fleet does not knock in step.
type backoff struct {
	wait  time.Duration // before jitter; 0 when the last attempt was good
	until time.Time
}

// fail notes a failed attempt.
func (b *backoff) fail(now time.Time) {
	b.wait = min(max(2*b.wait, minBackoff), maxBackoff)
	b.until = now.Add(b.wait - rand.N(b.wait/2))
}

// reset notes a good attempt.
func (b *backoff) reset() { *b = backoff{} }

// due tells whether an attempt may be made.
func (b *backoff) due(now time.Time) bool { return !now.Before(b.until) }
