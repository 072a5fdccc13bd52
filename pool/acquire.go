package pool

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/ratelimit"
)

// Request is what the pool has to know of a request. Its strings may lie in
// the request's buffers: the pool copies what it keeps beyond the Lease.
type Request struct {
	ID       string // for people
	Provider string
	Agent    string
	Session  string // empty: the request belongs to no session and binds nothing
	Parent   string // the parent session's id, or empty
	Model    string // empty: the globs of the subscriptions do not matter
	// Pinned says that the request carries state that only the session's own
	// domain understands (encrypted reasoning, account-bound ids).
	Pinned bool
	// Seals says that the answer will carry such state: whoever serves has to serve
	// the session's next requests, too.
	Seals bool
	// Aside says that no model runs for the request, as for a count of tokens: a
	// model's overload has nothing to do with it.
	Aside bool
	// Owner is the one subscription that can serve the request, because it has what
	// the request names (see Pool.Owners); empty: any. Pinned does not matter then.
	Owner string
	// Bytes is the size of the request's body, by which its tokens are estimated
	// for the configured rates; 0: nothing is estimated.
	Bytes int64
	// EstimatedInput and EstimatedOutput are tokens, for the configured rates.
	// Where both are 0, Acquire sets them by Bytes.
	EstimatedInput, EstimatedOutput int64
	// Allowed are the ids or labels of the subscriptions that the agent may use;
	// empty: all.
	Allowed []string
	// Tried are subscriptions that failed in this request: they are not offered
	// again. One that was limited need not be here, its cooldown keeps it away;
	// left out it can be waited for.
	Tried []string
	// Trace gets how Acquire came to its answer; nil: nobody wants to know.
	Trace *Trace

	moving moving  // of Acquire alone
	waiter *waiter // likewise; nil while it does not wait
	dares  bool    // likewise: it goes out against what is foretold
}

// Source says how a subscription was chosen.
type Source string

// The sources.
const (
	SourceBound     Source = "bound"     // the session sticks to it
	SourceNew       Source = "new"       // chosen now; the session, if there is one, sticks to it from here on
	SourceMoved     Source = "moved"     // chosen now, because the session's former one cannot serve
	SourceElsewhere Source = "elsewhere" // for this request only; the session stays where it is
)

// rebinds bounds how often one attempt follows a session that other processes
// move at the same time.
const rebinds = 3

// Acquire lends the subscription that is to serve req: the session's own if it
// can serve, else the best of the lowest tier that can. When all that fit are
// closed only for a while, it waits in order of arrival, for Options.Wait and
// until ctx ends at most, but only if the first is expected to open in that
// time.
//
// The errors are a *NoSubscriptionError, an *UnavailableError, ErrClosed, or
// the context's.
func (p *Pool) Acquire(ctx context.Context, req *Request) (*Lease, error) {
	req.Trace.reset()
	req.moving = moving{}
	g := p.group(req.Provider)
	if g == nil || len(g.members()) == 0 {
		return nil, req.owned(&NoSubscriptionError{Provider: req.Provider})
	}
	now := time.Now()
	if g.metered.Load() && req.Bytes > 0 && req.EstimatedInput == 0 && req.EstimatedOutput == 0 {
		req.EstimatedInput, req.EstimatedOutput = p.estimates.of(req.Model, req.Bytes)
	}
	var s *session
	if req.Session != "" {
		s = p.sessions.get(sessionKey{req.Provider, req.Agent, req.Session}, req.Parent, now)
	}
	// Who comes while others wait goes behind them.
	if g.queue.empty() {
		if lease := p.try(ctx, g, req, s, time.Time{}, now); lease != nil {
			return lease.counted(), nil
		}
	}
	lease, err := p.wait(ctx, g, req, s, now)
	if err != nil {
		g.tellExhausted(p, req, err, now)
		return nil, req.owned(err)
	}
	return lease.counted(), nil
}

// counted adds the lease to the metrics.
func (l *Lease) counted() *Lease {
	l.member.acquired[l.source.index()].Inc()
	return l
}

