package pool

import (
	"container/list"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// unknownEnd is when to look again for something whose end nobody can tell,
// such as an answer under way in another process.
const unknownEnd = time.Second

// queue is the requests that wait for a subscription of one provider. Whenever
// something may have changed all of them try, one after the other: the turn goes
// round. So nobody overtakes one who wants the same and comes before, and nobody
// stands behind one who wants something else.
//
// The order is that of arrival within an agent, and fair between agents: each
// agent has a line of its own, and who was served goes behind all those who were
// not served since (start-time fair queueing, with one unit for each request).
// A hundred requests of one agent hold the others up no longer than one.
type queue struct {
	most int

	length atomic.Int32 // of waiters, to be read without the lock

	mu     sync.Mutex
	lines  []*line // of the agents that wait, in no order
	served uint64  // place of the last one that was served
	seq    uint64  // waiters so far
	round  uint64  // rounds so far: 1 is the first

	turn    *waiter // who has it; nil: no round is under way
	again   bool    // something changed since the turn began to go round
	resumed int     // how often this round began anew for that reason and served nobody
	timer   *time.Timer
}

// line is the waiters of one agent, in order of arrival.
type line struct {
	agent   string
	waiters list.List     // of *waiter
	place   uint64        // of the first waiter; those behind it have the next ones
	round   uint64        // the round that cursor and tried are about
	cursor  *list.Element // the first that had no turn in this round
	tried   uint64        // how many are before it
}

type waiter struct {
	turn  chan struct{} // holds one: the turn waits for its waiter
	out   chan struct{} // closed when it must make room
	line  *line
	entry *list.Element // nil: it has left
	seq   uint64
	ahead int       // who waited when it came
	own   int       // of those, in its own line
	next  time.Time // when trying again may help, whatever happens; zero: never

	saving *member // where it saves; of its own goroutine
}

func (q *queue) empty() bool { return q.length.Load() == 0 }

// join puts a waiter at the end of its agent's line and gives it the turn: all
// others have tried since the last change. A full queue makes room by putting
// out the last one of the longest line, as long as that is no shorter than the
// agent's own; else join returns nil.
func (q *queue) join(agent string) *waiter {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.line(agent)
	if int(q.length.Load()) >= q.most && !q.makeRoom(l) {
		return nil
	}
	if l == nil {
		// As if it had just been served: coming and going gains nothing.
		l = &line{agent: strings.Clone(agent), place: q.served + 1, round: q.round}
		q.lines = append(q.lines, l)
	}
	q.seq++
	w := &waiter{turn: make(chan struct{}, 1), out: make(chan struct{}), line: l, seq: q.seq, ahead: int(q.length.Load()), own: l.waiters.Len()}
	w.entry = l.waiters.PushBack(w)
	q.length.Add(1)
	if l.round == q.round && l.cursor == nil {
		l.cursor = w.entry
	}
	if q.turn == nil {
		q.give(w)
	}
	return w
}

// line returns the line of an agent, or nil.
func (q *queue) line(agent string) *line {
	for _, l := range q.lines {
		if l.agent == agent {
			return l
		}
	}
	return nil
}

// makeRoom puts one waiter out for the agent of line own, which may be nil.
func (q *queue) makeRoom(own *line) bool {
	longest := 1
	if own != nil {
		longest += own.waiters.Len()
	}
	var from *line
	for _, l := range q.lines {
		if n := l.waiters.Len(); n > longest {
			from, longest = l, n
		}
	}
	if from == nil {
		return false
	}
	// The one that has the turn is trying right now.
	e := from.waiters.Back()
	if e.Value.(*waiter) == q.turn {
		e = e.Prev()
	}
	w := e.Value.(*waiter)
	q.remove(w)
	close(w.out)
	return true
}

// event lets everybody try: something may have opened.
func (q *queue) event() {
	if q.empty() {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.turn != nil {
		q.again = true
		return
	}
	q.round++
	q.handOn()
}

// give gives the turn to w.
func (q *queue) give(w *waiter) {
	l := w.line
	if l.round != q.round {
		l.round, l.cursor, l.tried = q.round, l.waiters.Front(), 0
	}
	// Everybody before it had the turn, or tried before the last change.
	for l.cursor != nil {
		at := l.cursor
		l.cursor, l.tried = at.Next(), l.tried+1
		if at == w.entry {
			break
		}
	}
	q.turn = w
	w.turn <- struct{}{}
}

// pass hands the turn on from w, which has it and will try again at next.
func (q *queue) pass(w *waiter, next time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w.next = next
	q.handOn()
}

// leave takes w out, whether it has the turn or not. served tells that it got
// what it waited for.
func (q *queue) leave(w *waiter, served bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.entry == nil {
		return // put out
	}
	if l := w.line; served {
		// Who waited for something rare has saved nothing up meanwhile.
		l.place = max(l.place, q.served)
		q.served = l.place
		l.place++
		q.resumed = 0
	}
	q.remove(w)
	if q.turn == w {
		q.handOn()
	}
}

// remove takes w out of its line. Those behind it move up.
func (q *queue) remove(w *waiter) {
	l := w.line
	if l.round == q.round {
		switch {
		case l.cursor == w.entry:
			l.cursor = w.entry.Next()
		case l.before(w):
			l.tried--
		}
	}
	l.waiters.Remove(w.entry)
	w.entry = nil
	q.length.Add(-1)
	if l.waiters.Len() == 0 {
		q.lines = slices.DeleteFunc(q.lines, func(one *line) bool { return one == l })
	}
}

// before tells whether w stands before the cursor.
func (l *line) before(w *waiter) bool {
	return l.cursor == nil || w.seq < l.cursor.Value.(*waiter).seq
}

// resumes bounds how often a round begins anew without serving anybody.
const resumes = 8

// handOn gives the turn to the next in this round. When something has changed
// the turn goes back to the first, since what opened is its own; but not for
// ever, or those at the end might never have it.
func (q *queue) handOn() {
	next := q.nextInRound()
	if q.again && (next == nil || q.resumed < resumes) {
		q.again = false
		q.resumed++
		q.round++
		next = q.nextInRound()
	}
	if next != nil {
		q.give(next)
		return
	}
	q.turn, q.again, q.resumed = nil, false, 0
	q.arm()
}

// nextInRound is the one with the lowest place among those that had no turn in
// this round; of equals the one that came first.
func (q *queue) nextInRound() *waiter {
	var next *waiter
	var first uint64
	for _, l := range q.lines {
		at, tried := l.cursor, l.tried
		if l.round != q.round {
			at, tried = l.waiters.Front(), 0
		}
		if at == nil {
			continue
		}
		w, place := at.Value.(*waiter), max(l.place, q.served)+tried
		if next == nil || place < first || place == first && w.seq < next.seq {
			next, first = w, place
		}
	}
	return next
}

// arm sets the alarm for the first waiter that has a reason to try again.
func (q *queue) arm() {
	var first time.Time
	for _, l := range q.lines {
		for e := l.waiters.Front(); e != nil; e = e.Next() {
			first = earlier(first, e.Value.(*waiter).next)
		}
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
	patient := p.opts().Wait
	if out.share {
		patient = max(patient, shareWait)
	}
	deadline := now.Add(patient)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	rush := func() *Lease {
		now = time.Now()
		return req.hurry(func() *Lease { return p.try(ctx, g, req, s, now, now) })
	}
	// dare finds out whether the agent has to be told of a limit that nobody has met.
	dare := func(out outlook) *Lease {
		if !out.foretold {
			return nil
		}
		req.dares = true
		defer func() { req.dares = false }()
		now = time.Now()
		return p.try(ctx, g, req, s, now, now)
	}
	moves := !req.moving.until.IsZero()
	if moves && req.moving.until.After(deadline) {
		if lease := rush(); lease != nil {
			return lease, nil
		}
	}
	// Most who cannot be served at once cannot be served in time either.
	if g.queue.empty() && !moves && !out.promises(now, deadline) {
		if lease := dare(out); lease != nil {
			return lease, nil
		}
		return nil, out.failure(now)
	}
	if moves {
		g.moving.Add(1)
	}
	defer func() {
		if moves { // by then, perhaps
			g.moving.Add(-1)
		}
	}()
	if !g.hold(out.refusal) {
		return nil, out.failure(now)
	}
	defer g.release(out.refusal)
	w := g.queue.join(req.Agent)
	if w == nil {
		if g.moving.Load() > 0 { // the room is taken by those that wait for no capacity
			req.moving.until = now
		}
		if lease := rush(); lease != nil {
			return lease, nil
		}
		return nil, p.outlook(g, req, s, now).crowded(now)
	}
	req.waiter = w
	leave := func(served bool) {
		req.waiter = nil
		if w.spends() {
			g.queue.event() // whose turn it is to save, those who wait find out in order
		}
		g.queue.leave(w, served)
	}
	req.Trace.waits(w, out)
	defer req.Trace.waited(now)
	waiting.WithLabelValues(g.provider).Inc()
	began := time.Now()
	defer func() {
		waiting.WithLabelValues(g.provider).Dec()
		waited.WithLabelValues(g.provider).Observe(time.Since(began).Seconds())
	}()
	patience := now.Add(briefWait)
	end := time.NewTimer(deadline.Sub(now))
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			leave(false)
			return nil, context.Cause(ctx)
		case <-p.closed:
			leave(false)
			return nil, ErrClosed
		case <-end.C:
			leave(false)
			if lease := rush(); lease != nil {
				return lease, nil
			}
			now = time.Now()
			out := p.outlook(g, req, s, now)
			if lease := dare(out); lease != nil {
				return lease, nil
			}
			return nil, out.failure(now)
		case <-w.out:
			leave(false)
			if lease := rush(); lease != nil {
				return lease, nil
			}
			now = time.Now()
			return nil, p.outlook(g, req, s, now).crowded(now)
		case <-w.turn:
		}
		now = time.Now()
		if lease := p.try(ctx, g, req, s, patience, now); lease != nil {
			leave(true)
			return lease, nil
		}
		if next := req.moving.until; !next.IsZero() {
			if !next.After(deadline) {
				if !moves {
					moves = true
					g.moving.Add(1)
				}
				g.queue.pass(w, next)
				continue
			}
			if lease := rush(); lease != nil {
				leave(true)
				return lease, nil
			}
		}
		out := p.outlook(g, req, s, now)
		if !out.promises(now, deadline) {
			if lease := dare(out); lease != nil {
				leave(true)
				return lease, nil
			}
			leave(false)
			return nil, out.failure(now)
		}
		w.saves(out)
		g.queue.pass(w, out.next(now, patience, p.bindings != nil))
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
	foretold        bool      // one of them would be asked, if its answers did not foretell what it says
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
		req.Trace.sticks(home)
	}
	if req.Pinned && home != nil {
		pin = home.domainName()
	}
	whole := g.closed(req, now)
	for _, m := range g.members() {
		look := p.offers
		if m == home {
			look = p.fits
		}
		r := look(m, req, pin, now).within(whole)
		if r.obstacle == unfit {
			req.Trace.refused(m, r)
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
				o.share = o.share || p.shared() // it may have come this instant
			}
		}
		req.Trace.refused(m, r)
		var until time.Time
		guess := false
		if r.passes() {
			if until = r.until; !until.After(now) {
				until, guess = now.Add(unknownEnd), true
			}
			guess = guess || r.obstacle == probing // over as soon as it is answered
		}
		if o.first == nil || !until.IsZero() && (o.until.IsZero() || until.Before(o.until)) {
			o.first, o.until, o.guess, o.refusal = m, until, guess, r
		}
		if m == home && r.brief(now) {
			o.own = r.until
		}
		o.foretold = o.foretold || r.foretold
		if p.shared() && (r.short || r.obstacle == saturated && m.share.short()) {
			o.share = true
		}
	}
	req.Trace.surveyed(g)
	return o
}

// promises tells whether waiting until the deadline can help.
func (o outlook) promises(now, deadline time.Time) bool {
	return !o.until.IsZero() && now.Before(deadline) && (o.guess || !o.until.After(deadline))
}

// next is when to try again, if nothing happens before; zero: only then.
func (o outlook) next(now, patience time.Time, fleet bool) time.Time {
	next := o.until
	if o.refusal.obstacle == full || o.refusal.obstacle == saturated || o.refusal.obstacle == metered {
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
		FirstSubscription: o.first.conf().ID, Reason: o.refusal.reason, Until: o.until,
	}
	if !o.until.IsZero() {
		e.Wait = o.until.Sub(now)
	}
	o.first.mu.Lock()
	e.LastVerdict = o.first.last
	o.first.mu.Unlock()
	return e
}

// crowded is the error for a request that has no room in the queue.
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
	waited = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "authpool_pool_wait_seconds",
		Help:    "How long requests waited for a subscription, of those that had to, served in the end or not.",
		Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30, 100},
	}, []string{"provider"})
	unavailable = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_pool_unavailable_total",
		Help: "Requests that no subscription could serve in time, by what closed the first of them.",
	}, []string{"provider", "reason"})
)
