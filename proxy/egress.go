package proxy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/ratelimit"
)

// egressDoubt is for how long, unless something is served before, the address that
// requests come from is held for what a provider refuses.
const egressDoubt = time.Minute

// egresses remembers the providers that refuse whoever asks from here. Trying one
// subscription after the other would not help, and would look like an attack. It is
// safe for concurrent use.
type egresses struct {
	count atomic.Int32 // of the map: most of the time there is none

	mu    sync.Mutex
	since map[string]time.Time // by provider, of which there are as many as configured
}

// doubted tells whether the address is held for what the provider refuses.
func (e *egresses) doubted(provider string, now time.Time) bool {
	if e.count.Load() == 0 {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	since, ok := e.since[provider]
	return ok && now.Before(since.Add(egressDoubt))
}

// doubt begins, and tells whether that is new.
func (e *egresses) doubt(provider string, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	since, ok := e.since[provider]
	if ok && now.Before(since.Add(egressDoubt)) {
		return false
	}
	if e.since == nil {
		e.since = make(map[string]time.Time)
	}
	e.since[provider] = now
	if !ok {
		e.count.Add(1)
	}
	return true
}

// served ends the doubt.
func (e *egresses) served(provider string) {
	if e.count.Load() == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.since[provider]; ok {
		delete(e.since, provider)
		e.count.Add(-1)
	}
}

// closesNothing tells that the subscription would be lent again at once, for a
// refusal of this request or of where it comes from.
func closesNothing(v ratelimit.Verdict) bool {
	return v.Scope == ratelimit.ScopeRequest || v.Scope == ratelimit.ScopeProvider
}

// keptOut tells whether the request is to go to no other subscription, because it
// looks as if the provider refuses the address that it comes from: the provider
// says so itself, or has just refused two different subscriptions in a row.
func (ex *exchange) keptOut(v ratelimit.Verdict) bool {
	if v.Reason != ratelimit.ReasonEgress {
		ex.foreign = ""
		if v.Signal == ratelimit.OK {
			ex.s.egresses.served(ex.provider.Name)
		}
		return false
	}
	now, sub := time.Now(), ex.lease.Subscription().ID
	first := ex.foreign
	ex.foreign = sub
	if first == "" && v.Signal == ratelimit.Auth && !ex.s.egresses.doubted(ex.provider.Name, now) {
		return false // another may be let through
	}
	egressRefused.WithLabelValues(ex.provider.Name).Inc()
	if ex.s.egresses.doubt(ex.provider.Name, now) {
		ex.s.log.Warn("the provider seems to refuse the address that requests come from (egress): check by which network and from which country this machine reaches it, and its list of allowed addresses",
			"request", ex.id, "provider", ex.provider.Name, "subscription", sub, "before", first, "status", ex.status, "row", v.Row)
		ex.s.deps.Events.Emit(event.Event{
			Kind: event.ProviderEgress, Provider: ex.provider.Name, Subscription: sub, Reason: string(v.Reason),
			Text: "provider " + ex.provider.Name + " seems to refuse the address that requests come from: check by which network this machine reaches it",
		})
	}
	return true
}

var egressRefused = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_egress_refused_total",
	Help: "Requests that went to no other subscription, because the provider seems to refuse the address they come from.",
}, []string{"provider"})
