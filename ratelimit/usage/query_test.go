package usage_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// rows reads usage as key → requests.
func rows(t testing.TB, s *usage.Store, q usage.Query) map[string]int64 {
	t.Helper()
	list, err := s.Usage(t.Context(), q, epoch.Add(60*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]int64{}
	for i, r := range list {
		if i > 0 && list[i-1].Key >= r.Key {
			t.Errorf("the rows are not sorted: %s, %s", list[i-1].Key, r.Key)
		}
		m[r.Key] = r.Requests
	}
	return m
}

func TestUsage(t *testing.T) {
	// Offsets from 2096-02-28 09:00.
	at := func(d, h int) time.Time { return time.Date(2096, 2, d, h, 0, 0, 0, time.UTC) }
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		numbers := map[string]int64{}
		put := func(sub string, offset time.Duration, agent, session, model string) {
			e := event(offset)
			e.Agent, e.Session, e.Model = agent, session, model
			numbers[sub]++
			b := batch(numbers[sub], e)
			b.Subscription = sub
			apply(t, store, b)
		}
		put("team-a", 0, "coder", "s1", "m:1")
		put("team-a", time.Hour, "coder", "s1", "m2")
		put("team-a", 15*time.Hour, "ci", "s1", "m2") // 2096-02-29 00:00
		put("team-b", 30*time.Hour, "coder", "s2", "m2")

		f := func(q usage.Query, want map[string]int64) {
			t.Helper()
			if diff := cmp.Diff(want, rows(t, store, q)); diff != "" {
				t.Errorf("%+v (-want +got):\n%s", q, diff)
			}
		}
		f(usage.Query{By: usage.BySubscription}, map[string]int64{"team-a": 3, "team-b": 1})
		f(usage.Query{By: usage.ByModel}, map[string]int64{"m:1": 1, "m2": 3})
		f(usage.Query{By: usage.BySession}, map[string]int64{"coder/s1": 2, "ci/s1": 1, "coder/s2": 1})
		f(usage.Query{By: usage.ByAgent}, map[string]int64{"coder": 3, "ci": 1})
		f(usage.Query{By: usage.ByDay}, map[string]int64{"2096-02-28": 2, "2096-02-29": 2})
		f(usage.Query{By: usage.ByBlock}, map[string]int64{
			"team-a/2096-02-28T09:00:00Z": 2, "team-a/2096-02-29T00:00:00Z": 1, "team-b/2096-02-29T15:00:00Z": 1,
		})

		// Until is not part of the range, a day that is touched counts whole.
		day29 := usage.Query{By: usage.BySubscription, Since: at(29, 12), Until: at(30, 0)}
		f(day29, map[string]int64{"team-a": 1, "team-b": 1})
		f(usage.Query{By: usage.ByDay, Until: at(29, 0)}, map[string]int64{"2096-02-28": 2})
		f(usage.Query{By: usage.ByDay, Until: at(29, 1)}, map[string]int64{"2096-02-28": 2, "2096-02-29": 2})
		f(usage.Query{By: usage.ByAgent, Until: at(29, 0)}, map[string]int64{"coder": 2})
		f(usage.Query{By: usage.BySession, Since: at(29, 0)}, map[string]int64{"ci/s1": 1, "coder/s2": 1})
		f(usage.Query{By: usage.BySession, Until: at(28, 9)}, map[string]int64{})
		f(usage.Query{By: usage.ByModel, Since: at(29, 0), Until: at(30, 0)}, map[string]int64{"m2": 2})

		// A block counts when it overlaps: [09:00, 14:00) and so on.
		f(usage.Query{By: usage.ByBlock, Until: at(28, 9)}, map[string]int64{})
		f(usage.Query{By: usage.ByBlock, Until: at(28, 10)}, map[string]int64{"team-a/2096-02-28T09:00:00Z": 2})
		f(usage.Query{By: usage.ByBlock, Since: at(28, 14), Until: at(29, 1)}, map[string]int64{"team-a/2096-02-29T00:00:00Z": 1})
		f(usage.Query{By: usage.ByBlock, Since: at(28, 13), Until: at(28, 14)}, map[string]int64{"team-a/2096-02-28T09:00:00Z": 2})

		// All the counts arrive.
		list, err := store.Usage(t.Context(), usage.Query{By: usage.ByModel, Until: at(28, 10)}, at(30, 0))
		want := usage.Counts{Requests: 1, Input: 1, Output: 2, CacheRead: 3, CacheWrite5m: 4, CacheWrite1h: 5, CostNanoUSD: 6}
		if err != nil || len(list) != 2 || list[0].Counts != want {
			t.Errorf("got %+v, %v; want twice %+v", list, err, want)
		}
		if _, err := store.Usage(t.Context(), usage.Query{By: "moon"}, epoch); err == nil {
			t.Error("an unknown grouping gave no error")
		}
		subs, err := store.Subscriptions(t.Context())
		if diff := cmp.Diff([]string{"team-a", "team-b"}, subs); diff != "" || err != nil {
			t.Error(diff, err)
		}
	})
}

