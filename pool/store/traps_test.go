package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
)

// Trap: a script whose answer was lost may have run, and is sent again, by its
// caller or by a cluster's client behind its back. Whatever is sent twice at one
// moment leaves what sending it once had left.
func TestTrapScriptsMayRunAgain(t *testing.T) {
	const s1, s2 = "p/a/one", "p/a/two"
	for name, call := range map[string]func(s *store.Store) error{
		"reserve":           func(s *store.Store) error { _, err := s.Reserve(ctx, "one", s2, 2, time.Minute); return err },
		"reserve, the last": func(s *store.Store) error { _, err := s.Reserve(ctx, "one", s2, 1, time.Minute); return err },
		"extend": func(s *store.Store) error {
			_, _, err := s.Extend(ctx, "one", 2, []store.Hold{{Session: s1, For: time.Minute}, {Session: s2, For: time.Minute}})
			return err
		},
		"bind":       func(s *store.Store) error { _, err := s.Bind(ctx, s2, "", "one", s1, time.Hour); return err },
		"bind, move": func(s *store.Store) error { _, err := s.Bind(ctx, s1, "one", "two", "", time.Hour); return err },
		"bind, late": func(s *store.Store) error { _, err := s.Bind(ctx, s1, "three", "two", "", time.Hour); return err },
		"keep": func(s *store.Store) error {
			_, err := s.Keep(ctx, []store.Binding{{Session: s1, Subscription: "one"}, {Session: s2, Subscription: "two", Parent: s1}}, time.Hour)
			return err
		},
		"rates": func(s *store.Store) error {
			d := ratelimit.Draw{Seq: 1, Limit: ratelimit.Amounts{1}, Need: ratelimit.Amounts{1}, Want: ratelimit.Amounts{1}}
			return s.DrawRates(ctx, "a", []store.RateDraw{{Subscription: "one", Draw: d}})[0].Err
		},
		"cool": func(s *store.Store) error {
			return s.Cool(ctx, []store.Cooldown{{Subscription: "one", Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: time.Hour}, {Subscription: "one", Closure: store.ModelClosure("m"), Wait: time.Minute}})
		},
		"cool, after a success": func(s *store.Store) error {
			return s.Cool(ctx, []store.Cooldown{{Subscription: "proved", Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: time.Hour}})
		},
		"probe": func(s *store.Store) error { _, err := s.Probe(ctx, probeOf("one", "process-1", "", "m")); return err },
		"probe, open": func(s *store.Store) error {
			_, err := s.Probe(ctx, probeOf("proved", "process-2", ""))
			return err
		},
		"proved": func(s *store.Store) error {
			return s.Proved(ctx, []store.Probed{{Subscription: "asked", Process: "process-1", Closures: []store.Closure{store.ClosesDomain, store.ModelClosure("m")}, Succeeded: true}})
		},
		"proved, no result": func(s *store.Store) error {
			return s.Proved(ctx, []store.Probed{{Subscription: "asked", Process: "process-1", Closures: []store.Closure{store.ClosesDomain}}})
		},
		"belong": func(s *store.Store) error {
			return s.Belong(ctx, []store.Belonging{{Subscription: "proved", Organisation: "org-1"}})
		},
		"enable": func(s *store.Store) error { return s.Enable(ctx, "proved") },
		"own": func(s *store.Store) error {
			return s.Own(ctx, []store.Made{made("resp_1", "one", "a", time.Hour), made("file-1", "two", "a", 400*24*time.Hour)})
		},
		"shares": func(s *store.Store) error {
			_, err := s.Shares(ctx, "process-2", []store.ShareRequest{{Subscription: "one", Limit: 10, InFlight: 3, Want: 5}})
			return err
		},
		"shares, give up": func(s *store.Store) error {
			_, err := s.Shares(ctx, "process-1", []store.ShareRequest{{Subscription: "one", Limit: 10}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := miniredis.RunT(t)
			server.SetTime(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
			client := redis.NewClient(&redis.Options{Addr: server.Addr(), DisableIdentity: true})
			defer client.Close()
			s := store.New(client, client, healthy{}, "authpool")
			place := first(s.Reserve(ctx, "one", s1, 2, 10*time.Second))
			first(s.Bind(ctx, s1, "", "one", "", time.Hour))
			first(s.Shares(ctx, "process-1", []store.ShareRequest{{Subscription: "one", Limit: 10, InFlight: 1, Want: 4}}))
			first(s.Probe(ctx, probeOf("asked", "process-1", "", "m")))
			if err := s.Proved(ctx, []store.Probed{{Subscription: "proved", Process: "process-1", Closures: []store.Closure{store.ClosesDomain}, Succeeded: true}}); err != nil {
				t.Fatal(err)
			}
			before := contents(t, client)

			if err := call(s); err != nil {
				t.Fatal(err)
			}
			once := contents(t, client)
			if once == before && !strings.Contains(name, "late") && !strings.Contains(name, "last") {
				t.Error("it changes nothing at all")
			}
			for range 3 {
				if err := call(s); err != nil {
					t.Fatal(err)
				}
			}
			if again := contents(t, client); again != once {
				t.Errorf("sent once:\n%s\nsent again:\n%s", once, again)
			}
			// Nor does a release that comes twice take anybody's new place.
			if err := s.Release(ctx, "one", s1, place.Score); err != nil {
				t.Fatal(err)
			}
			renewed := first(s.Reserve(ctx, "one", s1, 0, time.Minute))
			if err := s.Release(ctx, "one", s1, place.Score); err != nil {
				t.Fatal(err)
			}
			if held := client.ZScore(ctx, "authpool:{one}:sessions", s1).Val(); int64(held) != renewed.Score {
				t.Errorf("an old release took a new place: %v", held)
			}
		})
	}
}

// contents writes down all keys. A score counts only as there, since each
// change of a place raises it by at least a millisecond to give it a new name.
func contents(t *testing.T, client redis.UniversalClient) string {
	t.Helper()
	keys := client.Keys(ctx, "*").Val()
	slices.Sort(keys)
	var text strings.Builder
	for _, key := range keys {
		switch kind := client.Type(ctx, key).Val(); kind {
		case "hash":
			fmt.Fprintln(&text, key, client.HGetAll(ctx, key).Val(), client.PTTL(ctx, key).Val())
		case "zset":
			members := client.ZRange(ctx, key, 0, -1).Val()
			slices.Sort(members)
			fmt.Fprintln(&text, key, members)
		default:
			t.Fatalf("%s is a %s", key, kind)
		}
	}
	return text.String()
}
