package pool

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/authpool/authpool/pool/store"
)

const (
	// bindingWait is how long one attempt waits for Redis to bind its session,
	// all steps together.
	bindingWait = 50 * time.Millisecond
	// bindingTurns is how many bindings talk to Redis at once.
	bindingTurns = 8
	// askAgain is when a place is asked for again that Redis did not answer for.
	askAgain = 200 * time.Millisecond
	// reservation is how long a place is held for a session that no answer has
	// come for yet, unless the idle time-out is shorter; what its process leaves
	// behind when it dies ends with it.
	reservation = 10 * time.Second
	// placeMargin is the rest of a place's time that is too little to count on:
	// its extension takes a moment.
	placeMargin = 2 * time.Second
)

func (p *Pool) reservation() time.Duration { return min(reservation, p.opts().IdleTimeout) }

// bindResult is what became of binding a session.
type bindResult uint8

const (
	bindDone bindResult = iota
	bindFull            // the subscription has no place for it
	bindLost            // somebody else has bound the session, maybe elsewhere
	bindSlow            // Redis did not answer
	bindAway            // Redis, or the part of it that was asked, is known to be away
)

// home returns where the session is bound, asking Redis once when this process
// does not know; nil when it is not bound.
func (p *Pool) home(ctx context.Context, s *session, now time.Time) *member {
	s.mu.Lock()
	bound, looked := s.present(), s.looked
	s.mu.Unlock()
	if bound != nil || looked || !p.shared() {
		return bound
	}
	s.binding.Lock()
	defer s.binding.Unlock()
	s.mu.Lock()
	bound, looked = s.present(), s.looked
	s.mu.Unlock()
	if bound != nil || looked {
		return bound
	}
	ctx, cancel := context.WithDeadline(ctx, now.Add(bindingWait))
	defer cancel()
	if !p.takeTurn(ctx) {
		return nil
	}
	id, err := p.bindings.Lookup(ctx, s.name)
	p.endTurn()
	if err != nil {
		return nil // as without Redis; the keeper settles it later
	}
	m := p.member(id)
	if m != nil && m.conf().Provider != s.key.provider {
		m = nil
	}
	s.mu.Lock()
	s.looked, s.expect = true, id
	if m != nil {
		s.bound, s.since, s.synced = m, time.Now(), true
	}
	bound = s.bound
	s.mu.Unlock()
	p.sessions.stick(s, bound.id())
	return bound
}

// id is the subscription's; empty for none.
func (m *member) id() string {
	if m == nil {
		return ""
	}
	return m.conf().ID
}

