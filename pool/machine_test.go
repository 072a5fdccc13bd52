package pool_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// machine drives a pool at random and knows what it must not do.
type machine struct {
	t      *rapid.T
	pool   *pool.Pool
	subs   map[string]pool.Subscription
	out    []*held
	home   map[string]string    // session -> where it sticks
	closed map[string]time.Time // domain -> until when the provider has refused it
	alone  map[string]time.Time // by subscription
	models map[string]time.Time // domain/model -> the same
}

// held is a lease that is not done.
type held struct {
	lease   *pool.Lease
	session string
	model   string
	judged  bool
}

const idle = 10 * time.Minute

func newMachine(t *rapid.T) *machine {
	m := &machine{t: t, subs: map[string]pool.Subscription{}, home: map[string]string{}, closed: map[string]time.Time{}, alone: map[string]time.Time{}, models: map[string]time.Time{}}
	var subs []pool.Subscription
	for i := range rapid.IntRange(1, 5).Draw(t, "subscriptions") {
		s := sub(fmt.Sprint("s", i), limits(pool.Limits{
			Concurrent: rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "concurrent"),
			Sessions:   rapid.SampledFrom([]int{0, 1, 2}).Draw(t, "sessions"),
		}), priority(rapid.IntRange(0, 1).Draw(t, "priority")))
		s.Domain = rapid.SampledFrom([]string{"", "org"}).Draw(t, "domain")
		s.Weight = rapid.IntRange(0, 3).Draw(t, "weight")
		s.Models = rapid.SampledFrom([][]string{nil, {"a*"}, {"b"}}).Draw(t, "models")
		subs = append(subs, s)
		m.subs[s.ID] = s
	}
	// Nobody is moved but by requests, which the machine sees.
	m.pool = start(pool.Options{IdleTimeout: idle, CacheWarm: 10_000 * time.Hour}, subs...)
	return m
}

func (m *machine) domain(id string) string {
	if d := m.subs[id].Domain; d != "" {
		return d
	}
	return "only " + id
}

func (m *machine) Acquire(t *rapid.T) {
	r := ask(fmt.Sprint("session-", rapid.IntRange(0, 5).Draw(t, "session")))
	r.Model = rapid.SampledFrom([]string{"a1", "a2", "b", ""}).Draw(t, "model")
	r.Pinned = rapid.Bool().Draw(t, "pinned")
	r.Seals = rapid.Bool().Draw(t, "seals")
	for i := range len(m.subs) {
		id := fmt.Sprint("s", i)
		if rapid.IntRange(0, 4).Draw(t, "tried "+id) == 0 {
			r.Tried = append(r.Tried, id)
		}
	}
	lease, err := m.pool.Acquire(context.Background(), r)
	if err != nil {
		return
	}
	id, home, now := lease.Subscription().ID, m.home[r.Session], time.Now()
	switch {
	case slices.Contains(r.Tried, id):
		t.Fatalf("%s was offered again", id)
	case now.Before(m.alone[id]):
		t.Fatalf("%s was offered, it is closed for %v", id, m.alone[id].Sub(now))
	case now.Before(m.closed[m.domain(id)]):
		t.Fatalf("%s was offered, its domain is closed for %v", id, m.closed[m.domain(id)].Sub(now))
	case now.Before(m.models[m.domain(id)+"/"+r.Model]):
		t.Fatalf("%s was offered, its model is closed", id)
	case r.Pinned && home != "" && m.domain(home) != m.domain(id):
		t.Fatalf("a pinned session of %s was served by %s", home, id)
	}
	switch lease.Source() {
	case pool.SourceBound:
		if id != home {
			t.Fatalf("bound to %s, served by %s", home, id)
		}
	case pool.SourceNew:
		if home != "" {
			t.Fatalf("a session of %s counts as new", home)
		}
	case pool.SourceMoved, pool.SourceElsewhere:
		if r.Seals && !r.Pinned && r.Model == "" && lease.Source() == pool.SourceElsewhere {
			t.Fatalf("the session stays with %s and cannot use what %s makes", home, id)
		}
		if home == "" || id == home {
			t.Fatalf("%s: from %q to %s", lease.Source(), home, id)
		}
	}
	if lease.Source() != pool.SourceElsewhere {
		m.home[r.Session] = id
	}
	m.out = append(m.out, &held{lease: lease, session: r.Session, model: r.Model})
}

