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
		f(usage.Query{By: usage.ByWeek}, map[string]int64{"2096-W09": 4})
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

// TestWeeks: ISO's weeks begin on Monday and belong to the year of their Thursday. A
// range that ends within a week has a part of it.
func TestWeeks(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		date := func(year, month, day int) time.Time {
			return time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC)
		}
		n := int64(0)
		put := func(at time.Time) {
			n++
			apply(t, store, batch(n, event(at.Sub(epoch))))
		}
		put(date(2096, 12, 31).Add(-time.Millisecond)) // a Sunday's last moment
		put(date(2096, 12, 31))                        // Monday
		put(date(2097, 1, 1))                          // the same week, although the year changes in it
		put(date(2097, 1, 7).Add(-time.Millisecond))
		put(date(2097, 1, 7))
		f := func(q usage.Query, want map[string]int64) {
			t.Helper()
			q.By = usage.ByWeek
			list, err := store.Usage(t.Context(), q, date(2097, 1, 8))
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]int64{}
			for _, r := range list {
				got[r.Key] = r.Requests
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%+v (-want +got):\n%s", q, diff)
			}
		}
		f(usage.Query{}, map[string]int64{"2096-W52": 1, "2097-W01": 3, "2097-W02": 1})
		f(usage.Query{Since: date(2097, 1, 1), Until: date(2097, 1, 7)}, map[string]int64{"2097-W01": 2})
	})
}

// TestUsageHasEveryCount: what is written only where it is not zero is read back, of
// totals and of models.
func TestUsageHasEveryCount(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		e := event(0)
		e.Tokens.Reasoning = 1
		e.Units = usage.Units{WebSearches: 7, WebFetches: 8, Seconds: 9, Images: 10, SearchUnits: 11}
		further := event(0)
		further.Further, further.Unpriced, further.Model = true, true, "claude-haiku-4-5"
		apply(t, store, batch(1, e))
		apply(t, store, batch(2, further)) // alone
		main := usage.Counts{
			Requests: 1, Input: 1, Output: 2, CacheRead: 3, CacheWrite5m: 4, CacheWrite1h: 5, CostNanoUSD: 6,
			Reasoning: 1, Units: e.Units,
		}
		share := usage.Counts{Input: 1, Output: 2, CacheRead: 3, CacheWrite5m: 4, CacheWrite1h: 5, CostNanoUSD: 6, Unpriced: 1}
		both := main
		both.Add(share)
		for _, by := range []usage.By{usage.BySubscription, usage.BySession, usage.ByAgent, usage.ByDay, usage.ByWeek, usage.ByBlock, usage.ByModel} {
			want := []usage.Counts{both}
			if by == usage.ByModel {
				want = []usage.Counts{share, main}
			}
			list, err := store.Usage(t.Context(), usage.Query{By: by}, epoch)
			if err != nil {
				t.Fatal(err)
			}
			var got []usage.Counts
			for _, r := range list {
				got = append(got, r.Counts)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("by %s (-want +got):\n%s", by, diff)
			}
		}
		blocks, err := store.Now(t.Context(), epoch, "team-a")
		if diff := cmp.Diff(both, blocks["team-a"].Counts); diff != "" || err != nil {
			t.Errorf("now: %v (-want +got):\n%s", err, diff)
		}
		// The next block has none of them.
		apply(t, store, batch(3, event(6*time.Hour)))
		blocks, err = store.Now(t.Context(), epoch.Add(6*time.Hour), "team-a")
		if got := blocks["team-a"]; got.Reasoning != 0 || got.Units != (usage.Units{}) || got.Requests != 1 || err != nil {
			t.Errorf("the next block is %+v, %v", got, err)
		}
	})
}
