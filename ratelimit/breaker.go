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
	// tripGrace keeps a retry that is timed to the end of gobreaker's own wait from
	// coming an instant too early: it opens after that instant, not at it.
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
	two   atomic.Pointer[twoStep] // replaced by reset
	state atomic.Int32            // gobreaker.State as of its last change
	row   atomic.Int32            // how often it opened since it was last closed
	wait  openFor
	force atomic.Bool // the next failure opens it, whatever the rule says

	mu        sync.Mutex
	settings  gobreaker.Settings
	openUntil time.Time
	probe     *trial // the last request that was let through half open
}

type twoStep = gobreaker.TwoStepCircuitBreaker[struct{}]

// openFor tells for how long a breaker opens, the row-th time in a row, counted
// from 1, by the outcome that opened it. It is never less than the breaker's own
// least.
type openFor func(row int, outcome error) time.Duration

// trial is the request that finds out whether the endpoint works again.
type trial struct {
	at   time.Time
	done func(error) // nil once it is settled
	late bool        // it took too long, and another may have taken its place
}

// newBreaker returns the breaker of a subscription at its base URL.
func newBreaker(id string) *breaker {
	return makeBreaker(id, tripWait, func(int, error) time.Duration { return tripWait }, func(c gobreaker.Counts) bool {
		return c.ConsecutiveFailures >= tripRow || mostFail(c, tripLeast)
	})
}

// makeBreaker returns a closed breaker that opens by the rule trips, for least or
// longer.
func makeBreaker(name string, least time.Duration, wait openFor, trips func(gobreaker.Counts) bool) *breaker {
	b := &breaker{wait: wait}
	b.renew(gobreaker.Settings{
		Name:         name,
		MaxRequests:  1,
		Interval:     tripWindow,
		BucketPeriod: tripBucket,
		Timeout:      least,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return b.force.Load() || trips(c) },
		IsExcluded:   func(err error) bool { return errors.Is(err, errNoMatter) },
	})
	return b
}

// renew begins with a new gobreaker.
func (b *breaker) renew(settings gobreaker.Settings) {
	var two *twoStep
	settings.OnStateChange = func(_ string, _, to gobreaker.State) {
		if b.two.Load() != two {
			return // its requests are still settled
		}
		b.state.Store(int32(to))
		if to == gobreaker.StateClosed {
			b.row.Store(0)
		}
	}
	two = gobreaker.NewTwoStepCircuitBreaker[struct{}](settings)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settings = settings
	b.two.Store(two)
	b.state.Store(int32(gobreaker.StateClosed))
	b.row.Store(0)
	b.openUntil, b.probe = time.Time{}, nil
}

// reset closes the breaker: what opened it is known to be over.
func (b *breaker) reset() {
	if b.is(gobreaker.StateClosed) {
		return
	}
	b.mu.Lock()
	settings := b.settings
	b.mu.Unlock()
	b.renew(settings)
}

// mostFail tells whether tripShare of at least that many answers are failures.
func mostFail(c gobreaker.Counts, least uint32) bool {
	answers := c.TotalSuccesses + c.TotalFailures
	return answers >= least && float64(c.TotalFailures) >= tripShare*float64(answers)
}

func (b *breaker) is(state gobreaker.State) bool { return b.state.Load() == int32(state) }

// check tells whether the breaker refuses, without taking anything.
func (b *breaker) check(now time.Time) Refusal {
	if b.is(gobreaker.StateClosed) || b.two.Load().State() != gobreaker.StateOpen && !b.waits(now) {
		return Refusal{}
	}
	return b.refusal(now)
}

// waits tells whether the breaker is open for longer than gobreaker knows.
func (b *breaker) waits(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.openUntil.After(now)
}

// trying tells whether a trial is out that has not had its time.
func (b *breaker) trying(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.probe != nil && b.probe.done != nil && now.Before(b.probe.at.Add(ProbePatience))
}

// allow lets one request through; done settles it, exactly once.
func (b *breaker) allow(now time.Time) (done func(error), r Refusal) {
	if !b.is(gobreaker.StateClosed) && b.waits(now) {
		return nil, b.refusal(now)
	}
	two := b.two.Load()
	done, err := two.Allow()
	if err != nil && b.abandon(now) {
		done, err = two.Allow()
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
	if late {
		t.late = true
	}
	b.mu.Unlock()
	if late {
		b.conclude(t, errNoMatter)
	}
	return late
}

// conclude settles a trial; a second time does nothing. Only the success of one
// that was abandoned still counts: where no answer comes in time for ProbePatience
// the breaker would never close.
func (b *breaker) conclude(t *trial, outcome error) {
	b.mu.Lock()
	if t.done == nil && t.late && outcome == nil && b.probe != nil {
		t = b.probe
	}
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
		row := int(b.row.Add(1))
		b.openUntil = now.Add(max(b.wait(row, outcome), b.settings.Timeout+tripGrace))
	}
	return opened
}

// errorRate is the share of failures among the answers of the last tripWindow.
func (b *breaker) errorRate() float64 {
	two := b.two.Load()
	_ = two.State() // forgets what is older than the window; Counts alone does not
	c := two.Counts()
	return float64(c.TotalFailures) / float64(max(c.TotalSuccesses+c.TotalFailures, errorLeast))
}
