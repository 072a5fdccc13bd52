package store_test

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/store"
)

func TestAgents(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) {
		put := func(id string, version int64, text string, want error) {
			t.Helper()
			// version is the one that it is to have; it replaces the one before.
			got, err := s.PutAgent(ctx, store.AgentRecord{ID: id, Version: version - 1, Text: text})
			if !errors.Is(err, want) || err == nil && got != version {
				t.Errorf("PutAgent(%s, %d, %s) = %d, %v, want %v", id, version, text, got, err, want)
			}
		}
		remove := func(id string, version int64, want error) {
			t.Helper()
			if err := s.RemoveAgent(ctx, id, version); !errors.Is(err, want) {
				t.Errorf("RemoveAgent(%s, %d) = %v, want %v", id, version, err, want)
			}
		}
		known := ""
		read := func(want ...store.AgentRecord) {
			t.Helper()
			list, state, changed, err := s.Agents(ctx, known)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(list, func(a, b store.AgentRecord) int { return cmp.Compare(a.ID, b.ID) })
			if diff := gocmp.Diff(want, list); diff != "" || changed != (state != known) {
				t.Errorf("changed %t from %s to %s (-want +got):\n%s", changed, known, state, diff)
			}
			known = state
		}
		read()
		put("bob", 2, "of none", store.ErrAgentVersion)
		put("bob", 1, `{"a": 1}`, nil)
		put("bob", 1, `{"a": 1}`, nil) // the reply was lost, and it is sent again
		put("bob", 1, `{"b": 1}`, store.ErrAgentVersion)
		put("ann", 1, "", nil)
		read(store.AgentRecord{ID: "ann", Version: 1}, store.AgentRecord{ID: "bob", Version: 1, Text: `{"a": 1}`})
		read() // not again
		put("bob", 2, "new", nil)
		put("bob", 2, "newer", store.ErrAgentVersion)
		remove("bob", 1, store.ErrAgentVersion)
		remove("ann", 0, nil)
		remove("ann", 0, store.ErrNoAgent)
		read(store.AgentRecord{ID: "bob", Version: 2, Text: "new"})
		// What the key holds beside its records is none.
		remove(":state", 0, store.ErrNoAgent)
		remove(":last", 0, store.ErrNoAgent)
		read() // nothing has changed
		remove("bob", 2, nil)
		// That there is none any more is news, too.
		if list, _, changed, err := s.Agents(ctx, known); err != nil || !changed || len(list) != 0 {
			t.Errorf("%v, %t, %v", list, changed, err)
		}
	})
}

// One that is made anew is no version of the one that was removed: who has read that
// does not write over it, and removes it neither.
func TestRecordsMadeAnew(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) {
		records := s.ManagedRecords()
		put := func(version int64, text string) int64 {
			t.Helper()
			got, err := records.Put(ctx, store.Record{ID: "team-a", Version: version, Text: text})
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		old := put(put(0, "old"), "older")
		if err := records.Remove(ctx, "team-a", old); err != nil {
			t.Fatal(err)
		}
		anew := put(0, "new")
		if anew <= old {
			t.Errorf("made anew it has version %d, the one before had %d", anew, old)
		}
		for _, stale := range []int64{0, 1, old} {
			if got, err := records.Put(ctx, store.Record{ID: "team-a", Version: stale, Text: "stale"}); !errors.Is(err, store.ErrVersion) {
				t.Errorf("over version %d: %d, %v", stale, got, err)
			}
			if err := records.Remove(ctx, "team-a", stale); stale > 0 && !errors.Is(err, store.ErrVersion) {
				t.Errorf("remove version %d: %v", stale, err)
			}
			if stale == 0 { // which is any, for a removal
				anew = put(0, "new")
			}
		}
		list, _, _, err := records.List(ctx, "")
		if err != nil || len(list) != 1 || list[0].Version != anew || list[0].Text != "new" {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

func TestAgentsAreHeardOf(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) {
		heard := make(chan store.Event, 16)
		stop := s.Hear(func(e store.Event) { heard <- e })
		defer stop()
		watch, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); s.Watch(watch, func(store.Event) {}) }()
		defer func() { cancel(); <-done }()
		await := func(want store.Event) {
			t.Helper()
			select {
			case got := <-heard:
				if got != want {
					t.Errorf("heard %+v, want %+v", got, want)
				}
			case <-time.After(time.Minute):
				t.Fatalf("did not hear %+v", want)
			}
		}
		await(store.Event{}) // the connection is new
		if _, err := s.PutAgent(ctx, store.AgentRecord{ID: "bob"}); err != nil {
			t.Fatal(err)
		}
		await(store.Event{Agents: true})
		if err := s.RemoveAgent(ctx, "bob", 0); err != nil {
			t.Fatal(err)
		}
		await(store.Event{Agents: true})
	})
}