// bind makes s stick to m, by the two steps that keep the fleet in agreement:
// a place on m is reserved, then the session's binding is set if it still is
// what this process believes, which is home (nil: none). With local Redis is
// not asked, and the keeper does that when it can; unless places are limited,
// which nobody else may count while Redis, or the node of a cluster that has them,
// is there.
func (p *Pool) bind(ctx context.Context, s *session, m, home *member, local bool, now time.Time) (result bindResult) {
	s.binding.Lock()
	defer s.binding.Unlock()
	s.mu.Lock()
	bound, expect := s.present(), s.expect
	s.mu.Unlock()
	if bound != home {
		return bindLost
	}
	from := expect // where there is no home: of one that is not configured here any more
	if home != nil {
		from = home.conf().ID
	}
	defer func() {
		if result == bindDone && from != "" && from != m.conf().ID {
			p.tellMoved(s.key.exported(), from, m.conf().ID, ReasonClosed)
		}
	}()
	limit := m.conf().Limits.Sessions
	alone := func() bindResult {
		free, ok := m.place(s.name, now, now.Add(p.opts().IdleTimeout), limit)
		if !ok {
			m.setFull(now, free)
			return bindFull
		}
		p.settle(s, m, now, now.Add(p.opts().IdleTimeout), 0, false)
		return bindDone
	}
	if local && limit == 0 || !p.shared() {
		return alone()
	}
	ctx, cancel := context.WithDeadline(ctx, now.Add(bindingWait))
	defer cancel()
	if !p.takeTurn(ctx) {
		return bindSlow
	}
	defer p.endTurn()
	place, err := p.bindings.Reserve(ctx, m.conf().ID, s.name, limit, p.reservation())
	s.setUnsure(m, err != nil)
	switch away := errors.Is(err, store.ErrAway); {
	case away && local:
		return alone()
	case away:
		return bindAway
	case err != nil:
		return bindSlow
	}
	m.count.Store(place.Count)
	if !place.Granted {
		m.setFull(now, place.Free)
		return bindFull
	}
	got, err := p.bindings.Bind(ctx, s.name, expect, m.conf().ID, s.parent, p.opts().Affinity)
	if err == nil && got != m.conf().ID && p.member(got) == nil {
		// Bound to a subscription that is not configured here any more.
		from = got
		got, err = p.bindings.Bind(ctx, s.name, from, m.conf().ID, s.parent, p.opts().Affinity)
	}
	if local && errors.Is(err, store.ErrAway) {
		// Its place is counted; the keeper brings the binding when it can.
		p.settle(s, m, now, now.Add(p.reservation()), place.Score, false)
		return bindDone
	}
	if err != nil || got != m.conf().ID {
		if place.Created {
			p.keeper.release(m, s.name, place.Score)
		}
		switch {
		case errors.Is(err, store.ErrAway):
			return bindAway
		case err != nil:
			return bindSlow
		}
		p.adopt(s, got)
		return bindLost
	}
	p.settle(s, m, now, now.Add(p.reservation()), place.Score, true)
	return bindDone
}

