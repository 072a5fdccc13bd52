package pool_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

// named is the key of agent a's session at anthropic.
func named(session string) pool.SessionKey {
	return pool.SessionKey{Provider: "anthropic", Agent: "a", Session: session}
}

func off(why string) func(*pool.Subscription) {
	return func(s *pool.Subscription) { s.Disabled, s.Reason = true, why }
}

// move moves agent a's session, and fails the test when that is refused.
func move(t *testing.T, p *pool.Pool, session, to string) (from string) {
	t.Helper()
	from, err := p.Move(context.Background(), pool.Move{Session: named(session), To: to})
	if err != nil {
		t.Fatalf("cannot move %s to %s: %v", session, to, err)
	}
	return from
}

// servedBy says where the session's next request goes.
func servedBy(t *testing.T, p *pool.Pool, session string) string {
	t.Helper()
	id, _ := serve(t, p, ask(session), ok)
	return id
}

// refusedMove wants a MoveError with the reason and the words.
func refusedMove(t *testing.T, p *pool.Pool, m pool.Move, reason, words string) {
	t.Helper()
	_, err := p.Move(context.Background(), m)
	var refused *pool.MoveError
	if !errors.As(err, &refused) || refused.Reason != reason || !strings.Contains(err.Error(), words) {
		t.Errorf("move to %s: %v; want the reason %s and %q", m.To, err, reason, words)
	}
}

// A place that a move gives back is for who waits for it, at once.
func TestMoveLetsWaitersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: 2 * time.Minute, IdleTimeout: time.Minute}, sub("one", limits(pool.Limits{Sessions: 1})), sub("two", priority(1)))
		defer p.Close()
		if id := servedBy(t, p, "s1"); id != "one" {
			t.Fatalf("s1 is on %s", id)
		}
		for _, one := range []struct {
			waits string
			free  func()
		}{
			{"s2", func() { move(t, p, "s1", "two") }},
			{"s3", func() { _, _ = p.ReleaseSession(context.Background(), named("s2")) }},
		} {
			req := ask(one.waits)
			req.Allowed = []string{"one"}
			served, wait := queued(context.Background(), p, req)
			if got := served(); len(got) > 0 {
				t.Fatalf("%q did not wait", got)
			}
			one.free()
			if got := served(); len(got) != 1 || got[0] != one.waits {
				t.Errorf("%s, after the place was free: %q", one.waits, got)
			}
			wait()
		}
	})
}

func TestMoveWithoutAFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bus event.Bus
		events, stop := bus.Subscribe("test", 100)
		p := start(pool.Options{Events: &bus},
			sub("one"), sub("two", priority(1)), sub("small", priority(2), limits(pool.Limits{Sessions: 1})),
			sub("off", off("no scheme")), sub("leaves", draining),
			sub("other", func(s *pool.Subscription) { s.Provider = "openai" }))
		defer p.Close()
		ctx := context.Background()
		for _, key := range []pool.SessionKey{named("s"), {}, {Provider: "anthropic", Agent: "a", Session: "a}b/../" + strings.Repeat("x", 1<<20)}} {
			if _, err := p.Move(ctx, pool.Move{Session: key, To: "two"}); !errors.Is(err, pool.ErrNoSession) {
				t.Errorf("an unknown session: %v", err)
			}
			if _, err := p.ReleaseSession(ctx, key); !errors.Is(err, pool.ErrNoSession) {
				t.Errorf("an unknown session: %v", err)
			}
		}
		if got := servedBy(t, p, "s"); got != "one" {
			t.Fatalf("served by %s", got)
		}
		if _, err := p.Move(ctx, pool.Move{Session: named("s"), To: "none"}); !errors.Is(err, pool.ErrNoSuchSubscription) {
			t.Errorf("an unknown subscription: %v", err)
		}
		refusedMove(t, p, pool.Move{Session: named("s"), To: "other"}, pool.ReasonProvider, `it is one of provider "openai"`)
		refusedMove(t, p, pool.Move{Session: named("s"), To: "off"}, "no scheme", "cannot serve (no scheme)")
		refusedMove(t, p, pool.Move{Session: named("s"), To: "leaves"}, pool.ReasonDraining, "cannot serve (draining)")
		refusedMove(t, p, pool.Move{Session: named("s"), To: "two", Allowed: []string{"one"}}, "agent", `agent "a" may not use it`)
		refusedMove(t, p, pool.Move{Session: named("s"), From: "two", To: "small"}, pool.ReasonMoved, `it is on "one" by now`)

		// A request under way ends where it is.
		l, err := p.Acquire(ctx, ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		if from := move(t, p, "s", "small"); from != "one" {
			t.Errorf("it was on %s", from)
		}
		if from := move(t, p, "s", "small"); from != "small" {
			t.Errorf("again: it was on %s", from)
		}
		l.Verdict(ok)
		l.Done(usage.Tokens{Input: 1})
		if got := servedBy(t, p, "s"); l.Subscription().ID != "one" || got != "small" {
			t.Errorf("the request under way was %s's, the next one %s's", l.Subscription().ID, got)
		}

		serve(t, p, ask("t"), ok)
		refusedMove(t, p, pool.Move{Session: named("t"), To: "small"}, pool.ReasonSessions, "all of its 1 places are taken; the first may be free in 30m")
		if from, err := p.ReleaseSession(ctx, named("s")); from != "small" || err != nil {
			t.Errorf("released from %q: %v", from, err)
		}
		move(t, p, "t", "small")
		if got := servedBy(t, p, "s"); got != "one" {
			t.Errorf("what was released went to %s, want the best", got)
		}
		serve(t, p, ask("u", tried("one")), limited(time.Hour))
		refusedMove(t, p, pool.Move{Session: named("s"), To: "two"}, "throttled", "cannot serve (throttled) for 60m")

		stop()
		var told []string
		for e := range events {
			if strings.HasPrefix(string(e.Kind), "session.") {
				told = append(told, fmt.Sprint(e.Kind, " ", e.Session, " ", e.Subscription))
			}
		}
		want := []string{"session.moved s small", "session.released s small", "session.moved t small"}
		if !slices.Equal(told[:min(len(told), 3)], want) {
			t.Errorf("told was %q, want %q first", told, want)
		}
	})
}

// The same in a fleet: moved is by a process that has never seen the session.
func TestFleetMoves(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		ctx := context.Background()
		pools, _ := fleet(t, client, 2, pool.Options{},
			sub("one"), sub("two", priority(1), limits(pool.Limits{Sessions: 1})), sub("off", off("by hand")))
		places := func(sub string) []string {
			return client.ZRange(ctx, "authpool:{"+sub+"}:sessions", 0, -1).Val()
		}
		if got := servedBy(t, pools[0], "s"); got != "one" {
			t.Fatalf("served by %s", got)
		}
		eventually(t, inTime, "the place is more than a reservation", func() bool {
			return client.PTTL(ctx, "authpool:{one}:sessions").Val() > time.Minute
		})
		refusedMove(t, pools[1], pool.Move{Session: named("s"), To: "off"}, "by hand", "cannot serve")
		if _, err := pools[1].Move(ctx, pool.Move{Session: named("nobody"), To: "two"}); !errors.Is(err, pool.ErrNoSession) {
			t.Errorf("an unknown session: %v", err)
		}
		if from := move(t, pools[1], "s", "two"); from != "one" {
			t.Errorf("it was on %s", from)
		}
		if got := places("two"); !slices.Equal(got, []string{"anthropic/a/s"}) {
			t.Errorf("places: %q", got)
		}
		// If its own process has just extended the former one, that gives it back.
		eventually(t, inTime, "the former place is free", func() bool { return len(places("one")) == 0 })
		if left := client.PTTL(ctx, "authpool:{two}:sessions").Val(); left < time.Minute {
			t.Errorf("the place at its new subscription ends in %v: it was the session's for longer", left)
		}
		eventually(t, inTime, "its own process follows", func() bool { return servedBy(t, pools[0], "s") == "two" })

		serve(t, pools[0], ask("t"), ok)
		refusedMove(t, pools[1], pool.Move{Session: named("t"), To: "two"}, pool.ReasonSessions, "all of its 1 places are taken")
		if got := places("two"); !slices.Equal(got, []string{"anthropic/a/s"}) {
			t.Errorf("a refused move has left %q", got)
		}

		// One who has lost the lease that it moves by.
		if err := pools[1].Fence(ctx, 2); err != nil {
			t.Fatal(err)
		}
		for _, fence := range []int64{1, 2} {
			_, err := pools[0].Move(ctx, pool.Move{Session: named("s"), To: "one", Fence: fence})
			if errors.Is(err, pool.ErrFenced) != (fence == 1) {
				t.Errorf("fence %d: %v", fence, err)
			}
		}
		if got := client.HGet(ctx, "authpool:session:{anthropic/a/s}", "subscription").Val(); got != "one" {
			t.Errorf("it is on %q", got)
		}

		if from, err := pools[1].ReleaseSession(ctx, named("s")); from != "one" || err != nil {
			t.Errorf("released from %q: %v", from, err)
		}
		eventually(t, inTime, "its own process has let go of it", func() bool {
			list, _, err := pools[0].Sessions(ctx, pool.SessionFilter{Agent: "a", Session: "s"})
			return err == nil && len(list) == 0
		})

		// The process that served it is gone: who moves it gives its place back.
		pools[0].Close()
		eventually(t, inTime, "it has left", func() bool { return len(places("two")) == 0 })
		move(t, pools[1], "t", "two")
		if got := places("one"); slices.Contains(got, "anthropic/a/t") {
			t.Errorf("the place of t is still on one: %q", got)
		}
	})
}

