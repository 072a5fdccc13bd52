package pool

import (
	"time"
)

// Trace is how Acquire came to its answer, for people. Acquire sets all of it, and
// uses the memory of Candidates again. It belongs to one call at a time.
type Trace struct {
	// Home is where the session stuck when it was asked for last; empty: nowhere, or
	// there is no session.
	Home string
	// Inherited says that a new session was put where its parent session is.
	Inherited bool
	// Strategy is by which Candidates were compared; empty: they were not.
	Strategy Strategy
	// ByHash says that the choice went by the session's name alone, because Redis did
	// not answer: no score was looked at.
	ByHash bool
	// Candidates are those that were looked at in the end, in that order: none where
	// the session's own subscription served, or its parent's.
	Candidates []Candidate
	// Omitted counts those that were looked at and are not in Candidates.
	Omitted int
	Wait    Wait
}

// Candidate is one subscription that might have served.
type Candidate struct {
	Subscription string
	// Obstacle is what kept it from serving, and Reason why; both are empty when it
	// could.
	Obstacle, Reason string
	Until            time.Time // when that may change; zero: no time is known, or there is no obstacle
	Priority         int
	// Draining says that its budget or a limit is nearly used up, so that any other
	// comes before it.
	Draining bool
	Score    Score // zero with an Obstacle or Trace.ByHash, as is Standing
	Standing Standing

	member *member
}

// Wait is how a request waited in the queue of its provider.
type Wait struct {
	For   time.Duration // 0: it did not wait
	Ahead int           // requests that waited when it came
	Own   int           // of those, the same agent's, which all go before it
	// Subscription was the first that was expected to open, at Until (zero: nobody
	// could know); Reason is why it was closed.
	Subscription, Reason string
	Until                time.Time
}

// traceMost bounds Trace.Candidates.
const traceMost = 16

// obstacleNames are the obstacles as a Trace tells them.
var obstacleNames = [obstacles]string{
	unfit:     "unfit",
	tried:     "tried",
	disabled:  "disabled",
	cooling:   "cooling",
	probing:   "probing",
	broken:    "broken",
	metered:   "metered",
	saturated: "saturated",
	full:      "full",

	overloaded: "overloaded",
	down:       "down",
}

// Why a subscription is unfit, which only a Trace tells.
const (
	unfitAgent  = "agent"  // the agent may not use it
	unfitModel  = "model"  // its globs do not allow the model
	unfitOwner  = "owner"  // another one has what the request names
	unfitDomain = "domain" // only the session's own domain understands what the request carries
)

// All methods do nothing without a trace.

// reset begins the trace of one Acquire.
func (t *Trace) reset() {
	if t != nil {
		*t = Trace{Candidates: t.Candidates[:0]}
	}
}

// begin forgets what an earlier try has found.
func (t *Trace) begin() {
	if t != nil {
		*t = Trace{Candidates: t.Candidates[:0], Wait: t.Wait}
	}
}

// sticks notes where the session is bound.
func (t *Trace) sticks(home *member) {
	if t != nil && home != nil {
		t.Home = home.conf().ID
	}
}

// inherits notes whether m was found as the parent session's.
func (t *Trace) inherits(m *member) {
	if t != nil {
		t.Inherited = m != nil
	}
}

// refused notes why m does not serve.
func (t *Trace) refused(m *member, r refusal) {
	if t == nil {
		return
	}
	if c := t.of(m); c != nil {
		c.Obstacle, c.Reason, c.Until = obstacleNames[r.obstacle], r.reason, r.until
		c.Draining, c.Score, c.Standing = false, Score{}, Standing{}
	}
}

// occupied notes that m has no place for another session.
func (t *Trace) occupied(m *member, now time.Time) {
	if t == nil {
		return
	}
	free, _ := m.full(now)
	t.refused(m, refusal{obstacle: full, until: free, reason: ReasonSessions})
}

// rated notes that m can serve, and how good it is.
func (t *Trace) rated(m *member, as *candidate, s Score) {
	if t == nil {
		return
	}
	if c := t.of(m); c != nil {
		c.Obstacle, c.Reason, c.Until = "", "", time.Time{}
		c.Draining, c.Score, c.Standing = as.draining, s, as.Standing
	}
}

// of returns the entry of m, making it while there is room; else nil.
func (t *Trace) of(m *member) *Candidate {
	for i := range t.Candidates {
		if t.Candidates[i].member == m {
			return &t.Candidates[i]
		}
	}
	if len(t.Candidates) == traceMost {
		return nil
	}
	t.Candidates = append(t.Candidates, Candidate{Subscription: m.conf().ID, Priority: m.conf().Priority, member: m})
	return &t.Candidates[len(t.Candidates)-1]
}

// compared notes that all of g were looked at, and m was the best; nil: nobody can
// serve.
func (t *Trace) compared(g *group, m *member, top *candidate, by Strategy, byHash bool, now time.Time) {
	if t == nil {
		return
	}
	t.Strategy, t.ByHash = by, byHash
	if m != nil && t.of(m) == nil {
		// The one that matters most stands in for the last one.
		t.Candidates = t.Candidates[:traceMost-1]
		s := Score{}
		if !byHash {
			s = m.score(now)
		}
		t.rated(m, top, s)
	}
	t.surveyed(g)
}

// surveyed notes that all of g were looked at.
func (t *Trace) surveyed(g *group) {
	if t != nil {
		t.Omitted = max(0, len(g.members())-len(t.Candidates))
	}
}

// waits notes that the request stands in the queue, and for whom.
func (t *Trace) waits(w *waiter, out outlook) {
	if t != nil {
		t.Wait = Wait{Ahead: w.ahead, Own: w.own, Reason: out.refusal.reason}
		if !out.guess {
			t.Wait.Until = out.until
		}
		if out.first != nil {
			t.Wait.Subscription = out.first.conf().ID
		}
	}
}

// waited notes how long that was.
func (t *Trace) waited(since time.Time) {
	if t != nil {
		t.Wait.For = time.Since(since)
	}
}
