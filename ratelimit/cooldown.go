package ratelimit

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The constants of the cooldown rules.
const (
	// bareFirst is the cooldown of a 429 that states no end; it doubles while
	// the probes after it are refused in the same way.
	bareFirst = time.Second
	// bareMost is where that doubling ends.
	bareMost = time.Minute
	// quotaWait is the cooldown of used-up credit without a stated date.
	quotaWait = time.Hour
	// throttleMost and windowMost bound what an answer can state: a broken
	// reset header must not close a subscription for a year. The longest real
	// throttle is a limit per day, the longest real window a month.
	throttleMost = 25 * time.Hour
	windowMost   = 32 * 24 * time.Hour
	// jitterPart and jitterMost bound what is added to the end of a window, so
	// that a fleet does not come back in one instant.
	jitterPart = 20
	jitterMost = 10 * time.Second
	// alonePart bounds what a process adds to an end while it cannot ask the
	// others whether one of them probes: a part of the wait, jitterMost at most.
	alonePart = 4
	// adoptSlack is the difference of two ends below which they are the same:
	// the time that the news took.
	adoptSlack = 250 * time.Millisecond
	// modelsMost bounds the models that are remembered; beyond it the whole
	// subscription is closed instead of one more model.
	modelsMost = 64
)

// What processes that share limits have to agree on.
const (
	// ProbePatience is how long one probe keeps everybody else out. A limit
	// refuses at once: a probe that is still without an answer after that was
	// most likely accepted and waits for its first token.
	ProbePatience = 10 * time.Second
	// RampPace is how often one more request may be under way after a cooldown,
	// and RampTime is when there may be any number.
	RampPace = 250 * time.Millisecond
	RampTime = 5 * time.Second
)

// Cooldown is one closed-until instant.
type Cooldown struct {
	Until  time.Time
	Signal Signal // Limited, Quota or Auth
	Reason Reason
	// Probing is true when Until has passed and the one request that finds out
	// whether it is over is not answered yet.
	Probing bool
}

// Cooldowns is what is known about being limited by those who share the
// limits: one subscription, or all that are in one domain. A Gate has both: what
// closes its subscription alone, and what it shares. Every cooldown ends
// in one probe: the first request after its end goes out alone, and only its
// success opens for the others, one more at a time for a few seconds: those who
// waited must not meet the limit again all together.
//
// Where several processes share the limits, the probe is one for all of them;
// what the others say comes in by the Pass that probes here.
//
// It is safe for concurrent use. Time comes in as a parameter; it must not
// lack its monotonic reading when it is time.Now's.
type Cooldowns struct {
	closed atomic.Int32 // how many closures there are: lets the open case skip the lock
	mu     sync.Mutex
	whole  *closure
	models map[string]*closure
	jitter func() float64 // uniform in [0,1)
}

// closure is one cooldown from the answer that began it to the end of the ramp
// after the probe that ended it.
type closure struct {
	until, since time.Time
	signal       Signal
	reason       Reason
	bare         int           // bare refusals in a row
	alone        time.Duration // added to until while the other processes cannot be asked
	probe        time.Time     // when the probe that is under way went out; zero: none is
	held         time.Time     // until when another process probes
	ramp         *ramp         // not nil: the cooldown is over
}

// ramp is how a cooldown opens: one request under way at first, and then one
// more with every pace.
type ramp struct {
	begin, end time.Time
	pace       time.Duration
	out        int // requests under way that began on it
}

// refusal tells whether there is no room at now.
func (r *ramp) refusal(now time.Time, reason Reason) Refusal {
	if !now.Before(r.end) {
		return Refusal{}
	}
	next := r.begin
	if !now.Before(r.begin) {
		room := 1 + now.Sub(r.begin)/r.pace
		if r.out < int(room) {
			return Refusal{}
		}
		next = r.begin.Add(room * r.pace)
	}
	if next.After(r.end) {
		next = r.end
	}
	return Refusal{Why: Ramping, Until: next, Reason: reason}
}

