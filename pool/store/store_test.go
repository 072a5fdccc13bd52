package store_test

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type healthy struct{}

func (healthy) Healthy() bool { return true }

var ctx = context.Background()

// each runs the suite on a Store over both kinds of Redis.
func each(t *testing.T, suite func(t *testing.T, s *store.Store, client redis.UniversalClient)) {
	t.Helper()
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		suite(t, store.New(client, client, healthy{}, "authpool"), client)
	})
}

// timed is a Store on a Redis whose clock the test sets.
func timed(t *testing.T) (*store.Store, func(time.Duration)) {
	t.Helper()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), DisableIdentity: true})
	t.Cleanup(func() { _ = client.Close() })
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	server.SetTime(now)
	return store.New(client, client, healthy{}, "authpool"), func(d time.Duration) {
		now = now.Add(d)
		server.SetTime(now)
		server.FastForward(d)
	}
}

// first is for calls that a test expects to succeed.
func first[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestReserve(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		f := func(session string, want store.Place) store.Place {
			t.Helper()
			got, err := s.Reserve(ctx, "one", session, 2, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			free, score := got.Free, got.Score
			got.Free, got.Score = 0, 0
			if got != want {
				t.Errorf("Reserve(%s) = %+v, want %+v", session, got, want)
			}
			if want.Granted != (score > 0) || want.Granted == (free > 0) || free > time.Minute {
				t.Errorf("Reserve(%s): score %d, free in %v", session, score, free)
			}
			got.Score = score
			return got
		}
		a := f("a", store.Place{Granted: true, Created: true, Count: 1})
		again := f("a", store.Place{Granted: true, Count: 1}) // the reply was lost, and it is sent again
		if again.Score <= a.Score {
			t.Errorf("the score did not rise: %d, then %d", a.Score, again.Score)
		}
		b := f("b", store.Place{Granted: true, Created: true, Count: 2})
		f("c", store.Place{Count: 2})

		// Only who knows the place's present state gives it back.
		if err := s.Release(ctx, "one", "a", a.Score); err != nil {
			t.Fatal(err)
		}
		f("c", store.Place{Count: 2})
		for range 2 {
			if err := s.Release(ctx, "one", "b", b.Score); err != nil {
				t.Fatal(err)
			}
		}
		f("c", store.Place{Granted: true, Created: true, Count: 2})
		if counts := first(s.Counts(ctx, []string{"one", "none"})); counts[0] != 2 || counts[1] != 0 {
			t.Errorf("Counts = %v, want [2 0]", counts)
		}
		if place := first(s.Reserve(ctx, "two", "c", 0, time.Minute)); !place.Granted {
			t.Errorf("another subscription, without a limit: %+v", place)
		}
	})
}

func TestReservationEndsByItself(t *testing.T) {
	s, pass := timed(t)
	first(s.Reserve(ctx, "one", "orphan", 1, 10*time.Second))
	pass(9999 * time.Millisecond)
	if place := first(s.Reserve(ctx, "one", "next", 1, 10*time.Second)); place.Granted || place.Free != time.Millisecond {
		t.Errorf("before the end: %+v", place)
	}
	pass(time.Millisecond)
	if place := first(s.Reserve(ctx, "one", "next", 1, 10*time.Second)); !place.Granted {
		t.Errorf("after ten seconds: %+v", place)
	}
}

func TestExtend(t *testing.T) {
	s, pass := timed(t)
	a := first(s.Reserve(ctx, "one", "a", 2, 10*time.Second))
	first(s.Reserve(ctx, "one", "b", 2, 10*time.Second))
	pass(5 * time.Second)
	scores, count, err := s.Extend(ctx, "one", 2, []store.Hold{{Session: "a", For: time.Minute}, {Session: "stranger", For: time.Minute}})
	if err != nil || count != 2 || scores[0] <= a.Score || scores[1] != 0 {
		t.Fatalf("Extend = %v, %d, %v", scores, count, err)
	}
	// Never shortened.
	if shorter, _, err := s.Extend(ctx, "one", 2, []store.Hold{{Session: "a", For: time.Second}}); err != nil || shorter[0] <= scores[0] {
		t.Errorf("a shorter hold: %v, %v; want more than %d", shorter, err, scores[0])
	}
	pass(30 * time.Second) // b has ended
	scores, count, err = s.Extend(ctx, "one", 2, []store.Hold{{Session: "a", For: time.Minute}, {Session: "b", For: time.Minute}})
	if err != nil || count != 2 || scores[1] == 0 {
		t.Errorf("one that has ended, while there is room: %v, %d, %v", scores, count, err)
	}
	pass(2 * time.Minute)
	if counts := first(s.Counts(ctx, []string{"one"})); counts[0] != 0 {
		t.Errorf("%d places are left after all have ended", counts[0])
	}
}

