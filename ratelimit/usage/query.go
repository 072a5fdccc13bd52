package usage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// By is what usage is added up by.
type By string

// The groupings, as in `authpool usage --by`.
const (
	BySubscription By = "subscription"
	ByModel        By = "model"
	BySession      By = "session" // of an agent: "<agent>/<session>"
	ByAgent        By = "agent"
	ByDay          By = "day"   // UTC: YYYY-MM-DD
	ByWeek         By = "week"  // ISO's, from Monday, UTC: YYYY-Www
	ByBlock        By = "block" // "<subscription>/<start, RFC 3339>"
	// ByCell is the finest that is kept for good, for comparing with a ledger:
	// "<subscription>/<YYYY-MM-DD>/<model>". Only the model may hold more slashes.
	ByCell By = "cell"
)

// Query asks for usage in [Since, Until). What is kept are sums and not events: a
// UTC day that the range touches counts whole, so does a block, and a session
// counts with its whole life if any of that lies in the range. Of a week only its
// days in the range count. Days are kept for 400 days, blocks for 35, sessions for 7 after their last event.
type Query struct {
	By    By
	Since time.Time // zero: everything that is kept
	Until time.Time // zero: without end
}

// Row is the usage of one subscription, model, session, agent, day, week or block.
type Row struct {
	Key string
	Counts
}

// keepDays is how long apply.lua keeps the hashes of days.
const keepDays = 400

// Usage adds up what q asks for, over all subscriptions, sorted by Key. now bounds
// a query without end. By session and by agent it walks all keys of the database,
// since nothing lists sessions and agents; the others read only what they need.
func (s *Store) Usage(ctx context.Context, q Query, now time.Time) ([]Row, error) {
	sums, err := s.usage(ctx, q, now)
	if err != nil {
		return nil, fmt.Errorf("cannot read usage by %s: %w", q.By, err)
	}
	rows := make([]Row, 0, len(sums))
	for key, c := range sums {
		rows = append(rows, Row{key, *c})
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Key, b.Key) })
	return rows, nil
}

// tally adds up rows by key.
type tally map[string]*Counts

func (t tally) add(key string, c Counts) {
	sum := t[key]
	if sum == nil {
		sum = &Counts{}
		t[key] = sum
	}
	sum.Add(c)
}

func (s *Store) usage(ctx context.Context, q Query, now time.Time) (tally, error) {
	switch q.By {
	case BySubscription, ByModel, ByDay, ByWeek, ByCell:
		return s.usageOfDays(ctx, q, now)
	case ByBlock:
		return s.usageOfBlocks(ctx, q)
	case ByAgent:
		return s.usageOfAgents(ctx, q)
	case BySession:
		return s.usageOfSessions(ctx, q)
	}
	return nil, errors.New("no such grouping")
}

// Subscriptions returns the ids of all subscriptions that ever had usage, sorted.
func (s *Store) Subscriptions(ctx context.Context) ([]string, error) {
	subs, err := s.client.SMembers(ctx, s.subscriptionsKey()).Result()
	if err != nil {
		return nil, fmt.Errorf("cannot list the subscriptions: %w", err)
	}
	slices.Sort(subs)
	return subs, nil
}

const day = 24 * time.Hour

// days calls visit with the beginning of each UTC day that q touches, as far back as
// they are kept.
func (q Query) days(now time.Time, visit func(d time.Time)) {
	until := q.Until
	if until.IsZero() || until.After(now.Add(day)) {
		until = now.Add(day) // other clocks may be ahead
	}
	since := q.Since
	if oldest := now.Add(-(keepDays + 1) * day); since.Before(oldest) {
		since = oldest
	}
	for d := since.UTC().Truncate(day); d.Before(until); d = d.Add(day) {
		visit(d)
	}
}

