package pool

import "math"

// tie is how far two totals may be apart and still count as equal, so that
// processes that see slightly different loads make the same choice.
const tie = 1.0

// better is StrategyBalanced: the better score, then the higher claim on the
// session.
func (c *candidate) better(o *candidate) bool {
	if x, y := math.Floor(c.total/tie), math.Floor(o.total/tie); x != y {
		return x > y
	}
	return c.claim > o.claim
}