func TestBind(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		f := func(expect, want, bound string) {
			t.Helper()
			got, err := s.Bind(ctx, "p/a/s", expect, want, "", time.Hour)
			if err != nil || got != bound {
				t.Errorf("Bind(%q → %q) = %q, %v; want %q", expect, want, got, err, bound)
			}
			if got := first(s.Lookup(ctx, "p/a/s")); got != bound {
				t.Errorf("Lookup = %q, want %q", got, bound)
			}
		}
		if got := first(s.Lookup(ctx, "p/a/s")); got != "" {
			t.Errorf("Lookup of an unknown session = %q", got)
		}
		f("", "one", "one")
		f("", "two", "one") // somebody was first
		f("", "one", "one") // sent again
		f("one", "two", "two")
		f("one", "two", "two")   // sent again
		f("one", "three", "two") // old news
	})
}

func TestBindingIsForgottenAfterTheAffinity(t *testing.T) {
	s, pass := timed(t)
	first(s.Bind(ctx, "p/a/s", "", "one", "", time.Hour))
	pass(59 * time.Minute)
	if got := first(s.Keep(ctx, []store.Binding{{Session: "p/a/s", Subscription: "one"}}, time.Hour)); got[0] != "one" {
		t.Errorf("Keep = %v", got)
	}
	pass(59 * time.Minute)
	if got := first(s.Lookup(ctx, "p/a/s")); got != "one" {
		t.Errorf("used within the affinity, but bound to %q", got)
	}
	pass(2 * time.Minute)
	if got := first(s.Lookup(ctx, "p/a/s")); got != "" {
		t.Errorf("beyond the affinity: %q", got)
	}
}

func TestKeepWritesWhatRedisHasNot(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		first(s.Bind(ctx, "p/a/known", "", "one", "", time.Hour))
		got := first(s.Keep(ctx, []store.Binding{
			{Session: "p/a/known", Subscription: "two"},
			{Session: "p/a/new", Subscription: "two", Parent: "known"},
		}, time.Hour))
		if got[0] != "one" || got[1] != "two" {
			t.Errorf("Keep = %v, want [one two]", got)
		}
		if parent := client.HGet(ctx, "authpool:session:{p/a/new}", "parent").Val(); parent != "known" {
			t.Errorf("parent = %q", parent)
		}
	})
}

func TestParallelBindsMakeOneBinding(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) {
		var mu sync.Mutex
		seen := map[string]bool{}
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				got := first(s.Bind(ctx, "p/a/s", "", fmt.Sprint("s", i), "", time.Hour))
				mu.Lock()
				defer mu.Unlock()
				seen[got] = true
			})
		}
		wg.Wait()
		if len(seen) != 1 {
			t.Errorf("bound to %v", seen)
		}
	})
}

// cooldownsOf are those in the states of the subscriptions.
func cooldownsOf(s *store.Store, subs ...string) (list []store.Cooldown, err error) {
	states, err := s.States(ctx, subs)
	for _, one := range states {
		list = append(list, one.Cooldowns...)
	}
	return list, err
}

