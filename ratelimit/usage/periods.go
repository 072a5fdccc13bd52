package usage

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// PeriodOf names a period of a subscription: the one that holds some moment.
type PeriodOf struct {
	Subscription string
	Period       Period
}

// PeriodCounts is what was counted within a period so far, without Estimated and
// what comes behind it in Counts: nobody sets a limit to those.
type PeriodCounts struct {
	Start, End time.Time // both zero: PeriodBlock, and no block is active
	Counts
}

// spendable are the fields that limits are set to: requests, tokens and cost.
var spendable = fields[:7]

// InPeriods returns what was counted in the periods that hold now, in the order of
// periods. It reads one hash for each, of a week one for each day so far.
func (s *Store) InPeriods(ctx context.Context, now time.Time, periods []PeriodOf) ([]PeriodCounts, error) {
	out := make([]PeriodCounts, len(periods))
	type part struct {
		of     int
		key    string
		fields []string
	}
	var parts []part
	inBlock := append([]string{"start", "end", "last"}, spendable...)
	for i, p := range periods {
		out[i].Start, out[i].End = p.Period.Bounds(now, nil)
		switch p.Period {
		case PeriodBlock:
			parts = append(parts, part{i, s.nowKey(p.Subscription), inBlock})
		case PeriodMonth:
			parts = append(parts, part{i, s.monthKey(p.Subscription, out[i].Start.Format("2006-01")), spendable})
		case PeriodDay, PeriodWeek:
			for d := out[i].Start; !d.After(now); d = d.AddDate(0, 0, 1) {
				parts = append(parts, part{i, s.dayKey(p.Subscription, d.Format(time.DateOnly)), spendable})
			}
		}
	}
	for chunk := range slices.Chunk(parts, pipelineSize) {
		found := make([]*redis.SliceCmd, len(chunk))
		if err := s.pipeline(ctx, func(pipe redis.Pipeliner) {
			for i, p := range chunk {
				found[i] = pipe.HMGet(ctx, p.key, p.fields...)
			}
		}); err != nil {
			return nil, fmt.Errorf("cannot read what was used: %w", err)
		}
		for i, p := range chunk {
			hash := map[string]string{}
			for j, v := range found[i].Val() {
				if text, ok := v.(string); ok {
					hash[p.fields[j]] = text
				}
			}
			if err := out[p.of].add(now, periods[p.of].Period, hash); err != nil {
				return nil, fmt.Errorf("cannot read what was used: %s: %w", p.key, err)
			}
		}
	}
	return out, nil
}

// add adds what one hash says.
func (c *PeriodCounts) add(now time.Time, period Period, hash map[string]string) error {
	counts, err := parseCounts(hash)
	if err != nil {
		return err
	}
	if period == PeriodBlock {
		if len(hash) == 0 {
			return nil
		}
		var b Block
		for field, to := range map[string]*time.Time{"start": &b.Start, "end": &b.End, "last": &b.Last} {
			if *to, err = parseTime(hash, field); err != nil {
				return err
			}
		}
		if !b.Active(now) {
			return nil
		}
		c.Start, c.End = b.Start, b.End
	}
	c.Add(counts)
	return nil
}