// try makes one attempt without waiting for a subscription. It returns nil when
// nobody can serve now, or, until patience ends (zero: it begins now), when the
// session's own subscription will in a moment.
func (p *Pool) try(ctx context.Context, g *group, req *Request, s *session, patience, now time.Time) *Lease {
	req.Trace.begin()
	req.moving.yes, req.moving.until = false, time.Time{}
	// Nobody else at the provider would do better.
	if g.closed(req, now).obstacle != none {
		return nil
	}
	if s == nil {
		return p.place(ctx, g, req, nil, nil, SourceNew, patience, now)
	}
	for range rebinds {
		home := p.home(ctx, s, now)
		req.Trace.sticks(home)
		if home == nil {
			lease := p.place(ctx, g, req, s, nil, SourceNew, patience, now)
			if lease != nil || !s.isBound() {
				return lease
			}
			continue // bound by somebody else at the same time
		}
		lease, r := p.stay(ctx, home, req, s, now)
		if lease != nil {
			return lease
		}
		req.Trace.refused(home, r)
		if r.soon(patience, now) || p.opts().Wait > 0 && r.brief(now) && (patience.IsZero() || now.Before(patience)) {
			return nil
		}
		source := SourceElsewhere
		if r.moves(now) || req.Seals && !req.Pinned && r.obstacle != unfit {
			source = SourceMoved
		}
		req.moving.yes, req.moving.until = r.moves(now) && r.obstacle != full, time.Time{}
		lease = p.place(ctx, g, req, s, home, source, patience, now)
		if lease != nil || s.home() == home {
			return lease
		}
	}
	return nil
}

// stay serves the request where the session is bound.
func (p *Pool) stay(ctx context.Context, home *member, req *Request, s *session, now time.Time) (*Lease, refusal) {
	if r := home.permits(req, ""); r.obstacle != none {
		return nil, r
	}
	if s.holdsPlace(now) {
		// It may end before the keeper next looks whose answers take long.
		p.refresh(s, now)
	} else {
		// Before a place is asked for that cannot be used.
		if r := p.fits(home, req, "", now); r.obstacle != none {
			p.demand(home, req, r, now)
			return nil, r
		}
		if r := p.returns(ctx, home, s, now); r.obstacle != none {
			return nil, r
		}
	}
	return p.enter(ctx, home, req, s, SourceBound, now)
}

// place chooses among all that can serve. Unless it is only for this request,
// the session is bound to the choice. It returns nil when nobody can, or when
// somebody else has bound the session meanwhile.
func (p *Pool) place(ctx context.Context, g *group, req *Request, s *session, home *member, source Source, patience, now time.Time) *Lease {
	pin := ""
	if req.Pinned && home != nil {
		pin = home.domainName()
	}
	binds := s != nil && source != SourceElsewhere
	var room [8]*member
	passed := room[:0]
	if home != nil && !home.gone.Load() {
		passed = append(passed, home) // it was asked before
	}
	for byHash := p.alone(); len(passed) < len(g.members()); {
		m := p.heir(s, home, req, passed, now)
		if req.Trace.inherits(m); m == nil {
			m = p.best(g, req, s, pin, passed, binds, byHash, now)
		}
		if m == nil {
			return nil
		}
		var one *arrival
		if req.moving.yes && !req.moving.rush {
			var next time.Time
			if one, next = m.arrivals.enter(now); one == nil {
				req.moving.until = earlier(req.moving.until, next)
				req.Trace.refused(m, refusal{obstacle: saturated, until: next, reason: ReasonRamp})
				passed = append(passed, m)
				continue
			}
		}
		lease, r := p.enter(ctx, m, req, s, source, now)
		if lease != nil {
			lease.arrival = one
		}
		if r.obstacle != none {
			m.arrivals.leave(one)
			req.Trace.refused(m, r)
			if r.soon(patience, now) {
				return nil // the choice is made
			}
			passed = append(passed, m)
			continue
		}
		m.turns.take(m.conf().weight())
		if !binds {
			return lease
		}
		switch result := p.bind(ctx, s, m, home, byHash, now); result {
		case bindDone:
			return lease
		case bindFull:
			req.Trace.occupied(m, now)
			passed = append(passed, m)
		case bindAway:
			byHash = true // choose again, as all others do without Redis
		case bindSlow:
			// The same; but while Redis is there nobody else may count the
			// places.
			if byHash = true; m.conf().Limits.Sessions > 0 && p.shared() {
				m.setFull(now, askAgain)
				req.Trace.occupied(m, now)
				passed = append(passed, m)
			}
		case bindLost:
			lease.cancel(now)
			return nil
		}
		lease.cancel(now)
	}
	return nil
}

