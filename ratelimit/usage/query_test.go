package usage_test

import (
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
		f(usage.Query{By: usage.ByCell}, map[string]int64{
			"team-a/2096-02-28/m:1": 1, "team-a/2096-02-28/m2": 1, "team-a/2096-02-29/m2": 1, "team-b/2096-02-29/m2": 1,
		})
		f(usage.Query{By: usage.ByCell, Since: at(29, 0)}, map[string]int64{"team-a/2096-02-29/m2": 1, "team-b/2096-02-29/m2": 1})
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
					Start: epoch, End: epoch.Add(5 * time.Hour), First: epoch.Add(10 * time.Minute), Last: epoch.Add(4 * time.Hour),
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