// unanswered is a Redis that does not answer the first attempts to give a place back.
type unanswered struct {
	pool.Bindings
	left    atomic.Int32
	hang    bool // until nobody wants to know any more
	attempt func()
	kept    func() // the process has just learnt where its sessions are
}

func (u *unanswered) Release(ctx context.Context, sub, session string, score int64) error {
	if u.left.Add(-1) < 0 {
		return u.Bindings.Release(ctx, sub, session, score)
	}
	u.attempt()
	if u.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return errCut
}

func (u *unanswered) Keep(ctx context.Context, list []store.Binding, affinity time.Duration) ([]string, error) {
	bound, err := u.Bindings.Keep(ctx, list, affinity)
	u.kept()
	return bound, err
}

// A place that a session leaves is given back however often that takes, and whatever
// a process is doing when it is told to end: else it is taken from the cap of its
// subscription until the session would have been idle for too long.
func TestLeftPlaceIsGivenBack(t *testing.T) {
	subs := []pool.Subscription{sub("one", limits(pool.Limits{Sessions: 1})), sub("two", priority(1))}
	for name, c := range map[string]struct {
		fails            int32
		hang, at, learnt bool // it ends at the first attempt; or as soon as it knows
	}{
		"attempts fail":            {fails: 3},
		"an attempt hangs":         {fails: 1, hang: true},
		"it ends in the attempt":   {fails: 1, hang: true, at: true},
		"it ends as it has learnt": {learnt: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
				s := newSidecar(mini, pool.Options{}, subs...)
				defer s.close()
				bindings := store.New(s.client, s.client, &s.health, "authpool")
				attempt, learnt := make(chan struct{}, 10), make(chan struct{}, 10)
				u := &unanswered{Bindings: bindings, hang: c.hang}
				u.attempt = func() { attempt <- struct{}{} }
				u.kept = func() { learnt <- struct{}{} }
				owner := startWith(pool.Options{}, u, subs...)
				defer owner.Close()
				if got := servedBy(t, owner, "s"); got != "one" {
					t.Fatalf("begins on %s", got)
				}
				pass(time.Second)
				// Who moves it dies before it gives the place back: that is the owner's to do.
				u.left.Store(c.fails)
				for len(learnt) > 0 {
					<-learnt
				}
				move(t, pool.New(pool.Options{}, subs, &dying{Bindings: bindings, talks: 5}), "s", "two")
				switch {
				case c.at:
					<-attempt
					owner.Close()
				case c.learnt:
					<-learnt
					owner.Close()
				default:
					pass(5 * time.Second)
				}
				if left, _ := mini.ZMembers("authpool:{one}:sessions"); len(left) > 0 {
					t.Errorf("one still has %q", left)
				}
			})
		})
	}
}

