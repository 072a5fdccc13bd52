package pool

import "math"

// usedStep is how far two spent parts may be apart and still count as equal.
const usedStep = 0.01

// lessUsed is StrategyLeastUsed: the least spent part of the tightest limit, then
// the fewest sessions and requests under way for its weight, then the higher
// claim on the session.
func (c *candidate) lessUsed(o *candidate) bool {
	if x, y := math.Floor(c.Used/usedStep), math.Floor(o.Used/usedStep); x != y {
		return x < y
	}
	weigh := func(n int64, weight int) float64 { return float64(n) / float64(max(weight, 1)) }
	if x, y := weigh(c.Sessions, c.weight), weigh(o.Sessions, o.weight); x != y {
		return x < y
	}
	if x, y := weigh(c.InFlight, c.weight), weigh(o.InFlight, o.weight); x != y {
		return x < y
	}
	return c.claim > o.claim
}
