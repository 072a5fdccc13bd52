package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/store"
)

// ErrNoSession is in the error of what is asked for a session that is not bound: it
// never was, was released, or was not used for Options.Affinity.
var ErrNoSession = errors.New("there is no such session")

// ErrFenced is in the error of a move whose Fence is not the highest any more: who
// makes it has to stop.
var ErrFenced = store.ErrFenced

// SessionKey names a session.
type SessionKey struct{ Provider, Agent, Session string }

// String writes the key for people.
func (k SessionKey) String() string { return k.Provider + "/" + k.Agent + "/" + k.Session }

// Move is the wish that a session sticks to another subscription.
type Move struct {
	Session SessionKey
	From    string // moves it only from there; empty: from wherever it is
	To      string
	Allowed []string // as in Request: what the session's agent may use
	// Fence is the number of the lease by which somebody moves sessions on his own;
	// the move is refused where one with a higher number has begun to (see
	// Pool.Fence). 0: an operator wants it.
	Fence int64
	Why   string // for the event that tells of it, in one word
}

// The reasons of a MoveError beside those why a subscription does not serve.
const (
	ReasonProvider = "provider" // it is another provider's
	ReasonMoved    = "moved"    // the session is elsewhere by now
	ReasonWarm     = "warm"     // rebalancing alone: its prompt cache may be
	// ReasonClosed is why a session moved by itself: its subscription could not serve.
	ReasonClosed = "closed"
)

// MoveError says why a session was not moved. It stays where it is.
type MoveError struct {
	Move   Move
	Reason string
	Until  time.Time // when that is expected to be over; zero: no time is known
	text   string    // behind "cannot move session X to subscription Y: "
}

// Error implements error.
func (e *MoveError) Error() string {
	return fmt.Sprintf("cannot move session %s to subscription %q: %s", e.Move.Session, e.Move.To, e.text)
}

// Move makes a session stick to another subscription, for all processes, and returns
// where it was; that is To when it was there already. Requests under way end where
// they are. A place is taken at the new subscription before the old one is left, so
// that the session always has one and no cap is exceeded; who dies between leaves a
// place that ends by itself.
//
// The session is not moved to who could not serve it: the error is a *MoveError
// then. It also is ErrNoSession, ErrNoSuchSubscription, ErrFenced, or says that Redis
// does not answer: nothing is moved without the fleet, and after an error of Redis it
// is not known whether the session was.
func (p *Pool) Move(ctx context.Context, m Move) (from string, err error) {
	now := time.Now()
	if !m.Session.valid() {
		return "", ErrNoSession
	}
	to := p.member(m.To)
	if to == nil {
		return "", ErrNoSuchSubscription
	}
	if to.conf().Provider != m.Session.Provider {
		return "", &MoveError{Move: m, Reason: ReasonProvider, text: fmt.Sprintf("it is one of provider %q", to.conf().Provider)}
	}
	s := p.sessions.find(m.Session.key())
	switch {
	case p.bindings == nil:
		from, err = p.moveHere(m, s, to, now)
	case !p.bindings.Healthy():
		return "", store.ErrAway
	default:
		from, err = p.moveShared(ctx, m, s, to, now)
	}
	if err == nil && from != m.To {
		p.freed(from)
		p.tellMoved(m.Session, from, m.To, m.Why)
	}
	return from, err
}

// movable tells why a session that is bound to from is not to be moved.
func (p *Pool) movable(m Move, from string, to *member, now time.Time) error {
	if m.From != "" && from != m.From {
		return &MoveError{Move: m, Reason: ReasonMoved, text: fmt.Sprintf("it is on %q by now", from)}
	}
	if from == m.To {
		return nil
	}
	// What would make it leave again at once.
	r := p.offers(to, &Request{Provider: m.Session.Provider, Allowed: m.Allowed}, "", now)
	switch {
	case r.obstacle == unfit:
		return &MoveError{Move: m, Reason: unfitAgent, text: fmt.Sprintf("agent %q may not use it", m.Session.Agent)}
	case !r.moves(now):
		return nil
	}
	e := &MoveError{Move: m, Reason: r.reason, Until: r.until, text: fmt.Sprintf("that cannot serve (%s)", r.reason)}
	if !r.until.IsZero() {
		e.text = fmt.Sprintf("that cannot serve (%s) for %s", r.reason, roundWait(r.until.Sub(now)))
	}
	return e
}

