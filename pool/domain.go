package pool

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
)

// domain is the subscriptions of one provider that share limits: those that the
// configuration says so of, and those that answers showed to be of one
// organisation. It does not change; who joins or leaves gets another one.
type domain struct {
	name      string // see Subscription.domain
	lead      string // the subscription of it in whose state its probes are agreed on
	cooldowns *ratelimit.Cooldowns
}

const (
	alonePrefix   = "\x00" // of the domain of one subscription; no configured one can be called so
	learnedPrefix = "\x01" // of an organisation that answers named
)

// organisationMost is the longest name of an organisation that is believed.
const organisationMost = 128

// domain returns what the configuration alone says: the domain's name, or one that
// only this subscription has.
func (c *Subscription) domain() string {
	if c.Domain == "" {
		return alonePrefix + c.ID
	}
	return c.Domain
}

// domainName is the name of those who share the member's limits.
func (m *member) domainName() string { return m.domain.Load().name }

// domainLabel is that name for people; empty for one that is known to share none.
func (m *member) domainLabel() string {
	name := m.domainName()
	if strings.HasPrefix(name, alonePrefix) {
		return ""
	}
	return strings.TrimPrefix(name, learnedPrefix)
}

// isOf tells whether the member is known to be of the organisation.
func (m *member) isOf(organisation []byte) bool {
	known := m.organisation.Load()
	return known != nil && *known == string(organisation)
}

// learn takes the organisation from an answer of m's, for all processes. Its bytes
// may lie in the answer's buffers.
func (p *Pool) learn(m *member, organisation []byte, now time.Time) {
	if name := string(organisation); len(name) <= organisationMost && printable(name) {
		p.keeper.belongs(m, name)
		p.belong(m, name, now)
	}
}

// belong makes m one of the organisation, and so of its domain.
func (p *Pool) belong(m *member, organisation string, now time.Time) {
	p.arranging.Lock()
	defer p.arranging.Unlock()
	former := m.organisation.Load()
	if former != nil && *former == organisation {
		return
	}
	m.organisation.Store(&organisation)
	var moved *member
	if former != nil {
		moved = m
	}
	g := p.group(m.conf().Provider)
	g.arrange(moved, now)
	p.warn(g)
	g.queue.event()
}

// arrange puts everybody into its domain. What closed those whose limits turn out
// to be shared closes all of them now; but moved, which is of another organisation
// than it was, leaves behind what closed the former.
func (g *group) arrange(moved *member, now time.Time) {
	// An organisation that one of a configured domain is of, is that domain's.
	configured := make(map[string]string)
	for _, m := range g.members() {
		if organisation := m.organisation.Load(); m.conf().Domain != "" && organisation != nil && configured[*organisation] == "" {
			configured[*organisation] = m.conf().Domain
		}
	}
	domains := make(map[string]*domain)
	for _, m := range g.members() {
		name := m.conf().domain()
		if organisation := m.organisation.Load(); m.conf().Domain == "" && organisation != nil {
			if name = configured[*organisation]; name == "" {
				name = learnedPrefix + *organisation
			}
		}
		d := domains[name]
		if d == nil {
			d = &domain{name: name, lead: m.conf().ID}
			if known := g.domains[name]; known != nil {
				d.cooldowns = known.cooldowns
			} else {
				d.cooldowns = ratelimit.NewCooldowns()
			}
			domains[name] = d
		}
		former := m.domain.Load()
		if former != nil && former.cooldowns != d.cooldowns && m != moved {
			d.cooldowns.Join(now, former.cooldowns)
		}
		m.gate.Share(d.cooldowns)
		m.domain.Store(d)
	}
	g.domains = domains
}

// warn tells, once, where the configuration and the answers do not agree on whose
// limits are shared: it goes by the configuration, and there is a limit that it
// does not expect, or a subscription that rests for nothing.
func (p *Pool) warn(g *group) {
	type pair struct{ organisation, domain string }
	of := make(map[string]pair) // a domain's first organisation, and an organisation's first domain
	first := func(key string) bool {
		if g.warned[key] {
			return false
		}
		if g.warned == nil {
			g.warned = make(map[string]bool)
		}
		g.warned[key] = true
		return true
	}
	for _, m := range g.members() {
		organisation := m.organisation.Load()
		if m.conf().Domain == "" || organisation == nil {
			continue
		}
		here := pair{*organisation, m.conf().Domain}
		if other, known := of["domain "+here.domain]; !known {
			of["domain "+here.domain] = here
		} else if other.organisation != here.organisation && first("domain "+here.domain) {
			p.opts().Logger.Warn("the subscriptions of one domain are of two organisations: a limit of one closes all of them",
				slog.String("provider", g.provider), slog.String("domain", here.domain),
				slog.Any("organisations", []string{other.organisation, here.organisation}))
		}
		if other, known := of["organisation "+here.organisation]; !known {
			of["organisation "+here.organisation] = here
		} else if other.domain != here.domain && first("domains "+other.domain+" "+here.domain) {
			p.opts().Logger.Warn("two domains are one organisation: a limit of one is met again by the other",
				slog.String("provider", g.provider), slog.String("organisation", here.organisation),
				slog.Any("domains", []string{other.domain, here.domain}))
		}
	}
}

// belongs shares the organisation of m with the other processes.
func (k *keeper) belongs(m *member, organisation string) {
	if k.pool.bindings == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// The keeper's next turn is soon enough; where answers take turns in telling two,
	// it is what bounds the writing.
	k.organisations[m.conf().ID] = organisation
}

func (k *keeper) writeOrganisations(ctx context.Context) {
	k.mu.Lock()
	list := make([]store.Belonging, 0, len(k.organisations))
	for id, organisation := range k.organisations {
		m := k.pool.member(id)
		if m == nil {
			delete(k.organisations, id)
			continue
		}
		list = append(list, store.Belonging{
			Subscription: id, Organisation: organisation, Configured: m.conf().Domain != "",
		})
	}
	k.mu.Unlock()
	if len(list) == 0 || k.pool.bindings.Belong(ctx, list) != nil {
		return // they stay for the next turn
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range list {
		if k.organisations[b.Subscription] == b.Organisation {
			delete(k.organisations, b.Subscription)
		}
	}
}

// readOrganisation takes over what the fleet knows of m's organisation.
func (k *keeper) readOrganisation(m *member, organisation string, now time.Time) {
	k.mu.Lock()
	_, newer := k.organisations[m.conf().ID]
	if known := m.organisation.Load(); organisation == "" && known != nil && !newer {
		k.organisations[m.conf().ID] = *known // Redis has lost it, or its time has come
	}
	k.mu.Unlock()
	if !newer && organisation != "" {
		k.pool.belong(m, organisation, now)
	}
}