// All processes follow within a second, who was cut off too as soon as it is back,
// and nobody brings back what was released.
func TestFleetFollowsWithinASecond(t *testing.T) {
	inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
		ctx := context.Background()
		var sidecars []*sidecar
		for range 3 {
			sidecars = append(sidecars, newSidecar(mini, pool.Options{}, sub("one"), sub("two", priority(1))))
		}
		defer func() {
			for _, s := range sidecars {
				s.close()
			}
		}()
		where := func(want ...string) {
			t.Helper()
			for i, s := range sidecars {
				if got := servedBy(t, s.pool, "s"); got != want[i] {
					t.Errorf("process %d: served by %s, want %s", i, got, want[i])
				}
			}
		}
		where("one", "one", "one")
		pass(time.Second)
		move(t, sidecars[0].pool, "s", "two")
		pass(time.Second)
		where("two", "two", "two")

		sidecars[2].partition(true)
		pass(time.Second)
		move(t, sidecars[0].pool, "s", "one")
		pass(time.Second)
		where("one", "one", "two") // it cannot know
		if _, err := sidecars[2].pool.Move(ctx, pool.Move{Session: named("s"), To: "one"}); !errors.Is(err, store.ErrAway) {
			t.Errorf("without Redis: %v", err)
		}
		sidecars[2].partition(false)
		pass(2 * time.Second)
		where("one", "one", "one")

		// Released while one is cut off that goes on using it.
		sidecars[2].partition(true)
		pass(time.Second)
		if from, err := sidecars[0].pool.ReleaseSession(ctx, named("s")); from != "one" || err != nil {
			t.Fatalf("released from %q: %v", from, err)
		}
		sidecars[2].partition(false)
		pass(2 * time.Second)
		for i, s := range sidecars {
			list, whole, err := s.pool.Sessions(ctx, pool.SessionFilter{Agent: "a", Session: "s"})
			if len(list) > 0 || !whole || err != nil {
				t.Errorf("process %d: %+v, %v: want it forgotten", i, list, err)
			}
		}
		if got := mini.HGet("authpool:session:{anthropic/a/s}", "subscription"); got != "" {
			t.Errorf("Redis binds it to %q", got)
		}
		where("one", "one", "one")
	})
}

// dying is a process that dies at its nth talk with Redis about a move: it neither
// sends that nor anything behind it. Or the talk takes place, and its answer is lost.
type dying struct {
	pool.Bindings
	talks   int // left
	answers bool
}

var errDead = errors.New("the process has died")

func (d *dying) talk(do func() error) error {
	d.talks--
	switch {
	case d.talks > 0:
		return do()
	case d.talks == 0 && d.answers:
		_ = do()
	}
	return errDead
}

func (d *dying) Stays(ctx context.Context, names []string) (list []store.Stay, err error) {
	return list, errors.Join(d.talk(func() (err error) { list, err = d.Bindings.Stays(ctx, names); return err }))
}

func (d *dying) Place(ctx context.Context, sub, session string) (o store.Occupant, err error) {
	return o, errors.Join(d.talk(func() (err error) { o, err = d.Bindings.Place(ctx, sub, session); return err }))
}

func (d *dying) ReserveMoved(ctx context.Context, sub, session string, most int, hold time.Duration, fence int64) (p store.Place, err error) {
	return p, errors.Join(d.talk(func() (err error) {
		p, err = d.Bindings.ReserveMoved(ctx, sub, session, most, hold, fence)
		return err
	}))
}

func (d *dying) Bind(ctx context.Context, session, expect, sub, parent string, affinity time.Duration) (bound string, err error) {
	return bound, errors.Join(d.talk(func() (err error) {
		bound, err = d.Bindings.Bind(ctx, session, expect, sub, parent, affinity)
		return err
	}))
}