func moveFull(m Move, to *member, now time.Time, free time.Duration) error {
	to.setFull(now, free)
	return &MoveError{
		Move: m, Reason: ReasonSessions, Until: now.Add(free),
		text: fmt.Sprintf("all of its %d places are taken; the first may be free in %s", to.conf().Limits.Sessions, roundWait(free)),
	}
}

// moveHere is Move where this process is the whole fleet.
func (p *Pool) moveHere(m Move, s *session, to *member, now time.Time) (string, error) {
	if s == nil {
		return "", ErrNoSession
	}
	s.binding.Lock()
	defer s.binding.Unlock()
	home := s.home()
	if home == nil {
		return "", ErrNoSession
	}
	if err := p.movable(m, home.conf().ID, to, now); err != nil || home == to {
		return home.conf().ID, err
	}
	until := now.Add(p.opts().IdleTimeout)
	if free, ok := to.place(s.name, now, until, to.conf().Limits.Sessions); !ok {
		return "", moveFull(m, to, now, free)
	}
	p.settle(s, to, now, until, 0, false)
	return home.conf().ID, nil
}

// moveShared is Move in a fleet. It takes no lock: requests must not wait for it, and
// the binding is compared before it is set.
func (p *Pool) moveShared(ctx context.Context, m Move, s *session, to *member, now time.Time) (string, error) {
	name := m.Session.key().name()
	stays, err := p.bindings.Stays(ctx, []string{name})
	if err != nil {
		return "", err
	}
	from := stays[0].Subscription
	expect := from
	if from == "" && s != nil { // this process has not written it yet
		if home := s.home(); home != nil {
			from = home.conf().ID
		}
	}
	if from == "" {
		return "", ErrNoSession
	}
	if err := p.movable(m, from, to, now); err != nil || from == m.To {
		return from, err
	}
	held, err := p.bindings.Place(ctx, from, name)
	if err != nil {
		return "", err
	}
	place, err := p.bindings.ReserveMoved(ctx, m.To, name, to.conf().Limits.Sessions, p.reservation(), m.Fence)
	if err != nil {
		return "", err
	}
	to.count.Store(place.Count)
	if !place.Granted {
		return "", moveFull(m, to, now, place.Free)
	}
	bound, err := p.bindings.Bind(ctx, name, expect, m.To, "", p.opts().Affinity)
	if err != nil || bound != m.To {
		if place.Created {
			p.keeper.release(to, name, place.Score)
		}
		if err != nil {
			return "", err
		}
		return "", &MoveError{Move: m, Reason: ReasonMoved, text: fmt.Sprintf("somebody else has just moved it to %q", bound)}
	}
	// What fails from here on ends by itself, or is done at the session's next request.
	if held.Left > p.reservation() {
		_, _, _ = p.bindings.Extend(ctx, m.To, to.conf().Limits.Sessions, []store.Hold{{Session: name, For: held.Left}})
	}
	if held.Score > 0 {
		_ = p.bindings.Release(ctx, from, name, held.Score)
	}
	if s != nil {
		p.adopt(s, m.To)
		p.keeper.check(s) // somebody else may have moved it again
	}
	return from, nil
}

// Fence keeps those whose fence is lower from moving sessions. Who begins to move
// sessions on his own calls it first. The error is ErrFenced when somebody else began
// later.
func (p *Pool) Fence(ctx context.Context, fence int64) error {
	if p.bindings == nil {
		return nil
	}
	if !p.bindings.Healthy() {
		return store.ErrAway
	}
	ids := make([]string, 0, len(p.members()))
	for _, m := range p.members() {
		ids = append(ids, m.conf().ID)
	}
	return p.bindings.Fence(ctx, ids, fence)
}

