package ratelimit

import (
	"math"
	"sync"
	"time"
)

// Rates are limits per minute that the operator configured for the whole
// subscription; 0 is no limit.
type Rates struct {
	Requests, InputTokens, OutputTokens int
}

// Amounts are of what Rates limit: requests, input tokens and output tokens.
type Amounts [3]int64

// kinds is how many amounts there are.
const kinds = len(Amounts{})

// rates keeps the configured limits of one subscription: by buckets of its own,
// or where processes share the subscription by allowances that they draw from
// the buckets of the fleet (see allowance).
type rates struct {
	metered bool // there is a limit
	limits  Amounts

	mu    sync.Mutex // makes asking and taking one step
	own   [kinds]bucket
	fleet *allowance // nil: no other process uses the subscription
}

func newRates(limits Rates) *rates {
	r := &rates{limits: Amounts{int64(limits.Requests), int64(limits.InputTokens), int64(limits.OutputTokens)}}
	for k, limit := range r.limits {
		r.metered = r.metered || limit > 0
		r.own[k] = newBucket(int(limit), restOf(k, float64(limit)))
	}
	return r
}

// restOf is the part of a limit that is left for answers which come to more
// tokens than was foretold: the provider counts them, while this side believes
// in the estimate until they have ended. It costs nothing but a later begin: what
// is left stays left.
func restOf(k int, limit float64) float64 {
	if k == 0 {
		return 0 // a request is one request
	}
	return limit / restPart
}

// restPart is 1 for that part; rates.lua has the same.
const restPart = 20

// needs is what one request takes.
func needs(input, output int64) Amounts { return Amounts{1, max(input, 0), max(output, 0)} }

