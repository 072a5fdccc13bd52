package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/store"
)

func TestMovesAreFenced(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) {
		reserve := func(sub, session string, fence int64) error {
			t.Helper()
			place, err := s.ReserveMoved(ctx, sub, session, 0, time.Minute, fence)
			if err == nil && !place.Granted {
				t.Errorf("%s has no place on %s", session, sub)
			}
			return err
		}
		for range 2 { // again, since the reply may have been lost
			if err := reserve("one", "a", 7); err != nil {
				t.Fatal(err)
			}
		}
		if err := reserve("one", "b", 6); !errors.Is(err, store.ErrFenced) {
			t.Errorf("a lower fence: %v", err)
		}
		if n := first(s.Counts(ctx, []string{"one"}))[0]; n != 1 {
			t.Errorf("%d places, want that of the higher fence alone", n)
		}
		if err := reserve("two", "b", 6); err != nil {
			t.Errorf("where nobody else has moved anything: %v", err)
		}
		if err := reserve("one", "b", 0); err != nil {
			t.Errorf("an operator: %v", err)
		}

		// Who begins shuts the others out everywhere.
		if err := s.Fence(ctx, []string{"one", "two"}, 8); err != nil {
			t.Fatal(err)
		}
		for _, sub := range []string{"one", "two"} {
			if err := reserve(sub, "c", 7); !errors.Is(err, store.ErrFenced) {
				t.Errorf("%s, a lower fence: %v", sub, err)
			}
			if err := reserve(sub, "c", 8); err != nil {
				t.Errorf("%s, the same fence: %v", sub, err)
			}
		}
		if err := s.Fence(ctx, []string{"one", "two"}, 7); !errors.Is(err, store.ErrFenced) {
			t.Errorf("one who begins late: %v", err)
		}
	})
}

func TestReleasedStaysReleased(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		watching, stop := context.WithCancel(ctx)
		events := make(chan store.Event, 16)
		var wg sync.WaitGroup
		wg.Go(func() { s.Watch(watching, func(e store.Event) { events <- e }) })
		defer wg.Wait()
		defer stop()
		<-events // the connection is new

		const name = "anthropic/a/s"
		if got := first(s.Unbind(ctx, name)); got != "" {
			t.Errorf("a session that is not bound was on %q", got)
		}
		first(s.Bind(ctx, name, "", "one", "parent", time.Hour))
		if got := first(s.Unbind(ctx, name)); got != "one" {
			t.Errorf("it was on %q", got)
		}
		if e := <-events; e != (store.Event{Session: name}) {
			t.Errorf("told was %+v", e)
		}
		if got := first(s.Unbind(ctx, name)); got != "" {
			t.Errorf("released again, it was on %q", got)
		}
		if stay := first(s.Stays(ctx, []string{name}))[0]; stay.Subscription != "" {
			t.Errorf("it is on %q", stay.Subscription)
		}
		// Who has not heard of it keeps what he believes.
		if got := first(s.Keep(ctx, []store.Binding{{Session: name, Subscription: "one"}}, time.Hour)); got[0] != store.Released {
			t.Errorf("Keep = %q", got)
		}
		if got := first(s.Lookup(ctx, name)); got != "" {
			t.Errorf("it was bound again to %q", got)
		}
		if left := client.PTTL(ctx, "authpool:session:{"+name+"}").Val(); left <= 0 {
			t.Errorf("it is remembered for %v", left)
		}
		// A request is another matter.
		if got := first(s.Bind(ctx, name, "one", "two", "", time.Hour)); got != "two" {
			t.Errorf("bound anew to %q", got)
		}
		if got := first(s.Keep(ctx, []store.Binding{{Session: name, Subscription: "one"}}, time.Hour)); got[0] != "two" {
			t.Errorf("Keep = %q, want what is bound", got)
		}
		// What Redis has lost is not released.
		client.Del(ctx, "authpool:session:{"+name+"}")
		if got := first(s.Keep(ctx, []store.Binding{{Session: name, Subscription: "two"}}, time.Hour)); got[0] != "two" {
			t.Errorf("Keep = %q after a loss", got)
		}
	})
}

func TestStaysAndPlaces(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) {
		const sessions = 2500
		places := map[string]int64{}
		for i := range sessions {
			name := fmt.Sprint("anthropic/a/s", i)
			places[name] = first(s.Reserve(ctx, "one", name, 0, time.Minute)).Score
		}
		found := map[string]int64{}
		err := s.Places(ctx, "one", func(o store.Occupant) {
			found[o.Session] = o.Score
			if o.Left <= 0 || o.Left > time.Minute {
				t.Fatalf("%s has a place for %v", o.Session, o.Left)
			}
		})
		if err != nil || len(found) != sessions {
			t.Fatalf("%d places were found, want %d: %v", len(found), sessions, err)
		}
		for name, score := range places {
			if found[name] != score {
				t.Fatalf("the place of %s has the score %d, want %d", name, found[name], score)
			}
		}
		if err := s.Places(ctx, "none", func(o store.Occupant) { t.Errorf("%+v", o) }); err != nil {
			t.Error(err)
		}
		if o := first(s.Place(ctx, "one", "anthropic/a/s1")); o.Score != places["anthropic/a/s1"] || o.Left <= 0 {
			t.Errorf("one place: %+v", o)
		}
		if o := first(s.Place(ctx, "one", "anthropic/a/none")); o.Score != 0 || o.Left != 0 {
			t.Errorf("no place: %+v", o)
		}
		first(s.Bind(ctx, "anthropic/a/s1", "", "one", "s0", time.Hour))
		stays := first(s.Stays(ctx, []string{"anthropic/a/s1", "anthropic/a/s2"}))
		if got := stays[0]; got.Subscription != "one" || got.Parent != "s0" || got.Since < 0 || got.Since > time.Minute || got.Last != got.Since {
			t.Errorf("a binding: %+v", got)
		}
		if stays[1] != (store.Stay{}) {
			t.Errorf("no binding: %+v", stays[1])
		}
	})
}

func TestEndedPlacesAreNotShown(t *testing.T) {
	s, pass := timed(t)
	first(s.Reserve(ctx, "one", "a", 0, 10*time.Second))
	first(s.Reserve(ctx, "one", "b", 0, time.Minute))
	first(s.Bind(ctx, "b", "", "one", "", time.Hour))
	pass(10 * time.Second)
	_ = s.Places(ctx, "one", func(o store.Occupant) {
		if o.Session != "b" || o.Left != 50*time.Second {
			t.Errorf("%+v", o)
		}
	})
	if o := first(s.Place(ctx, "one", "a")); o.Left != 0 {
		t.Errorf("%+v", o)
	}
	if stay := first(s.Stays(ctx, []string{"b"}))[0]; stay.Since != 10*time.Second {
		t.Errorf("%+v", stay)
	}
}
