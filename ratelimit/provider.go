package ratelimit

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// The constants of what closes a provider as a whole, for a model or altogether.
// An overload that comes and goes must close nothing, since most are served: a
// few failures in a row count only where failures prevail.
const (
	// tripRow failures in a row close it where nothing else was seen within the
	// window, and mixedRow where failures prevail: by chance that many come once in
	// 15,000 answers where three in ten fail.
	mixedRow = 8
	// aloneRow failures in a row close whatever came before them within the window:
	// by chance that happens once in 3·10¹⁰ answers where three in ten are a failure.
	aloneRow = 20
	// openFirst is how long it is closed at least, where the provider says nothing;
	// that doubles with each probe that fails, up to openMost.
	openFirst = time.Second
	openMost  = 30 * time.Second
	// openTold bounds what the provider can say.
	openTold = time.Minute
	// calmAfter is how long after its last failure nobody looks any more, and of
	// what is closed how long after a probe was due that nobody made.
	calmAfter  = tripWindow
	pruneEvery = calmAfter / 6
	// slowStep is how often twice as many requests may wait for their first word
	// after it has opened, and slowTime is when there may be any number.
	slowStep = 500 * time.Millisecond
	slowTime = 5 * time.Second
	// suspectsMost bounds the models that are looked at.
	suspectsMost = 64
)

// Provider keeps requests away from a provider that serves nobody at the moment,
// whichever subscription asks: from a model that it has no capacity for, or from
// its base URL, if that cannot be reached or all subscriptions fail there. No
// subscription is closed by that, and other models are not.
//
// Only what has failed within the last minute is looked at, so that it costs
// nothing while all is well. It opens by one probe at a time; after its success
// one request may be without an answer at first, then two, four, and so on: those
// who waited must not come all at once.
//
// Every process finds out for itself: an overload is over before it is told. A
// Provider is safe for concurrent use; time is a parameter, as in Gate.
type Provider struct {
	name  string
	count atomic.Int32 // suspects; lets the good case skip the lock

	mu       sync.Mutex
	endpoint *suspect
	models   map[string]*suspect
	pruned   time.Time      // when what is calm was looked for
	jitter   func() float64 // uniform in [0,1)
}

// suspect is what is looked at: the endpoint or a model.
type suspect struct {
	why     Why
	breaker *breaker
	failed  time.Time // last
	opened  time.Time // when its last probe succeeded; zero: none has
	out     int       // requests since then that have no answer
}

// result is what an attempt says of a suspect.
type result uint8

const (
	noMatter result = iota
	works
	fails
)

// failedError is the failure of an attempt, with the wait that the provider has
// asked for; negative: it has not.
type failedError struct{ wait time.Duration }

func (failedError) Error() string { return errBroken.Error() }

// outcome is r in the words of a breaker.
func (r result) outcome(v Verdict) error {
	switch r {
	case works:
		return nil
	case fails:
		return failedError{v.Wait}
	default:
		return errNoMatter
	}
}

// NewProvider returns the provider of that name, open.
func NewProvider(name string) *Provider {
	return &Provider{name: name, models: make(map[string]*suspect), jitter: rand.Float64}
}

// Asked is what a request asks the provider for.
type Asked struct {
	Model string
	// Runs tells that a model runs for it. Others have nothing to do with its load.
	Runs bool
}

