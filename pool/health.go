package pool

import (
	"math"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// Health is the constants of Factors.Rate. A field that is not above 0 is its
// default.
type Health struct {
	// Probing is the availability of a subscription that is being probed after it
	// was closed, up to 1. Default 0.5.
	Probing float64
	// Nearly is the spent part of a limit from which on new sessions go to others,
	// so that those that are there find the rest. Default 0.95.
	Nearly float64
	// ResetSoon is how long before its reset a spent limit weighs half. Default 1
	// minute.
	ResetSoon time.Duration
	// Slow is how many times the provider's usual time to the first byte counts as
	// usual, too. Default 2.
	Slow float64
	// SessionLoad is how much a session that has a place weighs against a request
	// under way, up to 1. Default 0.25.
	SessionLoad float64
}

func (h Health) withDefaults() Health {
	number := func(f *float64, standard float64) {
		if !(*f > 0) { // what is not a number, too
			*f = standard
		}
	}
	number(&h.Probing, 0.5)
	number(&h.Nearly, 0.95)
	number(&h.Slow, 2)
	number(&h.SessionLoad, 0.25)
	if h.ResetSoon <= 0 {
		h.ResetSoon = time.Minute
	}
	return h
}

// Factors is what the health of a subscription is made of.
type Factors struct {
	Availability float64       // 1 open, Health.Probing being probed after it was closed, 0 closed
	Utilization  float64       // spent fraction of the limit that weighs most, 0..1 and sometimes above
	ResetIn      time.Duration // until that limit is whole again; 0: not known
	Fullest      float64       // spent fraction of the fullest limit, where that is another
	ErrorRate    float64       // share of failures among recent answers, 0..1
	Slowness     float64       // time to the first byte, as a multiple of the provider's usual; 0: not known
	InFlight     int64         // requests under way
	Sessions     int64         // sessions that have a place
	Weight       int           // the operator's share; less than 1 counts as 1
}

// Score is the worth of a subscription for the next new session, with its
// parts. Health is what people see; Total also knows how busy it is.
//
//	Health = 100 × Availability × Headroom × Soundness × Swiftness
//	Total  = Health × Idleness
//
// Every part is in 0..1, so both are in 0..100, and every part alone can rule a
// subscription out.
//
// Headroom is 1 − utilization × r ÷ (r + Health.ResetSoon), with r the time to
// the limit's reset: what is nearly spent is hardly worse for it a moment before
// it begins anew. Without a known reset, and for what is spent in whole, it is 1
// − utilization.
//
// Soundness is 1 − error rate. Swiftness is 1 up to Health.Slow times the
// provider's usual time to the first byte, and less in proportion beyond.
//
// Idleness is weight ÷ (weight + busy), where a request under way counts 1 and
// a session that has a place Health.SessionLoad: equal subscriptions get load in
// proportion to their weights. It is no part of Health, as being small or in use
// is no illness.
type Score struct {
	Total, Health                                          float64
	Availability, Headroom, Soundness, Swiftness, Idleness float64
	// Nearly says that a limit is spent to Health.Nearly or more: new sessions go to
	// whoever is not, of whatever score, so that those that are there find the
	// rest, and nobody runs into the wall.
	Nearly bool
}

// Rate computes the score by the constants h. It is a pure function; whatever
// comes in, no part is NaN, infinite or out of its range.
func (f Factors) Rate(h Health) Score {
	h = h.withDefaults()
	s := Score{
		Availability: unit(f.Availability),
		Headroom:     1 - h.weighs(f.Utilization, f.ResetIn),
		Soundness:    1 - unit(f.ErrorRate),
		Swiftness:    1,
		Nearly:       f.Utilization >= h.Nearly || f.Fullest >= h.Nearly,
	}
	if f.Slowness > h.Slow {
		s.Swiftness = unit(h.Slow / f.Slowness)
	}
	weight := float64(max(f.Weight, 1))
	busy := float64(max(f.InFlight, 0)) + float64(max(f.Sessions, 0))*unit(h.SessionLoad)
	s.Idleness = weight / (weight + busy)
	s.Health = 100 * s.Availability * s.Headroom * s.Soundness * s.Swiftness
	s.Total = s.Health * s.Idleness
	return s
}

// weighs is how much of a limit's headroom its spent part takes, 0..1. The limit
// is whole again in resetIn (0: not known).
func (h Health) weighs(spent float64, resetIn time.Duration) float64 {
	spent = unit(spent)
	if spent == 1 || resetIn <= 0 {
		return spent
	}
	r := float64(resetIn)
	return spent * (r / (r + float64(h.ResetSoon)))
}

// unit clamps to 0..1; what is not a number is 0.
func unit(x float64) float64 {
	if math.IsNaN(x) {
		return 0
	}
	return min(max(x, 0), 1)
}

// factors are those of m now.
func (m *member) factors(now time.Time) Factors {
	f, _ := m.standing(now)
	return f
}

// standing is what m is rated by, and what strategies other than balanced look
// at.
func (m *member) standing(now time.Time) (Factors, Standing) {
	health := &m.opts.Load().Health
	f := Factors{
		Availability: 1,
		ErrorRate:    m.gate.ErrorRate(),
		Slowness:     m.slowness(now),
		InFlight:     int64(m.share.busy()),
		Sessions:     m.placed(now),
		Weight:       m.conf().Weight,
	}
	switch state, _ := m.state(now); state {
	case StateProbing:
		f.Availability = health.Probing
	case StateCooling, StateDisabled:
		f.Availability = 0
	default:
	}
	st := Standing{Sessions: f.Sessions, InFlight: f.InFlight, Turn: m.turns.next()}
	weight, expiring, over := 0.0, 0.0, false
	limit := func(l ratelimit.Limit) {
		f.Fullest = max(f.Fullest, l.Spent)
		in := time.Duration(0)
		if !l.Reset.IsZero() {
			if in = l.Reset.Sub(now); in <= 0 {
				over = over || l.Expires
				return
			}
		}
		if w := health.weighs(l.Spent, in); w > weight {
			weight, f.Utilization, f.ResetIn = w, l.Spent, in
		}
		if l.Expires && in > 0 && (st.ExpiresIn == 0 || l.Spent > expiring || l.Spent == expiring && in < st.ExpiresIn) {
			expiring, st.ExpiresIn = l.Spent, in
		}
	}
	m.gate.EachLimit(now, limit)
	m.budgets.each(now, limit)
	if expiring == 0 && (over || !m.answered.Load()) {
		st.ExpiresIn = WindowNews
	}
	st.Used = f.Fullest
	return f, st
}

// score rates m for the choice.
func (m *member) score(now time.Time) Score { return m.factors(now).Rate(m.opts.Load().Health) }

// each tells f of every budget.
func (b *budgets) each(now time.Time, f func(ratelimit.Limit)) {
	if len(b.accounts) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.accounts {
		a := &b.accounts[i]
		a.turn(now)
		f(ratelimit.Limit{Spent: a.spent(0), Reset: a.end, Expires: true})
	}
}
