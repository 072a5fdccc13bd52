package pool

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/authpool/authpool/ratelimit"
)

// view is what the pool consists of. It does not change: Apply makes another one.
type view struct {
	members []*member // in the order of the configuration
	byID    map[string]*member
	groups  map[string]*group // also those that have nobody any more: who waits is there
}

func (p *Pool) members() []*member        { return p.view.Load().members }
func (p *Pool) member(id string) *member  { return p.view.Load().byID[id] }
func (p *Pool) groups() map[string]*group { return p.view.Load().groups }
func (p *Pool) group(name string) *group  { return p.view.Load().groups[name] }
func (g *group) members() []*member       { return *g.all.Load() }

// Changes are the ids of subscriptions that Apply has changed, in order.
type Changes struct{ Added, Changed, Removed []string }

// Apply makes subs what the pool consists of, in their order; their ids must differ.
// Requests that come after it has returned are served by nothing else. What is known
// of a subscription stays with its id: cooldowns, breaker, latency, the organisation, who
// has a place, and what is spent. A change of provider makes it another subscription.
//
// Leases of those that are gone stay valid and are settled as ever; their sessions
// move with their next request. Who waits looks again at once. Credentials that are
// new are read before it returns.
func (p *Pool) Apply(subs []Subscription) Changes {
	p.applying.Lock()
	defer p.applying.Unlock()
	now := time.Now()
	changes, look := p.swap(subs, now)
	for _, m := range look {
		ctx, cancel := context.WithTimeout(context.Background(), credentialTimeout)
		p.checkCredential(ctx, m, true)
		cancel()
	}
	for _, id := range changes.Added {
		p.keeper.doubt(id) // the fleet may know what closes it
	}
	if len(changes.Added)+len(changes.Changed)+len(changes.Removed) > 0 {
		for _, g := range p.groups() {
			g.queue.event()
		}
	}
	return changes
}

// swap puts subs in the place of what there is, and tells whose credential is new.
func (p *Pool) swap(subs []Subscription, now time.Time) (changes Changes, look []*member) {
	p.arranging.Lock()
	defer p.arranging.Unlock()
	old := p.view.Load()
	next := &view{byID: make(map[string]*member, len(subs)), groups: maps.Clone(old.groups)}
	if next.groups == nil {
		next.groups = make(map[string]*group)
	}
	lists := make(map[string][]*member)
	for i := range subs {
		conf := subs[i]
		if next.byID[conf.ID] != nil {
			panic("BUG: two subscriptions are called " + conf.ID)
		}
		m, was := old.byID[conf.ID], (*Subscription)(nil)
		if m != nil {
			was = m.conf()
		}
		switch {
		case m == nil || was.Provider != conf.Provider:
			m = p.newMember(&conf, next.groups)
			p.comeBack(m)
			look = append(look, m)
			if was == nil {
				changes.Added = append(changes.Added, conf.ID)
			} else {
				changes.Changed = append(changes.Changed, conf.ID)
			}
		case same(was, &conf):
		default:
			changes.Changed = append(changes.Changed, conf.ID)
			if was.Limits != conf.Limits || !slices.Equal(was.Budgets, conf.Budgets) {
				m = p.newMember(&conf, next.groups).inherit(m, now)
			} else {
				m.described.Store(&conf)
			}
			if was.Credential != conf.Credential || was.Disabled {
				look = append(look, m)
			}
		}
		next.members = append(next.members, m)
		next.byID[conf.ID] = m
		lists[conf.Provider] = append(lists[conf.Provider], m)
	}
	for name, g := range next.groups {
		list := lists[name]
		g.all.Store(&list)
		g.arrange(nil, now)
	}
	p.view.Store(next)
	for _, m := range old.members {
		if next.byID[m.conf().ID] == nil {
			changes.Removed = append(changes.Removed, m.conf().ID)
		}
		if there := next.byID[m.conf().ID]; there != m {
			if there != nil && there.conf().Provider == m.conf().Provider {
				m.next.Store(there)
			}
			m.gone.Store(true)
			m.share.retire()
			if there == nil {
				p.leave(m)
				forgetMetrics(m.conf().ID)
			}
		}
	}
	return changes, look
}

// forgetMetrics drops the series of a subscription that there is no more: who comes and
// goes at run time would leave them for good.
func forgetMetrics(id string) {
	of := prometheus.Labels{"subscription": id}
	for _, vec := range []*prometheus.CounterVec{verdicts, breakerOpened, acquired, budgetLevels, budgetBurns, windowLevels, windowBurns} {
		vec.DeletePartialMatch(of)
	}
}

// departedMost bounds how many that have gone are remembered.
const departedMost = 1000

// leave remembers who has gone, for the case that it comes back: its sessions are still
// its own then, and their places, which are not given up but end.
func (p *Pool) leave(m *member) {
	for id := range p.departed {
		if len(p.departed) < departedMost {
			break
		}
		delete(p.departed, id)
	}
	p.departed[m.conf().ID] = m
}

// comeBack lets a member take over from the one of its id that has gone.
func (p *Pool) comeBack(m *member) {
	former := p.departed[m.conf().ID]
	delete(p.departed, m.conf().ID)
	if former == nil || former.conf().Provider != m.conf().Provider {
		return
	}
	former.mu.Lock()
	m.places = maps.Clone(former.places)
	former.mu.Unlock()
	former.next.Store(m)
}

// same tells whether nothing is to be done. Sources of credentials are compared by
// identity.
func same(a, b *Subscription) bool {
	return reflect.DeepEqual(plain(a), plain(b)) && a.Credential == b.Credential
}

func plain(s *Subscription) Subscription {
	c := *s
	c.Credential = nil
	return c
}

// newMember makes the live state of a subscription that the pool does not have, and
// the group of its provider where that is the first.
func (p *Pool) newMember(conf *Subscription, groups map[string]*group) *member {
	whole := p.bindings == nil || p.opts().Whole
	m := newMember(conf, whole)
	if !whole {
		m.gate.LeaseRates(p.alone)
	}
	g := groups[conf.Provider]
	if g == nil {
		g = &group{provider: conf.Provider, whole: ratelimit.NewProvider(conf.Provider)}
		g.queue.most = p.opts().Waiters
		groups[conf.Provider] = g
	}
	m.whole, m.usual, m.turns.clock = g.whole, &g.usual, &g.clock
	m.opts = &p.options
	if conf.Limits.InputTokensPerMinute > 0 || conf.Limits.OutputTokensPerMinute > 0 {
		g.metered.Store(true)
	}
	return m
}

// inherit takes over what does not depend on limits and budgets.
func (m *member) inherit(former *member, now time.Time) *member {
	m.gate.Inherit(now, former.gate)
	m.latency.inherit(&former.latency)
	m.answered.Store(former.answered.Load())
	m.budgets.inherit(former.budgets)
	m.organisation.Store(former.organisation.Load())
	m.domain.Store(former.domain.Load())
	m.count.Store(former.count.Load())
	former.mu.Lock()
	defer former.mu.Unlock()
	m.closed, m.closedAt, m.refused, m.last = former.closed, former.closedAt, former.refused, former.last
	m.places = maps.Clone(former.places)
	return m
}
