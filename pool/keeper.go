package pool

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
)

const (
	keeperTick    = 250 * time.Millisecond
	keeperTimeout = 2 * time.Second // of one talk with Redis
	keeperBatch   = 100             // sessions in one script
	keeperTurn    = 2000            // sessions in one turn, so that cooldowns do not wait behind them

	reservationRenew = 3 * time.Second
	statePoll        = 30 * time.Second // all states are read that often, give or take a third
	countPoll        = time.Minute
	sharedModel      = 128 // the longest name of a model in a key
)

// keeper is the pool's talk with Redis off the request path: one goroutine that
// writes what requests left for it and reads what other processes did, and one
// that listens for their hints. What it could not write stays with it until
// Redis answers; all of that is bounded by the sessions and subscriptions that
// the pool knows.
type keeper struct {
	pool *Pool
	kick chan struct{} // holds one: there is something to do at once

	mu       sync.Mutex
	changed  []*session            // to be extended and kept; each is here once
	pending  map[*session]struct{} // hold a reservation, and no answer has come
	cools    map[coolKey]coolValue // to be shared
	releases []release             // places to be given back
	stale    map[string]struct{}   // subscriptions whose state is to be read
	allStale bool

	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Of the goroutine alone.
	healthy                                      bool
	reserved, polled, counted, credentials, busy time.Time
	pollEvery                                    time.Duration
}

type coolKey struct{ subscription, model string }

type coolValue struct {
	until         time.Time
	state, reason string
}

type release struct {
	subscription, session string
	score                 int64
}

func newKeeper(p *Pool) *keeper {
	return &keeper{
		pool:    p,
		kick:    make(chan struct{}, 1),
		pending: make(map[*session]struct{}),
		cools:   make(map[coolKey]coolValue),
		stale:   make(map[string]struct{}),
	}
}

// start reads the fleet's cooldowns once, within ctx, and starts the goroutines.
func (k *keeper) start(ctx context.Context) {
	if k.pool.shared() {
		k.healthy = true
		k.allStale = true
		k.readStates(ctx, time.Now())
	}
	run, cancel := context.WithCancel(context.Background())
	k.cancel = cancel
	k.wg.Go(func() { k.run(run) })
	if k.pool.bindings != nil {
		k.wg.Go(func() { k.pool.bindings.Watch(run, k.hear) })
	}
}

// stop ends the goroutines, after a last turn that leaves nothing unwritten if
// Redis is there.
func (k *keeper) stop() {
	if k.cancel == nil {
		return
	}
	k.cancel()
	k.wg.Wait()
	k.cancel = nil
}

// wake makes the keeper take its turn now.
func (k *keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

func (k *keeper) run(ctx context.Context) {
	period := keeperTick
	if k.pool.bindings == nil {
		period = credentialRecheck // nothing else is to do
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if k.pool.shared() {
				k.last(time.Now())
			}
			return
		case <-tick.C:
		case <-k.kick:
		}
		k.turn(ctx, time.Now())
	}
}

// last leaves nothing behind that another process would wait for.
func (k *keeper) last(now time.Time) {
	ctx := context.Background() // every talk has its own time-out
	k.write(ctx, now)
	for _, m := range k.pool.members {
		m.share.retire()
	}
	k.shares(ctx, now)
}

// turn does what is due.
func (k *keeper) turn(ctx context.Context, now time.Time) {
	p := k.pool
	if now.Sub(k.credentials) >= credentialRecheck {
		k.credentials = now
		p.checkCredentials(ctx, false)
	}
	if now.Sub(k.busy) >= p.opts.IdleTimeout/4 {
		k.busy = now
		k.extendBusy(now)
	}
	healthy := p.shared()
	if healthy && !k.healthy { // back: much may have happened
		k.mu.Lock()
		k.allStale = true
		k.mu.Unlock()
	}
	k.healthy = healthy
	if !healthy {
		return
	}
	k.write(ctx, now)
	k.shares(ctx, now)
	if now.Sub(k.polled) >= k.pollEvery {
		k.polled = now
		// A fleet must not ask in step.
		k.pollEvery = statePoll*2/3 + rand.N(statePoll*2/3) //nolint:gosec // nobody gains by guessing it
		k.mu.Lock()
		k.allStale = true
		k.mu.Unlock()
	}
	k.readStates(ctx, now)
	if now.Sub(k.counted) >= min(countPoll, p.opts.IdleTimeout/4) {
		k.counted = now
		k.count(ctx)
	}
}