// takeTurn lets a few at a time talk to Redis about bindings: who begins is to
// come to the end in its time. Half-done bindings of a whole crowd would take
// the places that the others wait for.
func (p *Pool) takeTurn(ctx context.Context) bool {
	select {
	case p.turns <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *Pool) endTurn() { <-p.turns }

// settle takes over that s is bound to m and holds a place there, and gives the
// former place back.
func (p *Pool) settle(s *session, m *member, now, until time.Time, score int64, synced bool) {
	s.mu.Lock()
	former, formerScore, held := s.bound, s.score, now.Before(s.slotUntil)
	s.bound, s.expect, s.since, s.synced = m, m.conf().ID, now, synced
	s.slotUntil, s.score, s.touched, s.confirmed = until, score, now, false
	if synced {
		s.looked, s.kept = true, now
	}
	s.mu.Unlock()
	p.sessions.stick(s, m.id())
	if former != nil && former != m {
		former.unplace(s.name)
		if held && formerScore != 0 {
			p.keeper.release(former, s.name, formerScore)
		}
	}
	m.place(s.name, now, until, 0)
	if synced {
		p.keeper.reserve(s)
	} else {
		p.keeper.dirty(s)
	}
}

// adopt follows a binding that another process has made.
func (p *Pool) adopt(s *session, id string) {
	m := p.member(id)
	s.mu.Lock()
	former := s.present()
	if former == m && m != nil {
		s.synced = true
		s.mu.Unlock()
		return
	}
	formerScore, held := s.score, time.Now().Before(s.slotUntil)
	s.bound, s.expect, s.since, s.looked, s.synced = m, id, time.Now(), true, true
	s.slotUntil, s.score, s.confirmed = time.Time{}, 0, false
	s.mu.Unlock()
	p.sessions.stick(s, m.id())
	if former != nil {
		former.unplace(s.name)
		if held && formerScore != 0 {
			p.keeper.release(former, s.name, formerScore)
		}
	}
}

// returns gives a place to a session that is bound to m but holds none: it was
// idle, or another process bound it. Only a subscription that limits its
// sessions is asked at once.
func (p *Pool) returns(ctx context.Context, m *member, s *session, now time.Time) refusal {
	if free, yes := m.full(now); yes && !s.mayHold(m) {
		return refusal{obstacle: full, until: free, reason: ReasonSessions}
	}
	s.binding.Lock()
	defer s.binding.Unlock()
	if s.holdsPlace(now) {
		return refusal{}
	}
	limit := m.conf().Limits.Sessions
	until := now.Add(p.opts().IdleTimeout)
	var place store.Place
	if limit > 0 && p.shared() {
		ctx, cancel := context.WithDeadline(ctx, now.Add(bindingWait))
		defer cancel()
		err := context.DeadlineExceeded
		if p.takeTurn(ctx) {
			place, err = p.bindings.Reserve(ctx, m.conf().ID, s.name, limit, p.reservation())
			s.setUnsure(m, err != nil)
			p.endTurn()
		}
		switch {
		case err != nil && p.shared() && !errors.Is(err, store.ErrAway):
			return refusal{obstacle: saturated, reason: ReasonSessions} // too slow: its count is not known
		case err == nil && !place.Granted:
			m.count.Store(place.Count)
			m.setFull(now, place.Free)
			return refusal{obstacle: full, until: now.Add(place.Free), reason: ReasonSessions}
		case err == nil:
			m.count.Store(place.Count)
			until, limit = now.Add(p.reservation()), 0 // Redis has counted it
		}
	}
	if free, ok := m.place(s.name, now, until, limit); !ok {
		m.setFull(now, free)
		return refusal{obstacle: full, until: now.Add(free), reason: ReasonSessions}
	}
	s.mu.Lock()
	s.slotUntil, s.score, s.touched, s.confirmed = until, place.Score, now, false
	s.mu.Unlock()
	if place.Granted {
		p.keeper.reserve(s)
	} else {
		p.keeper.dirty(s)
	}
	return refusal{}
}

// confirm makes the place of a session that got an answer more than a
// reservation.
func (p *Pool) confirm(s *session, m *member, now time.Time) {
	s.mu.Lock()
	first := s.bound == m && !s.confirmed
	if first {
		s.confirmed = true
	}
	s.mu.Unlock()
	if first {
		p.keeper.dirty(s)
		return
	}
	p.refresh(s, now)
}

// refresh extends the session's place when a good part of its time has passed
// since that was done last.
func (p *Pool) refresh(s *session, now time.Time) {
	s.mu.Lock()
	bound := s.present()
	due := bound != nil && s.confirmed && now.Sub(s.touched) >= p.opts().IdleTimeout/4
	if p.bindings == nil && now.Before(s.slotUntil) {
		s.slotUntil, s.touched = now.Add(p.opts().IdleTimeout), now
		bound.extend(s.name, s.slotUntil)
	}
	s.mu.Unlock()
	if due {
		p.keeper.dirty(s)
	}
}

// holdsPlace tells whether the session has a place for long enough.
func (s *session) holdsPlace(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slotUntil.Sub(now) > 0 && (s.inFlight > 0 || s.slotUntil.Sub(now) > placeMargin)
}

// setUnsure notes that Redis did not answer whether it has given s a place on m.
func (s *session) setUnsure(m *member, unsure bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case unsure:
		s.unsure = m
	case s.unsure == m:
		s.unsure = nil
	}
}

// mayHold tells whether s may have a place on m that it does not know of, so
// that it has to ask though others were refused.
func (s *session) mayHold(m *member) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unsure == m
}

func (s *session) isBound() bool { return s.home() != nil }

// differs tells whether news that the session is bound to sub is worth asking.
func (s *session) differs(sub string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bound != nil && s.bound.conf().ID != sub
}

// doubt has the binding asked for when the session's turn comes.
func (s *session) doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = false
}

// home is where the session is bound, as far as this process knows.
func (s *session) home() *member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.present()
}

// present is where the session is bound, under the lock: a member that other limits
// have replaced is followed by the one in its place.
func (s *session) present() *member {
	for s.bound != nil {
		next := s.bound.next.Load()
		if next == nil {
			break
		}
		s.bound = next
	}
	return s.bound
}

func (s *session) enter(req *Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight++
	s.served, s.allowed, s.sealed = true, req.Allowed, s.sealed || req.Pinned || req.Seals
	if req.Model != "" && s.model != req.Model {
		s.model = strings.Clone(req.Model) // it may lie in a request's buffer
	}
}

func (s *session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight--
}