// turn is what one request holds of the closures that let it through, the whole's
// and its model's: it probes some, and counts on the ramps of others.
type turn struct {
	probes [2]*closure
	steps  [2]*ramp
}

// isProbe tells whether the request probes anything.
func (t *turn) isProbe() bool { return t.probes != [2]*closure{} }

// longer is the one of two refusals that lasts longer.
func (r Refusal) longer(other Refusal) Refusal {
	if r.Why == Open || other.Why != Open && other.Until.After(r.Until) {
		return other
	}
	return r
}

// NewCooldowns returns a Cooldowns that is open.
func NewCooldowns() *Cooldowns {
	return &Cooldowns{models: make(map[string]*closure), jitter: rand.Float64}
}

// check tells what closes model at now, without taking a probe.
func (c *Cooldowns) check(now time.Time, model string) Refusal {
	if c.closed.Load() == 0 {
		return Refusal{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusal(now, model)
}

// refusal is check under the lock. The later end of the two closures counts.
func (c *Cooldowns) refusal(now time.Time, model string) Refusal {
	return c.whole.refusal(now).longer(c.models[model].refusal(now))
}

// refusal tells whether k lets nobody through at now; k may be nil.
func (k *closure) refusal(now time.Time) Refusal {
	switch {
	case k == nil:
		return Refusal{}
	case k.ramp != nil:
		return k.ramp.refusal(now, k.reason)
	case now.Before(k.until):
		return Refusal{Why: Cooling, Until: k.until, Signal: k.signal, Reason: k.reason}
	case !k.probe.IsZero() && now.Before(k.probe.Add(ProbePatience)):
		return Refusal{Why: Probing, Until: k.probe.Add(ProbePatience), Signal: k.signal, Reason: k.reason}
	case now.Before(k.held):
		return Refusal{Why: Probing, Until: k.held, Signal: k.signal, Reason: k.reason}
	}
	return Refusal{}
}

// allow takes the probe where one is due, and a step where there is a ramp.
func (c *Cooldowns) allow(now time.Time, model string) (t turn, r Refusal) {
	if c.closed.Load() == 0 {
		return turn{}, Refusal{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.refusal(now, model); r.Why != Open {
		return turn{}, r
	}
	for i, k := range [...]*closure{c.whole, c.models[model]} {
		switch {
		case k == nil:
		case k.ramp == nil:
			k.probe, t.probes[i] = now, k
		case now.Before(k.ramp.end):
			k.ramp.out++
			t.steps[i] = k.ramp
		default:
			c.forget(k, model)
		}
	}
	return t, Refusal{}
}

// forget drops a closure that is over.
func (c *Cooldowns) forget(k *closure, model string) {
	switch k {
	case c.whole:
		c.whole = nil
	case c.models[model]:
		delete(c.models, model)
	}
	c.closed.Add(-1)
}

// leave counts a request out of its ramps.
func (c *Cooldowns) leave(t turn) {
	if t.steps == [2]*ramp{} {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range t.steps {
		if r != nil {
			r.out--
		}
	}
}

// giveUp ends the probe that went out at the given time without a result: the
// next request is the probe.
func (c *Cooldowns) giveUp(t turn, at time.Time) { c.hold(t, at, time.Time{}) }

// hold is giveUp, with no other probe before the given time; the refusal says so.
func (c *Cooldowns) hold(t turn, at, until time.Time) Refusal {
	r := Refusal{Why: Probing, Until: until}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range t.probes {
		if k != nil && k.probe.Equal(at) {
			k.probe, k.held = time.Time{}, until
			r.Signal, r.Reason = k.signal, k.reason
		}
	}
	return r
}

// open begins the ramps of what the request has probed, unless it was closed
// anew meanwhile.
func (c *Cooldowns) open(t turn, begin, end time.Time, pace time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range t.probes {
		if k != nil && k.ramp == nil {
			k.ramp = &ramp{begin: begin, end: end, pace: pace}
		}
	}
}

// since is when the last of what the request probes was closed.
func (c *Cooldowns) since(t turn) (began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range t.probes {
		if k != nil {
			began = later(began, k.since)
		}
	}
	return began
}

// late is when a process that cannot ask the others may probe.
func (c *Cooldowns) late(t turn) (until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range t.probes {
		if k == nil {
			continue
		}
		if end := k.until.Add(k.alone); end.After(until) {
			until = end
		}
	}
	return until
}

// Ask lets the next request find out what another process's probe, which it
// would wait for, has come to: there is news.
func (c *Cooldowns) Ask() {
	if c.closed.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.whole != nil {
		c.whole.held = time.Time{}
	}
	for _, k := range c.models {
		k.held = time.Time{}
	}
}

// End ends every cooldown that began at the given time or before, because an
// operator says so: what it closed opens on a ramp, without a probe.
func (c *Cooldowns) End(now, began time.Time) {
	if c.closed.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	end := func(k *closure) {
		if k != nil && k.ramp == nil && !k.since.After(began) {
			k.ramp = &ramp{begin: now, end: now.Add(RampTime), pace: RampPace}
		}
	}
	end(c.whole)
	for _, k := range c.models {
		end(k)
	}
}

// refuse closes what v says is closed, for a request that went out at the given
// time. It returns the change; the zero Change when nothing changed, because v
// closes nothing or tells nothing new.
func (c *Cooldowns) refuse(now, at time.Time, model string, v Verdict) Change {
	whole := v.Scope == ScopeSubscription || v.Scope == ScopeDomain
	if !whole && v.Scope != ScopeModel {
		return Change{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := c.slot(now, whole, model)
	k := slot.get()
	var bare int
	// One bare refusal says too little to hold the whole fleet back.
	shared := true
	if k != nil && k.ramp == nil {
		bare = k.bare
	}
	wait := v.Wait
	switch {
	case v.Signal == Quota && wait < 0:
		wait = quotaWait
	case v.Signal == Auth && wait < 0:
		wait = quotaWait // a model that the credential may not use: asked again once an hour
	case wait < 0:
		if k != nil && k.ramp == nil && at.Before(k.since) {
			return Change{} // went out before the last refusal was known: not one more in a row
		}
		bare++
		wait = c.bareWait(bare)
		shared = bare > 1
	case v.Signal == Quota || v.Reason == ReasonWindow:
		wait = min(wait, windowMost)
		wait += time.Duration(c.jitter() * float64(min(wait/jitterPart, jitterMost)))
	default:
		wait = min(wait, throttleMost)
	}
	until := now.Add(wait)
	// Where it is over (an operator may have ended it early), every end is news.
	if k != nil && k.ramp == nil && !until.After(k.until) {
		return Change{}
	}
	slot.set(&closure{until: until, since: now, signal: v.Signal, reason: v.Reason, bare: bare, alone: c.alone(wait)})
	scope := ScopeModel
	switch {
	case v.Scope == ScopeSubscription:
		scope = ScopeSubscription
	case slot.whole: // for want of room for one more model, too
		scope = ScopeDomain
	}
	return Change{
		Model: slot.model, Scope: scope, Wait: wait, Until: until,
		Signal: v.Signal, Reason: v.Reason, Shared: shared,
	}
}

// bareWait is the n-th wait in a row after refusals that state no end: one
// second, then a random part of the doubled time above that second.
func (c *Cooldowns) bareWait(n int) time.Duration {
	most := bareFirst
	for i := 1; i < n && most < bareMost; i++ {
		most *= 2
	}
	most = min(most, bareMost)
	return bareFirst + time.Duration(c.jitter()*float64(most-bareFirst))
}

// alone is what this process adds to the end of a wait while it cannot ask the
// others.
func (c *Cooldowns) alone(wait time.Duration) time.Duration {
	return time.Duration(c.jitter() * float64(min(wait/alonePart, jitterMost)))
}

// Adopt closes until the given instant because another process says so; model
// is empty for the whole subscription. An earlier end than the known one
// changes nothing. It reports whether something changed.
func (c *Cooldowns) Adopt(now time.Time, model string, until time.Time, signal Signal, reason Reason) bool {
	if !until.After(now) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := c.slot(now, model == "", model)
	k := slot.get()
	if k != nil && k.ramp != nil && !now.Before(k.ramp.end) {
		k = nil // nobody has asked for it since
	}
	if k != nil {
		// Where it is over here and not for the others, every difference counts:
		// who is too early by a little asks them again and again.
		known := k.until
		if now.Before(known) || k.ramp != nil {
			known = known.Add(adoptSlack)
		}
		if !until.After(known) {
			return false
		}
	}
	next := &closure{until: until, since: now, signal: signal, reason: reason, alone: c.alone(until.Sub(now))}
	if k != nil {
		next.bare = k.bare
	}
	slot.set(next)
	return true
}

// Join closes what from has closed: those whom it is about share limits with those
// of c, as was found out. What is being probed there is to be probed here, too, and
// what opens opens no faster: the answer that tells of the organisation may be the
// probe's own.
func (c *Cooldowns) Join(now time.Time, from *Cooldowns) {
	if from.closed.Load() == 0 {
		return
	}
	closed := make(map[string]closure)
	from.mu.Lock()
	if from.whole != nil {
		closed[""] = *from.whole
	}
	for model, k := range from.models {
		if model != "" {
			closed[model] = *k
		}
	}
	for model, k := range closed {
		if k.ramp != nil {
			// Who is under way counts there.
			k.ramp = &ramp{begin: k.ramp.begin, end: k.ramp.end, pace: k.ramp.pace}
			closed[model] = k
		}
	}
	from.mu.Unlock()
	for model, k := range closed {
		if k.ramp == nil && now.Before(k.until) {
			c.Adopt(now, model, k.until, k.signal, k.reason)
		} else if k.ramp == nil || now.Before(k.ramp.end) {
			c.inherit(now, model, k)
		}
	}
}

// inherit takes over a closure whose end has come, if there is none.
func (c *Cooldowns) inherit(now time.Time, model string, k closure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slot := c.slot(now, model == "", model); slot.get() == nil {
		k.probe, k.held = time.Time{}, time.Time{} // whose probe it is cannot be told here
		slot.set(&k)
	}
}

// Whole returns the cooldown of the whole; ok is false when there is none.
func (c *Cooldowns) Whole(now time.Time) (cooldown Cooldown, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.whole.cooldown(now)
}

// Models returns the models that are closed at now and until when; nil when
// none is.
func (c *Cooldowns) Models(now time.Time) map[string]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out map[string]time.Time
	for model, k := range c.models {
		if k.ramp == nil && now.Before(k.until) {
			if out == nil {
				out = make(map[string]time.Time)
			}
			out[model] = k.until
		}
	}
	return out
}

func (k *closure) cooldown(now time.Time) (Cooldown, bool) {
	if k == nil || k.ramp != nil {
		return Cooldown{}, false
	}
	return Cooldown{Until: k.until, Signal: k.signal, Reason: k.reason, Probing: !now.Before(k.until)}, true
}

// slot is the place of one closure, so that the whole and a model share the
// code that changes them.
type slot struct {
	c     *Cooldowns
	whole bool
	model string
}

func (c *Cooldowns) slot(now time.Time, whole bool, model string) slot {
	if !whole && c.models[model] == nil && len(c.models) >= modelsMost {
		c.prune(now)
		whole = len(c.models) >= modelsMost
	}
	if whole {
		return slot{c: c, whole: true}
	}
	return slot{c: c, model: strings.Clone(model)} // the name may lie in a request's buffer
}

// prune forgets the models whose cooldown has passed without anybody asking
// for them since.
func (c *Cooldowns) prune(now time.Time) {
	for model, k := range c.models {
		if !now.Before(k.until) {
			delete(c.models, model)
			c.closed.Add(-1)
		}
	}
}

func (s slot) get() *closure {
	if s.whole {
		return s.c.whole
	}
	return s.c.models[s.model]
}

func (s slot) set(k *closure) {
	if s.get() == nil {
		s.c.closed.Add(1)
	}
	if s.whole {
		s.c.whole = k
		return
	}
	s.c.models[s.model] = k
}