// write sends what requests left behind.
func (k *keeper) write(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	k.writeCools(ctx, now)
	k.writeReleases(ctx)
	k.writeSessions(ctx, now)
}

// cool shares a cooldown with the other processes.
func (k *keeper) cool(m *member, c ratelimit.Change) {
	if k.pool.bindings == nil {
		return
	}
	key := coolKey{subscription: m.conf.ID}
	if !c.Whole {
		if !printable(c.Model) {
			return // cannot stand in a key: every process learns it for itself
		}
		key.model = c.Model
	}
	state := StateCooling
	if c.Signal == ratelimit.Quota {
		state = StateDisabled
	}
	k.mu.Lock()
	if old, ok := k.cools[key]; !ok || old.until.Before(c.Until) {
		k.cools[key] = coolValue{until: c.Until, state: string(state), reason: string(c.Reason)}
	}
	k.mu.Unlock()
	k.wake()
}

// printable tells whether a model's name can stand in a field.
func printable(model string) bool {
	if model == "" || len(model) > sharedModel {
		return false
	}
	for i := range len(model) {
		if model[i] < '!' || model[i] > '~' {
			return false
		}
	}
	return true
}

func (k *keeper) writeCools(ctx context.Context, now time.Time) {
	k.mu.Lock()
	var out []store.Cooldown
	sent := make(map[coolKey]coolValue, len(k.cools))
	for key, v := range k.cools {
		if wait := v.until.Sub(now); wait > 0 {
			out = append(out, store.Cooldown{
				Subscription: key.subscription, Model: key.model, State: v.state, Reason: v.reason, Wait: wait,
			})
			sent[key] = v
		} else {
			delete(k.cools, key)
		}
	}
	k.mu.Unlock()
	if len(out) == 0 || k.pool.bindings.Cool(ctx, out) != nil {
		return // they stay for the next turn
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, v := range sent {
		if k.cools[key] == v {
			delete(k.cools, key)
		}
	}
}

// release gives a place back in Redis. One that does not get there ends by
// itself, so the list may be cut.
func (k *keeper) release(m *member, session string, score int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.releases) < keeperTurn {
		k.releases = append(k.releases, release{m.conf.ID, session, score})
	}
}

func (k *keeper) writeReleases(ctx context.Context) {
	k.mu.Lock()
	list := k.releases
	k.releases = nil
	k.mu.Unlock()
	for _, r := range list {
		if k.pool.bindings.Release(ctx, r.subscription, r.session, r.score) != nil {
			return
		}
	}
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
			byMember[s.bound] = append(byMember[s.bound], s)
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
			hold = p.opts.IdleTimeout
			if s.inFlight == 0 {
				hold -= now.Sub(last)
			}
		}
		s.mu.Unlock()
		holds[i] = store.Hold{Session: s.name, For: max(hold, time.Millisecond)}
	}
	scores, count, err := p.bindings.Extend(ctx, m.conf.ID, m.conf.Limits.Sessions, holds)
	if err != nil {
		return false
	}
	m.count.Store(count)
	for i, s := range list {
		moved := false
		s.mu.Lock()
		switch {
		case s.bound != m: // meanwhile: what was just prolonged is in its way
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
		if s.bound != nil && (!s.synced || now.Sub(s.kept) >= p.opts.IdleTimeout/2) {
			due = append(due, s)
			bindings = append(bindings, store.Binding{Session: s.name, Subscription: s.bound.conf.ID, Parent: s.parent})
		}
		s.mu.Unlock()
	}
	if len(due) == 0 {
		return
	}
	bound, err := p.bindings.Keep(ctx, bindings, p.opts.Affinity)
	if err != nil {
		for _, s := range due {
			k.dirty(s)
		}
		return
	}
	for i, s := range due {
		s.mu.Lock()
		s.kept = now
		same := s.bound != nil && s.bound.conf.ID == bindings[i].Subscription
		if same && bound[i] == bindings[i].Subscription {
			s.synced, s.looked, s.expect = true, true, bound[i]
		}
		s.mu.Unlock()
		if same && bound[i] != bindings[i].Subscription {
			p.adopt(s, bound[i])
		}
	}
}