// check tells what take would refuse.
func (r *rates) check(now time.Time, need Amounts) Refusal {
	if !r.metered {
		return Refusal{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refusal(now, need)
}

// take takes what one request needs, or refuses it.
func (r *rates) take(now time.Time, need Amounts) Refusal {
	if !r.metered {
		return Refusal{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	refusal := r.refusal(now, need)
	if refusal.Why == Open {
		r.book(now, need)
		if r.fleet != nil {
			r.fleet.took(now, need)
		}
	}
	return refusal
}

// giveBack books what was not used after all; negative is what was used beyond.
func (r *rates) giveBack(now time.Time, n Amounts) {
	if !r.metered {
		return
	}
	for k := range n {
		n[k] = -n[k]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.book(now, n)
}

// used is the spent fraction of the limit of which most is.
func (r *rates) used(now time.Time) float64 {
	if !r.metered {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	most := 0.0
	for k, limit := range r.limits {
		switch {
		case limit <= 0:
		case r.alone(now):
			most = max(most, r.own[k].used(now))
		default:
			most = max(most, 1-(r.fleet.left(now, k, limit)+float64(r.fleet.held(k)))/float64(limit))
		}
	}
	return most
}

// alone tells whether the own buckets count: without a fleet, and while it
// cannot be asked.
func (r *rates) alone(now time.Time) bool {
	f := r.fleet
	if f == nil || f.away {
		return true
	}
	if !f.silent(now) {
		return false
	}
	f.expire(now)
	f.away = true
	for k, limit := range r.limits {
		if limit > 0 {
			part := float64(limit) / float64(f.others+1)
			r.own[k] = newPart(part, restOf(k, part))
			r.own[k].set(now, float64(f.held(k))+f.left(now, k, limit)/float64(f.others+1))
		}
	}
	return true
}

func (r *rates) refusal(now time.Time, need Amounts) Refusal {
	if !r.alone(now) {
		return r.fleet.refusal(now, r.limits, need)
	}
	until := now
	for k := range r.own {
		if t := r.own[k].free(now, need[k]); t.After(until) {
			until = t
		}
	}
	if until.After(now) {
		return Refusal{Why: Metered, Until: until}
	}
	return Refusal{}
}

func (r *rates) book(now time.Time, n Amounts) {
	if r.alone(now) {
		for k := range r.own {
			r.own[k].take(now, n[k])
		}
	}
	if r.fleet != nil {
		for k, limit := range r.limits {
			if limit > 0 {
				r.fleet.spent[k] += n[k]
			}
		}
	}
}

const (
	// RateLease is how long a process may spend an allowance that it does not
	// renew.
	RateLease = 10 * time.Second
	// rateMargin is taken off its end, for clocks that run at different speeds.
	rateMargin = 500 * time.Millisecond
	// rateIdle is when a process that sends nothing takes leave of the fleet.
	rateIdle = 30 * time.Second
	// rateAsk is how soon the fleet is asked again by requests that it may have
	// something for, rateAgain how soon by those it has refused, rateRenew how
	// soon without any.
	rateAsk   = 50 * time.Millisecond
	rateAgain = time.Second
	rateRenew = 3 * time.Second
	// rateRest is how long an allowance may lie unused, and a debt untold.
	rateRest = 250 * time.Millisecond
	// rateNeed is how long a request that was refused is believed to wait.
	rateNeed = 2 * time.Second
	// rateSilence is when a question without an answer means that there is no
	// fleet.
	rateSilence = 1500 * time.Millisecond
	// rateSoon is when a request asks again that waits for an answer.
	rateSoon = 100 * time.Millisecond
)

// Draw is what one process tells the fleet of a subscription's rates, and what
// it asks for. It is true whatever became of those before it: nothing is lost
// or counted twice with a reply that does not come.
type Draw struct {
	Seq   int64   // rises from draw to draw; what comes late is left out
	Limit Amounts // per minute, over all processes; 0: none
	Spent Amounts // since the process began, less what was given back
	Debt  Amounts // spent beyond what was held, for a fleet that has forgotten the process
	Keep  Amounts // of what is held; the rest goes back
	Need  Amounts // to be held for the request that waits, all of it or nothing
	Want  Amounts // to be held, if there is enough

	leaves bool // the process takes leave
}

// Drawn is the answer to a Draw.
type Drawn struct {
	Granted bool          // Need is held, or was nothing
	Wait    time.Duration // when not: until it can be, as far as is known
	Others  int           // processes that use the subscription besides this one
	Held    Amounts       // by this process, of what Draw.Spent does not count
	Left    Amounts       // in the fleet's buckets; negative is a debt
}

// allowance is one process's part of limits that the fleet keeps. The fleet has
// one bucket for each limit, filled by Redis' clock; from it a process draws, off
// the request path, what its waiting requests need and what the next second will
// likely take, and spends that without asking. What it does not use goes back.
//
// What all processes hold and what is left are together one minute's worth at
// most: so the fleet as a whole never spends more in a time than the limit allows,
// plus what requests took beyond their estimates. That is a debt: of the process
// first, then of the fleet's bucket, which may be below zero. What a process
// holds when it dies counts as spent.
//
// While the fleet cannot be asked a process spends what it holds and its part of
// what was left, and then as much a minute as the limit divided by the processes
// that were there when it last asked. Afterwards it owes the fleet what is
// missing in that part.
type allowance struct {
	away    bool        // spends its part
	absent  func() bool // tells that there is no fleet to ask
	unheard bool        // the last draw failed

	seq         int64
	spent, paid Amounts   // paid less spent is held; below zero it is a debt
	until       time.Time // end of the lease of what is held

	told   time.Time // when the fleet last answered
	rest   Amounts   // what was left in its buckets then
	closed time.Time // when it will have what it refused; past: it refused nothing
	others int
	listed bool // the fleet knows this process

	need    Amounts   // the smallest of the requests that were refused
	denied  Amounts   // all of them since the last draw
	needed  time.Time // when the last of them was
	urgent  bool      // the fleet may have enough for one of them
	used    time.Time // when a request last came
	asked   time.Time
	pending time.Time // when the question was asked that is not answered; zero: none is

	taken, counted Amounts // by all requests, and when the pace was measured
	pace           [kinds]float64
	measured       time.Time
}

// held is what is left of the allowance.
func (a *allowance) held(k int) int64 { return a.paid[k] - a.spent[k] }

// left is what the fleet's bucket will hold, if nobody draws from it.
func (a *allowance) left(now time.Time, k int, limit int64) float64 {
	if a.told.IsZero() {
		return float64(limit) // as nobody has used it
	}
	return min(float64(a.rest[k])+now.Sub(a.told).Minutes()*float64(limit), float64(limit))
}

// silent tells whether the fleet cannot be asked.
func (a *allowance) silent(now time.Time) bool {
	return a.unheard || a.absent() || !a.pending.IsZero() && now.Sub(a.pending) > rateSilence
}

// expire drops what was not renewed. A debt stays.
func (a *allowance) expire(now time.Time) {
	if a.away || now.Before(a.until) {
		return
	}
	for k := range a.paid {
		a.paid[k] = min(a.paid[k], a.spent[k])
	}
}

// refusal is what keeps a request waiting: until the fleet answers, or has
// enough.
func (a *allowance) refusal(now time.Time, limits, need Amounts) Refusal {
	a.expire(now)
	lacks, until := false, now
	for k, limit := range limits {
		if limit <= 0 {
			continue
		}
		lack := float64(min(need[k], limit) - a.held(k))
		if lack <= 0 {
			continue
		}
		lacks = true
		if missing := min(lack+restOf(k, float64(limit)), float64(limit)) - a.left(now, k, limit); missing > 1e-3 {
			until = later(until, now.Add(time.Duration(missing/float64(limit)*float64(time.Minute))+time.Millisecond))
		}
	}
	switch until = later(until, a.closed); {
	case !lacks:
		return Refusal{}
	case until.After(now):
		return Refusal{Why: Metered, Until: until}
	}
	return Refusal{Why: Metered, Until: now.Add(rateSoon), Short: true}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// took notes what a request took.
func (a *allowance) took(now time.Time, n Amounts) {
	a.used = now
	for k := range n {
		a.taken[k] += n[k]
	}
}

// demand notes a request that was refused, and tells whether to ask at once.
func (a *allowance) demand(now time.Time, limits, need Amounts, short bool) bool {
	a.used, a.needed = now, now
	for k, limit := range limits {
		if limit > 0 {
			need[k] = min(need[k], limit)
		}
		a.denied[k] += need[k]
	}
	if a.need[0] == 0 || part(need, limits) < part(a.need, limits) {
		a.need = need
	}
	a.urgent = a.urgent || short
	return short && now.Sub(a.asked) >= rateAsk || now.Sub(a.asked) >= rateAgain
}

// part is how much of its tightest limit a request needs.
func part(need, limits Amounts) float64 {
	most := 0.0
	for k, limit := range limits {
		if limit > 0 {
			most = max(most, float64(need[k])/float64(limit))
		}
	}
	return most
}

// measure brings the pace of requests up to date: its half is forgotten in a
// second or less.
func (a *allowance) measure(now time.Time) {
	passed := now.Sub(a.measured).Seconds()
	if passed < rateRest.Seconds()/2 {
		return
	}
	weight := min(1, 2*passed)
	for k := range a.pace {
		a.pace[k] += (float64(a.taken[k]-a.counted[k])/passed - a.pace[k]) * weight
	}
	a.counted, a.measured = a.taken, now
}

// ahead is what the requests of the next second will take, in whole requests;
// but no more than the limits refill in it, unless there is plenty.
func (a *allowance) ahead(limits Amounts) (n Amounts) {
	requests := a.pace[0]
	if requests < 1 {
		return n // one that comes seldom asks for itself
	}
	for k, limit := range limits {
		if limit > 0 && a.pace[k] > 0 {
			most := max(float64(limit)/60, float64(a.rest[k])/float64(4*(a.others+1)))
			requests = min(requests, most/a.pace[k]*a.pace[0])
		}
	}
	requests = math.Floor(requests + 1e-9)
	for k, limit := range limits {
		if limit > 0 {
			n[k] = min(int64(math.Ceil(requests*a.pace[k]/a.pace[0])), limit)
		}
	}
	return n
}

// draw says what to tell and ask; ok is false when nothing is due. waiting is
// how many requests wait here.
func (a *allowance) draw(now time.Time, limits Amounts, waiting int, leaves bool) (d Draw, ok bool) {
	a.expire(now)
	a.measure(now)
	if now.Sub(a.needed) >= rateNeed {
		a.need = Amounts{} // who needed it has left
	}
	ahead := a.ahead(limits)
	resting := now.Sub(a.needed) >= rateRest
	low, much, owes := false, false, false
	for k, limit := range limits {
		if limit > 0 {
			held := a.held(k)
			low = low || 2*held < ahead[k]
			much = much || held > 2*ahead[k] && resting
			owes = owes || held < 0
		}
	}
	since := now.Sub(a.asked)
	if idle := now.Sub(a.used) >= rateIdle; leaves || idle {
		if !a.listed && !owes || !leaves && since < rateRest {
			return d, false
		}
		leaves = true
	} else {
		open := !now.Before(a.closed)
		switch {
		case since < rateAsk:
			return d, false
		case since >= rateRenew:
		case a.away, a.need[0] > 0 && !a.urgent && !open:
			ok = since >= rateAgain
		case a.need[0] > 0:
			ok = true
		default:
			ok = since >= rateRest && (much || owes || low && open)
		}
		if !ok && since < rateRenew {
			return d, false
		}
	}
	d = Draw{Seq: a.seq + 1, Limit: limits, Spent: a.spent, leaves: leaves}
	// A request that was refused often since the last draw counts once.
	share := 1.0
	if n := max(waiting, 1); a.denied[0] > int64(n) {
		share = float64(n) / float64(a.denied[0])
	}
	for k, limit := range limits {
		if limit <= 0 {
			continue
		}
		held := a.held(k)
		d.Debt[k] = max(-held, 0)
		if !leaves && !a.away {
			d.Keep[k] = max(held, 0)
			if much {
				d.Keep[k] = min(d.Keep[k], ahead[k])
			}
		}
		if !a.away {
			// What goes back may be another process's before the answer is here.
			a.paid[k] = min(a.paid[k], a.spent[k]+d.Keep[k])
		}
		if leaves || a.away {
			continue
		}
		d.Need[k] = a.need[k]
		d.Want[k] = min(max(ahead[k]+int64(math.Ceil(float64(a.denied[k])*share)), d.Need[k]), limit)
	}
	a.seq++
	a.asked, a.pending = now, now
	a.denied, a.urgent = Amounts{}, false
	return d, true
}

// drawn takes over the answer to d, which was sent at the given time. It tells
// whether a request that waits should look again.
func (a *allowance) drawn(sent, now time.Time, d Draw, got Drawn) bool {
	news := a.away || !got.Granted && !now.Before(a.closed)
	for k := range got.Held {
		a.paid[k] = d.Spent[k] + got.Held[k]
		news = news || got.Held[k] > d.Keep[k]
	}
	a.until = sent.Add(RateLease - rateMargin)
	a.told, a.rest, a.others = now, got.Left, got.Others
	a.closed = time.Time{}
	if !got.Granted {
		a.closed = now.Add(got.Wait)
	} else if a.denied[0] == 0 {
		a.need = Amounts{}
	}
	a.away, a.unheard, a.listed = false, false, !d.leaves
	a.pending = time.Time{}
	return news
}

// LeaseRates has the gate draw its configured rates from a fleet's, by Draw and
// Drawn. absent tells that there is no fleet to ask at the moment; it is called
// often. It is for before the first Allow.
func (g *Gate) LeaseRates(absent func() bool) {
	if g.rates.metered {
		g.rates.fleet = &allowance{absent: absent}
	}
}

// Demand notes that a request waits which the rates have refused, and tells
// whether the fleet is to be asked at once.
func (g *Gate) Demand(now time.Time, input, output int64) bool {
	r := g.rates
	if r.fleet == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	need := needs(input, output)
	refusal := r.refusal(now, need)
	return refusal.Why != Open && r.fleet.demand(now, r.limits, need, refusal.Short)
}

// Draw says what the fleet is to be told and asked now; ok is false when nothing
// is due. waiting is how many requests wait for this gate or another; leaves says
// that no more will come. Drawn or Undrawn takes the answer.
func (g *Gate) Draw(now time.Time, waiting int, leaves bool) (d Draw, ok bool) {
	r := g.rates
	if r.fleet == nil {
		return d, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d, ok = r.fleet.draw(now, r.limits, waiting, leaves); ok && r.fleet.away {
		// What was spent while the fleet was away, it has refilled meanwhile.
		for k := range d.Debt {
			if d.Limit[k] > 0 {
				d.Debt[k] = min(d.Debt[k], r.own[k].missing(now))
			}
		}
	}
	return d, ok
}

// Drawn takes over the fleet's answer to d, which was sent at the given time,
// and tells whether requests that wait should ask again.
func (g *Gate) Drawn(sent, now time.Time, d Draw, got Drawn) bool {
	g.rates.mu.Lock()
	defer g.rates.mu.Unlock()
	return g.rates.fleet.drawn(sent, now, d, got)
}

// Undrawn says that the fleet could not be asked.
func (g *Gate) Undrawn() {
	g.rates.mu.Lock()
	defer g.rates.mu.Unlock()
	g.rates.fleet.unheard, g.rates.fleet.pending = true, time.Time{}
}
