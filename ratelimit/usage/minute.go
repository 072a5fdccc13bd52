package usage

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

const (
	minuteSlot  = 10 * time.Second // apply.lua's recent:<slot>
	minuteSlots = 6
)

// LastMinute returns what subscriptions used in the minute before now, by id:
// requests, input and output. Usage is kept by slots of ten seconds, so the minute is
// the present slot and the five before, and an event leaves it up to ten seconds
// early. A subscription without usage is left out.
func (s *Store) LastMinute(ctx context.Context, now time.Time, subscriptions ...string) (map[string]Counts, error) {
	var keys []string
	for _, sub := range subscriptions {
		for i := range minuteSlots {
			start := now.Add(-time.Duration(i) * minuteSlot).Truncate(minuteSlot)
			keys = append(keys, s.family(sub)+"recent:"+strconv.FormatInt(start.Unix(), 10))
		}
	}
	minutes := map[string]Counts{}
	err := s.hashes(ctx, keys, func(i int, hash map[string]string) error {
		c, err := parseCounts(hash)
		sub := subscriptions[i/minuteSlots]
		sum := minutes[sub]
		sum.Add(Counts{Requests: c.Requests, Input: c.Input, Output: c.Output})
		minutes[sub] = sum
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the usage of the last minute: %w", err)
	}
	return minutes, nil
}