// Check tells what Allow would refuse, and takes nothing. In the Refusal Until is
// zero while a probe is out: that its answer comes cannot be known before.
func (p *Provider) Check(now time.Time, a Asked) Refusal {
	if p.count.Load() == 0 {
		return Refusal{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.suspects(a) {
		if r := s.refusal(now); r.Why != Open {
			return r
		}
	}
	return Refusal{}
}

// suspects are the endpoint and the model, as far as they are looked at.
func (p *Provider) suspects(a Asked) (s [2]*suspect) {
	s[0] = p.endpoint
	if a.Runs {
		s[1] = p.models[a.Model]
	}
	return s
}

// refusal tells whether nobody is let through at now; s may be nil.
func (s *suspect) refusal(now time.Time) Refusal {
	if s == nil {
		return Refusal{}
	}
	if r := s.breaker.check(now); r.Why != Open {
		return Refusal{Why: s.why, Until: r.Until}
	}
	if s.breaker.trying(now) {
		return Refusal{Why: s.why}
	}
	if next, slow := s.slow(now); slow {
		return Refusal{Why: s.why, Until: next}
	}
	return Refusal{}
}

// slow tells whether enough requests are without an answer since it has opened,
// and when there may be more.
func (s *suspect) slow(now time.Time) (next time.Time, yes bool) {
	since := now.Sub(s.opened)
	if s.opened.IsZero() || since >= slowTime {
		return time.Time{}, false
	}
	step := max(since, 0) / slowStep
	return s.opened.Add((step + 1) * slowStep), s.out >= 1<<step
}

// calm tells that s need not be looked at any more.
func (s *suspect) calm(now time.Time) bool {
	return now.Sub(s.failed) >= calmAfter &&
		(s.breaker.is(gobreaker.StateClosed) || !s.breaker.waits(now.Add(-calmAfter)) && !s.breaker.trying(now))
}

// prune stops looking at what is calm, also where nobody asks for it any more.
func (p *Provider) prune(now time.Time) {
	p.pruned = now
	if p.endpoint != nil && p.endpoint.calm(now) {
		p.endpoint = nil
		p.count.Add(-1)
	}
	for model, s := range p.models {
		if s.calm(now) {
			delete(p.models, model)
			p.count.Add(-1)
		}
	}
}

// ProviderPass is the permission for one attempt. Its owner calls Verdict at most
// once and then Done, or Done alone.
type ProviderPass struct {
	provider *Provider
	asked    Asked
	at       time.Time
	tickets  *[2]ticket // of the endpoint and the model; nil: neither was looked at
	settled  bool
}

// ticket is what one attempt has of a suspect; the zero ticket is of none.
type ticket struct {
	of    *suspect
	done  func(error)
	since time.Time // of the opening among whose requests without an answer it counts; zero: none
	trial bool      // it finds out whether it is over
}

// Allow lets an attempt through, or refuses it.
func (p *Provider) Allow(now time.Time, a Asked) (ProviderPass, Refusal) {
	pass := ProviderPass{provider: p, asked: a, at: now}
	if p.count.Load() == 0 {
		return pass, Refusal{}
	}
	pass.tickets = new([2]ticket)
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.pruned) >= pruneEvery {
		p.prune(now)
	}
	list := p.suspects(a)
	for _, s := range list {
		if r := s.refusal(now); r.Why != Open {
			return ProviderPass{}, r
		}
	}
	for i, s := range list {
		if s == nil {
			continue
		}
		done, r := s.breaker.allow(now)
		if r.Why != Open {
			pass.settle(now, [2]result{}, Verdict{})
			return ProviderPass{}, Refusal{Why: s.why, Until: r.Until}
		}
		t := ticket{of: s, done: done, trial: s.breaker.is(gobreaker.StateHalfOpen)}
		if !s.opened.IsZero() && now.Sub(s.opened) < slowTime {
			t.since = s.opened
			s.out++
		}
		pass.tickets[i] = t
	}
	return pass, Refusal{}
}

// News is what a verdict changed for a whole provider: what it has closed or
// opened, Busy or Down; else Open.
type News struct {
	Closed, Opened Why
	Again          bool // Closed because a probe has failed
}

// Asked is what the attempt asks for.
func (q *ProviderPass) Asked() Asked { return q.asked }

// Awaited tells, before the Verdict, whether that may open something for others.
func (q *ProviderPass) Awaited() bool { return q.tickets != nil }

// Verdict tells what the answer meant: that there was no capacity, that there was
// nobody to talk to, or that the model has answered. All else says nothing. The
// base URL is judged by subscriptions' failures only while it is Down.
func (q *ProviderPass) Verdict(now time.Time, v Verdict) News {
	var results [2]result
	unreached := v.Signal == Network && (v.Reason == ReasonConnect || v.Reason == ReasonTLS)
	switch broken := v.Signal == ServerError || v.Signal == Network; {
	case unreached, broken && q.tickets != nil && q.tickets[0].trial:
		results[0] = fails
	case !broken:
		results[0] = works
	}
	switch {
	case !q.asked.Runs:
	case v.Signal == Overloaded && v.Scope == ScopeProviderModel:
		results[1] = fails
	case v.Signal == OK:
		results[1] = works
	}
	p := q.provider
	if p.count.Load() == 0 && results[0] != fails && results[1] != fails {
		q.settled = true
		return News{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if results[0] == fails {
		p.suspectEndpoint()
	}
	if results[1] == fails {
		p.suspectModel(now, q.asked.Model)
	}
	return q.settle(now, results, v)
}

// suspectModel begins to look at a model that has failed.
func (p *Provider) suspectModel(now time.Time, model string) {
	if p.models[model] != nil {
		return
	}
	if len(p.models) >= suspectsMost {
		p.prune(now)
	}
	if len(p.models) < suspectsMost {
		p.models[strings.Clone(model)] = p.newSuspect(Busy) // the name may lie in a request's buffer
		p.count.Add(1)
	}
}

// suspectEndpoint begins to look at the base URL.
func (p *Provider) suspectEndpoint() {
	if p.endpoint == nil {
		p.endpoint = p.newSuspect(Down)
		p.count.Add(1)
	}
}

func (p *Provider) newSuspect(why Why) *suspect {
	return &suspect{why: why, breaker: makeBreaker(p.name, openFirst, p.wait, func(c gobreaker.Counts) bool {
		return c.ConsecutiveFailures >= aloneRow || mostFail(c, tripLeast) ||
			c.ConsecutiveFailures >= mixedRow && mostFail(c, mixedRow) || c.ConsecutiveFailures >= tripRow && c.TotalSuccesses == 0
	})}
}

// wait is how long something is closed the row-th time in a row.
func (p *Provider) wait(row int, outcome error) time.Duration {
	if f, ok := errors.AsType[failedError](outcome); ok && f.wait > 0 {
		return max(openFirst, min(f.wait, openTold))
	}
	wait := openFirst
	for i := 1; i < row && wait < openMost/2; i++ {
		wait *= 2
	}
	wait = min(wait, openMost/2)
	return wait + time.Duration(p.jitter()*float64(wait))
}

// settle hands the results over, under the provider's lock.
func (q *ProviderPass) settle(now time.Time, results [2]result, v Verdict) (news News) {
	q.settled = true
	list := q.provider.suspects(q.asked)
	for i, result := range results {
		var t ticket
		if q.tickets != nil {
			t = q.tickets[i]
		}
		s := t.of
		if s == nil {
			// It went out before anybody looked.
			if s = list[i]; s == nil || result == noMatter || !s.breaker.is(gobreaker.StateClosed) || q.at.Before(s.opened) {
				continue
			}
			t.done, _ = s.breaker.allow(now)
		}
		if !t.since.IsZero() && t.since.Equal(s.opened) {
			s.out--
		}
		if t.done == nil {
			continue
		}
		if result == fails {
			s.failed = now
		}
		if s.breaker.settle(now, t.done, result.outcome(v)) {
			news.Closed, news.Again = s.why, t.trial
			s.opened = time.Time{}
		}
		if t.trial && result == works && s.breaker.is(gobreaker.StateClosed) {
			news.Opened = s.why
			s.opened, s.out = now, 0
		}
	}
	q.tickets = nil
	return news
}

// Done ends the attempt. Without a Verdict before it counts for nothing.
func (q *ProviderPass) Done(now time.Time) {
	if q.settled || q.provider == nil {
		return
	}
	q.provider.mu.Lock()
	defer q.provider.mu.Unlock()
	q.settle(now, [2]result{}, Verdict{})
}

// Down says that every subscription fails at the base URL: from now on they are
// as one. It reports whether that is new.
func (p *Provider) Down(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.suspectEndpoint()
	s := p.endpoint
	if !s.breaker.is(gobreaker.StateClosed) {
		return false
	}
	s.failed, s.opened = now, time.Time{}
	s.breaker.force.Store(true)
	defer s.breaker.force.Store(false)
	done, r := s.breaker.allow(now)
	return r.Why == Open && s.breaker.settle(now, done, errBroken)
}