func (d *dying) Extend(ctx context.Context, sub string, most int, holds []store.Hold) (scores []int64, count int64, err error) {
	return scores, count, errors.Join(d.talk(func() (err error) {
		scores, count, err = d.Bindings.Extend(ctx, sub, most, holds)
		return err
	}))
}

func (d *dying) Release(ctx context.Context, sub, session string, score int64) error {
	return d.talk(func() error { return d.Bindings.Release(ctx, sub, session, score) })
}

func (d *dying) Unbind(ctx context.Context, session string) (former string, err error) {
	return former, errors.Join(d.talk(func() (err error) { former, err = d.Bindings.Unbind(ctx, session); return err }))
}

// Wherever in a move or a release a process dies, the session has one subscription or
// none, no cap is exceeded, the session goes on, and no place outlives it.
func TestMoveCutAnywhere(t *testing.T) {
	inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
		const idle = time.Minute
		ctx := context.Background()
		subs := []pool.Subscription{sub("one"), sub("two", priority(1), limits(pool.Limits{Sessions: 1}))}
		s := newSidecar(mini, pool.Options{IdleTimeout: idle}, subs...)
		defer s.close()
		places := func(id string) []string {
			list, _ := mini.ZMembers("authpool:{" + id + "}:sessions") // an error: there is none
			return list
		}
		for talks := 1; talks <= 7; talks++ {
			for _, answers := range []bool{false, true} {
				for _, release := range []bool{false, true} {
					at := fmt.Sprintf("died at talk %d, which took place: %v; a release: %v", talks, answers, release)
					name := fmt.Sprintf("s-%d-%v-%v", talks, answers, release)
					if got := servedBy(t, s.pool, name); got != "one" {
						t.Fatalf("%s: begins on %s", at, got)
					}
					pass(time.Second)
					d := &dying{Bindings: store.New(s.client, s.client, &s.health, "authpool"), talks: talks, answers: answers}
					mover := pool.New(pool.Options{IdleTimeout: idle}, subs, d) // without the goroutines that would clean up
					if release {
						_, _ = mover.ReleaseSession(ctx, named(name))
					} else {
						_, _ = mover.Move(ctx, pool.Move{Session: named(name), To: "two"})
					}
					if n := len(places("two")); n > 1 {
						t.Errorf("%s: %d places on two, which has one", at, n)
					}
					pass(time.Second)
					bound := mini.HGet("authpool:session:{anthropic/a/"+name+"}", "subscription")
					got := servedBy(t, s.pool, name)
					if bound != "" && got != bound {
						t.Errorf("%s: bound to %s, served by %s", at, bound, got)
					}
					// What was left of the move ends by itself.
					pass(10 * time.Second)
					if now := mini.HGet("authpool:session:{anthropic/a/"+name+"}", "subscription"); now != got {
						t.Errorf("%s: served by %s, bound to %s", at, got, now)
					}
					for _, other := range []string{"one", "two"} {
						if held := slices.Contains(places(other), "anthropic/a/"+name); other == got && !held {
							t.Errorf("%s: no place on %s, where it is", at, other)
						}
					}
					// And nothing outlives the session.
					pass(idle + time.Second)
					list, _, err := s.pool.Sessions(ctx, pool.SessionFilter{})
					if len(list) > 0 || err != nil {
						t.Errorf("%s: after all that: %+v, %v", at, list, err)
					}
					for _, id := range []string{"one", "two"} {
						if left := places(id); len(left) > 0 {
							t.Errorf("%s: on %s is left %q", at, id, left)
						}
					}
				}
			}
		}
	})
}

// A subscription whose limits change keeps its places, also those of answers that
// take longer than the idle time-out.
func TestPlacesFollowChangedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{IdleTimeout: 12 * time.Second}, sub("one", limits(pool.Limits{Sessions: 2})))
		defer p.Close()
		first, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		first.Verdict(ok)
		p.Apply([]pool.Subscription{sub("one", limits(pool.Limits{Sessions: 1}))})
		pass(20 * time.Second)
		if l, err := p.Acquire(context.Background(), ask("other")); err == nil {
			l.Done(usage.Tokens{})
			t.Error("a second session has the only place, while the answer of the first still comes")
		}
		first.Done(usage.Tokens{})
	})
}
