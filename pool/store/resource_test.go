package store_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/store"
)

func made(id, sub, agent string, keep time.Duration) store.Made {
	return store.Made{Resource: store.Resource{ID: id, Subscription: sub, Agent: agent}, Keep: keep}
}

func TestOwners(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		want := func(list ...store.Resource) {
			t.Helper()
			ids := make([]string, len(list))
			for i, r := range list {
				ids[i] = r.ID
			}
			got, err := s.Owners(ctx, ids)
			if err != nil || !reflect.DeepEqual(got, list) {
				t.Errorf("Owners = %+v, %v, want %+v", got, err, list)
			}
		}
		own := func(list ...store.Made) {
			t.Helper()
			if err := s.Own(ctx, list); err != nil {
				t.Fatal(err)
			}
		}
		want(store.Resource{ID: "resp_1"})
		own(made("resp_1", "one", "ann", time.Hour), made("file-2", "two", "ben", 400*24*time.Hour), made("files/x-3", "one", "ann", time.Hour))
		want(store.Resource{ID: "file-2", Subscription: "two", Agent: "ben"}, store.Resource{ID: "nobodys"},
			store.Resource{ID: "files/x-3", Subscription: "one", Agent: "ann"}, store.Resource{ID: "resp_1", Subscription: "one", Agent: "ann"})

		// Another agent that touches it does not take it, and it is kept on.
		own(made("resp_1", "one", "eve", 2*time.Hour))
		want(store.Resource{ID: "resp_1", Subscription: "one", Agent: "ann"})
		if left := client.PTTL(ctx, "authpool:resource:{resp_1}").Val(); left <= time.Hour || left > 2*time.Hour {
			t.Errorf("it is kept for %v, want 2 h", left)
		}
		// The same name at another account is something else.
		own(made("resp_1", "two", "eve", time.Hour))
		want(store.Resource{ID: "resp_1", Subscription: "two", Agent: "eve"})
	})
}

// TestLongResourcesMustSurvive: an answer of a turn costs no disk, a file does.
func TestLongResourcesMustSurvive(t *testing.T) {
	each(t, func(t *testing.T, _ *store.Store, client redis.UniversalClient) {
		closed := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
		if err := closed.Close(); err != nil {
			t.Fatal(err)
		}
		answer, file := made("resp_1", "one", "ann", 30*24*time.Hour), made("file-1", "one", "ann", 365*24*time.Hour)
		s := store.New(client, closed, healthy{}, "authpool")
		if err := s.Own(ctx, []store.Made{answer}); err != nil {
			t.Errorf("an answer: %v", err)
		}
		if err := s.Own(ctx, []store.Made{file, answer}); err == nil {
			t.Error("a file did not go by the durable client")
		}
		s = store.New(closed, client, healthy{}, "authpool")
		if err := s.Own(ctx, []store.Made{file}); err != nil {
			t.Errorf("a file: %v", err)
		}
	})
}

func TestOwnersOfALateRedis(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) {
		late, cancel := context.WithCancel(ctx)
		cancel()
		got, err := s.Owners(late, []string{"resp_1", "resp_2"})
		if err == nil || len(got) != 2 || got[1].Subscription != "" {
			t.Errorf("Owners = %+v, %v, want two unknown ones and an error", got, err)
		}
		if err := s.Own(late, []store.Made{made("resp_1", "one", "ann", time.Hour)}); err == nil {
			t.Error("Own: no error")
		}
	})
}