// heir is the subscription that a new session has from its parent session, if
// it can serve: it has the prompt cache that a sub-agent begins with.
func (p *Pool) heir(s *session, home *member, req *Request, passed []*member, now time.Time) *member {
	if s == nil || home != nil || s.parent == "" || p.opts().SpreadChildren {
		return nil
	}
	parent := p.sessions.find(sessionKey{s.key.provider, s.key.agent, s.parent})
	if parent == nil {
		return nil
	}
	m := parent.home()
	if m == nil || slices.Contains(passed, m) {
		return nil
	}
	if r := p.offers(m, req, "", now); r.obstacle != none && !r.short {
		return nil
	}
	return m
}

// best is the choice among those that can serve and were not passed over.
// byHash looks at the session's name alone, so that every process comes to the
// same choice.
func (p *Pool) best(g *group, req *Request, s *session, pin string, passed []*member, binds, byHash bool, now time.Time) *member {
	name := req.ID
	if s != nil {
		name = s.name
	}
	var best *member
	var top candidate
	for i, m := range g.members() {
		if slices.Contains(passed, m) {
			continue
		}
		if r := p.offers(m, req, pin, now); r.obstacle != none && !r.short {
			p.demand(m, req, r, now)
			req.Trace.refused(m, r)
			continue
		}
		if _, yes := m.full(now); yes && binds && !s.mayHold(m) {
			req.Trace.occupied(m, now)
			continue
		}
		c := candidate{
			draining: m.drains(now), priority: m.conf().Priority, order: i, weight: m.conf().weight(),
			claim: rendezvous(name, m.conf().ID, m.conf().weight()),
		}
		var score Score
		if !byHash {
			f, standing := m.standing(now)
			score = f.Rate(p.opts().Health)
			c.rate(score, standing)
			c.draining = c.draining || score.Nearly && p.opts().Strategy != StrategyPriority
		}
		req.Trace.rated(m, &c, score)
		if best == nil || p.opts().Strategy.before(&c, &top) {
			best, top = m, c
		}
	}
	req.Trace.compared(g, best, &top, p.opts().Strategy, byHash, now)
	return best
}

// enter takes what the request needs of m, and makes the lease.
func (p *Pool) enter(ctx context.Context, m *member, req *Request, s *session, source Source, now time.Time) (*Lease, refusal) {
	if r := m.budgets.refusal(now, m.share.busy()); r.obstacle != none {
		return nil, r
	}
	if r, yes := m.saved(req); yes {
		return nil, r
	}
	if !m.share.enter(now, p.alone()) {
		r := refusal{obstacle: saturated, reason: ReasonConcurrency}
		p.demand(m, req, r, now)
		return nil, r
	}
	whole, r := m.whole.Allow(now, req.asked())
	if r.Why != ratelimit.Open {
		m.share.leave()
		return nil, gateRefusal(r)
	}
	allow := m.gate.Allow
	if req.dares {
		allow = m.gate.Dare
	}
	pass, r := allow(now, req.Model, req.EstimatedInput, req.EstimatedOutput)
	if r.Why != ratelimit.Open {
		whole.Done(now)
		m.share.leave()
		r := gateRefusal(r)
		p.demand(m, req, r, now)
		return nil, r
	}
	q, r := p.ask(ctx, m, &pass, req.Model, now)
	if r.Why != ratelimit.Open {
		pass.Cancel(now)
		whole.Done(now)
		m.share.leave()
		return nil, gateRefusal(r)
	}
	if s != nil {
		s.enter(req)
	}
	return &Lease{pool: p, member: m, session: s, source: source, model: req.Model, bytes: req.Bytes, pass: pass, whole: whole, probes: q}, refusal{}
}

// demand notes that a request found m's share or rates used up, and has the
// keeper ask the fleet for more.
func (p *Pool) demand(m *member, req *Request, r refusal, now time.Time) {
	ask := false
	switch r.obstacle {
	case saturated:
		ask = m.share.demand(now)
	case metered:
		ask = m.gate.Demand(now, req.EstimatedInput, req.EstimatedOutput)
	default:
	}
	if ask && p.shared() {
		p.keeper.wake()
	}
}

var sources = [...]Source{SourceBound, SourceNew, SourceMoved, SourceElsewhere}

func (s Source) index() int {
	for i, one := range sources {
		if one == s {
			return i
		}
	}
	panic("BUG: no such source: " + string(s))
}

var acquired = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_subscription_leases_total",
	Help: "Attempts that a subscription was lent for, by how it was chosen.",
}, []string{"subscription", "source"})
