package proxy

import (
	"context"
	"errors"
	"testing"
)

// What was derived from a request's context reads its error some time after it
// was cancelled, and package context panics, with the whole process, if there
// is none by then.
func TestLeaveContextOutlivesItsRequest(t *testing.T) {
	c := new(leaveContext)
	child, stop := context.WithCancel(c)
	defer stop()
	c.cancel()
	next := c.next()
	if next == c || next.Err() != nil {
		t.Errorf("the next request has a context that somebody waits for: %v", next.Err())
	}
	<-child.Done()
	if !errors.Is(c.Err(), context.Canceled) || !errors.Is(child.Err(), context.Canceled) {
		t.Errorf("%v, %v", c.Err(), child.Err())
	}
	// Nobody has waited for this one.
	next.cancel()
	if again := next.next(); again != next || again.Err() != nil {
		t.Errorf("%v", again.Err())
	}
}
