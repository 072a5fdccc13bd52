package pool

import (
	"sync"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// arrivals are the sessions that come to a subscription from one that has closed.
// Those of a subscription that carried many would all come at once, and meet the
// next limit together. So there is one of their requests under way at first, and
// one more every ratelimit.RampPace, until there may be any number
// (ratelimit.RampTime). The sessions that are there already are not counted, nor is
// a session's second request.
//
// Each process lets its own sessions arrive in this way: a fleet has one ramp for
// each process that has sessions to move, and what the first of them are refused is
// known to all within a second.
//
// The zero arrivals is ready. It is safe for concurrent use.
type arrivals struct {
	mu   sync.Mutex
	last time.Time // when one came
	now  *arrival  // nil: none ever came
}

// arrival is one such move of many sessions.
type arrival struct {
	begin time.Time
	out   int // requests under way
}

// enter lets one come, which is to leave; or says when there is room for one more.
func (a *arrivals) enter(now time.Time) (one *arrival, next time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.now == nil || now.Sub(a.last) >= ratelimit.RampTime {
		a.now = &arrival{begin: now}
	}
	one = a.now
	if since := now.Sub(one.begin); since < ratelimit.RampTime {
		if room := 1 + since/ratelimit.RampPace; one.out >= int(room) {
			return nil, one.begin.Add(min(room*ratelimit.RampPace, ratelimit.RampTime))
		}
	}
	one.out++
	a.last = now
	return one, time.Time{}
}

// leave ends the request of one that came; nil is none.
func (a *arrivals) leave(one *arrival) {
	if one == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	one.out--
}

// moving is how one request's session leaves a subscription that has closed.
type moving struct {
	yes   bool      // it does
	rush  bool      // however many do: waiting would be an error for the agent
	until time.Time // when there is room for it at the first of those that could have served; zero: nobody could
}

// hurry tries once more, for a request that only the number of those that move with
// it kept from being served.
func (r *Request) hurry(try func() *Lease) *Lease {
	if r.moving.until.IsZero() {
		return nil
	}
	r.moving.rush = true
	return try()
}
