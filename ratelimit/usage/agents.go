package usage

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// AgentDay names a UTC day of an agent.
type AgentDay struct {
	Agent string
	Day   time.Time // any moment of it
}

// AgentDays returns what agents have used on days, over all subscriptions, in the
// order of days, without Estimated and what comes behind it in Counts. It reads a
// hash for each day and each subscription that ever had usage.
func (s *Store) AgentDays(ctx context.Context, days []AgentDay) ([]Counts, error) {
	out := make([]Counts, len(days))
	subs, err := s.Subscriptions(ctx)
	if err != nil {
		return nil, err
	}
	type part struct {
		of  int
		key string
	}
	parts := make([]part, 0, len(days)*len(subs))
	for i, d := range days {
		for _, sub := range subs {
			parts = append(parts, part{i, s.agentKey(sub, d.Agent, d.Day)})
		}
	}
	for len(parts) > 0 {
		chunk := parts[:min(len(parts), pipelineSize)]
		parts = parts[len(chunk):]
		found := make([]*redis.SliceCmd, len(chunk))
		if err := s.pipeline(ctx, func(pipe redis.Pipeliner) {
			for i, p := range chunk {
				found[i] = pipe.HMGet(ctx, p.key, spendable...)
			}
		}); err != nil {
			return nil, fmt.Errorf("cannot read what agents used: %w", err)
		}
		for i, p := range chunk {
			hash := map[string]string{}
			for j, v := range found[i].Val() {
				if text, ok := v.(string); ok {
					hash[spendable[j]] = text
				}
			}
			counts, err := parseCounts(hash)
			if err != nil {
				return nil, fmt.Errorf("cannot read what agents used: %s: %w", p.key, err)
			}
			out[p.of].Add(counts)
		}
	}
	return out, nil
}

func (s *Store) agentKey(sub, agent string, day time.Time) string {
	return s.family(sub) + "agent:" + cleanID(agent) + ":" + day.UTC().Format(time.DateOnly)
}
