package pool

import (
	"slices"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// obstacle is what keeps a subscription from serving a request.
type obstacle uint8

const (
	none       obstacle = iota
	unfit               // the model or the domain is not allowed: it never will
	tried               // it failed in this request
	disabled            // switched off, or its credential is not accepted
	cooling             // a limit was met
	probing             // one request finds out whether that is over
	broken              // the breaker is open
	metered             // a configured rate is used up
	saturated           // enough requests are under way
	full                // enough sessions have a place
	overloaded          // the provider has no capacity for the model
	down                // the provider's base URL serves nobody
	obstacles           // how many there are
)

// refusal is why a subscription does not serve a request; the zero refusal is
// that it does.
type refusal struct {
	obstacle obstacle
	until    time.Time // when that may change; zero: no time is known
	reason   string    // for the agent and for status
	short    bool      // only this process's part of a rate is missing
	foretold bool      // nobody has refused it, but a provider's answers say that it will be
}

// briefWait is the cooldown that a session waits out where it is: its prompt
// cache is worth more.
const briefWait = 2 * time.Second

// brief tells whether the session should wait for its own subscription.
func (r refusal) brief(now time.Time) bool {
	switch r.obstacle {
	case cooling, metered:
		return !r.until.After(now.Add(briefWait))
	case probing:
		return true
	default:
		return false
	}
}

// moves tells whether the session leaves a subscription that refuses for this
// reason. Other reasons are about this one request, or over before a new prompt
// cache would pay: it is served elsewhere, and the session stays.
func (r refusal) moves(now time.Time) bool {
	switch r.obstacle {
	case disabled, broken, full:
		return true
	case cooling:
		return r.until.After(now.Add(briefWait))
	default:
		return false
	}
}

// passes tells whether waiting can help.
func (r refusal) passes() bool {
	return r.obstacle >= cooling
}

// gateRefusal translates a gate's no.
func gateRefusal(g ratelimit.Refusal) refusal {
	r := refusal{until: g.Until}
	switch g.Why {
	case ratelimit.Open:
	case ratelimit.Cooling:
		r.obstacle, r.reason = cooling, string(g.Reason)
	case ratelimit.Probing, ratelimit.Ramping:
		r.obstacle, r.reason = probing, string(g.Reason)
	case ratelimit.Broken:
		r.obstacle, r.reason = broken, ReasonBreaker
	case ratelimit.Metered:
		r.obstacle, r.reason, r.short, r.foretold = metered, ReasonRate, g.Short, g.Foretold
	case ratelimit.Busy:
		r.obstacle, r.reason = overloaded, string(ratelimit.ReasonCapacity)
	case ratelimit.Down:
		r.obstacle, r.reason = down, ReasonDown
	}
	return r
}

// fits tells what keeps m from serving req, as far as that can be known without
// taking anything. pin is the domain that the request must stay in; empty: any.
func (p *Pool) fits(m *member, req *Request, pin string, now time.Time) refusal {
	if r := m.permits(req, pin); r.obstacle != none {
		return r
	}
	spent := m.budgets.refusal(now, m.share.busy())
	if r := m.gate.Check(now, req.Model, req.EstimatedInput, req.EstimatedOutput); r.Why != ratelimit.Open {
		if r := gateRefusal(r); !r.until.Before(spent.until) && (!r.foretold || !req.dares) {
			return r
		}
	}
	if spent.obstacle != none {
		return spent
	}
	if r, yes := m.saved(req); yes {
		return r
	}
	if !m.share.has(now, p.alone()) {
		return refusal{obstacle: saturated, reason: ReasonConcurrency}
	}
	return refusal{}
}

// offers is fits for a request that is not where its session is bound: one that takes
// no new sessions serves it only when nobody else could.
func (p *Pool) offers(m *member, req *Request, pin string, now time.Time) refusal {
	if m.conf().Draining && req.Owner == "" {
		return refusal{obstacle: disabled, reason: ReasonDraining}
	}
	return p.fits(m, req, pin, now)
}

// permits is the part of fits that time does not change.
func (m *member) permits(req *Request, pin string) refusal {
	conf := m.conf()
	if !conf.serves(req.Model) {
		return refusal{obstacle: unfit, reason: unfitModel}
	}
	if len(req.Allowed) > 0 && !conf.allowed(req.Allowed) {
		return refusal{obstacle: unfit, reason: unfitAgent}
	}
	if req.Owner != "" {
		if m.conf().ID != req.Owner {
			return refusal{obstacle: unfit, reason: unfitOwner}
		}
	} else if pin != "" && m.domainName() != pin {
		return refusal{obstacle: unfit, reason: unfitDomain}
	}
	if slices.Contains(req.Tried, m.conf().ID) {
		return refusal{obstacle: tried, reason: ReasonTried}
	}
	if reason, yes := m.disabled(); yes {
		if reason == "" {
			reason = ReasonDisabled
		}
		return refusal{obstacle: disabled, reason: reason}
	}
	return refusal{}
}
