package ratelimit

import (
	"errors"
	"sync"
	"sync/atomic"
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
// is settled. That happens at the verdict, not at the end of the answer; and a
// verdict that takes longer than ProbePatience makes room for another probe.
type breaker struct {
	two   *gobreaker.TwoStepCircuitBreaker[struct{}]
	state atomic.Int32 // gobreaker.State as of its last change

	mu        sync.Mutex
	openUntil time.Time
	probe     *trial // the last request that was let through half open
}

// trial is the request that finds out whether the endpoint works again.
type trial struct {
	at   time.Time
	done func(error) // nil once it is settled
}

func newBreaker(id string) *breaker {
	b := &breaker{}
	b.two = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
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
		IsExcluded:    func(err error) bool { return errors.Is(err, errNoMatter) },
		OnStateChange: func(_ string, _, to gobreaker.State) { b.state.Store(int32(to)) },
	})
	return b
}

func (b *breaker) is(state gobreaker.State) bool { return b.state.Load() == int32(state) }

// check tells whether the breaker refuses, without taking anything.
func (b *breaker) check(now time.Time) Refusal {
	if b.is(gobreaker.StateClosed) || b.two.State() != gobreaker.StateOpen {
		return Refusal{}
	}
	return b.refusal(now)
}

// allow lets one request through; done settles it, exactly once.
func (b *breaker) allow(now time.Time) (done func(error), r Refusal) {
	done, err := b.two.Allow()
	if err != nil && b.abandon(now) {
		done, err = b.two.Allow()
	}
	if err != nil {
		return nil, b.refusal(now)
	}
	if b.is(gobreaker.StateHalfOpen) {
		return b.try(now, done), Refusal{}
	}
	return done, Refusal{}
}

// try makes the request a trial that can be abandoned.
func (b *breaker) try(now time.Time, done func(error)) func(error) {
	t := &trial{at: now, done: done}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probe = t
	return func(outcome error) { b.conclude(t, outcome) }
}

// abandon gives up a trial that takes too long, and tells whether there was one.
func (b *breaker) abandon(now time.Time) bool {
	b.mu.Lock()
	t := b.probe
	late := t != nil && t.done != nil && !now.Before(t.at.Add(ProbePatience))
	b.mu.Unlock()
	if late {
		b.conclude(t, errNoMatter)
	}
	return late
}

// conclude settles a trial; a second time does nothing.
func (b *breaker) conclude(t *trial, outcome error) {
	b.mu.Lock()
	done := t.done
	t.done = nil
	b.mu.Unlock()
	if done != nil {
		done(outcome)
	}
}

// refusal tells when to ask again: when the breaker lets a trial through, or
// when the one that is out has had its time.
func (b *breaker) refusal(now time.Time) Refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	until := b.openUntil
	if !until.After(now) {
		until = now.Add(ProbePatience)
		if t := b.probe; t != nil && t.done != nil && t.at.Add(ProbePatience).After(now) {
			until = t.at.Add(ProbePatience)
		}
	}
	return Refusal{Why: Broken, Until: until}
}

// settle hands the outcome over and remembers when an opened breaker lets the
// next trial through, which gobreaker does not tell.
func (b *breaker) settle(now time.Time, done func(error), outcome error) (opened bool) {
	done(outcome)
	if outcome == nil || !b.is(gobreaker.StateOpen) {
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
	_ = b.two.State() // forgets what is older than the window; Counts alone does not
	c := b.two.Counts()
	return float64(c.TotalFailures) / float64(max(c.TotalSuccesses+c.TotalFailures, errorLeast))
}