func TestCool(t *testing.T) {
	s, pass := timed(t)
	cool := func(model string, wait time.Duration) {
		t.Helper()
		c := store.Cooldown{Subscription: "one", Closure: closureOf(model), State: "cooling", Reason: "window", Wait: wait}
		if err := s.Cool(ctx, []store.Cooldown{c}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(whole time.Duration, models map[string]time.Duration) {
		t.Helper()
		list, err := cooldownsOf(s, "none", "one")
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]time.Duration{}
		for _, c := range list {
			if c.Subscription != "one" || c.Closure == store.ClosesDomain && (c.State != "cooling" || c.Reason != "window") {
				t.Errorf("%+v", c)
			}
			got[c.Closure.Model()] = c.Wait
		}
		want := maps.Clone(models)
		if want == nil {
			want = map[string]time.Duration{}
		}
		if whole > 0 {
			want[""] = whole
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("cooldowns %v, want %v", got, want)
		}
	}
	check(0, nil)
	cool("", time.Minute)
	cool("m", 2*time.Minute)
	cool("a:b", time.Hour) // a model's name may hold a colon
	check(time.Minute, map[string]time.Duration{"m": 2 * time.Minute, "a:b": time.Hour})
	cool("", time.Second) // ends before the known one
	cool("m", 3*time.Minute)
	check(time.Minute, map[string]time.Duration{"m": 3 * time.Minute, "a:b": time.Hour})
	pass(90 * time.Second)
	check(0, map[string]time.Duration{"m": 90 * time.Second, "a:b": time.Hour - 90*time.Second})
	cool("m", time.Second)
	check(0, map[string]time.Duration{"m": 90 * time.Second, "a:b": time.Hour - 90*time.Second})
	pass(time.Hour)
	check(0, nil)
}

func TestCoolTakesOutWhatHasEnded(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		key := "authpool:{one}:state"
		client.HSet(ctx, key, "state", "disabled", "reason", "credit", "cooldown_until", 1000, "cooldown:old", 1000)
		if err := s.Cool(ctx, []store.Cooldown{{Subscription: "one", Closure: store.ModelClosure("new"), Wait: time.Minute}}); err != nil {
			t.Fatal(err)
		}
		got := client.HGetAll(ctx, key).Val()
		if len(got) != 1 || got["cooldown:new"] == "" {
			t.Errorf("the state is %v, want the new cooldown alone", got)
		}
		if ttl := client.PTTL(ctx, key).Val(); ttl <= 0 || ttl > time.Minute {
			t.Errorf("the key expires in %v, want with the last cooldown", ttl)
		}
	})
}

func TestWatch(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		// A cluster's nodes may still tell one another what other tests published.
		s := store.New(client, client, healthy{}, "watched")
		watching, stop := context.WithCancel(ctx)
		events := make(chan store.Event, 16)
		var wg sync.WaitGroup
		wg.Go(func() { s.Watch(watching, func(e store.Event) { events <- e }) })
		defer wg.Wait()
		defer stop()
		want := func(e store.Event) {
			t.Helper()
			select {
			case got := <-events:
				if got != e {
					t.Errorf("event %+v, want %+v", got, e)
				}
			case <-time.After(time.Minute):
				t.Fatalf("no event, want %+v", e)
			}
		}
		want(store.Event{}) // the connection is new
		cool := store.Cooldown{Subscription: "one", Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: time.Minute}
		if err := s.Cool(ctx, []store.Cooldown{cool}); err != nil {
			t.Fatal(err)
		}
		want(store.Event{State: "one"})
		cool.Wait = time.Second // changes nothing, and nobody is told
		if err := s.Cool(ctx, []store.Cooldown{cool}); err != nil {
			t.Fatal(err)
		}
		first(s.Bind(ctx, "p/a/s", "", "one", "", time.Hour)) // the first binding is no move
		first(s.Bind(ctx, "p/a/s", "one", "two", "", time.Hour))
		want(store.Event{Session: "p/a/s", Subscription: "two"})
	})
}

// TestLongCooldownsMustSurvive: what is found out again within a minute costs no
// disk, anything longer does.
func TestLongCooldownsMustSurvive(t *testing.T) {
	each(t, func(t *testing.T, _ *store.Store, client redis.UniversalClient) {
		closed := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
		if err := closed.Close(); err != nil {
			t.Fatal(err)
		}
		cooldown := func(wait time.Duration) []store.Cooldown {
			return []store.Cooldown{{Subscription: "one", Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: wait}}
		}
		s := store.New(client, closed, healthy{}, "authpool")
		if err := s.Cool(ctx, cooldown(time.Minute)); err != nil {
			t.Errorf("a minute: %v", err)
		}
		if err := s.Cool(ctx, cooldown(time.Minute+time.Second)); err == nil {
			t.Error("a longer one did not go by the durable client")
		}
		s = store.New(closed, client, healthy{}, "authpool")
		if err := s.Cool(ctx, cooldown(time.Hour)); err != nil {
			t.Errorf("an hour: %v", err)
		}
	})
}

