package pool

import (
	"math"
	"time"
)

// Strategy says who among those that can serve gets the next new session. It is
// asked for sessions that are new or have to move, and for requests without one:
// whatever it is, a session stays where it is while that can serve.
type Strategy string

// The strategies. All but StrategyPriority put those first whose limits are not
// nearly used up, then the lower tier, and within a tier those that do not fail.
// Who opens again is no worse for it: only a request can find out that it did.
const (
	// StrategyBalanced takes the highest Score.Total.
	StrategyBalanced Strategy = "balanced"
	// StrategyDrainSoonest takes the one whose tightest window or budget ends
	// soonest, so that nothing of it expires unused.
	StrategyDrainSoonest Strategy = "drain_soonest"
	// StrategyPriority takes the first of the operator's list until it cannot serve.
	StrategyPriority Strategy = "priority"
	// StrategyLeastUsed takes the one of whose tightest limit the least is spent.
	StrategyLeastUsed Strategy = "least_used"
	// StrategyRoundRobin takes all in turn, each as often as its weight.
	StrategyRoundRobin Strategy = "round_robin"
)

// Standing is what the strategies beside balanced look at.
type Standing struct {
	Used      float64       // spent part of the tightest limit of all
	ExpiresIn time.Duration // until what is left of its tightest window or budget is lost; 0: nothing is
	Sessions  int64         // that have a place
	InFlight  int64
	Turn      float64 // when its next turn begins, in turns of this process
}

// WindowNews is the Standing.ExpiresIn of a subscription of whose present window
// only the next answer will tell: this process has had none of it, or none since
// the last window was over.
const WindowNews = time.Microsecond

// candidate is one subscription that could serve, as a Strategy compares them.
// Without Redis only what every process knows is set: all but draining,
// priority, order and claim is zero, and the claim decides.
type candidate struct {
	draining bool // the rest of it is for the sessions that are there
	priority int
	order    int  // its place in the configuration
	doubtful bool // most of its answers are failures
	weight   int
	total    float64 // Score.Total
	claim    float64 // on the session, see rendezvous
	Standing
}

// doubtfulBelow is the soundness of a doubtful candidate.
const doubtfulBelow = 0.5

// rate sets what only this process knows.
func (c *candidate) rate(s Score, st Standing) {
	c.total, c.Standing = s.Total, st
	c.doubtful = s.Soundness < doubtfulBelow
}

// before tells whether a is to be taken before b. It is a pure function.
func (s Strategy) before(a, b *candidate) bool {
	if s == StrategyPriority {
		return a.listed(b)
	}
	if a.draining != b.draining {
		return b.draining
	}
	if a.priority != b.priority {
		return a.priority < b.priority
	}
	if s != StrategyBalanced && a.doubtful != b.doubtful { // there the score knows
		return b.doubtful
	}
	switch s {
	case StrategyDrainSoonest:
		return a.sooner(b)
	case StrategyLeastUsed:
		return a.lessUsed(b)
	case StrategyRoundRobin:
		return a.nextInTurn(b)
	default:
		return a.better(b)
	}
}

// drainFrom is the spent part of a budget from which on the rest of it is for the
// sessions that are there: who is to use things up is more daring.
func (s Strategy) drainFrom(h Health) float64 {
	switch s {
	case StrategyPriority:
		return math.Inf(1)
	case StrategyDrainSoonest:
		return h.Nearly
	default:
		return drainFrom
	}
}
