package pool

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Lease is one subscription, lent for one attempt. The holder calls Verdict as
// soon as it is known what the answer means (its head, or its first content),
// and Done when the attempt is over, in any case. Both may be called from any
// goroutine; only the first call of each counts.
type Lease struct {
	pool    *Pool
	member  *member
	session *session // nil: none
	source  Source
	model   string // this and bytes as in the Request
	bytes   int64

	mu           sync.Mutex
	lent         credential.Credential
	origin       string
	judged, done bool
	served       bool // the verdict was ok
	firstByte    time.Duration
	pass         ratelimit.Pass
	whole        ratelimit.ProviderPass
	probes       []probe
	arrival      *arrival // nil: its session was not moved there
}

// Subscription returns what was lent. It must not be changed.
func (l *Lease) Subscription() *Subscription { return l.member.conf() }

// Source tells how the subscription was chosen.
func (l *Lease) Source() Source { return l.source }

// Credential returns the secret. When it cannot be had the subscription is
// disabled until it can, and the error is a *CredentialError; then the lease is
// to be given up by Done, and the request may go to another subscription.
func (l *Lease) Credential(ctx context.Context) (credential.Credential, error) {
	conf := l.member.conf()
	c, err := conf.Credential.Credential(ctx)
	if err != nil {
		if ctx.Err() == nil {
			l.pool.loseCredential(l.member, err)
		}
		return credential.Credential{}, &CredentialError{Subscription: conf.ID, Err: err}
	}
	l.mu.Lock()
	l.lent, l.origin = c, conf.Origin
	l.mu.Unlock()
	return c, nil
}

// Origin is where what Credential gave last may be sent, as Subscription.Origin said then:
// it and the provider's address may have changed while a request was waiting.
func (l *Lease) Origin() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.origin
}

// Verdict tells what the answer said: it settles the breaker and the cooldowns,
// for all processes where that is due, and makes the session's binding final.
// After Done it does nothing.
func (l *Lease) Verdict(v ratelimit.Verdict) {
	p, m, now := l.pool, l.member, time.Now()
	if len(v.Organisation) > 0 && !m.isOf(v.Organisation) {
		p.learn(m, v.Organisation, now) // first: it says whose limit it is
	}
	l.mu.Lock()
	if l.done || l.judged {
		l.mu.Unlock()
		return
	}
	l.judged, l.served = true, v.Signal == ratelimit.OK
	if l.served {
		m.began(now, l.firstByte)
	}
	awaited := l.pass.Awaited() || l.whole.Awaited() || v.Signal != ratelimit.OK && v.Signal != ratelimit.ClientError
	own, domain, one := l.pass.Probes()
	change := l.pass.Verdict(now, v)
	news := l.whole.Verdict(now, v)
	asked := l.whole.Asked()
	lent := l.lent
	q := l.probes
	l.probes = nil
	l.mu.Unlock()

	p.group(m.conf().Provider).meter(v.Windows)
	p.hear(m, news, asked, v)
	p.keeper.proved(q, v.Signal == ratelimit.OK)
	if v.Signal == ratelimit.OK && (own || domain || one) {
		l.tellRecovered(own, domain, one)
	}
	l.tellChange(change)
	if v.Signal != ratelimit.OK {
		m.remember(v)
	}
	switch {
	case change.Opened:
		breakerOpened.WithLabelValues(m.conf().ID).Inc()
		p.asOne(m, now, asked, v)
	case change.Shared && !change.None():
		p.keeper.cool(m, change)
	}
	if v.Signal == ratelimit.Auth && v.Scope == ratelimit.ScopeSubscription {
		p.refuseCredential(m, lent)
	}
	if l.session != nil && (v.Signal == ratelimit.OK || v.Signal == ratelimit.ClientError) {
		p.confirm(l.session, m, now)
	}
	verdicts.WithLabelValues(m.conf().ID, v.Signal.String(), string(v.Reason)).Inc()
	// Any other verdict leaves all as it was until Done. A round for nothing would be
	// under way by then, and let one in its middle have what the first waits for.
	if awaited {
		p.group(m.conf().Provider).queue.event()
	}
}