func (s *Store) usageOfDays(ctx context.Context, q Query, now time.Time) (tally, error) {
	subs, err := s.Subscriptions(ctx)
	if err != nil {
		return nil, err
	}
	type place struct{ sub, date, week string }
	var keys []string
	var places []place
	for _, sub := range subs {
		q.days(now, func(d time.Time) {
			date := d.Format(time.DateOnly)
			year, week := d.ISOWeek()
			keys = append(keys, s.dayKey(sub, date))
			places = append(places, place{sub, date, fmt.Sprintf("%d-W%02d", year, week)})
		})
	}
	sums := tally{}
	err = s.hashes(ctx, keys, func(i int, hash map[string]string) error {
		if q.By == ByModel {
			return addModels(sums, "", hash)
		}
		if q.By == ByCell {
			return addModels(sums, places[i].sub+"/"+places[i].date+"/", hash)
		}
		c, err := parseCounts(hash)
		if err != nil {
			return err
		}
		switch q.By {
		case ByDay:
			sums.add(places[i].date, c)
		case ByWeek:
			sums.add(places[i].week, c)
		default:
			sums.add(places[i].sub, c)
		}
		return nil
	})
	return sums, err
}

// addModels adds the counts in a hash's "<model>:<kind>" fields, each model under
// its name after prefix.
func addModels(sums tally, prefix string, hash map[string]string) error {
	for field, v := range hash {
		i := strings.LastIndexByte(field, ':')
		kind := slices.Index(fields[:], field[i+1:])
		if i < 0 || kind < 0 {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return fmt.Errorf("field %s is %q, not a count", field, v)
		}
		var c Counts
		*c.refs()[kind] = n
		sums.add(prefix+field[:i], c)
	}
	return nil
}

func (s *Store) usageOfBlocks(ctx context.Context, q Query) (tally, error) {
	subs, err := s.Subscriptions(ctx)
	if err != nil {
		return nil, err
	}
	within := &redis.ZRangeBy{Min: "-inf", Max: "+inf"}
	if !q.Since.IsZero() {
		within.Min = "(" + strconv.FormatInt(q.Since.Add(-BlockLength).UnixMilli(), 10)
	}
	if !q.Until.IsZero() {
		within.Max = "(" + strconv.FormatInt(q.Until.UnixMilli(), 10)
	}
	var keys, names []string
	for chunk := range slices.Chunk(subs, pipelineSize) {
		var starts []*redis.StringSliceCmd
		if err := s.pipeline(ctx, func(p redis.Pipeliner) {
			for _, sub := range chunk {
				starts = append(starts, p.ZRangeByScore(ctx, s.blocksKey(sub), within))
			}
		}); err != nil {
			return nil, err
		}
		for i, sub := range chunk {
			for _, text := range starts[i].Val() {
				ms, err := strconv.ParseInt(text, 10, 64)
				if err != nil {
					return nil, fmt.Errorf("%s has a block that starts at %q", sub, text)
				}
				start := time.UnixMilli(ms).UTC()
				keys = append(keys, s.blockKey(sub, start))
				names = append(names, sub+"/"+start.Format(time.RFC3339))
			}
		}
	}
	sums := tally{}
	err = s.hashes(ctx, keys, func(i int, hash map[string]string) error {
		c, err := parseCounts(hash)
		sums.add(names[i], c)
		return err
	})
	return sums, err
}

func (s *Store) usageOfAgents(ctx context.Context, q Query) (tally, error) {
	var keys, agents []string
	err := s.scan(ctx, "agent:", func(key, rest string) {
		agent, date, _ := strings.Cut(rest, ":")
		d, err := time.Parse(time.DateOnly, date)
		if err == nil && q.touches(d, d.Add(day)) {
			keys, agents = append(keys, key), append(agents, agent)
		}
	})
	if err != nil {
		return nil, err
	}
	sums := tally{}
	err = s.hashes(ctx, keys, func(i int, hash map[string]string) error {
		c, err := parseCounts(hash)
		sums.add(agents[i], c)
		return err
	})
	return sums, err
}

func (s *Store) usageOfSessions(ctx context.Context, q Query) (tally, error) {
	var keys, names []string
	if err := s.scan(ctx, "session:", func(key, rest string) {
		keys, names = append(keys, key), append(names, rest)
	}); err != nil {
		return nil, err
	}
	sums := tally{}
	err := s.hashes(ctx, keys, func(i int, hash map[string]string) error {
		first, err1 := parseTime(hash, "first")
		last, err2 := parseTime(hash, "last")
		c, err3 := parseCounts(hash)
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if q.touches(first, last.Add(time.Millisecond)) {
			sums.add(names[i], c)
		}
		return nil
	})
	return sums, err
}

// touches tells whether [from, to) has a part in the range, of which days count
// whole.
func (q Query) touches(from, to time.Time) bool {
	return (q.Since.IsZero() || to.After(q.Since.UTC().Truncate(day))) && (q.Until.IsZero() || from.Before(q.Until))
}

