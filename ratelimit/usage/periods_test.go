package usage_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestInPeriods(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		// epoch is a Tuesday, 28 February of a leap year.
		const d = 24 * time.Hour
		var events []usage.Event
		for i, offset := range []time.Duration{-30 * d, -2 * d, -d, 0, time.Hour, d, 2 * d} {
			e := event(offset)
			e.Tokens = usage.Tokens{Input: 1, Output: 2, CacheRead: 3, CacheWrite5m: 4, CacheWrite1h: 5}
			e.CostNanoUSD = 1 << i
			events = append(events, e)
		}
		apply(t, store, batch(1, events...))
		counts := func(n, cost int64) usage.Counts {
			return usage.Counts{Requests: n, Input: n, Output: 2 * n, CacheRead: 3 * n, CacheWrite5m: 4 * n, CacheWrite1h: 5 * n, CostNanoUSD: cost}
		}
		f := func(sub string, period usage.Period, now, start, end time.Duration, want usage.Counts) {
			t.Helper()
			got, err := store.InPeriods(t.Context(), epoch.Add(now), []usage.PeriodOf{
				{Subscription: "team-none", Period: period}, {Subscription: sub, Period: period},
			})
			if err != nil {
				t.Fatal(err)
			}
			midnight := epoch.Truncate(d)
			whole := usage.PeriodCounts{Counts: want}
			if start != end {
				whole.Start, whole.End = midnight.Add(start), midnight.Add(end)
			}
			if diff := cmp.Diff(whole, got[1]); diff != "" {
				t.Errorf("%s of %s at %v (-want +got):\n%s", period, sub, now, diff)
			}
			if got[0].Counts != (usage.Counts{}) {
				t.Errorf("%s of one without usage: %+v", period, got[0])
			}
		}
		f("team-a", usage.PeriodDay, 0, 0, d, counts(2, 8+16))
		f("team-a", usage.PeriodWeek, 0, -d, 6*d, counts(3, 4+8+16))
		f("team-a", usage.PeriodMonth, 0, -27*d, 2*d, counts(5, 2+4+8+16+32))
		f("team-a", usage.PeriodDay, 6*d, 6*d, 7*d, usage.Counts{})
		f("team-a", usage.PeriodBlock, 6*d, 0, 0, usage.Counts{})
		start := epoch.Add(2 * d).Truncate(time.Hour).Sub(epoch.Truncate(d))
		f("team-a", usage.PeriodBlock, 2*d, start, start+usage.BlockLength, counts(1, 64))
		f("team-none", usage.PeriodMonth, 0, -27*d, 2*d, usage.Counts{})
	})
}