// Late tells what an answer said after its content had begun, when its Verdict
// was ok: a limit counts for the requests to come. Everything else, and what
// comes without such a Verdict or after Done, does nothing.
func (l *Lease) Late(v ratelimit.Verdict) {
	l.late(v, func() ratelimit.Change { return l.pass.Late(time.Now(), v) })
}

func (l *Lease) late(v ratelimit.Verdict, refuse func() ratelimit.Change) {
	p, m := l.pool, l.member
	l.mu.Lock()
	if l.done || !l.served {
		l.mu.Unlock()
		return
	}
	change := refuse()
	l.mu.Unlock()
	if change.None() {
		return
	}
	m.remember(v)
	l.tellChange(change)
	if change.Shared {
		p.keeper.cool(m, change)
	}
	verdicts.WithLabelValues(m.conf().ID, v.Signal.String(), string(v.Reason)).Inc()
}

// Turn tells of one answer among many that the lease is for, as on a WebSocket: its
// tokens, and whether it is the first, whose request was taken with the lease.
func (l *Lease) Turn(t usage.Tokens, first bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.done {
		l.pass.More(now, first, t.Prompt()-t.CacheRead, t.Output)
	}
	if l.session != nil && t.CacheRead > 0 {
		l.session.hasRead(now, t.CacheRead)
	}
}

// Told tells what the provider says is left of its limits, between a good Verdict and
// Done. The windows are copied.
func (l *Lease) Told(windows []ratelimit.Window) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.served && !l.done {
		l.pass.Told(windows)
	}
}

// LateAt is Late for an answer of which the model and the time at which it was asked
// became known after the lease.
func (l *Lease) LateAt(model string, at time.Time, v ratelimit.Verdict) {
	l.late(v, func() ratelimit.Change { return l.pass.LateAt(time.Now(), at, model, v) })
}

// Done ends the attempt with the tokens that it used; zero where that is not
// known. Without a Verdict before it the agent has left: that counts for
// nothing.
func (l *Lease) Done(t usage.Tokens) {
	now := time.Now()
	l.mu.Lock()
	if l.done {
		l.mu.Unlock()
		return
	}
	l.done = true
	// Cached input does not count against a rate: the providers' own limits
	// leave it out. A served answer without usage keeps its estimate.
	l.whole.Done(now)
	l.pass.Done(now, t.Prompt()-t.CacheRead, t.Output, !l.served || t.Total() > 0)
	teaches := l.served && t.Total() > 0 && l.pool.group(l.member.conf().Provider).metered.Load()
	l.mu.Unlock()
	if teaches {
		l.pool.estimates.learn(l.model, l.bytes, t.Prompt()-t.CacheRead, t.Output)
	}
	if l.session != nil && t.CacheRead > 0 {
		l.session.hasRead(now, t.CacheRead)
	}
	l.leave(now)
}

// cancel gives back a lease that nobody got.
func (l *Lease) cancel(now time.Time) {
	l.mu.Lock()
	l.done = true
	l.whole.Done(now)
	l.pass.Cancel(now)
	l.mu.Unlock()
	l.leave(now)
}

func (l *Lease) leave(now time.Time) {
	l.pool.keeper.proved(l.probes, false) // nobody changes it after done
	l.member.share.leave()
	l.member.arrivals.leave(l.arrival)
	if l.session != nil {
		l.pool.sessions.used(l.session, now)
		l.session.leave()
		l.pool.refresh(l.session, now)
	}
	l.pool.group(l.member.conf().Provider).queue.event()
}

var (
	verdicts = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_subscription_verdicts_total",
		Help: "What the answers of a subscription said.",
	}, []string{"subscription", "signal", "reason"})
	breakerOpened = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_subscription_breaker_opened_total",
		Help: "How often the breaker of a subscription opened.",
	}, []string{"subscription"})
)
