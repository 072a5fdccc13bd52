package audit

import (
	"strconv"
	"sync"
	"time"

	"github.com/authpool/authpool/pool/event"
)

// use is a session's use of a subscription.
type use struct{ agent, provider, session, subscription string }

// usesRoom is how many uses of a generation are remembered. One that is forgotten is
// written down again.
const usesRoom = 1 << 15

// uses remembers what was used on which day, in two generations: what was not used
// since the younger one began is forgotten with the elder.
type uses struct {
	mu       sync.RWMutex
	day      int64 // of both
	now, old map[use]struct{}
}

// first tells whether u is new on that day.
func (u *uses) first(one use, day int64) bool {
	u.mu.RLock()
	_, known := u.now[one]
	known = known && u.day == day
	u.mu.RUnlock()
	if known {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.day != day {
		u.day, u.now, u.old = day, nil, nil
	}
	if _, known = u.now[one]; known {
		return false
	}
	_, known = u.old[one]
	if len(u.now) >= usesRoom {
		u.now, u.old = nil, u.now
	}
	if u.now == nil {
		u.now = make(map[use]struct{})
	}
	u.now[one] = struct{}{}
	return !known
}

// Used notes that an agent's session is about to use a subscription's credential:
// once for each UTC day. It does not wait and, but for the first time, allocates
// nothing. The strings are kept.
func (l *Log) Used(agent, provider, session, subscription string) {
	if l == nil {
		return
	}
	now := time.Now()
	if !l.uses.first(use{agent, provider, session, subscription}, now.Unix()/(24*60*60)) {
		return
	}
	l.Add(Entry{Time: now, Kind: CredentialUsed, Actor: agent, Fields: map[string]string{
		"provider": provider, "session": session, "subscription": subscription,
	}})
}

// Refusal is a request that authpool itself did not let through.
type Refusal struct {
	Code     string // as in X-Authpool-Error, or admin_unauthorized, admin_role
	Agent    string // "": a stranger
	Provider string // "": none was found
	Session  string // "": none was found
	Remote   string // address of the sender, without the port
	Request  string // id; "": a tunnel, which has none
	Target   string // host:port that a tunnel was refused to; "": it was a request
}

// Refusals of a kind are written once at first, then once in each refusalWindow with
// how many there were, so that nobody can fill the disk with them.
const (
	refusalWindow = time.Minute
	refusalRoom   = 1024 // kinds at a time; agents and codes are few, so this is never met
)

// refused is what refusals are counted by.
type refused struct{ code, agent string }

type refusedCount struct {
	count int64 // since the last line
	last  Refusal
	due   time.Time
}

type refusals struct {
	mu   sync.Mutex
	all  map[refused]*refusedCount
	soon time.Time // when the first is due; zero: none is
}

// Refused notes a refusal, without waiting.
func (l *Log) Refused(r Refusal) {
	if l == nil {
		return
	}
	now := time.Now()
	if l.refusals.count(&r, now) {
		l.Add(refusalEntry(now, &r, 1))
	}
}

func refusalEntry(now time.Time, r *Refusal, count int64) Entry {
	actor := r.Agent
	if actor == "" {
		actor = Stranger
	}
	return Entry{Time: now, Kind: RequestRefused, Actor: actor, Fields: map[string]string{
		"code": r.Code, "count": strconv.FormatInt(count, 10), "provider": r.Provider,
		"session": r.Session, "remote": r.Remote, "request": r.Request,
		"target": r.Target,
	}}
}

// count counts r and tells whether it is the first of its window.
func (c *refusals) count(r *Refusal, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := refused{r.Code, r.Agent}
	one := c.all[key]
	if one == nil {
		if len(c.all) >= refusalRoom {
			key = refused{"others", ""}
			r = &Refusal{Code: "others"}
		}
		if c.all == nil {
			c.all = make(map[refused]*refusedCount)
		}
		if one = c.all[key]; one == nil {
			one = &refusedCount{due: now.Add(refusalWindow)}
			c.all[key] = one
			if c.soon.IsZero() || one.due.Before(c.soon) {
				c.soon = one.due
			}
			return true
		}
	}
	one.count++
	one.last = *r
	return false
}

// next is when there may be something due.
func (c *refusals) next() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.soon
}

// due returns the lines of windows that have ended. Those in which there was nothing
// after the first are forgotten.
func (c *refusals) due(now time.Time) []Entry { return c.take(now, false) }

// rest returns the lines of all windows.
func (c *refusals) rest(now time.Time) []Entry { return c.take(now, true) }

func (c *refusals) take(now time.Time, all bool) (entries []Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.soon = time.Time{}
	for key, one := range c.all {
		if all || !now.Before(one.due) {
			if one.count == 0 {
				delete(c.all, key)
				continue
			}
			entries = append(entries, refusalEntry(now, &one.last, one.count))
			one.count, one.due = 0, now.Add(refusalWindow)
		}
		if c.soon.IsZero() || one.due.Before(c.soon) {
			c.soon = one.due
		}
	}
	return entries
}

// Event notes what the pool has told of.
func (l *Log) Event(e *event.Event) {
	if l == nil {
		return
	}
	fields := map[string]string{
		"provider": e.Provider, "subscription": e.Subscription, "model": e.Model, "agent": e.Agent,
		"session": e.Session, "window": e.Window, "reason": e.Reason, "text": e.Text,
	}
	if !e.Until.IsZero() {
		fields["until"] = e.Until.UTC().Format(time.RFC3339)
	}
	l.Add(Entry{Time: e.Time, Kind: Kind(e.Kind), Actor: Itself, Fields: fields})
}
