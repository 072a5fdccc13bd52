package pool

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/ratelimit"
)

// asked is what the request asks its provider for.
func (r *Request) asked() ratelimit.Asked { return ratelimit.Asked{Model: r.Model, Runs: !r.Aside} }

// closed tells whether the provider serves nobody who asks for the same. Sessions
// stay where they are: no other subscription would do better.
func (g *group) closed(req *Request, now time.Time) refusal {
	r := g.whole.Check(now, req.asked())
	if r.Why == ratelimit.Open {
		return refusal{}
	}
	return gateRefusal(r)
}

// Holds tells that the request would not go out now, whatever subscription is free,
// because its provider serves nobody: Acquire would have it wait for the next probe.
func (p *Pool) Holds(req *Request) bool {
	g := p.group(req.Provider)
	return g != nil && g.closed(req, time.Now()).obstacle != none
}

// within is the refusal r of one subscription where the whole provider refuses,
// too: the later end counts.
func (r refusal) within(whole refusal) refusal {
	if whole.obstacle != none && (r.obstacle == none || r.passes() && r.until.Before(whole.until)) {
		return whole
	}
	return r
}

// hold counts one who is to wait because of r, if there is room. Those who wait
// for an overload to end have half of the queue: a model that nobody can have must
// not keep out who wants another.
func (g *group) hold(r refusal) bool {
	if r.obstacle != overloaded || int(g.held.Add(1)) <= (g.queue.most+1)/2 {
		return true
	}
	g.held.Add(-1)
	return false
}

// release undoes hold.
func (g *group) release(r refusal) {
	if r.obstacle == overloaded {
		g.held.Add(-1)
	}
}

// hear acts on what a verdict on m changed for its whole provider.
func (p *Pool) hear(m *member, news ratelimit.News, asked ratelimit.Asked, v ratelimit.Verdict) {
	if news == (ratelimit.News{}) {
		return
	}
	g := p.group(m.conf().Provider)
	switch {
	case news.Closed != ratelimit.Open:
		g.tellClosed(p, news.Closed, news.Again, asked, v)
	case news.Opened == ratelimit.Down:
		// They failed for one reason, which is over.
		for _, one := range g.members() {
			one.gate.Trust()
		}
		fallthrough
	case news.Opened != ratelimit.Open:
		p.opts().Logger.Info("the provider serves again", "provider", g.provider, "closed", news.Opened.String(), "model", asked.Model)
		g.tellProvider(p, event.ProviderRecovered, news.Opened, asked)
	}
}

// asOne is for a subscription whose breaker has just opened: when those of all that
// are enabled have, it is their base URL, and one probe does for all.
func (p *Pool) asOne(m *member, now time.Time, asked ratelimit.Asked, v ratelimit.Verdict) {
	g := p.group(m.conf().Provider)
	for _, one := range g.members() {
		if _, off := one.disabled(); !off && one.gate.Breaker() == "closed" {
			return
		}
	}
	if g.whole.Down(now) {
		g.tellClosed(p, ratelimit.Down, false, asked, v)
	}
}

// tellClosed makes it known that the provider serves nobody; again says that a
// probe has failed, which people need not read each time.
func (g *group) tellClosed(p *Pool, why ratelimit.Why, again bool, asked ratelimit.Asked, v ratelimit.Verdict) {
	providerClosed.WithLabelValues(g.provider, why.String()).Inc()
	if again {
		return
	}
	p.opts().Logger.Warn("the provider serves nobody: requests wait, and one at a time finds out whether it is over",
		"provider", g.provider, "closed", why.String(), "model", asked.Model, "signal", v.Signal.String(), "reason", string(v.Reason))
	kind := event.ProviderDown
	if why == ratelimit.Busy {
		kind = event.ProviderOverloaded
	}
	g.tellProvider(p, kind, why, asked)
}

// Whole tells that it is the provider that serves nobody, for the model or at all,
// and no subscription that is closed.
func (e *UnavailableError) Whole() bool {
	return e.Reason == string(ratelimit.ReasonCapacity) || e.Reason == ReasonDown
}

// whole words an error that is about the whole provider; ok is false for others.
func (e *UnavailableError) whole() (text string, ok bool) {
	next := "next try in " + roundWait(e.Wait)
	switch {
	case e.Reason == string(ratelimit.ReasonCapacity) && e.Model != "":
		return fmt.Sprintf("provider %s has no capacity for %s; %s", e.Provider, e.Model, next), true
	case e.Reason == string(ratelimit.ReasonCapacity):
		return fmt.Sprintf("provider %s has no capacity; %s", e.Provider, next), true
	case e.Reason == ReasonDown && e.LastVerdict != nil:
		return fmt.Sprintf("provider %s fails whichever subscription asks (last: %s, %s); %s", e.Provider, e.LastVerdict.Signal, e.LastVerdict.Reason, next), true
	case e.Reason == ReasonDown:
		return fmt.Sprintf("provider %s fails whichever subscription asks; %s", e.Provider, next), true
	}
	return "", false
}

var providerClosed = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_provider_closed_total",
	Help: "How often a provider was found to serve nobody: overload is that of one model, down that of its base URL. A probe that fails counts once more.",
}, []string{"provider", "why"})