// ReleaseSession ends a session's binding, for all processes: its place is free, and
// its next request goes where a new session would. It returns the subscription that
// the session was bound to. Requests under way end where they are. The errors are
// ErrNoSession, and that Redis does not answer.
func (p *Pool) ReleaseSession(ctx context.Context, key SessionKey) (from string, err error) {
	if !key.valid() {
		return "", ErrNoSession
	}
	s := p.sessions.find(key.key())
	if s != nil {
		if home := s.home(); home != nil {
			from = home.conf().ID
		}
	}
	if p.bindings != nil {
		if !p.bindings.Healthy() {
			return "", store.ErrAway
		}
		name := key.key().name()
		stays, err := p.bindings.Stays(ctx, []string{name})
		if err != nil {
			return "", err
		}
		var held store.Occupant
		if on := stays[0].Subscription; on != "" {
			from = on
			if held, err = p.bindings.Place(ctx, on, name); err != nil {
				return "", err
			}
		}
		former, err := p.bindings.Unbind(ctx, name)
		if err != nil {
			return "", err
		}
		if former != "" { // it may have been bound since
			from = former
		}
		if former == stays[0].Subscription && held.Score > 0 {
			_ = p.bindings.Release(ctx, former, name, held.Score) // else it ends by itself
		}
	}
	if from == "" {
		return "", ErrNoSession
	}
	if s != nil {
		p.unbind(s)
	}
	p.freed(from)
	e := event.Event{Kind: event.SessionReleased, Provider: key.Provider, Agent: key.Agent, Session: key.Session, Subscription: from}
	e.Text = fmt.Sprintf("session %s is released from subscription %s", key, from)
	p.opts().Events.Emit(e)
	return from, nil
}

// unbind follows a session's release.
func (p *Pool) unbind(s *session) {
	s.mu.Lock()
	former, score, held := s.present(), s.score, time.Now().Before(s.slotUntil)
	s.bound, s.expect, s.since, s.looked, s.synced = nil, "", time.Time{}, false, false
	s.slotUntil, s.score, s.confirmed = time.Time{}, 0, false
	s.mu.Unlock()
	p.sessions.stick(s, "")
	if former == nil {
		return
	}
	former.unplace(s.name)
	if held && score != 0 {
		p.keeper.release(former, s.name, score)
	}
	p.freed(former.conf().ID)
}

// freed has those look again who wait for a place on a subscription: one was given back.
func (p *Pool) freed(id string) {
	m := p.member(id)
	if m == nil {
		return
	}
	m.mu.Lock()
	m.retry = time.Time{}
	m.mu.Unlock()
	p.group(m.conf().Provider).queue.event()
}

// tellMoved tells that a session sticks to another subscription from now on.
func (p *Pool) tellMoved(key SessionKey, from, to, why string) {
	e := event.Event{Kind: event.SessionMoved, Provider: key.Provider, Agent: key.Agent, Session: key.Session, Subscription: to, Reason: why}
	e.Text = fmt.Sprintf("session %s has moved from subscription %s to %s", key, from, to)
	p.opts().Events.Emit(e)
}

// valid tells whether there can be such a session. Nothing else is asked for.
func (k SessionKey) valid() bool {
	for _, part := range [...]string{k.Provider, k.Agent, k.Session} {
		if part == "" || len(part) > 128 {
			return false
		}
		for i := range len(part) {
			switch c := part[i]; {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
			default:
				return false
			}
		}
	}
	return true
}

func (k SessionKey) key() sessionKey { return sessionKey{k.Provider, k.Agent, k.Session} }

// exported is the key as others name it, in strings of its own.
func (k sessionKey) exported() SessionKey {
	k = k.clone()
	return SessionKey{k.provider, k.agent, k.session}
}
