package pool

import (
	"math"
	"sync/atomic"
)

// nextInTurn is StrategyRoundRobin: whose turn is next, then the higher claim on
// the session, so that processes that have just begun do not all begin with the
// same one.
func (c *candidate) nextInTurn(o *candidate) bool {
	if c.Turn != o.Turn {
		return c.Turn < o.Turn
	}
	return c.claim > o.claim
}

// turns are those of one subscription, in fair queueing by start times (Goyal,
// Vin and Cheng, 1996): the time of its provider is where the last one began, and
// who was closed for a while goes on from there instead of making up for it. One
// choice takes 1 ÷ weight of that time. It is safe for concurrent use; choices at
// the same moment may fall on the same one, which then waits for as much longer.
type turns struct {
	clock *atomic.Uint64 // the bits of the provider's time
	ended atomic.Uint64  // the bits of when its last turn was over
}

// next is when its next turn begins.
func (t *turns) next() float64 {
	return max(math.Float64frombits(t.clock.Load()), math.Float64frombits(t.ended.Load()))
}

// take takes it.
func (t *turns) take(weight int) {
	for {
		ended := t.ended.Load()
		begin := max(math.Float64frombits(t.clock.Load()), math.Float64frombits(ended))
		if t.ended.CompareAndSwap(ended, math.Float64bits(begin+1/float64(weight))) {
			t.advance(begin)
			return
		}
	}
}

// advance sets the provider's clock, which never goes back.
func (t *turns) advance(begin float64) {
	for {
		clock := t.clock.Load()
		if math.Float64frombits(clock) >= begin || t.clock.CompareAndSwap(clock, math.Float64bits(begin)) {
			return
		}
	}
}
