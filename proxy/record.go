package proxy

import (
	"errors"
	"strconv"
	"time"

	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/upstream"
	"github.com/authpool/authpool/ratelimit/usage"
)

// What an attempt uses goes to the journal in steps, each before the step that
// the provider or the agent takes because of it:
//
//	sending  before the request goes out: from here on the provider may bill
//	inform   once the answer has told its input, and again when it may have
//	         told all
//	settle   before the answer's last bytes go to the agent, or when there will
//	         be none: the one event that is counted, or nothing
//
// Should authpool be killed, the last step that was taken is what is counted.

// event describes the attempt without what its answer has told.
func (ex *exchange) event() usage.Event {
	id := ex.id
	if ex.attempts > 1 {
		id += "." + strconv.Itoa(ex.attempts) // the attempts before have events of their own
	}
	return usage.Event{
		ID:           id,
		Time:         time.Now().UnixMilli(),
		Provider:     ex.provider.Name,
		Subscription: ex.lease.Subscription().ID,
		Agent:        ex.agent,
		Session:      ex.info.Session.ID,
		Model:        ex.info.Model,
	}
}

// answered is event with what the answer has told so far.
func (ex *exchange) answered(r *meter.Result) usage.Event {
	e := ex.event()
	if r.Model != "" {
		e.Model = r.Model
	}
	e.Tokens, e.Units = r.Tokens, r.Units
	claim(&e, r)
	return e
}

// costs tells whether the request asks for something that is paid for as a
// whole. What was asked for before is paid for request by request: see countItem.
func (ex *exchange) costs() bool {
	return ex.info.Endpoint.Billable() && !ex.info.Endpoint.API.Items()
}

// sending tells the journal that the request is about to go out.
func (ex *exchange) sending() {
	if !ex.costs() || ex.isSocket() { // of which each turn is counted
		return
	}
	e := ex.event()
	e.Unknown = true
	ex.open(e)
}

// inform tells the journal what an answer under way has used, unless it knows.
func (ex *exchange) inform() {
	r := ex.meter.Result()
	if ex.informed && r.Tokens == ex.told {
		return
	}
	ex.informed, ex.told = true, r.Tokens
	if !ex.billable() {
		return
	}
	e := ex.answered(&r)
	ex.price(&e, r.Service)
	ex.open(e)
}

// open writes a step that is not the last one. That it could not be written is
// left to the last one to tell.
func (ex *exchange) open(e usage.Event) {
	if err := ex.s.deps.Recorder.Open(e); err == nil {
		ex.opened = true
	}
}

// billable tells whether the attempt costs anything as far as is known: it asked
// for something that does, and it was served, or nobody can say whether it was.
func (ex *exchange) billable() bool {
	if !ex.costs() || ex.isSocket() {
		return false
	}
	if !ex.calling {
		var e *upstream.Error
		return errors.As(ex.failure, &e) && e.Sent
	}
	if ex.status < 200 || ex.status > 299 || ex.disguise.is {
		return false
	}
	// Of a response that was accepted the agent learns what it used when it fetches
	// it, which it cannot if the answer that names it broke before it was shown.
	return ex.meter.Result().Billable || ex.failure != nil && ex.meter.Accepted()
}

// settle records what the attempt used. Only the first call counts: it is made
// before the answer's last bytes go out, or with cut when there will be none.
func (ex *exchange) settle(cut bool) {
	if ex.settled {
		return
	}
	ex.settled = true
	if !ex.billable() {
		ex.void()
		return
	}
	var r meter.Result
	if ex.calling {
		r = ex.meter.Result()
	}
	e := ex.answered(&r)
	if r.State != meter.Reported {
		// The answer ended, by whatever hand, before it told its final usage:
		// what it generated is estimated from what was seen of it. One that is
		// whole and told nothing is unknown, and nothing is made up for it.
		e.Unknown = r.State == meter.Absent
		_, failed := ex.meter.Failure()
		if e.Estimated = cut || failed || r.State == meter.Partial; e.Estimated && ex.calling {
			e.Tokens.Output = max(e.Tokens.Output, ex.meter.EstimateOutput())
		}
	}
	ex.price(&e, r.Service)
	ex.tokens = e.Tokens
	ex.estimated = e.Estimated
	for i := range r.Others {
		ex.tokens = ex.tokens.Add(r.Others[i].Tokens)
		ex.addFurther(&e, i, &r)
	}
	if ex.add(e) {
		ex.opened = false
	}
}

// addFurther records the usage of a further model within the answer of e. It
// goes before e: should authpool be killed between the two, what e's last step
// told is counted beside it, and nothing is lost.
func (ex *exchange) addFurther(e *usage.Event, i int, r *meter.Result) {
	f := *e
	f.ID += "+" + strconv.Itoa(i+1)
	f.Further, f.Unknown = true, false
	f.Model, f.Tokens, f.Units = r.Others[i].Model, r.Others[i].Tokens, usage.Units{}
	ex.price(&f, r.Service)
	ex.add(f)
}

// countItem records one finished request that the answer shows: of a batch, or a
// response that was made in the background. Its tokens are not those of this
// exchange: they count against no rate again, however often they are shown.
func (ex *exchange) countItem(item meter.Item) {
	r := &item.Result
	if !r.Billable || ex.status < 200 || ex.status > 299 {
		return
	}
	ex.items++
	e := ex.answered(r)
	e.ID += "/" + strconv.Itoa(ex.items)
	if e.Batch == "" {
		e.Batch, e.Item = ex.info.Batch, item.CustomID
	}
	e.Unknown = r.State == meter.Absent
	ex.price(&e, r.Service)
	for i := range r.Others {
		ex.addFurther(&e, i, r)
	}
	ex.add(e)
}

func (ex *exchange) price(e *usage.Event, s usage.Service) {
	nano, known := ex.settings.prices.Cost(e.Provider, e.Model, e.Tokens, s)
	e.CostNanoUSD, e.Unpriced, e.PriceVersion = nano, !known, ex.settings.prices.Version()
}

// add records an event. Should that fail the answer goes on, and the Recorder, which
// sees all failures, raises the alarm.
func (ex *exchange) add(e usage.Event) bool {
	countSpent(&e)
	if err := ex.s.deps.Recorder.Add(e); err != nil {
		ex.s.log.Debug("usage not recorded", "request", ex.id, "subscription", e.Subscription, "error", err)
		return false
	}
	return true
}

// void takes back what the journal was told of an attempt that came to nothing.
func (ex *exchange) void() {
	if !ex.opened {
		return
	}
	ex.opened = false
	e := ex.event()
	if err := ex.s.deps.Recorder.Void(e.ID); err != nil {
		ex.s.log.Debug("a refused request may be counted as unknown should authpool be killed", "request", ex.id, "error", err)
	}
}
