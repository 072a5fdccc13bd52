package pool

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/pool/store"
)

const (
	// rebalanceEvery is how often a process looks whether sessions are to be moved, and
	// how long the fleet leaves it to the one that found some.
	rebalanceEvery = time.Minute
	// rebalanceMost is how many sessions the fleet moves in that time.
	rebalanceMost = 20
	// rebalanceTimeout is of one run.
	rebalanceTimeout = 20 * time.Second
)

// whyRebalanced is the reason in the event of such a move.
const whyRebalanced = "rebalance"

// Rebalanced is what became of one move.
type Rebalanced struct {
	PlannedMove
	Err error // why it was not made; nil: it was
}

var rebalanced = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_rebalance_moves_total",
	Help: "Sessions that this process moved, or failed to move, to where they are better off, by why.",
}, []string{"why", "result"})

// balance counts the moves where this process is the whole fleet.
type balance struct {
	running sync.Mutex // held by a run

	began time.Time
	moves int
}

// PlanRebalance says what Rebalance would do now, without the bound on moves a minute
// that others may have used up. It does not ask the fleet.
func (p *Pool) PlanRebalance() []PlannedMove {
	now := time.Now()
	desks, seats := p.seating(now)
	return planMoves(desks, seats, p.evens(), rebalanceMost)
}

// Rebalance moves sessions that this process serves: those whose subscription cannot
// serve for longer than a prompt cache lives, and, unless the strategy is one that
// wants sessions together, cold ones from crowded subscriptions to others of their
// tier. What a session's agent may use and what its state is bound to is known only
// where it is served, so that each process of a fleet looks after its own; but only
// one moves at a time, and all together at most 20 sessions a minute. With force, an
// operator asks for it, and it is this process's turn.
//
// A move that fails leaves the session where it is, and the rest goes on. wait is how
// long it takes until more moves are allowed, when that is what kept some from being
// made.
func (p *Pool) Rebalance(ctx context.Context, force bool) (done []Rebalanced, wait time.Duration, err error) {
	p.balance.running.Lock()
	defer p.balance.running.Unlock()
	now := time.Now()
	desks, seats := p.seating(now)
	plan := planMoves(desks, seats, p.evens(), rebalanceMost)
	if len(plan) == 0 {
		return nil, 0, nil
	}
	turn, err := p.turnToBalance(ctx, len(plan), force, now)
	if err != nil {
		return nil, 0, err
	}
	if turn.Moves < len(plan) {
		wait = turn.Wait
	}
	if turn.Moves == 0 {
		return nil, wait, nil
	}
	if p.bindings != nil {
		if err := p.Fence(ctx, turn.Fence); err != nil {
			return nil, 0, err
		}
		if err := p.recount(ctx); err != nil {
			return nil, 0, err
		}
		desks, seats = p.seating(now) // who moved before has changed the counts
		plan = planMoves(desks, seats, p.evens(), turn.Moves)
	}
	for _, one := range plan[:min(len(plan), turn.Moves)] {
		err := p.rebalanceOne(ctx, one, turn.Fence, now)
		result := "moved"
		if err != nil {
			result = "failed"
			p.opts().Logger.Warn("cannot rebalance a session", "session", one.Session.String(),
				"from", one.From, "to", one.To, "why", one.Why, "err", err)
		}
		rebalanced.WithLabelValues(one.Why, result).Inc()
		done = append(done, Rebalanced{one, err})
	}
	return done, wait, nil
}

func (p *Pool) rebalanceOne(ctx context.Context, one PlannedMove, fence int64, now time.Time) (err error) {
	m := Move{Session: one.Session, From: one.From, To: one.To, Fence: fence, Why: whyRebalanced}
	s := p.sessions.find(one.Session.key())
	if s == nil {
		return ErrNoSession
	}
	s.mu.Lock()
	m.Allowed = s.allowed
	s.mu.Unlock()
	defer func() {
		if err != nil {
			s.mu.Lock()
			s.unmoved = now
			s.mu.Unlock()
		}
	}()
	if one.Why == WhyUneven && p.bindings != nil && !p.opts().Whole {
		// Others tell of a session's use after a part of the idle time-out only.
		place, err := p.bindings.Place(ctx, one.From, one.Session.key().name())
		if err != nil {
			return err
		}
		idle := p.opts().IdleTimeout
		if unused := idle - place.Left; unused < p.opts().CacheWarm+idle/4 {
			return &MoveError{Move: m, Reason: ReasonWarm, text: "another sidecar may have used it a moment ago"}
		}
	}
	_, err = p.Move(ctx, m)
	return err
}