func (m *machine) Verdict(t *rapid.T) {
	h := m.pick(t)
	if h.judged {
		t.Skip("judged")
	}
	h.judged = true
	v := ratelimit.Verdict{
		Signal: ratelimit.Signal(rapid.IntRange(0, 7).Draw(t, "signal")),
		Scope:  ratelimit.Scope(rapid.IntRange(0, 4).Draw(t, "scope")),
		Wait:   time.Duration(rapid.IntRange(-1, 4000).Draw(t, "wait")) * time.Second,
	}
	if v.Signal == ratelimit.Auth { // would need another secret to get over
		v.Signal = ratelimit.OK
	}
	h.lease.Verdict(v)
	if v.Signal != ratelimit.Limited && v.Signal != ratelimit.Quota || v.Wait < 0 {
		return
	}
	id := h.lease.Subscription().ID
	until, domain := time.Now().Add(v.Wait), m.domain(id)
	switch v.Scope {
	default:
	case ratelimit.ScopeSubscription:
		m.alone[id] = later(m.alone[id], until)
	case ratelimit.ScopeDomain:
		m.closed[domain] = later(m.closed[domain], until)
	case ratelimit.ScopeModel:
		m.models[domain+"/"+h.model] = later(m.models[domain+"/"+h.model], until)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (m *machine) Done(t *rapid.T) {
	h := m.pick(t)
	h.lease.Done(usage.Tokens{Input: 5})
	m.out = slices.DeleteFunc(m.out, func(o *held) bool { return o == h })
}

func (m *machine) Pass(t *rapid.T) {
	pass(time.Duration(rapid.IntRange(1, 2000).Draw(t, "seconds")) * time.Second)
}

func (m *machine) pick(t *rapid.T) *held {
	if len(m.out) == 0 {
		t.Skip("nothing is lent")
	}
	return rapid.SampledFrom(m.out).Draw(t, "lease")
}

// Check holds after every step.
func (m *machine) Check(t *rapid.T) {
	inFlight := map[string]int{}
	placed := map[string]map[string]bool{}
	for _, h := range m.out {
		id := h.lease.Subscription().ID
		inFlight[id]++
		if h.lease.Source() != pool.SourceElsewhere && m.home[h.session] == id {
			if placed[id] == nil {
				placed[id] = map[string]bool{}
			}
			placed[id][h.session] = true
		}
	}
	for _, s := range m.pool.Status() {
		l := m.subs[s.ID].Limits
		if s.InFlight != inFlight[s.ID] || l.Concurrent > 0 && s.InFlight > l.Concurrent {
			t.Fatalf("%s: %d under way, %d are lent, the limit is %d", s.ID, s.InFlight, inFlight[s.ID], l.Concurrent)
		}
		if l.Sessions > 0 && (s.Sessions > l.Sessions || len(placed[s.ID]) > l.Sessions) {
			t.Fatalf("%s: %d places, %d sessions under way, the limit is %d", s.ID, s.Sessions, len(placed[s.ID]), l.Sessions)
		}
		if s.Health < 0 || s.Health > 100 {
			t.Fatalf("%s: health %d", s.ID, s.Health)
		}
	}
}

// finish ends everything: whatever has happened, each subscription serves again.
func (m *machine) finish() {
	for _, h := range m.out {
		h.lease.Done(usage.Tokens{})
	}
	pass(3 * time.Hour) // longer than any wait of a verdict here
	for id, s := range m.subs {
		// The first request may be a probe, for which the others wait.
		for _, model := range []string{"a1", "a2", "b", ""} {
			r := ask("finish-"+id, tried(without(m.subs, id)...))
			r.Model, r.Session = model, ""
			lease, err := m.pool.Acquire(context.Background(), r)
			if err != nil {
				if s.Models == nil || model == "" {
					m.t.Fatalf("%s does not serve %q any more: %v", id, model, err)
				}
				continue
			}
			lease.Verdict(ok)
			lease.Done(usage.Tokens{})
		}
	}
	for _, s := range m.pool.Status() {
		if s.State != pool.StateReady || s.InFlight != 0 || s.Sessions != 0 {
			m.t.Fatalf("after it all: %+v", s)
		}
	}
}

func without(subs map[string]pool.Subscription, id string) []string {
	var out []string
	for other := range subs {
		if other != id {
			out = append(out, other)
		}
	}
	return out
}

func TestPoolKeepsItsPromisesWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			m := newMachine(t)
			defer m.pool.Close()
			t.Repeat(map[string]func(*rapid.T){
				"acquire": m.Acquire, "acquire again": m.Acquire, "verdict": m.Verdict,
				"done": m.Done, "pass": m.Pass, "": m.Check,
			})
			m.finish()
		})
	})
}