func TestWatchComesBackAfterARestart(t *testing.T) {
	server := redistest.NewServer(t)
	s := store.New(server.Client(), server.Client(), healthy{}, "authpool")
	watching, stop := context.WithCancel(ctx)
	var fresh atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		s.Watch(watching, func(e store.Event) {
			if e == (store.Event{}) {
				fresh.Add(1)
			}
		})
	})
	defer wg.Wait()
	defer stop()
	eventually(t, func() bool { return fresh.Load() == 1 })
	server.Stop()
	server.Start()
	eventually(t, func() bool { return fresh.Load() >= 2 })
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(15 * time.Second)
	defer end.Stop()
	for !f() {
		select {
		case <-end.C:
			t.Fatal("it did not happen in time")
		case <-tick.C:
		}
	}
}

// Whatever the processes ask for, and whoever dies: what is granted never
// exceeds the limit, nobody starts more than is granted, and nobody who asks on
// goes without for ever.
func TestSharesNeverExceedTheLimit(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, pass := timed(t)
		limit := rapid.IntRange(1, 20).Draw(rt, "limit")
		type process struct {
			granted, target, busy int
			left                  time.Duration // of the lease
		}
		all := make([]process, rapid.IntRange(1, 4).Draw(rt, "processes"))
		ask := func(i, want int) {
			p := &all[i]
			got := first(s.Shares(ctx, fmt.Sprint("p", i), []store.ShareRequest{{Subscription: "one", Limit: limit, InFlight: p.busy, Want: want}}))[0]
			p.granted, p.target, p.left = got.Granted, got.Target, store.ShareLease
			if got.Target > got.Granted {
				rt.Fatalf("target %d is above granted %d", got.Target, got.Granted)
			}
		}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			i := rapid.IntRange(0, len(all)-1).Draw(rt, "process")
			p := &all[i]
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0:
				ask(i, rapid.IntRange(0, 30).Draw(rt, "want"))
			case 1:
				if p.left > 0 && p.busy < p.target {
					p.busy++
				}
			case 2:
				p.busy = max(0, p.busy-1)
			case 3:
				*p = process{} // dies; its requests die with it
			case 4:
				d := time.Duration(rapid.IntRange(1, 4000).Draw(rt, "ms")) * time.Millisecond
				for i := range all {
					if all[i].busy > 0 && all[i].left < 5*time.Second {
						ask(i, all[i].busy) // the living renew in time
					}
				}
				pass(d)
				for i := range all {
					all[i].left -= d
				}
			}
			granted, busy := 0, 0
			for _, p := range all {
				if p.left > 0 {
					granted += p.granted
				}
				busy += p.busy
			}
			if granted > limit || busy > limit {
				rt.Fatalf("limit %d: %d granted, %d busy: %+v", limit, granted, busy, all)
			}
		}
		// All are busy without end, and everybody wants all of it: within a few
		// rounds everybody has a part.
		for range 6 {
			for i := range all {
				all[i].busy = min(all[i].busy, all[i].target)
				ask(i, 2*limit)
			}
		}
		with := 0
		for _, p := range all {
			if p.target > 0 {
				with++
			}
		}
		if with < min(limit, len(all)) {
			rt.Fatalf("limit %d: only %d of %d have a part: %+v", limit, with, len(all), all)
		}
	})
}

func TestScriptsAreLoadedAgainAfterAFlush(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		for range 2 {
			if _, err := s.States(ctx, []string{"one"}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Reserve(ctx, "one", "s", 1, time.Second); err != nil {
				t.Fatal(err)
			}
			client.ScriptFlush(ctx)
		}
	})
}
