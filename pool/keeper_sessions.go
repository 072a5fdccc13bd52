package pool

import (
	"context"
	"slices"
	"time"

	"github.com/authpool/authpool/pool/store"
)

type release struct {
	subscription, session string
	score                 int64
}

// release gives a place back in Redis. One for which there is no room here ends by
// itself.
func (k *keeper) release(m *member, session string, score int64) {
	k.releaseAll([]release{{m.conf().ID, session, score}})
}

func (k *keeper) releaseAll(list []release) {
	k.mu.Lock()
	defer k.mu.Unlock()
	room := max(keeperTurn-len(k.releases), 0)
	k.releases = append(k.releases, list[:min(len(list), room)]...)
}

// writeReleases gives places back. What Redis did not answer to is tried again: it
// compares the score, so that twice is as good as once. The rest comes first then,
// which may be on a node that does answer.
func (k *keeper) writeReleases(ctx context.Context) {
	k.mu.Lock()
	list := k.releases
	k.releases = nil
	k.mu.Unlock()
	var failed []release
	for len(list) > 0 && ctx.Err() == nil {
		if r := list[0]; k.pool.bindings.Release(ctx, r.subscription, r.session, r.score) != nil {
			failed = append(failed, r)
		}
		list = list[1:]
	}
	k.releaseAll(list)
	k.releaseAll(failed)
}

