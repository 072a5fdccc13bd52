package proxy

import (
	"context"
	"sync"
	"time"
)

// leaveContext is a context.Context that ends when the agent leaves. It makes
// its channel only when somebody waits for it: most requests never do, and then
// it serves the next request too. One whose channel was given out is never used
// again, since whoever waits reads the error at any time after.
type leaveContext struct {
	mu   sync.Mutex
	done chan struct{}
	err  error
}

// next returns a context for the next request: c itself, if nobody has it.
func (c *leaveContext) next() *leaveContext {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done != nil {
		return new(leaveContext)
	}
	c.err = nil
	return c
}

// cancel ends the context.
func (c *leaveContext) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = context.Canceled
	if c.done != nil {
		close(c.done)
	}
}

// Done implements context.Context.
func (c *leaveContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

// Err implements context.Context.
func (c *leaveContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Deadline implements context.Context: there is none.
func (c *leaveContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context: there are none.
func (c *leaveContext) Value(any) any { return nil }
