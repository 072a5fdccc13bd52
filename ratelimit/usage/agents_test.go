package usage_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestAgentDays(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		put := func(sub, agent string, number int64, offset time.Duration) {
			e := event(offset)
			e.Agent = agent
			b := batch(number, e)
			b.Subscription = sub
			apply(t, store, b)
		}
		put("team-a", "coder", 1, 0)
		put("team-a", "coder", 2, time.Hour)
		put("team-b", "coder", 1, time.Hour) // on another node perhaps
		put("team-b", "ci", 2, time.Hour)
		put("team-b", "coder", 3, 24*time.Hour)
		got, err := store.AgentDays(t.Context(), []usage.AgentDay{
			{Agent: "coder", Day: epoch},
			{Agent: "ci", Day: epoch.Truncate(24 * time.Hour)},
			{Agent: "coder", Day: epoch.Add(24 * time.Hour)},
			{Agent: "coder", Day: epoch.Add(-24 * time.Hour)},
			{Agent: "code", Day: epoch},
		})
		if err != nil {
			t.Fatal(err)
		}
		counts := func(n int64) usage.Counts {
			return usage.Counts{Requests: n, Input: n, Output: 2 * n, CacheRead: 3 * n, CacheWrite5m: 4 * n, CacheWrite1h: 5 * n, CostNanoUSD: 6 * n}
		}
		if diff := cmp.Diff([]usage.Counts{counts(3), counts(1), counts(1), {}, {}}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
