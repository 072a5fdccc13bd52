package ratelimit

import (
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Why says what keeps a request out.
type Why uint8

// The answers of a Gate.
const (
	Open     Why = iota // nothing does
	Cooling             // a limit or quota was met and its end has not come
	Probing             // that end has come, and one request is finding out
	Ramping             // it is over, and opens for one request after the other
	Broken              // the breaker is open
	Metered             // a limit per minute is used up, a configured one or, as its answers say, the provider's
	Busy                // the provider has no capacity for the model, whoever asks
	Down                // the provider's base URL serves nobody
	whyCount = iota
)

var whyNames = [whyCount]string{"open", "cooling", "probing", "ramp", "breaker", "rate", "overload", "down"}

// String returns a short name for people and metrics.
func (w Why) String() string { return whyNames[w] }

// Refusal is a Gate's no; the zero Refusal is a yes.
type Refusal struct {
	Why   Why
	Until time.Time // when asking again can help
	// Short says that only this process's part of a rate is used up, and the fleet
	// may have more: Demand has it asked.
	Short bool
	// Foretold says that nobody has refused anything, but the provider's answers say
	// that it will: Dare finds out.
	Foretold bool
	// Signal and Reason are those of the cooldown, where it is one.
	Signal Signal
	Reason Reason
}

// Change is what a Verdict changed for other requests, and for other processes
// when it is Shared. The zero Change is none.
type Change struct {
	Scope  Scope  // ScopeSubscription, ScopeDomain or ScopeModel
	Model  string // of ScopeModel; may be empty: requests that name no model
	Wait   time.Duration
	Until  time.Time
	Signal Signal
	Reason Reason
	Shared bool
	Opened bool // the breaker opened; nothing else is set then
}

// None tells whether nothing changed.
func (c Change) None() bool { return c.Until.IsZero() && !c.Opened }

// Gate says whether one subscription may be used now. In the order in which Check
// tells of them there are cooldowns (what the provider refused, the subscription
// alone or its domain), the breaker (what is broken), the configured rates, and what
// the provider's answers say is left of its own. A Gate is safe for concurrent use;
// time is a parameter, as in Cooldowns, except that gobreaker reads the clock itself.
//
// Allow lends a Pass; the Pass is settled by Verdict as soon as it is known what
// the answer means, and by Done at the end.
type Gate struct {
	own     *Cooldowns // of the subscription alone
	shared  atomic.Pointer[Cooldowns]
	breaker *breaker
	windows *windows
	rates   *rates
	told    *told
	dared   atomic.Bool // one that dares is without an answer
}

// NewGate returns the open gate of subscription id. Gates of one domain share
// their cooldowns.
func NewGate(id string, rates Rates, cooldowns *Cooldowns) *Gate {
	g := &Gate{
		own:     NewCooldowns(),
		breaker: newBreaker(id),
		rates:   newRates(rates),
		windows: new(windows),
		told:    new(told),
	}
	g.shared.Store(cooldowns)
	return g
}

// Inherit has the gate go on with what from knows of the same subscription, but for its
// configured rates: the breaker, and what answers said of the provider's limits. It is
// to be called before the gate is used. Who was let through by from is settled with
// both.
func (g *Gate) Inherit(now time.Time, from *Gate) {
	g.own.Join(now, from.own)
	g.breaker, g.windows, g.told = from.breaker, from.windows, from.told
}

// Own returns what closes the subscription alone.
func (g *Gate) Own() *Cooldowns { return g.own }

// Cooldowns returns what the gate shares with its domain.
func (g *Gate) Cooldowns() *Cooldowns { return g.shared.Load() }

// Share makes the gate one of another domain. Who was let through is settled with
// the former.
func (g *Gate) Share(cooldowns *Cooldowns) { g.shared.Store(cooldowns) }

// Cooldown returns what closes the whole subscription, its own cooldown or its
// domain's, whichever ends later; ok is false when nothing does.
func (g *Gate) Cooldown(now time.Time) (cooldown Cooldown, ok bool) {
	cooldown, ok = g.Cooldowns().Whole(now)
	if own, yes := g.own.Whole(now); yes && (!ok || own.Until.After(cooldown.Until)) {
		return own, true
	}
	return cooldown, ok
}

// Ask is Cooldowns.Ask of both, and End is Cooldowns.End.
func (g *Gate) Ask() {
	g.own.Ask()
	g.Cooldowns().Ask()
}

// End ends what began at the given time or before; see Ask.
func (g *Gate) End(now, began time.Time) {
	g.own.End(now, began)
	g.Cooldowns().End(now, began)
}

// Check tells what Allow would refuse, and takes nothing. Another caller may
// come between the two.
func (g *Gate) Check(now time.Time, model string, input, output int64) Refusal {
	if r := g.Cooldowns().check(now, model).longer(g.own.check(now, "")); r.Why != Open {
		return r
	}
	if r := g.breaker.check(now); r.Why != Open {
		return r
	}
	need := needs(input, output)
	if r := g.rates.check(now, need); r.Why != Open {
		return r
	}
	return g.told.check(now, model, need)
}

// Pass is the permission for one attempt. It belongs to one owner, who calls
// Verdict at most once and then Done exactly once.
type Pass struct {
	gate      *Gate
	model     string
	at        time.Time
	done      func(error) // settles the breaker; nil once it is settled
	cooldowns *Cooldowns  // that the gate shared when it let the attempt through
	turn      turn        // of those
	own       turn        // of the subscription's own
	need      Amounts
	told      *toldTurn // nil: nothing was known of the model
	dares     bool      // it is the one that does
}

// Allow lets an attempt through, with estimates of its tokens (0 is allowed),
// or refuses it.
func (g *Gate) Allow(now time.Time, model string, input, output int64) (Pass, Refusal) {
	return g.allow(now, model, input, output, false)
}

// Dare is Allow for a request whose agent would be told of a limit that nobody has
// met: one at a time goes out although the provider's answers say that it will be
// refused (Refusal.Foretold). They may be wrong, and then its answer says so.
func (g *Gate) Dare(now time.Time, model string, input, output int64) (Pass, Refusal) {
	if !g.dared.CompareAndSwap(false, true) {
		return g.Allow(now, model, input, output)
	}
	p, r := g.allow(now, model, input, output, true)
	if p.dares = r.Why == Open; !p.dares {
		g.dared.Store(false)
	}
	return p, r
}

func (g *Gate) allow(now time.Time, model string, input, output int64, dares bool) (Pass, Refusal) {
	need := needs(input, output)
	if r := g.rates.take(now, need); r.Why != Open {
		return Pass{}, r
	}
	mark, r := g.told.take(now, model, need, dares)
	if r.Why != Open {
		g.rates.giveBack(now, need)
		return Pass{}, r
	}
	done, r := g.breaker.allow(now)
	if r.Why != Open {
		g.rates.giveBack(now, need)
		g.told.giveBack(mark, need)
		return Pass{}, r
	}
	// Last, so that a probe is only taken by a request that really goes out.
	p := Pass{gate: g, model: model, at: now, done: done, cooldowns: g.Cooldowns(), need: need, told: mark}
	if p.turn, r = p.cooldowns.allow(now, model); r.Why == Open {
		p.own, r = g.own.allow(now, "")
	}
	if r.Why != Open {
		p.Cancel(now)
		return Pass{}, r
	}
	return p, Refusal{}
}

// Verdict settles breaker and cooldowns and remembers the windows. What each
// signal does is the table in the contract's design:
//
//   - ok: the endpoint works, a probe has succeeded;
//   - limited, quota: a cooldown of what the scope says; the endpoint works;
//   - auth: a cooldown of the model for an hour when that is its scope, else
//     nothing here: the owner of the credential has to act;
//   - client_error: the endpoint works, nothing else changes;
//   - server_error, network: a failure for the breaker;
//   - overloaded: nothing, no subscription is to blame.
func (p *Pass) Verdict(now time.Time, v Verdict) Change {
	g := p.gate
	g.windows.remember(v.Windows)
	g.told.hear(p, v.Windows)
	p.dared()
	var outcome error
	var change Change
	switch v.Signal {
	case OK:
		if p.turn.isProbe() {
			p.cooldowns.open(p.turn, now, now.Add(RampTime), RampPace)
		}
		if p.own.isProbe() {
			g.own.open(p.own, now, now.Add(RampTime), RampPace)
		}
	case Limited, Quota:
		change = g.refuse(now, p.at, p.model, v)
	case Auth:
		if v.Scope == ScopeModel {
			change = g.refuse(now, p.at, p.model, v)
		}
	case ClientError:
	case ServerError, Network:
		outcome = errBroken
	case Overloaded:
		outcome = errNoMatter
	}
	if v.Signal != OK {
		p.giveUp()
	}
	if g.breaker.settle(now, p.done, outcome) {
		change = Change{Opened: true}
	}
	p.done = nil
	return change
}

// Late is for a limit or used-up credit that an answer tells after its Verdict
// was ok, behind content: it closes what the scope says, and settles nothing.
func (p *Pass) Late(now time.Time, v Verdict) Change {
	if v.Signal != Limited && v.Signal != Quota {
		return Change{}
	}
	return p.gate.refuse(now, p.at, p.model, v)
}

// LateAt is Late for an answer of another model, or asked for at another time, than the
// Pass was taken for.
func (p *Pass) LateAt(now, at time.Time, model string, v Verdict) Change {
	if v.Signal != Limited && v.Signal != Quota {
		return Change{}
	}
	return p.gate.refuse(now, at, model, v)
}

// More books one more answer than the Pass was taken for, or with first set the tokens
// of the one that it was.
func (p *Pass) More(now time.Time, first bool, input, output int64) {
	used := needs(input, output)
	if first {
		used[0] = 0
	}
	for k := range used {
		used[k] = -used[k]
	}
	p.gate.rates.giveBack(now, used)
	p.gate.told.giveBack(p.told, used)
}

// Told remembers what the provider tells of its limits after the Verdict.
func (p *Pass) Told(windows []Window) {
	p.gate.windows.remember(windows)
	p.gate.told.hear(p, windows)
}

// refuse closes what v says is closed, as Cooldowns.refuse.
func (g *Gate) refuse(now, at time.Time, model string, v Verdict) Change {
	if v.Scope == ScopeSubscription {
		return g.own.refuse(now, at, model, v)
	}
	return g.Cooldowns().refuse(now, at, model, v)
}

// giveUp ends what the attempt probes without a result.
func (p *Pass) giveUp() {
	if p.turn.isProbe() {
		p.cooldowns.giveUp(p.turn, p.at)
	}
	if p.own.isProbe() {
		p.gate.own.giveUp(p.own, p.at)
	}
}

// Probes tells what the attempt is the probe of: the subscription alone, its
// domain, the model, or several of them. Where processes share the limits, the
// others are to be asked before it goes out, and what they say is told by
// Elsewhere, Opened or Alone: of the subscription alone (ScopeSubscription), or of
// domain and model together (ScopeDomain). Each of them may refuse; then the Pass
// is to be given up by Cancel.
func (p *Pass) Probes() (subscription, domain, model bool) {
	return p.own.probes[0] != nil, p.turn.probes[0] != nil, p.turn.probes[1] != nil
}

// part is what the attempt holds of one of the two, and whose that is.
func (p *Pass) part(scope Scope) (*Cooldowns, *turn) {
	if scope == ScopeSubscription {
		return p.gate.own, &p.own
	}
	return p.cooldowns, &p.turn
}

// Elsewhere says that another process probes, until the given time at most: the
// next probe here is not before that, or before there is news (Cooldowns.Ask).
func (p *Pass) Elsewhere(scope Scope, until time.Time) Refusal {
	c, t := p.part(scope)
	return c.hold(*t, p.at, until)
}

// Opened says that another process's probe has succeeded, since ago; this one is
// the seat-th to come after it, counted from 1 for the one that probed, and its
// turn on the ramp is after delay. It refuses where that is not now. A success
// from before the cooldown began says nothing of one that the others do not know:
// then this stays the probe.
//
// The processes take their turns one after the other, and the more came before
// it, the slower a process adds requests: together they stay near to what one of
// them would have sent alone, and none of them has to ask for each request.
func (p *Pass) Opened(scope Scope, now time.Time, since, delay time.Duration, seat int) Refusal {
	c, t := p.part(scope)
	if c.since(*t).After(now.Add(-since)) {
		return Refusal{}
	}
	c.open(*t, now.Add(delay), now.Add(RampTime-since), RampPace*time.Duration(max(seat, 1)))
	*t = turn{}
	model := p.model
	if scope == ScopeSubscription {
		model = ""
	}
	var r Refusal
	*t, r = c.allow(now, model)
	return r
}

// Alone says that the others cannot be asked. Then every process probes for
// itself, and each at a time of its own, which may be later than now.
func (p *Pass) Alone(scope Scope, now time.Time) Refusal {
	c, t := p.part(scope)
	until := c.late(*t)
	if !now.Before(until) {
		return Refusal{}
	}
	return c.hold(*t, p.at, until)
}

// Awaited tells, before its Verdict, whether that may open something for others even
// if the answer is good: the attempt finds out, or it is one of a model of whose
// limits the provider tells.
func (p *Pass) Awaited() bool {
	return p.turn.isProbe() || p.own.isProbe() || p.dares || p.told != nil || !p.gate.breaker.is(gobreaker.StateClosed)
}

// Done settles the rates with the tokens that were really used. settled false
// keeps the estimate, for an answer whose usage is not known. Without a Verdict
// before it the attempt counts for nothing: the agent left.
//
// The request itself is not given back: the provider has counted it.
func (p *Pass) Done(now time.Time, input, output int64, settled bool) {
	p.dared()
	if p.done != nil {
		p.gate.breaker.settle(now, p.done, errNoMatter)
		p.done = nil
		p.giveUp()
	}
	p.cooldowns.leave(p.turn)
	p.gate.own.leave(p.own)
	if settled {
		used := needs(input, output)
		rest := Amounts{0, p.need[1] - used[1], p.need[2] - used[2]}
		p.gate.rates.giveBack(now, rest)
		p.gate.told.giveBack(p.told, rest)
	}
}

// dared lets the next one dare.
func (p *Pass) dared() {
	if p.dares {
		p.dares = false
		p.gate.dared.Store(false)
	}
}

// Cancel undoes an Allow whose attempt never went out: the request is given
// back too. It replaces Verdict and Done.
func (p *Pass) Cancel(now time.Time) {
	p.Done(now, 0, 0, true)
	p.gate.rates.giveBack(now, Amounts{1, 0, 0})
	p.gate.told.giveBack(p.told, Amounts{1, 0, 0})
}

// Trust closes the breaker: the base URL is known to work again.
func (g *Gate) Trust() { g.breaker.reset() }

// ErrorRate is the share of failures among the last minute's answers, 0..1.
func (g *Gate) ErrorRate() float64 { return g.breaker.errorRate() }

// Breaker is the state of the breaker: "closed", "half-open" or "open".
func (g *Gate) Breaker() string { return g.breaker.two.Load().State().String() }

// Windows returns the provider's windows as last told, sorted by name.
func (g *Gate) Windows() []Window { return g.windows.list() }

// Limit is how much of one limit of a subscription is spent.
type Limit struct {
	Spent   float64   // 0..1 and sometimes above; never negative or NaN
	Reset   time.Time // when it is whole again, or was; zero: not known, or it refills all the time
	Expires bool      // what is left of it then is lost, as it does not refill before
}

// EachLimit tells f of every limit that concerns all requests: the provider's
// windows as last told, and the fullest of the configured rates. f must not use
// the gate.
func (g *Gate) EachLimit(now time.Time, f func(Limit)) {
	g.windows.each(now, f)
	if spent := g.rates.used(now); spent > 0 {
		f(Limit{Spent: spent})
	}
}

// Utilization is how much of the tightest of these limits is spent; nothing of one
// that has been reset since it was told.
func (g *Gate) Utilization(now time.Time) float64 {
	most := 0.0
	g.EachLimit(now, func(l Limit) { most = max(most, l.Spent) })
	return most
}
