package pool

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// unknownEnd is when to look again for something whose end nobody can tell,
// such as an answer under way in another process.
const unknownEnd = time.Second

// queue is the requests that wait for a subscription of one provider, in order
// of arrival. Whenever something may have changed they try in that order, one
// after the other: the turn goes from the first to the last. So nobody
// overtakes one who wants the same, and nobody stands behind one who wants
// something else.
type queue struct {
	most int

	length atomic.Int32 // of waiters, to be read without the lock

	mu      sync.Mutex
	waiters list.List // of *waiter
	running bool      // somebody has the turn
	again   bool      // something changed since the turn began to go round
	resumed bool      // this round began anew for that reason
	timer   *time.Timer
}

type waiter struct {
	turn chan struct{} // holds one: the turn waits for its waiter
	next time.Time     // when trying again may help, whatever happens; zero: never
}

func (q *queue) empty() bool { return q.length.Load() == 0 }

// join puts a waiter at the end and gives it the turn: those before it have
// tried since the last change. It returns nil when the queue is full.
func (q *queue) join() *list.Element {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiters.Len() >= q.most {
		return nil
	}
	e := q.waiters.PushBack(&waiter{turn: make(chan struct{}, 1)})
	q.length.Add(1)
	if !q.running {
		q.running = true
		q.give(e)
	}
	return e
}

// event lets everybody try: something may have opened.
func (q *queue) event() {
	if q.empty() {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running {
		q.again = true
		return
	}
	if first := q.waiters.Front(); first != nil {
		q.running = true
		q.give(first)
	}
}

func (q *queue) give(e *list.Element) { e.Value.(*waiter).turn <- struct{}{} }

// pass hands the turn on from e, which has it and will try again at next.
func (q *queue) pass(e *list.Element, next time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e.Value.(*waiter).next = next
	q.handOn(e.Next())
}

// leave takes e out. hasTurn tells that it has the turn; otherwise the turn may
// just be on its way to it.
func (q *queue) leave(e *list.Element, hasTurn bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	next := e.Next()
	q.waiters.Remove(e)
	q.length.Add(-1)
	if !hasTurn {
		select {
		case <-e.Value.(*waiter).turn:
			hasTurn = true
		default:
		}
	}
	if hasTurn {
		q.handOn(next)
	}
}

// handOn gives the turn to e; nil is the end of the round. When something has
// changed the turn goes back to the first, who has waited longest; but not
// twice in one round, or those at the end might never have it.
func (q *queue) handOn(e *list.Element) {
	if q.again && (e == nil || !q.resumed) {
		q.again, q.resumed = false, e != nil
		e = q.waiters.Front()
	}
	if e != nil {
		q.give(e)
		return
	}
	q.running, q.again, q.resumed = false, false, false
	q.arm()
}

// arm sets the alarm for the first waiter that has a reason to try again.
func (q *queue) arm() {
	var first time.Time
	for e := q.waiters.Front(); e != nil; e = e.Next() {
		first = earlier(first, e.Value.(*waiter).next)
	}
	switch {
	case first.IsZero():
		if q.timer != nil {
			q.timer.Stop()
		}
	case q.timer == nil:
		q.timer = time.AfterFunc(time.Until(first), q.event)
	default:
		q.timer.Reset(time.Until(first))
	}
}

// wait puts the request into the queue of its provider and tries whenever its
// turn comes, until somebody serves it or waiting makes no sense any more.
func (p *Pool) wait(ctx context.Context, g *group, req *Request, s *session, now time.Time) (*Lease, error) {
	out := p.outlook(g, req, s, now)
	patient := p.opts.Wait
	if out.share {
		patient = max(patient, bindingWait)
	}
	deadline := now.Add(patient)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	// Most who cannot be served at once cannot be served in time either.
	if g.queue.empty() && !out.promises(now, deadline) {
		return nil, out.failure(now)
	}
	e := g.queue.join()
	if e == nil {
		return nil, p.outlook(g, req, s, now).crowded(now)
	}
	waiting.WithLabelValues(g.provider).Inc()
	defer waiting.WithLabelValues(g.provider).Dec()
	patience := now.Add(briefWait)
	end := time.NewTimer(deadline.Sub(now))
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			g.queue.leave(e, false)
			return nil, context.Cause(ctx)
		case <-p.closed:
			g.queue.leave(e, false)
			return nil, ErrClosed
		case <-end.C:
			g.queue.leave(e, false)
			now = time.Now()
			return nil, p.outlook(g, req, s, now).failure(now)
		case <-e.Value.(*waiter).turn:
		}
		now = time.Now()
		if lease := p.try(ctx, g, req, s, patience, now); lease != nil {
			g.queue.leave(e, true)
			return lease, nil
		}
		out := p.outlook(g, req, s, now)
		if !out.promises(now, deadline) {
			g.queue.leave(e, true)
			return nil, out.failure(now)
		}
		g.queue.pass(e, out.next(now, patience, p.bindings != nil))
	}
}