// turnToBalance asks for so many moves.
func (p *Pool) turnToBalance(ctx context.Context, moves int, force bool, now time.Time) (store.Balance, error) {
	switch b := &p.balance; {
	case p.bindings == nil:
		if now.Sub(b.began) >= rebalanceEvery {
			b.began, b.moves = now, 0
		}
		moves = max(min(moves, rebalanceMost-b.moves), 0)
		b.moves += moves
		if moves > 0 {
			b.began = now // so that no minute, wherever it begins, has more
		}
		return store.Balance{Moves: moves, Wait: b.began.Add(rebalanceEvery).Sub(now)}, nil
	case !p.bindings.Healthy():
		return store.Balance{}, store.ErrAway
	}
	return p.bindings.Balance(ctx, store.Balancing{
		Process: p.process, Hold: rebalanceEvery, Moves: moves, Most: rebalanceMost, Window: rebalanceEvery, Force: force,
	})
}

// recount reads how many sessions have a place on each subscription.
func (p *Pool) recount(ctx context.Context) error {
	members := p.members()
	ids := make([]string, len(members))
	for i, m := range members {
		ids[i] = m.conf().ID
	}
	counts, err := p.bindings.Counts(ctx, ids)
	if err != nil {
		return fmt.Errorf("cannot count the sessions: %w", err)
	}
	for i, m := range members {
		m.count.Store(counts[i])
	}
	return nil
}

// evens tells whether the strategy wants sessions spread.
func (p *Pool) evens() bool {
	switch p.opts().Strategy {
	case StrategyPriority, StrategyDrainSoonest:
		return false
	default:
		return true
	}
}

// seating is what the plan is made of.
func (p *Pool) seating(now time.Time) ([]desk, []seat) {
	members := p.members()
	desks := make([]desk, len(members))
	index := make(map[*member]int, len(members))
	warm := p.opts().CacheWarm
	for i, m := range members {
		conf := m.conf()
		r := p.fits(m, &Request{Provider: conf.Provider}, "", now)
		f, _ := m.standing(now)
		_, full := m.full(now)
		desks[i] = desk{
			id: conf.ID, provider: conf.Provider, priority: conf.Priority, weight: conf.weight(),
			sessions: int(m.placed(now)), most: conf.Limits.Sessions,
			closed: r.obstacle == disabled || r.obstacle == cooling && r.until.After(now.Add(warm)),
			takes:  r.obstacle == none && !full && !conf.Draining && !m.drains(now) && !f.Rate(p.opts().Health).Nearly,
		}
		index[m] = i
	}
	var seats []seat
	p.sessions.each(func(s *session, last time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		home := s.present()
		on, there := index[home]
		if !there || !s.served || !now.Before(s.slotUntil) {
			return // one without a place is no load, and looks where to go when it comes back
		}
		closed := desks[on].closed
		cold := s.inFlight == 0 && now.Sub(last) >= warm && now.Sub(s.since) >= warm
		if !closed && !cold {
			return
		}
		req := &Request{Provider: s.key.provider, Model: s.model, Allowed: s.allowed}
		pin := ""
		if s.sealed {
			pin = home.domainName()
		}
		seats = append(seats, seat{
			key: s.key.exported(), on: on, cold: cold, cache: s.cacheRead(now), model: s.model, failed: s.unmoved,
			fits: func(desk int) bool { return p.offers(members[desk], req, pin, now).obstacle == none },
		})
	})
	return desks, seats
}

// watchBalance rebalances until ctx ends.
func (p *Pool) watchBalance(ctx context.Context) {
	for {
		timer := time.NewTimer(rebalanceEvery/2 + rand.N(rebalanceEvery)) // a fleet must not ask in step
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		run, cancel := context.WithTimeout(ctx, rebalanceTimeout)
		if _, _, err := p.Rebalance(run, false); err != nil && p.shared() && ctx.Err() == nil {
			p.opts().Logger.Warn("cannot rebalance the sessions", "err", err)
		}
		cancel()
	}
}

// reads is what was read from a prompt cache, by the minute.
type reads struct {
	minute int64 // of the last one, since the epoch
	tokens [5]int64
}

// to drops the minutes that are over.
func (r *reads) to(now time.Time) {
	minute := now.Unix() / 60
	for n := min(minute-r.minute, int64(len(r.tokens))); n > 0; n-- {
		r.tokens[(minute-n+1)%int64(len(r.tokens))] = 0
	}
	r.minute = max(r.minute, minute)
}

// cacheRead is what the session has read from its cache within the last 5 minutes,
// under the lock.
func (s *session) cacheRead(now time.Time) (sum int64) {
	s.reads.to(now)
	for _, n := range s.reads.tokens {
		sum += n
	}
	return sum
}

// hasRead notes tokens that were read from the cache.
func (s *session) hasRead(now time.Time, tokens int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads.to(now)
	s.reads.tokens[s.reads.minute%int64(len(s.reads.tokens))] += tokens
}
