package pool

import (
	"context"
	"math"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// State is a subscription's state in one word of the contract.
type State string

// The states.
const (
	StateReady    State = "ready"
	StateCooling  State = "cooling"  // closed until a known time
	StateProbing  State = "probing"  // that time has passed; one request finds out
	StateDraining State = "draining" // takes no new sessions, by an operator's order or while another can serve them
	StateDisabled State = "disabled" // switched off, or without accepted credential or credit
)

// Status is what people see of one subscription.
type Status struct {
	ID             string
	Provider       string
	Domain         string // with whom it shares its limits: as configured, or the organisation that answers named; else empty
	State          State
	Reason         string               // why it is not ready; empty when it is
	Health         int                  // 0..100, rounded Score.Health
	Score          Score                // with its parts
	FirstByte      time.Duration        // its recent streamed answers' typical time to the first byte; 0: not known
	CooldownUntil  time.Time            // its own or its domain's, the later; zero when it is open but for models
	CooldownModels map[string]time.Time // models that are closed on it; may be nil
	Breaker        string               // "closed", "half-open" or "open"
	Windows        []ratelimit.Window   // the provider's own view
	Sessions       int                  // that hold a place, over all processes as last counted (CountSessions)
	InFlight       int                  // requests under way in this process
}

// state tells the state and its reason.
func (m *member) state(now time.Time) (State, string) {
	if reason, yes := m.disabled(); yes {
		if reason == "" {
			reason = ReasonDisabled
		}
		return StateDisabled, reason
	}
	c, cools := m.gate.Cooldown(now)
	if _, free, full := m.budgets.spent(now); full && (!cools || !c.Until.After(free)) {
		return StateCooling, ReasonBudget
	}
	if cools {
		switch {
		case c.Probing:
			return StateProbing, string(c.Reason)
		case c.Signal == ratelimit.Quota:
			return StateDisabled, string(c.Reason)
		}
		return StateCooling, string(c.Reason)
	}
	switch m.gate.Breaker() {
	case "open":
		return StateCooling, ReasonBreaker
	case "half-open":
		return StateProbing, ReasonBreaker
	}
	if m.conf().Draining {
		return StateDraining, ReasonDraining
	}
	if m.drains(now) {
		return StateDraining, ReasonBudget
	}
	return StateReady, ""
}

// CountSessions asks Redis how many sessions hold a place on each subscription, for the
// next Status. By itself the pool asks once a minute at most, and only about those that
// it has placed sessions on. While Redis is away it does nothing.
func (p *Pool) CountSessions(ctx context.Context) {
	if p.shared() {
		p.keeper.count(ctx, p.members())
	}
}

// Status returns all subscriptions in the order of the configuration.
func (p *Pool) Status() []Status {
	now := time.Now()
	members := p.members()
	out := make([]Status, len(members))
	for i, m := range members {
		score := m.score(now)
		s := Status{
			ID:             m.conf().ID,
			Provider:       m.conf().Provider,
			Domain:         m.domainLabel(),
			Health:         int(math.Round(score.Health)),
			Score:          score,
			FirstByte:      m.latency.typical(now),
			CooldownModels: m.gate.Cooldowns().Models(now),
			Breaker:        m.gate.Breaker(),
			Windows:        m.gate.Windows(),
			Sessions:       int(m.placed(now)),
			InFlight:       m.share.busy(),
		}
		s.State, s.Reason = m.state(now)
		if c, ok := m.gate.Cooldown(now); ok && !c.Probing {
			s.CooldownUntil = c.Until
		}
		if _, free, full := m.budgets.spent(now); full && free.After(s.CooldownUntil) {
			s.CooldownUntil = free
		}
		out[i] = s
	}
	return out
}