func TestNow(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		apply(t, store, batch(1, event(10*time.Minute), event(4*time.Hour)))
		f := func(at time.Duration, active bool) {
			t.Helper()
			got, err := store.Now(t.Context(), epoch.Add(at), "team-a", "team-none")
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]usage.Block{}
			if active {
				want["team-a"] = usage.Block{
					Start: epoch, End: epoch.Add(5 * time.Hour), Last: epoch.Add(4 * time.Hour),
					Counts: usage.Counts{Requests: 2, Input: 2, Output: 4, CacheRead: 6, CacheWrite5m: 8, CacheWrite1h: 10, CostNanoUSD: 12},
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("at %v (-want +got):\n%s", at, diff)
			}
		}
		f(4*time.Hour, true)
		f(5*time.Hour-time.Millisecond, true)
		f(5*time.Hour, false) // the strict border of reading
	})
}

// TestActiveAfterSilence: a block is over five hours after its last event, too.
func TestActiveAfterSilence(t *testing.T) {
	f := func(last, now time.Duration, want bool) {
		t.Helper()
		b := usage.Block{Start: epoch, End: epoch.Add(usage.BlockLength), Last: epoch.Add(last)}
		if got := b.Active(epoch.Add(now)); got != want {
			t.Errorf("last %v, now %v: %v", last, now, got)
		}
	}
	f(0, 5*time.Hour-1, true)
	f(0, 5*time.Hour, false)
	f(5*time.Hour, 5*time.Hour-1, true)
	f(5*time.Hour, 5*time.Hour, false)
	f(-time.Hour, 4*time.Hour, false)
	f(-time.Hour, 4*time.Hour-1, true)
}

func TestWindows(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		window := func(util float64, reset, seen time.Duration) usage.ProviderWindow {
			return usage.ProviderWindow{Name: "5h", Utilization: util, Status: "allowed", Reset: epoch.Add(reset), Seen: epoch.Add(seen)}
		}
		f := func(name string, w, want usage.ProviderWindow) {
			t.Helper()
			if err := store.Observe(t.Context(), "team-a", "five_hour", []usage.ProviderWindow{w}); err != nil {
				t.Fatal(err)
			}
			got, err := store.Windows(t.Context(), "team-a")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]usage.ProviderWindow{want}, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		first := window(0.25, 5*time.Hour, time.Hour)
		f("first", first, first)
		f("older answer", window(0.9, 5*time.Hour, 59*time.Minute), first)
		newer := window(1.04, 5*time.Hour, 2*time.Hour)
		f("newer, above one", newer, newer)
		f("slow answer of the former window", window(0.9, 4*time.Hour, 3*time.Hour), newer)
		jitter := window(0.5, 5*time.Hour-30*time.Second, 3*time.Hour)
		f("reset a little earlier", jitter, jitter)
		f("reset has passed", window(0.1, 3*time.Hour, 4*time.Hour), jitter)
		next := window(0.01, 11*time.Hour, 6*time.Hour)
		f("next window", next, next)
		silent := usage.ProviderWindow{Name: "5h", Utilization: 0.02, Seen: epoch.Add(7 * time.Hour)}
		f("no reset told", silent, silent)

		nonsense := silent
		nonsense.Utilization, nonsense.Seen = math.NaN(), epoch.Add(8*time.Hour)
		nothing := nonsense
		nothing.Utilization = 0
		f("no number", nonsense, nothing)
		silent.Seen = epoch.Add(9 * time.Hour)
		f("a number again", silent, silent)

		hash := client.HGetAll(t.Context(), "authpool:{team-a}:windows").Val()
		if hash["claim"] != "five_hour" || hash["5h:util"] != "20000" || hash["5h:reset"] != "0" || hash["5h:status"] != "" {
			t.Errorf("Redis holds %v", hash)
		}
	})
}
