package pool

import "time"

// drainStep is how far two resets may be apart and still count as one: answers
// tell the same one to the second, and not always the same second.
const drainStep = time.Minute

// sooner is StrategyDrainSoonest: whose tightest window or budget ends sooner,
// before those of which nothing is lost at any time; between equals as balanced.
//
// One whose window is not known comes first: it is as soon as it is used, and
// windows that begin with their first use go by unused until then.
//
// What is spent early out of a window that ends later is missing in a rush,
// while the rest of one that has ended is gone.
func (c *candidate) sooner(o *candidate) bool {
	if (c.ExpiresIn > 0) != (o.ExpiresIn > 0) {
		return c.ExpiresIn > 0
	}
	if x, y := c.ExpiresIn/drainStep, o.ExpiresIn/drainStep; x != y {
		return x < y
	}
	return c.better(o)
}
