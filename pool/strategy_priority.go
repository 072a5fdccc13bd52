package pool

// listed is StrategyPriority: the lower tier, and within it whoever stands first
// in the configuration; nothing else matters, with and without Redis.
func (c *candidate) listed(o *candidate) bool {
	if c.priority != o.priority {
		return c.priority < o.priority
	}
	return c.order < o.order
}
