package pool

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/authpool/authpool/pool/store"
)

// SessionStatus is what people see of one session.
type SessionStatus struct {
	SessionKey
	Subscription string    // where it sticks
	Parent       string    // the parent session's id, or empty
	Since        time.Time // it sticks there
	Last         time.Time // it was used; within a part of the idle time-out where another process knows better
	Until        time.Time // its place ends, unless it is used; zero: it is idle, and only its subscription is remembered
	InFlight     int       // requests under way in this process
	Hour         Spent     // within the last hour, in this process
	Over         string    // the limit of Options.SessionBrake that it has used up: "requests", "tokens" or "cost"; empty: none
}

// Spent is what was used.
type Spent struct {
	Requests    int64
	Tokens      int64 // of all kinds, as usage.Tokens.Total adds them up
	CostNanoUSD int64
}

// SessionFilter says which sessions are wanted. An empty field is any.
type SessionFilter struct{ Provider, Agent, Session, Subscription string }

// one tells whether the filter names one session, which then need not be looked for.
func (f *SessionFilter) one() bool { return f.Agent != "" && f.Session != "" }

func (f *SessionFilter) wants(k sessionKey) bool {
	return (f.Provider == "" || f.Provider == k.provider) &&
		(f.Agent == "" || f.Agent == k.agent) &&
		(f.Session == "" || f.Session == k.session)
}

// parseSession reads a session's name in Redis.
func parseSession(name string) (k sessionKey, ok bool) {
	provider, rest, _ := strings.Cut(name, "/")
	agent, id, ok := strings.Cut(rest, "/")
	return sessionKey{provider, agent, id}, ok && provider != "" && agent != "" && id != ""
}

// Sessions returns the sessions that hold a place, of all processes, by agent and
// name; with both an agent and a session in the filter, the idle ones too that are
// remembered. While Redis is away, whole is false, and they are those that this
// process knows.
func (p *Pool) Sessions(ctx context.Context, f SessionFilter) (list []SessionStatus, whole bool, err error) {
	now := time.Now()
	found := make(map[sessionKey]*SessionStatus)
	for s, last := range p.knownSessions(f) {
		if status := s.status(last, now); status.Subscription != "" && (f.one() || !status.Until.IsZero()) {
			found[s.key] = &status
		}
	}
	whole = p.bindings == nil
	if p.shared() {
		if err := p.sharedSessions(ctx, f, found); err != nil {
			return nil, false, err
		}
		whole = true
	}
	for key, s := range found {
		if f.Subscription != "" && s.Subscription != f.Subscription {
			continue
		}
		s.Hour, s.Over = p.sessionBrakes.look(now, key)
		list = append(list, *s)
	}
	slices.SortFunc(list, func(a, b SessionStatus) int {
		return cmp.Or(strings.Compare(a.Agent, b.Agent), strings.Compare(a.Session, b.Session), strings.Compare(a.Provider, b.Provider))
	})
	return list, whole, nil
}

// status is what this process knows.
func (s *session) status(last, now time.Time) SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := SessionStatus{SessionKey: s.key.exported(), Parent: s.parent, Since: s.since, Last: last, InFlight: s.inFlight}
	if s.bound != nil {
		status.Subscription = s.bound.conf().ID
	}
	if s.slotUntil.After(now) {
		status.Until = s.slotUntil
	}
	return status
}

// knownSessions are those of this process that the filter wants, and when each was
// last used.
func (p *Pool) knownSessions(f SessionFilter) map[*session]time.Time {
	known := make(map[*session]time.Time)
	if f.one() {
		for key := range p.wanted(f) {
			if s := p.sessions.find(key); s != nil {
				known[s] = p.sessions.lastUse(s)
			}
		}
		return known
	}
	p.sessions.each(func(s *session, last time.Time) {
		if f.wants(s.key) {
			known[s] = last
		}
	})
	return known
}

// wanted are the sessions that a filter with an agent and a session can mean.
func (p *Pool) wanted(f SessionFilter) map[sessionKey]time.Time {
	keys := make(map[sessionKey]time.Time)
	for provider := range p.groups() {
		if key := (sessionKey{provider, f.Agent, f.Session}); f.wants(key) && key.exported().valid() {
			keys[key] = time.Time{}
		}
	}
	return keys
}

// sharedSessions corrects what was found here by what the fleet knows, and adds the
// sessions of other processes.
func (p *Pool) sharedSessions(ctx context.Context, f SessionFilter, found map[sessionKey]*SessionStatus) error {
	var ends map[sessionKey]time.Time
	if f.one() {
		ends = p.wanted(f)
	} else {
		var err error
		if ends, err = p.places(ctx, f); err != nil {
			return err
		}
		for key := range found {
			if _, held := ends[key]; !held {
				ends[key] = time.Time{}
			}
		}
	}
	for batch := range slices.Chunk(slices.Collect(maps.Keys(ends)), keeperBatch) {
		names := make([]string, len(batch))
		for i, key := range batch {
			names[i] = key.name()
		}
		stays, err := p.bindings.Stays(ctx, names)
		if err != nil {
			return err
		}
		now := time.Now()
		for i, key := range batch {
			end := ends[key]
			if f.one() && stays[i].Subscription != "" {
				place, err := p.bindings.Place(ctx, stays[i].Subscription, names[i])
				if err != nil {
					return err
				}
				if place.Left > 0 {
					end = now.Add(place.Left)
				}
			}
			p.correct(found, key, stays[i], end, now)
		}
	}
	return nil
}

// places finds the sessions that the filter wants and that hold a place, and when
// that ends; of one that has just moved and holds two, the later.
func (p *Pool) places(ctx context.Context, f SessionFilter) (map[sessionKey]time.Time, error) {
	ends := make(map[sessionKey]time.Time)
	for _, m := range p.members() {
		if f.Provider != "" && f.Provider != m.conf().Provider || f.Subscription != "" && f.Subscription != m.conf().ID {
			continue
		}
		now := time.Now()
		err := p.bindings.Places(ctx, m.conf().ID, func(o store.Occupant) {
			if key, ok := parseSession(o.Session); ok && f.wants(key) {
				ends[key] = later(ends[key], now.Add(o.Left))
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// correct takes over the fleet's view of one session. What this process has bound
// and not written yet stays.
func (p *Pool) correct(found map[sessionKey]*SessionStatus, key sessionKey, stay store.Stay, end, now time.Time) {
	s := found[key]
	if stay.Subscription == "" {
		if s == nil || p.sessions.find(key).isSynced() {
			delete(found, key) // a reservation that nobody is bound by, or it was released
		}
		return
	}
	if s == nil {
		s = &SessionStatus{SessionKey: key.exported()}
		found[key] = s
	}
	if s.Subscription != stay.Subscription {
		s.Until = time.Time{} // that was elsewhere
	}
	s.Subscription, s.Since = stay.Subscription, now.Add(-stay.Since)
	if stay.Parent != "" {
		s.Parent = stay.Parent
	}
	if !end.IsZero() {
		s.Until = end
		// A place that lasts longer than the idle time-out from now was given by
		// another one: before a reload, or by a process that has another.
		if last := end.Add(-p.opts().IdleTimeout); last.Before(now.Add(time.Second)) {
			s.Last = later(s.Last, earlier(last, now))
		}
	}
	s.Last = later(s.Last, now.Add(-stay.Last))
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// isSynced tells whether Redis was told where the session is bound; nil is no
// session, of which that cannot be said.
func (s *session) isSynced() bool {
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}
