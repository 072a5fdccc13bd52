package pool

import "time"

// saving is what comes next into the buckets of a subscription, kept for the one
// that has waited for it longest. Small requests would else take it all as it
// comes, and a large one would never find enough.
type saving struct {
	waiter *waiter
	model  string
	until  time.Time // when there will be enough
}

// saves keeps for w what comes into the buckets of the subscription that opens
// first for it, unless somebody who came before it saves there. It saves at one
// place at a time, and not elsewhere while its session waits for its own subscription.
func (w *waiter) saves(o outlook) {
	m := o.first
	if o.refusal.obstacle != metered || !o.own.IsZero() && !o.own.Equal(o.until) {
		m = nil
	}
	if w.saving != nil && w.saving != m {
		w.spends()
	}
	if m == nil {
		return
	}
	mine := &saving{waiter: w, model: o.model, until: o.until}
	if old := m.saving.Load(); old == nil || old.waiter == w {
		if m.saving.CompareAndSwap(old, mine) {
			w.saving = m
		}
	}
}

// spends ends w's saving, before others have the turn. It tells whether there was
// any.
func (w *waiter) spends() bool {
	m := w.saving
	if m == nil {
		return false
	}
	w.saving = nil
	old := m.saving.Load()
	return old != nil && old.waiter == w && m.saving.CompareAndSwap(old, nil)
}

// saved tells whether what is in m's buckets is kept for another request than
// req. A provider's own limits are those of one model.
func (m *member) saved(req *Request) (r refusal, yes bool) {
	s := m.saving.Load()
	if s == nil || s.waiter == req.waiter || s.model != req.Model && !m.conf().Limits.metered() {
		return refusal{}, false
	}
	return refusal{obstacle: metered, until: s.until, reason: ReasonRate}, true
}

// metered tells whether there are limits per minute for all models together.
func (l *Limits) metered() bool {
	return l.RequestsPerMinute > 0 || l.InputTokensPerMinute > 0 || l.OutputTokensPerMinute > 0
}