// dirty has the session's place extended and its binding kept.
func (k *keeper) dirty(s *session) {
	if k.pool.bindings == nil {
		return
	}
	s.mu.Lock()
	listed := s.listed
	s.listed = true
	s.mu.Unlock()
	if listed {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changed = append(k.changed, s)
}

// check has it asked for where the session is bound.
func (k *keeper) check(s *session) {
	s.doubt()
	k.dirty(s)
	k.wake()
}

// reserve has the session's reservation prolonged while a request is under way.
func (k *keeper) reserve(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pending[s] = struct{}{}
}

// extendBusy has the places extended of those sessions whose answer takes
// longer than the idle time-out.
func (k *keeper) extendBusy(now time.Time) {
	var busy []*session
	k.pool.sessions.each(func(s *session, _ time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inFlight > 0 && s.bound != nil {
			busy = append(busy, s)
		}
	})
	for _, s := range busy {
		k.pool.refresh(s, now)
	}
}

// writeSessions extends places and keeps bindings, in batches.
func (k *keeper) writeSessions(ctx context.Context, now time.Time) {
	k.prolong(now)
	k.mu.Lock()
	n := min(len(k.changed), keeperTurn)
	list := k.changed[:n:n]
	k.changed = k.changed[n:]
	more := len(k.changed) > 0
	if !more {
		k.changed = nil
	}
	k.mu.Unlock()
	byMember := make(map[*member][]*session)
	for _, s := range list {
		s.mu.Lock()
		s.listed = false
		if s.bound != nil {
			byMember[s.present()] = append(byMember[s.present()], s)
		}
		s.mu.Unlock()
	}
	var keep []*session
	for m, all := range byMember {
		for len(all) > 0 {
			n := min(len(all), keeperBatch)
			if k.extend(ctx, m, all[:n], now) {
				keep = append(keep, all[:n]...)
			} else {
				for _, s := range all[:n] {
					k.dirty(s)
				}
			}
			all = all[n:]
		}
	}
	for len(keep) > 0 {
		n := min(len(keep), keeperBatch)
		k.keep(ctx, keep[:n], now)
		keep = keep[n:]
	}
	if more {
		k.wake()
	}
}

// prolong lists the sessions whose reservation needs more time, and forgets
// those that need none any more.
func (k *keeper) prolong(now time.Time) {
	due := now.Sub(k.reserved) >= reservationRenew
	if due {
		k.reserved = now
	}
	var list []*session
	k.mu.Lock()
	for s := range k.pending {
		s.mu.Lock()
		if s.confirmed || s.inFlight == 0 {
			delete(k.pending, s)
		} else if due {
			list = append(list, s)
		}
		s.mu.Unlock()
	}
	k.mu.Unlock()
	for _, s := range list {
		k.dirty(s)
	}
}

// extend prolongs the places of sessions that are bound to m: reservations by
// their short time, the others until they have been idle for too long.
func (k *keeper) extend(ctx context.Context, m *member, list []*session, now time.Time) bool {
	p := k.pool
	holds := make([]store.Hold, len(list))
	for i, s := range list {
		last := p.sessions.lastUse(s)
		s.mu.Lock()
		hold := p.reservation()
		if s.confirmed || s.score == 0 {
			hold = p.opts().IdleTimeout
			if s.inFlight == 0 {
				hold -= now.Sub(last)
			}
		}
		s.mu.Unlock()
		holds[i] = store.Hold{Session: s.name, For: max(hold, time.Millisecond)}
	}
	scores, count, err := p.bindings.Extend(ctx, m.conf().ID, m.conf().Limits.Sessions, holds)
	if err != nil {
		return false
	}
	m.count.Store(count)
	for i, s := range list {
		moved := false
		s.mu.Lock()
		switch {
		case s.bound == nil || s.bound.conf().ID != m.conf().ID: // meanwhile: what was just prolonged is in its way
			moved = scores[i] != 0
		case scores[i] == 0:
			s.slotUntil, s.score = time.Time{}, 0
			m.unplace(s.name)
		default:
			s.score, s.touched = scores[i], now
			if until := now.Add(holds[i].For); until.After(s.slotUntil) {
				s.slotUntil = until
			}
			m.extend(s.name, s.slotUntil)
		}
		s.mu.Unlock()
		if moved {
			k.release(m, s.name, scores[i])
		}
	}
	return true
}

// keep brings bindings to Redis that it does not have, marks the others used
// now and then, and follows those that another process has moved.
func (k *keeper) keep(ctx context.Context, list []*session, now time.Time) {
	p := k.pool
	var due []*session
	var bindings []store.Binding
	for _, s := range list {
		s.mu.Lock()
		if s.bound != nil && (!s.synced || now.Sub(s.kept) >= p.opts().IdleTimeout/2) {
			due = append(due, s)
			bindings = append(bindings, store.Binding{Session: s.name, Subscription: s.bound.conf().ID, Parent: s.parent})
		}
		s.mu.Unlock()
	}
	if len(due) == 0 {
		return
	}
	bound, _ := p.bindings.Keep(ctx, bindings, p.opts().Affinity)
	for i, s := range due {
		if bound[i] == "" { // not now
			k.dirty(s)
			continue
		}
		s.mu.Lock()
		s.kept = now
		same := s.bound != nil && s.bound.conf().ID == bindings[i].Subscription
		if same && bound[i] == bindings[i].Subscription {
			s.synced, s.looked, s.expect = true, true, bound[i]
		}
		s.mu.Unlock()
		switch {
		case !same || bound[i] == bindings[i].Subscription:
		case bound[i] == store.Released:
			p.unbind(s)
		default:
			p.adopt(s, bound[i])
		}
	}
}

// recheckSessions asks, when news may have been lost, which sessions have moved or
// were released meanwhile. Those that Redis does not know are told to it again.
func (k *keeper) recheckSessions(ctx context.Context) {
	p := k.pool
	k.mu.Lock()
	missed := k.missed
	k.missed = false
	k.mu.Unlock()
	if missed {
		k.recheck = k.recheck[:0]
		p.sessions.each(func(s *session, _ time.Time) { k.recheck = append(k.recheck, s) })
	}
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	turn := k.recheck[:min(len(k.recheck), keeperTurn)]
	for batch := range slices.Chunk(turn, keeperBatch) {
		names := make([]string, len(batch))
		for i, s := range batch {
			names[i] = s.name
		}
		// What did not come is asked for again with the sessions' turn.
		stays, _ := p.bindings.Stays(ctx, names)
		for i, s := range batch {
			if s.differs(stays[i].Subscription) {
				s.doubt()
				k.dirty(s)
			}
		}
		k.recheck = k.recheck[len(batch):]
	}
	if len(k.recheck) > 0 {
		k.wake()
	} else {
		k.recheck = nil
	}
}

// countUsed asks how many sessions hold a place, where there were some.
func (k *keeper) countUsed(ctx context.Context) {
	var used []*member
	for _, m := range k.pool.members() {
		if m.count.Load() > 0 {
			used = append(used, m)
		}
	}
	k.count(ctx, used)
}

// count asks how many sessions hold a place on each of the members.
func (k *keeper) count(ctx context.Context, members []*member) {
	if len(members) == 0 {
		return
	}
	ids := make([]string, len(members))
	for i, m := range members {
		ids[i] = m.conf().ID
	}
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	counts, _ := k.pool.bindings.Counts(ctx, ids)
	for i, m := range members {
		if counts[i] != store.Unknown { // else it is asked for again soon enough
			m.count.Store(counts[i])
		}
	}
}