// parseTime reads a field with epoch milliseconds.
func parseTime(hash map[string]string, field string) (time.Time, error) {
	ms, err := strconv.ParseInt(hash[field], 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("field %s is %q, not a time", field, hash[field])
	}
	return time.UnixMilli(ms).UTC(), nil
}

// pipelineSize is how many commands are sent at once.
const pipelineSize = 500

// pipeline sends the commands that queue adds.
func (s *Store) pipeline(ctx context.Context, queue func(p redis.Pipeliner)) error {
	p := s.client.Pipeline()
	queue(p)
	_, err := p.Exec(ctx)
	return err
}

// hashes reads the hashes at keys and calls visit with each that exists and its
// place in keys.
func (s *Store) hashes(ctx context.Context, keys []string, visit func(i int, hash map[string]string) error) error {
	at := 0
	for chunk := range slices.Chunk(keys, pipelineSize) {
		var found []*redis.MapStringStringCmd
		if err := s.pipeline(ctx, func(p redis.Pipeliner) {
			for _, key := range chunk {
				found = append(found, p.HGetAll(ctx, key))
			}
		}); err != nil {
			return err
		}
		for i, cmd := range found {
			if len(cmd.Val()) == 0 {
				continue
			}
			if err := visit(at+i, cmd.Val()); err != nil {
				return fmt.Errorf("%s: %w", chunk[i], err)
			}
		}
		at += len(chunk)
	}
	return nil
}

// scan calls visit once with each key of any subscription whose name goes on with
// kind, and with what follows it.
func (s *Store) scan(ctx context.Context, kind string, visit func(key, rest string)) error {
	found := map[string]string{}
	var mu sync.Mutex // a cluster's nodes are walked at the same time
	walk := func(ctx context.Context, node redis.Cmdable) error {
		keys := node.Scan(ctx, 0, s.prefix+":{*}:"+kind+"*", 1000).Iterator()
		for keys.Next(ctx) {
			key := keys.Val()
			if _, rest, ok := strings.Cut(key, "}:"+kind); ok {
				mu.Lock()
				found[key] = rest
				mu.Unlock()
			}
		}
		return keys.Err()
	}
	var err error
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return walk(ctx, node) })
	} else {
		err = walk(ctx, s.client)
	}
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(found)) {
		visit(key, found[key])
	}
	return nil
}

// Now returns the active blocks of subscriptions at now, by id. One without an
// active block is left out.
func (s *Store) Now(ctx context.Context, now time.Time, subscriptions ...string) (map[string]Block, error) {
	keys := make([]string, len(subscriptions))
	for i, sub := range subscriptions {
		keys[i] = s.nowKey(sub)
	}
	blocks := map[string]Block{}
	err := s.hashes(ctx, keys, func(i int, hash map[string]string) error {
		var b Block
		var errs [4]error
		b.Start, errs[0] = parseTime(hash, "start")
		b.End, errs[1] = parseTime(hash, "end")
		b.Last, errs[2] = parseTime(hash, "last")
		b.Counts, errs[3] = parseCounts(hash)
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		if b.Active(now) {
			blocks[subscriptions[i]] = b
		}
		return nil
	})
	if err == nil {
		err = s.readFirsts(ctx, blocks)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read active blocks: %w", err)
	}
	return blocks, nil
}

// readFirsts fills in First, which only a block's own hash has.
func (s *Store) readFirsts(ctx context.Context, blocks map[string]Block) error {
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(blocks)), pipelineSize) {
		firsts := make([]*redis.SliceCmd, len(chunk))
		if err := s.pipeline(ctx, func(p redis.Pipeliner) {
			for i, sub := range chunk {
				firsts[i] = p.HMGet(ctx, s.blockKey(sub, blocks[sub].Start), "first")
			}
		}); err != nil {
			return err
		}
		for i, sub := range chunk {
			text, _ := firsts[i].Val()[0].(string) // absent when a fail-over lost the hash
			first, err := parseTime(map[string]string{"first": text}, "first")
			if err != nil {
				return fmt.Errorf("the block of %s: %w", sub, err)
			}
			b := blocks[sub]
			b.First = first
			blocks[sub] = b
		}
	}
	return nil
}
