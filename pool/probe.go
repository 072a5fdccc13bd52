package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

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
	subscription string   // in whose state it is agreed on
	models       []string // an empty one is the whole
}

// probeOf says what a pass is the probe of, as far as the fleet can know of it.
func (m *member) probeOf(pass *ratelimit.Pass, model string) probe {
	whole, one := pass.Probes()
	q := probe{subscription: m.lead}
	if whole {
		q.models = append(q.models, "")
	}
	if one && printable(model) {
		q.models = append(q.models, model)
	}
	return q
}

// ask asks the fleet before a request goes out that probes: one probe is enough
// for all processes. It waits for Redis, for bindingWait at most, but only then,
// once for a cooldown; those who come meanwhile see that a probe is under way.
// While Redis is away every process decides for itself, and not all at once.
func (p *Pool) ask(ctx context.Context, m *member, pass *ratelimit.Pass, model string, now time.Time) (probe, ratelimit.Refusal) {
	if whole, one := pass.Probes(); p.bindings == nil || !whole && !one {
		return probe{}, ratelimit.Refusal{}
	}
	q := m.probeOf(pass, model)
	if len(q.models) == 0 {
		return probe{}, ratelimit.Refusal{}
	}
	if !p.shared() {
		return q, pass.Alone(now)
	}
	ctx, cancel := context.WithDeadline(ctx, now.Add(bindingWait))
	defer cancel()
	proof, err := p.bindings.Probe(ctx, store.Probe{
		Subscription: q.subscription, Process: p.process, Models: q.models,
		Hold: ratelimit.ProbePatience, Pace: ratelimit.RampPace, Ramp: ratelimit.RampTime,
	})
	switch {
	case err != nil: // as without Redis
		return q, pass.Alone(now)
	case proof.Word == store.ProbeGranted:
		return q, ratelimit.Refusal{}
	case proof.Word == store.ProbeOpen:
		return probe{}, pass.Opened(now, proof.Since, proof.Wait, proof.Seat)
	}
	if proof.Word == store.ProbeClosed {
		p.keeper.doubt(q.subscription) // why, is in the state
	}
	return probe{}, pass.Elsewhere(now.Add(proof.Wait))
}

// proved has the fleet told how a probe went.
func (k *keeper) proved(q probe, succeeded bool) {
	if len(q.models) == 0 {
		return
	}
	k.mu.Lock()
	if len(k.proofs) < keeperTurn { // what finds no room ends by itself
		k.proofs = append(k.proofs, store.Probed{
			Subscription: q.subscription, Process: k.pool.process, Models: q.models, Succeeded: succeeded,
		})
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
	m := p.byID[id]
	if m == nil {
		return ErrNoSuchSubscription
	}
	if m.conf.Disabled {
		return fmt.Errorf("%w: %s", ErrDisabledByConfig, m.conf.Reason)
	}
	now := time.Now()
	p.enable(m, now, now)
	if p.bindings == nil {
		return nil
	}
	if !p.bindings.Healthy() {
		return store.ErrAway
	}
	for _, other := range p.groups[m.conf.Provider].members {
		if other.lead != m.lead {
			continue
		}
		if err := p.bindings.Enable(ctx, other.conf.ID); err != nil {
			return err
		}
	}
	return nil
}

// enable ends what began at the given time or before.
func (p *Pool) enable(m *member, now, began time.Time) {
	m.gate.Cooldowns().End(now, began)
	p.keeper.uncool(m, began)
	m.mu.Lock()
	// One that cannot be read opens by itself as soon as it can.
	if m.closed == string(ratelimit.ReasonCredential) && !m.closedAt.After(began) {
		m.closed, m.refused = "", digest{}
	}
	m.mu.Unlock()
	p.groups[m.conf.Provider].queue.event()
}
