package store_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/store"
)

// closureOf is that of a model, or without one the whole domain's.
func closureOf(model string) store.Closure {
	if model == "" {
		return store.ClosesDomain
	}
	return store.ModelClosure(model)
}

func probeOf(sub, process string, models ...string) store.Probe {
	var closures []store.Closure
	for _, model := range models {
		closures = append(closures, closureOf(model))
	}
	return store.Probe{
		Subscription: sub, Process: process, Closures: closures,
		Hold: 10 * time.Second, Pace: 250 * time.Millisecond, Ramp: 5 * time.Second,
	}
}

func proved(t *testing.T, s *store.Store, p store.Probed) {
	t.Helper()
	if err := s.Proved(ctx, []store.Probed{p}); err != nil {
		t.Fatal(err)
	}
}

// Of all processes that ask at once, one probes.
func TestOneProcessProbes(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		var granted, taken atomic.Int32
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				switch got := first(s.Probe(ctx, probeOf("one", fmt.Sprint("p", i), "", "m"))); {
				case got.Word == store.ProbeGranted:
					granted.Add(1)
				case got.Word == store.ProbeTaken && got.Wait > 0 && got.Wait <= 10*time.Second:
					taken.Add(1)
				default:
					t.Errorf("%+v", got)
				}
			})
		}
		wg.Wait()
		if granted.Load() != 1 || taken.Load() != 29 {
			t.Errorf("%d are granted, %d refused", granted.Load(), taken.Load())
		}
		if ttl := client.PTTL(ctx, "authpool:{one}:state").Val(); ttl <= 0 || ttl > 10*time.Second {
			t.Errorf("the key expires in %v", ttl)
		}
	})
}

func TestProbe(t *testing.T) {
	s, pass := timed(t)
	ask := func(process string, want store.Proof, models ...string) {
		t.Helper()
		if got := first(s.Probe(ctx, probeOf("one", process, models...))); got != want {
			t.Errorf("%s asks for %q: %+v, want %+v", process, models, got, want)
		}
	}
	cool := func(model string, wait time.Duration) {
		t.Helper()
		if err := s.Cool(ctx, []store.Cooldown{{Subscription: "one", Closure: closureOf(model), State: "cooling", Reason: "window", Wait: wait}}); err != nil {
			t.Fatal(err)
		}
	}
	granted := store.Proof{Word: store.ProbeGranted, Wait: 10 * time.Second}
	cool("", time.Minute)
	cool("m", 2*time.Minute)
	ask("a", store.Proof{Word: store.ProbeClosed, Wait: time.Minute}, "")
	ask("a", store.Proof{Word: store.ProbeClosed, Wait: 2 * time.Minute}, "", "m")
	pass(time.Minute)
	ask("a", granted, "")
	ask("a", granted, "") // the answer was lost
	pass(time.Second)
	ask("b", store.Proof{Word: store.ProbeTaken, Wait: 9 * time.Second}, "")

	// One without a result, or whose process has died, makes room.
	proved(t, s, store.Probed{Subscription: "one", Process: "b", Closures: []store.Closure{store.ClosesDomain}}) // not b's
	ask("b", store.Proof{Word: store.ProbeTaken, Wait: 9 * time.Second}, "")
	proved(t, s, store.Probed{Subscription: "one", Process: "a", Closures: []store.Closure{store.ClosesDomain}})
	ask("b", granted, "")
	pass(10 * time.Second)
	ask("c", granted, "")

	// One that was refused closes anew, and holds nobody up after that.
	cool("", 20*time.Second)
	proved(t, s, store.Probed{Subscription: "one", Process: "c", Closures: []store.Closure{store.ClosesDomain}, Succeeded: true}) // old news
	ask("c", store.Proof{Word: store.ProbeClosed, Wait: 20 * time.Second}, "")
	pass(20 * time.Second)
	ask("d", granted, "")
	proved(t, s, store.Probed{Subscription: "one", Process: "d", Closures: []store.Closure{store.ClosesDomain}, Succeeded: true})

	// After a success the others come one after the other, and once each.
	open := func(since, wait time.Duration, seat int) store.Proof {
		return store.Proof{Word: store.ProbeOpen, Since: since, Wait: wait, Seat: seat}
	}
	const pace = 250 * time.Millisecond
	ask("e", open(0, pace, 2), "")
	ask("e", open(0, pace, 2), "")
	ask("f", open(0, 2*pace, 3), "")
	pass(time.Second)
	ask("g", open(time.Second, 0, 4), "")
	for i := range 100 {
		_ = first(s.Probe(ctx, probeOf("one", fmt.Sprint("more-", i), "")))
	}
	ask("last", open(time.Second, 4*time.Second, 105), "") // nobody waits for longer than the ramp
	pass(5 * time.Second)
	ask("h", open(6*time.Second, 0, 105), "")
	// The model closed for itself, and is open for nobody yet.
	ask("h", store.Proof{Word: store.ProbeClosed, Wait: 23 * time.Second}, "", "m")
	pass(10 * time.Minute)
	ask("h", granted, "", "m")
}

