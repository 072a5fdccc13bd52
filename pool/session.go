package pool

import (
	"strings"
	"sync"
	"time"
)

// sessionKey names a session: the same id of another agent or at another
// provider is another session.
type sessionKey struct{ provider, agent, session string }

// name is the session's name in Redis.
func (k sessionKey) name() string { return k.provider + "/" + k.agent + "/" + k.session }

// clone copies the key, which may lie in a request's buffer.
func (k sessionKey) clone() sessionKey {
	return sessionKey{strings.Clone(k.provider), strings.Clone(k.agent), strings.Clone(k.session)}
}

// session is what this process knows of one session. The binding lock is held
// over the talk with Redis that binds it, so that parallel first requests make
// one binding; the inner lock guards the fields and is never held for long.
type session struct {
	key    sessionKey
	name   string
	parent string

	binding sync.Mutex

	mu        sync.Mutex
	bound     *member   // where it sticks; nil until it is bound
	since     time.Time // when it was bound there
	looked    bool      // Redis was asked for an earlier binding
	expect    string    // the subscription that Redis is believed to have; empty: none
	synced    bool      // Redis knows the binding
	slotUntil time.Time // until when it holds a place on bound, at least; zero: it holds none
	score     int64     // the store's mark of that place, to give back exactly this one
	unsure    *member   // may have given it a place: Redis did not answer
	confirmed bool      // an answer has come: the place is more than a reservation
	touched   time.Time // when the place was last extended
	inFlight  int
	kept      time.Time // when Redis was last told that the binding is in use
	listed    bool      // is on the keeper's list

	// What its requests were like that were let through here, for who moves it.
	served  bool     // there were any
	model   string   // of the last one
	allowed []string // likewise, as in Request
	sealed  bool     // one carried or made state that only its domain understands
	reads   reads
	unmoved time.Time // when rebalancing could not move it the last time

	// Guarded by the lock of sessions.
	room         *crowd // of its agent on its subscription; nil: it was forgotten
	newer, older *session
	last         time.Time
}

// sessions remembers the bindings of this process: bounded in number, and
// everybody is forgotten after the affinity. What is forgotten here is still in
// Redis.
//
// Who makes room is the least recently used session of the agent that has the most,
// on the subscription that has the most: neither an agent that makes sessions without
// end nor a crowded subscription pushes out those of the others. (A cache for each
// subscription would divide the room among all, those too that need none; the LRUs
// of libraries know no owners.)
type sessions struct {
	most     int
	affinity time.Duration

	mu    sync.Mutex
	byKey map[sessionKey]*session
	all   crowd // by subscription, "" for those that are not bound; each by agent
}

func newSessions(most int, affinity time.Duration) *sessions {
	return &sessions{most: most, affinity: affinity, byKey: make(map[sessionKey]*session)}
}

// keep changes how long sessions are remembered.
func (s *sessions) keep(affinity time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.affinity = affinity
}

// get returns the session of the key and marks it used at now. It is made when
// it is not known; its strings are copied then, because the key may lie in a
// request's buffer.
func (s *sessions) get(key sessionKey, parent string, now time.Time) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.byKey[key]; one != nil {
		if now.Sub(one.last) <= s.affinity {
			one.touch(now)
			return one
		}
		s.forget(one)
	}
	if len(s.byKey) >= s.most {
		s.forget(s.all.parts[0].parts[0].oldest)
	}
	key = key.clone()
	one := &session{key: key, name: key.name(), parent: strings.Clone(parent)}
	s.byKey[key] = one
	s.join(one, "")
	one.last = now
	return one
}

// find returns the session of the key without marking it used; nil when it is
// not known.
func (s *sessions) find(key sessionKey) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[key]
}

// lastUse is when the session was last used.
func (s *sessions) lastUse(one *session) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return one.last
}

// used marks the session used at now, unless it was forgotten meanwhile.
func (s *sessions) used(one *session, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one.room != nil {
		one.touch(now)
	}
}

// stick notes where the session is bound, "" for nowhere. It is called without the
// session's lock, so that it may be late.
func (s *sessions) stick(one *session, subscription string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one.room == nil || one.room.in.name == subscription {
		return
	}
	one.room.drop(one)
	s.join(one, subscription)
}

func (s *sessions) join(one *session, subscription string) {
	s.all.part(subscription, &s.all).part(one.key.agent, &s.all).add(one)
}

// each calls f for every session. f must not call back into s.
func (s *sessions) each(f func(one *session, last time.Time)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.byKey {
		f(one, one.last)
	}
}

func (s *sessions) forget(one *session) {
	one.room.drop(one)
	delete(s.byKey, one.key)
}

// touch puts the session in front of its crowd.
func (s *session) touch(now time.Time) {
	s.last = now
	if s.room.newest != s {
		s.room.unlink(s)
		s.room.link(s)
	}
}
