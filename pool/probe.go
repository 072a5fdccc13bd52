package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
)

// ErrNoSuchSubscription is returned by Enable for an id that is not configured.
var ErrNoSuchSubscription = errors.New("there is no such subscription")

// ErrDisabledByConfig is returned by Enable for a subscription that nobody but the
// configuration can enable.
var ErrDisabledByConfig = errors.New("the configuration disables the subscription")

// probe is what a lease finds out for the whole fleet: whether a cooldown that
// has ended is really over. The zero probe finds out nothing.
type probe struct {
	scope        ratelimit.Scope // ScopeSubscription or ScopeDomain, as in Pass.Probes
	subscription string          // in whose state it is agreed on
	closures     []store.Closure
}

// probesOf says what a pass is the probe of, as far as the fleet can know of it.
func (m *member) probesOf(pass *ratelimit.Pass, model string) (list []probe) {
	own, domain, one := pass.Probes()
	if own {
		list = append(list, probe{ratelimit.ScopeSubscription, m.conf().ID, []store.Closure{store.ClosesSubscription}})
	}
	var shared []store.Closure
	if domain {
		shared = append(shared, store.ClosesDomain)
	}
	if one && printable(model) {
		shared = append(shared, store.ModelClosure(model))
	}
	if shared != nil {
		list = append(list, probe{ratelimit.ScopeDomain, m.domain.Load().lead, shared})
	}
	return list
}

// ask asks the fleet before a request goes out that probes: one probe is enough
// for all processes. It waits for Redis, for bindingWait at most, but only then,
// once for a cooldown; those who come meanwhile see that a probe is under way.
// While Redis is away every process decides for itself, and not all at once.
func (p *Pool) ask(ctx context.Context, m *member, pass *ratelimit.Pass, model string, now time.Time) (granted []probe, r ratelimit.Refusal) {
	if own, domain, one := pass.Probes(); p.bindings == nil || !own && !domain && !one {
		return nil, ratelimit.Refusal{}
	}
	ctx, cancel := context.WithDeadline(ctx, now.Add(bindingWait))
	defer cancel()
	for _, q := range m.probesOf(pass, model) {
		yes, r := p.askOne(ctx, q, pass, now)
		if r.Why != ratelimit.Open {
			p.keeper.proved(granted, false)
			return nil, r
		}
		if yes {
			granted = append(granted, q)
		}
	}
	return granted, ratelimit.Refusal{}
}

// askOne asks for one of them, which is granted, or not needed any more, or refused.
func (p *Pool) askOne(ctx context.Context, q probe, pass *ratelimit.Pass, now time.Time) (granted bool, r ratelimit.Refusal) {
	if !p.shared() {
		return true, pass.Alone(q.scope, now)
	}
	proof, err := p.bindings.Probe(ctx, store.Probe{
		Subscription: q.subscription, Process: p.process, Closures: q.closures,
		Hold: ratelimit.ProbePatience, Pace: ratelimit.RampPace, Ramp: ratelimit.RampTime,
	})
	switch {
	case err != nil: // as without Redis
		return true, pass.Alone(q.scope, now)
	case proof.Word == store.ProbeGranted:
		return true, ratelimit.Refusal{}
	case proof.Word == store.ProbeOpen:
		return false, pass.Opened(q.scope, now, proof.Since, proof.Wait, proof.Seat)
	}
	if proof.Word == store.ProbeClosed {
		p.keeper.doubt(q.subscription) // why, is in the state
	}
	return false, pass.Elsewhere(q.scope, now.Add(proof.Wait))
}

// proved has the fleet told how probes went.
func (k *keeper) proved(list []probe, succeeded bool) {
	if len(list) == 0 {
		return
	}
	k.mu.Lock()
	for _, q := range list {
		if len(k.proofs) < keeperTurn { // what finds no room ends by itself
			k.proofs = append(k.proofs, store.Probed{
				Subscription: q.subscription, Process: k.pool.process, Closures: q.closures, Succeeded: succeeded,
			})
		}
	}
	k.mu.Unlock()
	k.wake()
}

func (k *keeper) writeProofs(ctx context.Context) {
	k.mu.Lock()
	list := k.proofs
	k.proofs = nil
	k.mu.Unlock()
	if len(list) > 0 {
		_ = k.pool.bindings.Proved(ctx, list) // the others find it out for themselves
	}
}

// doubt has the state of a subscription read.
func (k *keeper) doubt(subscription string) {
	k.mu.Lock()
	k.stale[subscription] = struct{}{}
	k.mu.Unlock()
	k.wake()
}

// Enable ends the cooldowns of a subscription and of those that share its limits,
// and reads a credential again that was refused, in all processes: an operator
// knows better. With an error it is done in this process alone, but nothing is
// with ErrNoSuchSubscription and ErrDisabledByConfig.
func (p *Pool) Enable(ctx context.Context, id string) error {
	m := p.member(id)
	if m == nil {
		return ErrNoSuchSubscription
	}
	if m.conf().Disabled {
		return fmt.Errorf("%w: %s", ErrDisabledByConfig, m.conf().Reason)
	}
	now := time.Now()
	e := m.about(event.SubscriptionEnabled, "")
	e.Text = fmt.Sprintf("an operator has enabled subscription %s", id)
	p.opts().Events.Emit(e)
	var all []*member
	for _, other := range p.group(m.conf().Provider).members() {
		if other.domainName() == m.domainName() {
			all = append(all, other)
			p.enable(other, now, now)
		}
	}
	if p.bindings == nil {
		return nil
	}
	if !p.bindings.Healthy() {
		return store.ErrAway
	}
	for _, other := range all {
		if err := p.bindings.Enable(ctx, other.conf().ID); err != nil {
			return err
		}
	}
	return nil
}

// enable ends what began at the given time or before.
func (p *Pool) enable(m *member, now, began time.Time) {
	m.gate.End(now, began)
	p.keeper.uncool(m, began)
	m.mu.Lock()
	// One that cannot be read opens by itself as soon as it can.
	if m.closed == string(ratelimit.ReasonCredential) && !m.closedAt.After(began) {
		m.closed, m.refused = "", digest{}
	}
	m.mu.Unlock()
	p.group(m.conf().Provider).queue.event()
}
