package proxy

import (
	"time"

	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/ratelimit/usage"
)

// event describes the answer as far as it has been read.
func (ex *exchange) event() usage.Event {
	r := ex.meter.Result()
	model := r.Model
	if model == "" {
		model = ex.info.Model
	}
	return usage.Event{
		ID:           ex.id,
		Time:         time.Now().UnixMilli(),
		Provider:     ex.provider.Name,
		Subscription: ex.lease.Subscription().ID,
		Agent:        ex.agent,
		Session:      ex.info.Session.ID,
		Model:        model,
		Tokens:       r.Tokens,
	}
}

// open tells the journal that an answer is under way, once its input is known:
// should authpool be killed, that much is counted.
func (ex *exchange) open() {
	ex.opened = true
	if !ex.billable() {
		return
	}
	e := ex.event()
	ex.price(&e, ex.meter.Result().Service)
	if err := ex.s.deps.Recorder.Open(e); err != nil {
		ex.recordFailed(err)
	}
}

// billable tells whether the answer costs anything: the request asked for
// something that does, and it was served.
func (ex *exchange) billable() bool {
	return ex.info.Endpoint.Billable() && ex.status >= 200 && ex.status < 300 && ex.meter.Result().Billable
}

// settle records the answer's usage. Only the first call counts: it is made
// before the answer's last bytes go out, or with cut when there will be none.
func (ex *exchange) settle(cut bool) {
	if ex.settled {
		return
	}
	ex.settled = true
	if !ex.billable() {
		return
	}
	e := ex.event()
	if r := ex.meter.Result(); r.State != meter.Reported {
		// The answer ended, by whatever hand, before it told its final usage:
		// what it generated is estimated from what was seen of it. One that is
		// whole and told nothing is unknown, and nothing is made up for it.
		e.Unknown = r.State == meter.Absent
		_, failed := ex.meter.Failure()
		if e.Estimated = cut || failed || r.State == meter.Partial; e.Estimated {
			e.Tokens.Output = max(e.Tokens.Output, ex.meter.EstimateOutput())
		}
	}
	ex.price(&e, ex.meter.Result().Service)
	ex.tokens = e.Tokens
	ex.estimated = e.Estimated
	if err := ex.s.deps.Recorder.Add(e); err != nil {
		ex.recordFailed(err)
	}
}

func (ex *exchange) price(e *usage.Event, s usage.Service) {
	nano, known := ex.s.deps.Prices.Cost(e.Provider, e.Model, e.Tokens, s)
	e.CostNanoUSD, e.Unpriced, e.PriceVersion = nano, !known, ex.s.deps.Prices.Version()
}

// recordFailed makes lost usage loud; the answer goes on.
func (ex *exchange) recordFailed(err error) {
	usageLost.Inc()
	ex.s.log.Error("usage not recorded", "request", ex.id, "subscription", ex.lease.Subscription().ID, "error", err)
}
