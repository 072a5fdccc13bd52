package pool

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/ratelimit"
)

// exhaustedEvery is how often it is told of a provider that nobody can serve: every
// refused request finds it out again.
const exhaustedEvery = time.Minute

// about returns an event about a subscription.
func (m *member) about(kind event.Kind, reason string) event.Event {
	return event.Event{Kind: kind, Provider: m.conf().Provider, Subscription: m.conf().ID, Reason: reason}
}

// shown adds whose request showed it.
func (l *Lease) shown(e event.Event) event.Event {
	if l.session != nil {
		e.Agent, e.Session = l.session.key.agent, l.session.key.session
	}
	return e
}

// tellChange tells what a verdict closed.
func (l *Lease) tellChange(c ratelimit.Change) {
	if c.None() || c.Opened {
		return // of breakers tellBreakers tells
	}
	m := l.member
	e := l.shown(m.about(event.SubscriptionLimited, string(c.Reason)))
	e.Until = c.Until
	what, word := "subscription "+m.conf().ID, "is limited"
	if c.Scope == ratelimit.ScopeModel {
		e.Model = strings.Clone(c.Model)
		what = "model " + strconv.Quote(e.Model) + " of " + what
	}
	if c.Signal == ratelimit.Quota {
		e.Kind, word = event.SubscriptionDisabled, "has used up its quota"
	}
	if name := m.domainLabel(); c.Scope == ratelimit.ScopeDomain && name != "" {
		what += " (domain " + name + ")"
	}
	e.Text = fmt.Sprintf("%s %s (%s) for %s", what, word, e.Reason, roundWait(c.Wait))
	l.pool.opts().Events.Emit(e)
}

// tellRecovered tells that the lease was the probe of a cooldown, as Pass.Probes has
// it, and has succeeded.
func (l *Lease) tellRecovered(own, domain, one bool) {
	m := l.member
	e := l.shown(m.about(event.SubscriptionRecovered, ""))
	e.Text = fmt.Sprintf("subscription %s serves again", m.conf().ID)
	if one && !own && !domain {
		e.Model = strings.Clone(l.model)
		e.Text = fmt.Sprintf("subscription %s serves model %q again", m.conf().ID, e.Model)
	}
	l.pool.opts().Events.Emit(e)
}

// tellBreakers tells of breakers that have opened or closed since the last call.
func (p *Pool) tellBreakers() {
	for _, m := range p.members() {
		broken := m.gate.Breaker() == "open"
		switch {
		case broken && !m.brokenTold:
			e := m.about(event.SubscriptionBroken, ReasonBreaker)
			e.Text = fmt.Sprintf("answers of subscription %s fail: it is left out until one succeeds", m.conf().ID)
			p.opts().Events.Emit(e)
			m.brokenTold = true
		case m.brokenTold && m.gate.Breaker() == "closed":
			e := m.about(event.SubscriptionRecovered, ReasonBreaker)
			e.Text = fmt.Sprintf("answers of subscription %s succeed again", m.conf().ID)
			p.opts().Events.Emit(e)
			m.brokenTold = false
		}
	}
}

// tellExhausted tells that a request found nobody who could serve it. Who has tried
// some already, or can be served by one alone, says nothing of the others.
func (g *group) tellExhausted(p *Pool, req *Request, err error, now time.Time) {
	var e *UnavailableError
	if p.opts().Events == nil || req.Owner != "" || !errors.As(err, &e) || e.Reason == ReasonTried {
		return
	}
	last := g.exhausted.Load()
	if last != 0 && now.UnixNano()-last < int64(exhaustedEvery) || !g.exhausted.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	p.opts().Events.Emit(event.Event{
		Kind: event.PoolExhausted, Provider: g.provider, Model: strings.Clone(req.Model),
		Agent: strings.Clone(req.Agent), Session: strings.Clone(req.Session),
		Reason: e.Reason, Until: e.Until, Text: strings.Clone(e.Error()),
	})
}

// tellLevel tells that a budget or a window has reached a level.
func (p *Pool) tellLevel(kind string, m *member, window string, level int, resets time.Time) {
	e := m.about(event.Kind(kind+"."+strconv.Itoa(level)), "")
	e.Window, e.Until = window, resets
	e.Text = fmt.Sprintf("%d %% of the %s %s of subscription %s are spent", level, window, kind, m.conf().ID)
	p.opts().Events.Emit(e)
}

// tellBurns tells that one will be empty at the given time, before it resets.
func (p *Pool) tellBurns(kind string, m *member, window string, empty, resets time.Time) {
	e := m.about(event.Kind(kind+".burning"), "")
	e.Window, e.Until = window, resets
	e.Text = fmt.Sprintf("at the present rate the %s %s of subscription %s is spent at %s, before it resets",
		window, kind, m.conf().ID, empty.UTC().Format(time.RFC3339))
	p.opts().Events.Emit(e)
}

// tellCredential tells what became of a credential; text goes behind "the credential of
// subscription X".
func (p *Pool) tellCredential(kind event.Kind, m *member, reason, text string) {
	e := m.about(kind, reason)
	e.Text = fmt.Sprintf("the credential of subscription %s %s", m.conf().ID, text)
	p.opts().Events.Emit(e)
}

// tellProvider tells that a provider serves nobody, or again.
func (g *group) tellProvider(p *Pool, kind event.Kind, why ratelimit.Why, asked ratelimit.Asked) {
	e := event.Event{Kind: kind, Provider: g.provider, Reason: why.String(), Text: "provider " + g.provider}
	if why == ratelimit.Busy {
		e.Model = strings.Clone(asked.Model)
	}
	switch {
	case kind == event.ProviderRecovered && e.Model != "":
		e.Text += " serves " + e.Model + " again"
	case kind == event.ProviderRecovered:
		e.Text += " serves again"
	case e.Model != "":
		e.Text += " has no capacity for " + e.Model
	case why == ratelimit.Busy:
		e.Text += " has no capacity"
	default:
		e.Text += " fails whichever subscription asks"
	}
	p.opts().Events.Emit(e)
}
