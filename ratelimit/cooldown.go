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
	// probePatience is how long one probe keeps everybody else out. A limit
	// refuses at once: a probe that is still without an answer after that was
	// most likely accepted and waits for its first token.
	probePatience = 10 * time.Second
	// adoptSlack is the difference of two ends below which they are the same:
	// the time that the news took.
	adoptSlack = 250 * time.Millisecond
	// modelsMost bounds the models that are remembered; beyond it the whole
	// subscription is closed instead of one more model.
	modelsMost = 64
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
// limits: one subscription, or all that are in one domain. Every cooldown ends
// in one probe: the first request after its end goes out alone, and only its
// success opens for the others.
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

// closure is one cooldown from the answer that began it to the probe that ended it.
type closure struct {
	until, since time.Time
	signal       Signal
	reason       Reason
	bare         int       // bare refusals in a row
	probe        time.Time // when the probe that is under way went out; zero: none is
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
	whole, one := c.whole.refusal(now), c.models[model].refusal(now)
	if whole.Why == Open || one.Why != Open && one.Until.After(whole.Until) {
		return one
	}
	return whole
}

// refusal tells whether k lets nobody through at now; k may be nil.
func (k *closure) refusal(now time.Time) Refusal {
	switch {
	case k == nil:
		return Refusal{}
	case now.Before(k.until):
		return Refusal{Why: Cooling, Until: k.until, Signal: k.signal, Reason: k.reason}
	case !k.probe.IsZero() && now.Before(k.probe.Add(probePatience)):
		return Refusal{Why: Probing, Until: k.probe.Add(probePatience), Signal: k.signal, Reason: k.reason}
	}
	return Refusal{}
}

// allow takes the probe where one is due. probes tells whether it did.
func (c *Cooldowns) allow(now time.Time, model string) (probes bool, r Refusal) {
	if c.closed.Load() == 0 {
		return false, Refusal{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.refusal(now, model); r.Why != Open {
		return false, r
	}
	for _, k := range [...]*closure{c.whole, c.models[model]} {
		if k != nil {
			k.probe, probes = now, true
		}
	}
	return probes, Refusal{}
}

// giveUp ends the probe that went out at the given time without a result: the
// next request is the probe.
func (c *Cooldowns) giveUp(model string, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range [...]*closure{c.whole, c.models[model]} {
		if k != nil && k.probe.Equal(at) {
			k.probe = time.Time{}
		}
	}
}

// succeed ends the closures whose probe went out at the given time.
func (c *Cooldowns) succeed(model string, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.whole != nil && !at.Before(c.whole.until) {
		c.whole = nil
		c.closed.Add(-1)
	}
	if k := c.models[model]; k != nil && !at.Before(k.until) {
		delete(c.models, model)
		c.closed.Add(-1)
	}
}

// refuse closes what v says is closed, for a request that went out at the given
// time. It returns the change; the zero Change when nothing changed, because v
// closes nothing or tells nothing new.
func (c *Cooldowns) refuse(now, at time.Time, model string, v Verdict) Change {
	if v.Scope != ScopeModel && v.Scope != ScopeSubscription {
		return Change{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := c.slot(now, v.Scope == ScopeSubscription, model)
	k := slot.get()
	var bare int
	// One bare refusal says too little to hold the whole fleet back.
	shared := true
	if k != nil {
		bare = k.bare
		if !k.probe.IsZero() && k.probe.Equal(at) {
			k.probe = time.Time{}
		}
	}
	wait := v.Wait
	switch {
	case v.Signal == Quota && wait < 0:
		wait = quotaWait
	case v.Signal == Auth && wait < 0:
		wait = quotaWait // a model that the credential may not use: asked again once an hour
	case wait < 0:
		if k != nil && at.Before(k.since) {
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
	if k != nil && !until.After(k.until) {
		return Change{}
	}
	slot.set(&closure{until: until, since: now, signal: v.Signal, reason: v.Reason, bare: bare})
	return Change{
		Model: slot.model, Whole: slot.whole, Wait: wait, Until: until,
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
	if k != nil && !until.After(k.until.Add(adoptSlack)) {
		return false
	}
	next := &closure{until: until, since: now, signal: signal, reason: reason}
	if k != nil {
		next.bare = k.bare
	}
	slot.set(next)
	return true
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
		if now.Before(k.until) {
			if out == nil {
				out = make(map[string]time.Time)
			}
			out[model] = k.until
		}
	}
	return out
}

func (k *closure) cooldown(now time.Time) (Cooldown, bool) {
	if k == nil {
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