// outlook is what a request that nobody serves now may hope for.
type outlook struct {
	provider, model string
	count           int       // subscriptions that fit
	first           *member   // that opens first, or any that fits
	until           time.Time // when; zero: no time will do it
	guess           bool      // until is a guess: nobody knows
	refusal         refusal   // why it is closed
	share           bool      // this process only lacks a share, which it has asked for
	own             time.Time // when the session's own opens, which it waits for; zero: it does not
}

// outlook asks every subscription that fits the request.
func (p *Pool) outlook(g *group, req *Request, s *session, now time.Time) outlook {
	o := outlook{provider: g.provider, model: req.Model}
	pin := ""
	var home *member
	if s != nil {
		home = s.home()
	}
	if req.Pinned && home != nil {
		pin = home.conf.domain()
	}
	for _, m := range g.members {
		r := p.fits(m, req, pin, now)
		if r.obstacle == unfit {
			continue
		}
		o.count++
		if r.obstacle == none {
			// What fits did not serve: its last place is taken, or the turn
			// came an instant too early.
			if free, yes := m.full(now); yes && (s == nil || !s.mayHold(m)) {
				r = refusal{obstacle: full, until: free, reason: ReasonSessions}
			} else {
				r = refusal{obstacle: saturated, reason: ReasonConcurrency}
			}
		}
		var until time.Time
		guess := false
		if r.passes() {
			if until = r.until; !until.After(now) {
				until, guess = now.Add(unknownEnd), true
			}
		}
		if o.first == nil || !until.IsZero() && (o.until.IsZero() || until.Before(o.until)) {
			o.first, o.until, o.guess, o.refusal = m, until, guess, r
		}
		if m == home && r.brief(now) {
			o.own = r.until
		}
		if r.obstacle == saturated && p.shared() && m.share.short() {
			o.share = true
		}
	}
	return o
}

// promises tells whether waiting until the deadline can help.
func (o outlook) promises(now, deadline time.Time) bool {
	return !o.until.IsZero() && now.Before(deadline) && (o.guess || !o.until.After(deadline))
}

// next is when to try again, if nothing happens before; zero: only then.
func (o outlook) next(now, patience time.Time, fleet bool) time.Time {
	next := o.until
	if o.refusal.obstacle == full || o.refusal.obstacle == saturated {
		switch {
		case fleet: // another process can make room at any time
			next = earlier(next, now.Add(unknownEnd))
		case o.guess: // room is made by an event
			next = time.Time{}
		}
	}
	if !o.own.IsZero() && patience.After(now) {
		next = earlier(next, earlier(o.own, patience))
	}
	return next
}

// earlier is the first of two instants, of which a zero one never comes.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// failure is the error for a request that cannot be served in time.
func (o outlook) failure(now time.Time) error {
	if o.count == 0 {
		return &NoSubscriptionError{Provider: o.provider, Model: o.model}
	}
	unavailable.WithLabelValues(o.provider, o.refusal.reason).Inc()
	e := &UnavailableError{
		Provider: o.provider, Model: o.model, Count: o.count,
		FirstSubscription: o.first.conf.ID, Reason: o.refusal.reason, Until: o.until,
	}
	if !o.until.IsZero() {
		e.Wait = o.until.Sub(now)
	}
	o.first.mu.Lock()
	e.LastVerdict = o.first.last
	o.first.mu.Unlock()
	return e
}

// crowded is the error for a request that finds the queue full.
func (o outlook) crowded(now time.Time) error {
	if o.count > 0 {
		o.refusal.reason = ReasonQueue
	}
	return o.failure(now)
}

var (
	waiting = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "authpool_pool_waiting",
		Help: "Requests that wait for a subscription.",
	}, []string{"provider"})
	unavailable = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_pool_unavailable_total",
		Help: "Requests that no subscription could serve in time, by what closed the first of them.",
	}, []string{"provider", "reason"})
)