// How a probe went is told when another process was refused for it, and to nobody else:
// each of a large fleet would read the state for it.
func TestProofIsToldToWhoAsked(t *testing.T) {
	s, _ := timed(t) // of one server: what is published on different nodes comes in any order
	watching, stop := context.WithCancel(ctx)
	events := make(chan store.Event, 16)
	var wg sync.WaitGroup
	wg.Go(func() { s.Watch(watching, func(e store.Event) { events <- e }) })
	defer wg.Wait()
	defer stop()
	next := func() store.Event {
		t.Helper()
		select {
		case e := <-events:
			return e
		case <-time.After(time.Minute):
			t.Fatal("no event")
			return store.Event{}
		}
	}
	next() // the connection is new
	told := func(want bool, how string) {
		t.Helper()
		// Behind it, on the same channel, comes the news of another.
		if err := s.Enable(ctx, "other"); err != nil {
			t.Fatal(err)
		}
		got := next()
		if told := got.State == "one"; told != want {
			t.Errorf("%s: the fleet is told: %v, want %v", how, told, want)
		}
		if got.State == "one" {
			next()
		}
	}
	ask := func(process string, want store.ProbeWord, models ...string) {
		t.Helper()
		if got := first(s.Probe(ctx, probeOf("one", process, models...))); got.Word != want {
			t.Fatalf("%s asks: %+v, want %s", process, got, want)
		}
	}
	tell := func(process string, succeeded bool, models ...string) {
		t.Helper()
		p := probeOf("one", process, models...)
		proved(t, s, store.Probed{Subscription: "one", Process: process, Closures: p.Closures, Succeeded: succeeded})
	}
	ask("a", store.ProbeGranted, "", "m")
	ask("a", store.ProbeGranted, "", "m") // the answer was lost: it is itself
	tell("a", false, "", "m")
	told(false, "nobody has asked")
	ask("a", store.ProbeGranted, "", "m")
	ask("b", store.ProbeTaken, "m")
	tell("b", false, "", "m") // not b's to tell
	told(false, "by another one")
	tell("a", false, "", "m")
	told(true, "b has asked")
	ask("b", store.ProbeGranted, "", "m")
	ask("a", store.ProbeTaken, "")
	ask("c", store.ProbeTaken, "", "m")
	tell("b", true, "", "m")
	told(true, "two have asked")
	tell("c", true, "", "m") // of a probe that it had begun by itself
	told(false, "what is known")
}

// The probe of a subscription's own cooldown is apart from its domain's, and what
// people see stays while one of them goes on.
func TestProbeOfOwnCooldown(t *testing.T) {
	s, pass := timed(t)
	ask := func(process string, c store.Closure, want store.ProbeWord) {
		t.Helper()
		p := probeOf("one", process)
		p.Closures = []store.Closure{c}
		if got := first(s.Probe(ctx, p)); got.Word != want {
			t.Errorf("%s asks for %q: %+v, want %s", process, c, got, want)
		}
	}
	err := s.Cool(ctx, []store.Cooldown{
		{Subscription: "one", Closure: store.ClosesSubscription, State: "disabled", Reason: "spend_limit", Wait: time.Hour},
		{Subscription: "one", Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: time.Minute},
	})
	if err != nil {
		t.Fatal(err)
	}
	pass(time.Minute)
	ask("a", store.ClosesDomain, store.ProbeGranted)
	ask("a", store.ClosesSubscription, store.ProbeClosed)
	proved(t, s, store.Probed{Subscription: "one", Process: "a", Closures: []store.Closure{store.ClosesDomain}, Succeeded: true})
	ask("b", store.ClosesDomain, store.ProbeOpen)
	ask("b", store.ClosesSubscription, store.ProbeClosed)
	pass(time.Hour)
	ask("b", store.ClosesSubscription, store.ProbeGranted)
	ask("c", store.ClosesSubscription, store.ProbeTaken)
}

// A new cooldown ends what was known of an old one's probes.
func TestCooldownForgetsProbes(t *testing.T) {
	s, pass := timed(t)
	proved(t, s, store.Probed{Subscription: "one", Process: "a", Closures: []store.Closure{store.ModelClosure("m")}, Succeeded: true})
	if err := s.Cool(ctx, []store.Cooldown{{Subscription: "one", Closure: store.ModelClosure("m"), Wait: time.Minute}}); err != nil {
		t.Fatal(err)
	}
	pass(time.Minute)
	if got := first(s.Probe(ctx, probeOf("one", "b", "m"))); got.Word != store.ProbeGranted {
		t.Errorf("%+v, want a probe: what was opened has closed since", got)
	}
}

func TestEnable(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		for _, model := range []string{"", "m"} {
			if err := s.Cool(ctx, []store.Cooldown{{Subscription: "one", Closure: closureOf(model), State: "cooling", Reason: "window", Wait: time.Hour}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Enable(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		states, err := s.States(ctx, []string{"none", "one"})
		if err != nil || len(states) != 2 || states[0].Enabled || !states[1].Enabled || states[1].Cooldowns != nil ||
			states[1].EnabledAgo < 0 || states[1].EnabledAgo > 10*time.Second {
			t.Errorf("%+v, %v", states, err)
		}
		// Whoever is away hears of it for as long as it would have lasted.
		if ttl := client.PTTL(ctx, "authpool:{one}:state").Val(); ttl < 59*time.Minute || ttl > time.Hour {
			t.Errorf("the key expires in %v", ttl)
		}
		// A cooldown that begins later counts.
		if err := s.Cool(ctx, []store.Cooldown{{Subscription: "one", Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: time.Minute}}); err != nil {
			t.Fatal(err)
		}
		states, err = s.States(ctx, []string{"one"})
		if err != nil || len(states) != 1 || !states[0].Enabled || len(states[0].Cooldowns) != 1 {
			t.Errorf("%+v, %v", states, err)
		}
	})
}
