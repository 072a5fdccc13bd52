package pool

import (
	"context"
	"sync"
	"time"

	"github.com/authpool/authpool/pool/store"
)

const (
	// shareMargin is taken off the end of a share, for clocks that run at
	// different speeds.
	shareMargin = 500 * time.Millisecond
	// shareIdle is when a share that nobody uses is given back.
	shareIdle = 30 * time.Second
	// shareAsk is how soon the fleet is asked again by requests that found no
	// room, and shareRenew how soon without them.
	shareAsk   = 100 * time.Millisecond
	shareRenew = 3 * time.Second
	// shareWait is how long a request waits for a share that nobody else may
	// have, even if it is not to wait for a subscription: it would be refused
	// though there is room. The talk with Redis takes no longer.
	shareWait = keeperTimeout
)

// share is this process's part of a subscription's limits.concurrent, and the
// exact count of what is under way. Without a limit it only counts.
//
// The shares of all processes never exceed the limit. The price is that a
// process without one asks for it first: the request waits in the queue until
// the keeper has been to Redis and back. While Redis is away a share that was
// held then stays, because nobody can get it; who held none may start one
// request at a time, so that traffic goes on.
type share struct {
	limit int  // 0: none
	whole bool // no fleet: the whole limit is ours

	mu       sync.Mutex
	inFlight int
	granted  int       // what counts as ours in Redis
	target   int       // up to where new requests may start
	until    time.Time // end of the lease
	denied   int       // requests that found no room since the last renewal
	used     time.Time // when a request last came
	asked    time.Time // when the fleet was last asked
	retired  bool      // no new requests are to come
}

// enter counts one request in, or refuses it.
func (s *share) enter(now time.Time, away bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = now
	if s.inFlight >= s.room(now, away) {
		return false
	}
	s.inFlight++
	return true
}

// demand notes a request that found no room, and tells whether the fleet is to
// be asked for more at once.
func (s *share) demand(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = now
	s.denied = min(s.denied+1, s.limit)
	return !s.whole && s.inFlight < s.limit && now.Sub(s.asked) >= shareAsk
}

// room is up to where requests may start.
func (s *share) room(now time.Time, away bool) int {
	switch {
	case s.limit == 0:
		return int(^uint(0) >> 1)
	case s.whole:
		return s.limit
	case now.Before(s.until):
		return s.target
	case away:
		return max(s.target, 1)
	}
	return 0
}

// leave counts one request out.
func (s *share) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inFlight == 0 {
		panic("BUG: a request left twice")
	}
	s.inFlight--
}

// busy is the number of requests under way.
func (s *share) busy() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inFlight
}

// has tells whether one more request would get in.
func (s *share) has(now time.Time, away bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inFlight < s.room(now, away)
}

// short tells whether a larger share is all that is missing.
func (s *share) short() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.whole && s.granted == 0 && s.inFlight < s.limit
}

// request says what to ask the fleet for; ok is false when there is nothing to
// ask. A little more than what is under way is wanted, so that the next
// requests need not wait.
func (s *share) request(now time.Time) (r store.ShareRequest, ok bool) {
	if s.limit == 0 || s.whole {
		return r, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted, since := s.denied > 0, now.Sub(s.asked)
	if !wanted && s.granted == 0 && s.inFlight == 0 || since < shareAsk || !wanted && since < shareRenew {
		return r, false
	}
	s.asked = now
	r = store.ShareRequest{Limit: s.limit, InFlight: s.inFlight}
	if !s.retired && (s.inFlight > 0 || s.denied > 0 || now.Sub(s.used) < shareIdle) {
		r.Want = min(s.limit, s.inFlight+s.denied+1+s.limit/8)
	}
	s.denied = 0
	return r, true
}

// retire makes the next request give up what is not under way.
func (s *share) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired, s.denied, s.asked = true, 0, time.Time{}
}

// renew takes over what was granted to a request that was sent at the given
// time. It tells whether there is more room than before.
func (s *share) renew(sent time.Time, got store.Share) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.target
	if !sent.Before(s.until) {
		before = 0
	}
	s.granted, s.target = got.Granted, got.Target
	s.until = sent.Add(store.ShareLease - shareMargin)
	return s.target > before
}

// shares renews this process's shares of limits.concurrent.
func (k *keeper) shares(ctx context.Context, now time.Time) {
	p := k.pool
	var members []*member
	var requests []store.ShareRequest
	for _, m := range p.members() {
		if r, ok := m.share.request(now); ok {
			r.Subscription = m.conf().ID
			members, requests = append(members, m), append(requests, r)
		}
	}
	if len(requests) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	got, _ := p.bindings.Shares(ctx, p.process, requests)
	for i, m := range members {
		// The lease of one that could not be renewed ends if this goes on.
		if got[i].Granted != store.Unknown && m.share.renew(now, got[i]) {
			p.group(m.conf().Provider).queue.event()
		}
	}
}
