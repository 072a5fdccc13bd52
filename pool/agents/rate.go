package agents

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rates are how much of one sidecar an agent may have at a time; 0 is no limit. Each
// sidecar keeps them by itself, so that they bound what an agent does to it; what it
// does to providers is bounded by Budgets and by the limits of subscriptions.
type Rates struct {
	RequestsPerMinute int // as many may come at once as come in ten seconds, and one at least
	Concurrent        int // requests whose answer has not ended
	Connections       int // open; one is the agent's that shows itself on it first
}

// BusyError says that an agent does more at a time than it may.
type BusyError struct {
	What string // "requests per minute", "concurrent requests" or "connections"
	Most int
	// Wait is when to try again: of requests per minute when the next one is allowed.
	Wait time.Duration
}

// Error implements error with the sentence for the agent, without the "authpool: " in
// front.
func (e *BusyError) Error() string {
	return fmt.Sprintf("this agent may have %d %s at each sidecar; an operator may allow more by `authpool agents limit`", e.Most, e.What)
}

// rateWait is when to ask again for what ends when something else does.
const rateWait = time.Second

// gate holds an agent to its Rates. It outlives changes of the agent's record.
type gate struct {
	mu          sync.Mutex
	limiter     *rate.Limiter // nil: none was needed
	running     int
	connections int
}

// Enter counts a request in until Leave. Where the agent does too much already, the
// error is a *BusyError, and nothing is counted.
func (e *Entry) Enter(now time.Time) error {
	g := &e.account.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if most := e.Concurrent; most > 0 && g.running >= most {
		return &BusyError{What: "concurrent requests", Most: most, Wait: rateWait}
	}
	if most := e.RequestsPerMinute; most > 0 {
		limit, burst := rate.Limit(float64(most)/60), max(1, most/6)
		switch {
		case g.limiter == nil:
			g.limiter = rate.NewLimiter(limit, burst)
		case g.limiter.Limit() != limit:
			g.limiter.SetLimitAt(now, limit)
			g.limiter.SetBurstAt(now, burst)
		}
		if r := g.limiter.ReserveN(now, 1); r.DelayFrom(now) > 0 {
			wait := r.DelayFrom(now)
			r.CancelAt(now)
			return &BusyError{What: "requests per minute", Most: most, Wait: wait}
		}
	}
	g.running++
	return nil
}

// Leave says that a request has ended for which Enter returned nil.
func (e *Entry) Leave() {
	g := &e.account.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
}

// Connect counts a connection in until Disconnect. Where the agent has too many
// already, the error is a *BusyError, and nothing is counted.
func (e *Entry) Connect() error {
	g := &e.account.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if most := e.Connections; most > 0 && g.connections >= most {
		return &BusyError{What: "connections", Most: most, Wait: rateWait}
	}
	g.connections++
	return nil
}

// Disconnect says that a connection has ended for which Connect returned nil.
func (e *Entry) Disconnect() {
	g := &e.account.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.connections--
}