// shares renews this process's shares of limits.concurrent.
func (k *keeper) shares(ctx context.Context, now time.Time) {
	p := k.pool
	var members []*member
	var requests []store.ShareRequest
	for _, m := range p.members {
		if r, ok := m.share.request(now); ok {
			r.Subscription = m.conf.ID
			members, requests = append(members, m), append(requests, r)
		}
	}
	if len(requests) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	got, err := p.bindings.Shares(ctx, p.process, requests)
	if err != nil {
		return // the leases end if this goes on
	}
	for i, m := range members {
		if m.share.renew(now, got[i]) {
			p.groups[m.conf.Provider].queue.event()
		}
	}
}

// hear takes the hint of another process.
func (k *keeper) hear(e store.Event) {
	switch {
	case e.Session != "":
		provider, rest, _ := strings.Cut(e.Session, "/")
		agent, id, _ := strings.Cut(rest, "/")
		s := k.pool.sessions.find(sessionKey{provider, agent, id})
		if s == nil || !s.differs(e.Subscription) {
			return
		}
		// The news may be old: the truth is asked for.
		s.doubt()
		k.dirty(s)
	case e.State != "":
		k.mu.Lock()
		if k.pool.byID[e.State] != nil {
			k.stale[e.State] = struct{}{}
		}
		k.mu.Unlock()
	default:
		k.mu.Lock()
		k.allStale = true
		k.mu.Unlock()
	}
	k.wake()
}

// readStates reads the cooldowns of the subscriptions that may have changed.
func (k *keeper) readStates(ctx context.Context, now time.Time) {
	p := k.pool
	k.mu.Lock()
	var ids []string
	if k.allStale {
		for _, m := range p.members {
			ids = append(ids, m.conf.ID)
		}
	} else {
		for id := range k.stale {
			ids = append(ids, id)
		}
	}
	k.allStale = false
	clear(k.stale)
	k.mu.Unlock()
	for len(ids) > 0 {
		n := min(len(ids), keeperBatch)
		if !k.readSome(ctx, ids[:n], now) {
			k.mu.Lock()
			for _, id := range ids {
				k.stale[id] = struct{}{}
			}
			k.mu.Unlock()
			return
		}
		ids = ids[n:]
	}
}

func (k *keeper) readSome(ctx context.Context, ids []string, now time.Time) bool {
	p := k.pool
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	list, err := p.bindings.Cooldowns(ctx, ids)
	if err != nil {
		return false
	}
	for _, c := range list {
		signal := ratelimit.Limited
		if c.State == string(StateDisabled) {
			signal = ratelimit.Quota
		}
		cooldowns := p.byID[c.Subscription].gate.Cooldowns()
		cooldowns.Adopt(now, c.Model, now.Add(c.Wait), signal, ratelimit.Reason(c.Reason))
	}
	return true
}

// count asks how many sessions hold a place, where there were some.
func (k *keeper) count(ctx context.Context) {
	p := k.pool
	var members []*member
	var ids []string
	for _, m := range p.members {
		if m.count.Load() > 0 {
			members, ids = append(members, m), append(ids, m.conf.ID)
		}
	}
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	counts, err := p.bindings.Counts(ctx, ids)
	if err != nil {
		return
	}
	for i, m := range members {
		m.count.Store(counts[i])
	}
}
