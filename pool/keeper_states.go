package pool

import (
	"context"
	"time"

	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
)

// sharedModel is the longest name of a model in a key.
const sharedModel = 128

type coolKey struct {
	subscription string
	closure      store.Closure
}

type coolValue struct {
	since, until  time.Time
	state, reason string
}

// cool shares a cooldown with the other processes.
func (k *keeper) cool(m *member, c ratelimit.Change) {
	if k.pool.bindings == nil {
		return
	}
	// Bounded, because Redis may be away for long; what finds no room is learnt
	// by the others from their own answers.
	key := coolKey{m.conf().ID, store.ClosesSubscription}
	switch c.Scope {
	case ratelimit.ScopeDomain:
		key.closure = store.ClosesDomain
	case ratelimit.ScopeModel:
		if !printable(c.Model) {
			return // cannot stand in a key: every process learns it for itself
		}
		key.closure = store.ModelClosure(c.Model)
	default:
	}
	state := StateCooling
	if c.Signal == ratelimit.Quota {
		state = StateDisabled
	}
	k.mu.Lock()
	add := func(key coolKey) {
		old, known := k.cools[key]
		if known && old.until.Before(c.Until) || !known && len(k.cools) < keeperTurn {
			k.cools[key] = coolValue{since: c.Until.Add(-c.Wait), until: c.Until, state: string(state), reason: string(c.Reason)}
		}
	}
	add(key)
	if lead := m.domain.Load().lead; key.closure != store.ClosesSubscription && lead != m.conf().ID {
		// Where its probe is agreed on, it must be known too.
		add(coolKey{lead, key.closure})
	}
	k.mu.Unlock()
	k.wake()
}

// uncool leaves out what is not shared yet and was ended.
func (k *keeper) uncool(m *member, began time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, v := range k.cools {
		if other := k.pool.member(key.subscription); other != nil && other.conf().Provider == m.conf().Provider && other.domainName() == m.domainName() && !v.since.After(began) {
			delete(k.cools, key)
		}
	}
}

// printable tells whether a model's name can stand in a field.
func printable(model string) bool {
	if model == "" || len(model) > sharedModel {
		return false
	}
	for i := range len(model) {
		if model[i] < '!' || model[i] > '~' {
			return false
		}
	}
	return true
}

func (k *keeper) writeCools(ctx context.Context, now time.Time) {
	k.mu.Lock()
	var out []store.Cooldown
	sent := make(map[coolKey]coolValue, len(k.cools))
	for key, v := range k.cools {
		if _, stale := k.stale[key.subscription]; (stale || k.allStale) && v.since.Before(k.back) {
			continue // an operator may have ended it while Redis was away: that is read first
		}
		if wait := v.until.Sub(now); wait > 0 {
			out = append(out, store.Cooldown{
				Subscription: key.subscription, Closure: key.closure, State: v.state, Reason: v.reason, Wait: wait,
			})
			sent[key] = v
		} else {
			delete(k.cools, key)
		}
	}
	k.mu.Unlock()
	if len(out) == 0 || k.pool.bindings.Cool(ctx, out) != nil {
		return // they stay for the next turn
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, v := range sent {
		if k.cools[key] == v {
			delete(k.cools, key)
		}
	}
}

// readStates reads the cooldowns of the subscriptions that may have changed.
func (k *keeper) readStates(ctx context.Context, now time.Time) {
	p := k.pool
	k.mu.Lock()
	var ids []string
	if k.allStale {
		for _, m := range p.members() {
			ids = append(ids, m.conf().ID)
		}
	} else {
		for id := range k.stale {
			ids = append(ids, id)
		}
	}
	k.allStale = false
	clear(k.stale)
	k.mu.Unlock()
	for len(ids) > 0 {
		n := min(len(ids), keeperBatch)
		if !k.readSome(ctx, ids[:n], now) {
			k.mu.Lock()
			for _, id := range ids[:n] {
				k.stale[id] = struct{}{}
			}
			k.mu.Unlock()
		}
		ids = ids[n:]
	}
}

// readSome tells whether it has read all of them.
func (k *keeper) readSome(ctx context.Context, ids []string, now time.Time) bool {
	p := k.pool
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	states, err := p.bindings.States(ctx, ids)
	answered := time.Now()
	var list []store.Cooldown
	for _, s := range states {
		m := p.member(s.Subscription)
		if m == nil {
			continue // removed while it was asked about
		}
		// First, since it says whose the cooldowns are.
		k.readOrganisation(m, s.Organisation, now)
		if s.Enabled {
			p.enable(m, answered, answered.Add(-s.EnabledAgo))
		}
		list = append(list, s.Cooldowns...)
	}
	for _, c := range list {
		signal := ratelimit.Limited
		if c.State == string(StateDisabled) {
			signal = ratelimit.Quota
		}
		m := p.member(c.Subscription)
		if m == nil {
			continue
		}
		cooldowns := m.gate.Cooldowns()
		if c.Closure == store.ClosesSubscription {
			cooldowns = m.gate.Own()
		}
		cooldowns.Adopt(now, c.Closure.Model(), now.Add(c.Wait), signal, ratelimit.Reason(c.Reason))
	}
	for _, id := range ids {
		if m := p.member(id); m != nil {
			m.gate.Ask() // somebody's probe may have come to its end
			p.group(m.conf().Provider).queue.event()
		}
	}
	return err == nil
}
