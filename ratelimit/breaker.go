package ratelimit

import (
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// The constants of the breaker. It trips at once for an endpoint that is gone
// (tripRow failures in a row) and at last for one that fails most of the time
// (tripShare of at least tripLeast answers within tripWindow).
const (
	tripRow    = 5
	tripLeast  = 20
	tripShare  = 0.6
	tripWindow = time.Minute
	tripBucket = 10 * time.Second
	tripWait   = 10 * time.Second
	// tripGrace keeps a retry that is timed to the end of tripWait from coming
	// an instant too early: gobreaker opens after that instant, not at it.
	tripGrace = time.Millisecond
	// errorLeast is the number of answers below which the error rate is
	// diluted, so that one failure out of one is no rate of 100 %.
	errorLeast = 10
)

var (
	errBroken = errors.New("the attempt failed")
	// errNoMatter settles an attempt that says nothing about the endpoint: the
	// agent left, or the provider as a whole is overloaded.
	errNoMatter = errors.New("the attempt counts for nothing")
)

// breaker keeps requests away from a broken endpoint. It counts what is broken
// (server errors, network errors); being limited is the business of Cooldowns.
//
// Half open it lets one request through and refuses the others until that one
// is settled. That happens at the verdict, not at the end of the answer.
type breaker struct {
	two *gobreaker.TwoStepCircuitBreaker[struct{}]

	mu        sync.Mutex
	openUntil time.Time
}

func newBreaker(id string) *breaker {
	return &breaker{two: gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:         id,
		MaxRequests:  1,
		Interval:     tripWindow,
		BucketPeriod: tripBucket,
		Timeout:      tripWait,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			answers := c.TotalSuccesses + c.TotalFailures
			return c.ConsecutiveFailures >= tripRow ||
				answers >= tripLeast && float64(c.TotalFailures) >= tripShare*float64(answers)
		},
		IsExcluded: func(err error) bool { return errors.Is(err, errNoMatter) },
	})}
}

// check tells whether the breaker refuses, without taking anything.
func (b *breaker) check(now time.Time) Refusal {
	if b.two.State() != gobreaker.StateOpen {
		return Refusal{}
	}
	return b.refusal(now)
}

// allow lets one request through; done settles it, exactly once.
func (b *breaker) allow(now time.Time) (done func(error), r Refusal) {
	done, err := b.two.Allow()
	if err != nil {
		return nil, b.refusal(now)
	}
	return done, Refusal{}
}

func (b *breaker) refusal(now time.Time) Refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	until := b.openUntil
	if !until.After(now) { // half open: the probe is out
		until = now.Add(probePatience)
	}
	return Refusal{Why: Broken, Until: until}
}

// settle hands the outcome over and remembers when an opened breaker lets the
// next probe through, which gobreaker does not tell.
func (b *breaker) settle(now time.Time, done func(error), outcome error) (opened bool) {
	done(outcome)
	if outcome == nil || b.two.State() != gobreaker.StateOpen {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	opened = !b.openUntil.After(now)
	if opened {
		b.openUntil = now.Add(tripWait + tripGrace)
	}
	return opened
}

// errorRate is the share of failures among the answers of the last tripWindow.
func (b *breaker) errorRate() float64 {
	c := b.two.Counts()
	return float64(c.TotalFailures) / float64(max(c.TotalSuccesses+c.TotalFailures, errorLeast))
}
