package usage

import (
	"context"
	_ "embed" // the scripts
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Store keeps the sums of all subscriptions in Redis and reads them back. Its
// keys and fields are a contract with whoever looks with redis-cli; the key
// methods at the foot of this file name them. It is safe for concurrent use.
//
// A sum is a hash with a field for each of Counts, and of blocks, days, months,
// agents and sessions also one for each model, "<model>:<count>". The first ten of
// the counts stand there always, reasoning and units where they are not zero; of a
// model its requests always, the others where they are not zero.
type Store struct {
	client redis.UniversalClient
	prefix string
}

var (
	//go:embed apply.lua
	applySource string
	//go:embed lives.lua
	livesSource string

	applyScript = redis.NewScript(livesSource + applySource)
)

// NewStore returns a Store that puts prefix before every key; "authpool" is
// usual. The client stays the caller's.
func NewStore(client redis.UniversalClient, prefix string) *Store {
	return &Store{client: client, prefix: prefix}
}

// Apply counts a batch, each event exactly once however often and in whatever
// pieces the batch is sent, by one script in the subscription's slot. It may be
// repeated after any error. An empty batch counts nothing and tells where the
// writer stands.
//
// The list of all subscriptions, by which readers find them, lies in another slot and
// on another node perhaps, so that only one of both may have lost its last writes: it
// is seen to by whoever is new, and by each empty batch.
func (s *Store) Apply(ctx context.Context, b Batch) (Result, error) {
	if len(b.Events) > MaxBatch {
		panic(fmt.Sprintf("BUG: a batch of %d events", len(b.Events)))
	}
	if b.First == 1 || len(b.Events) == 0 {
		if err := s.register(ctx, b.Subscription); err != nil {
			return Result{}, err
		}
	}
	total := Result{Outcome: Duplicate}
	repeats, err := s.claimItems(ctx, b.Subscription, b.Events)
	if err != nil {
		return Result{}, fmt.Errorf("cannot claim batch items of %s: %w", b.Subscription, err)
	}
	for {
		rows, slots, n := merge(b.Events, repeats)
		r, err := s.apply(ctx, b, n, sumUp(rows, slots))
		if err != nil {
			return Result{}, fmt.Errorf("cannot count usage of %s: %w", b.Subscription, err)
		}
		// How many of the events Redis knows now. A call counts all of its
		// events or none, so what it knew a part of is sent again without
		// that part.
		known := min(r.Last+1-b.First, int64(len(b.Events)))
		if r.Outcome == Fenced || known < 0 {
			return r, nil
		}
		if r.Outcome == Applied {
			total.Outcome = Applied
			for i := range n {
				if i < len(repeats) && repeats[i] {
					total.Repeated++
				} else {
					total.Applied++
				}
			}
			total.Late += r.Late
		}
		total.Last = r.Last
		b.First, b.Events = b.First+known, b.Events[known:]
		if repeats != nil {
			repeats = repeats[known:]
		}
		if len(b.Events) == 0 {
			return total, nil
		}
	}
}

// apply makes one call of the script for the first n events of b, which add up to
// sums.
func (s *Store) apply(ctx context.Context, b Batch, n int, sums []*sum) (Result, error) {
	var latest int64
	for i := range b.Events[:n] {
		latest = max(latest, min(b.Events[i].Time, maxTime))
	}
	args := []any{s.family(b.Subscription), b.Writer, b.Lives.String(), b.First, n, latest}
	for _, sum := range sums {
		args = sum.args(args)
	}
	keys := []string{s.writersKey(b.Subscription), s.nowKey(b.Subscription), s.absentKey(b.Subscription)}
	reply, err := applyScript.Run(ctx, s.client, keys, args...).Slice()
	if err != nil {
		return Result{}, err
	}
	word, told, err := parseReply(reply)
	if err != nil {
		return Result{}, err
	}
	r := Result{Last: told[0]}
	switch word {
	case "OK":
		r.Outcome, r.Late = Applied, told[1]
	case "DUP":
		r.Outcome = Duplicate
	case "GAP":
		r.Outcome = Gap
	case "FENCED":
		r.Outcome, r.Fork = Fenced, told[1]
	default:
		return Result{}, fmt.Errorf("unknown answer %q", word)
	}
	return r, nil
}

// register adds the subscription to the set of all. The set lies in another slot
// than the subscription, so no script can do it.
func (s *Store) register(ctx context.Context, subscription string) error {
	if err := s.client.SAdd(ctx, s.subscriptionsKey(), subscription).Err(); err != nil {
		return fmt.Errorf("cannot register subscription %s: %w", subscription, err)
	}
	return nil
}

// maxTime is the last millisecond of the year 9999, the end of the key names'
// calendar.
const maxTime = 253402300799999

// parseReply splits a script's answer into its word and its numbers, of which
// there are always as many as anyone asks for.
func parseReply(reply []any) (word string, n [2]int64, err error) {
	if len(reply) == 0 || len(reply) > 1+len(n) {
		return "", n, fmt.Errorf("unknown answer %v", reply)
	}
	word, ok := reply[0].(string)
	for i, v := range reply[1:] {
		var isInt bool
		n[i], isInt = v.(int64)
		ok = ok && isInt
	}
	if !ok {
		return "", n, fmt.Errorf("unknown answer %v", reply)
	}
	return word, n, nil
}

// The keys. Those of one subscription share its hash tag, and with it one slot of
// a cluster. The total, which has no models, is the one sum that never expires. A
// batch's hash has a field for each item and model that was counted, and takes
// 6.6 MB for 100,000 items, the largest batch that providers take; it is kept for 35
// days after it was last read.

func (s *Store) subscriptionsKey() string           { return s.prefix + ":subscriptions" }
func (s *Store) family(sub string) string           { return s.prefix + ":{" + sub + "}:" }
func (s *Store) writersKey(sub string) string       { return s.family(sub) + "writers" }
func (s *Store) nowKey(sub string) string           { return s.family(sub) + "now" }
func (s *Store) blocksKey(sub string) string        { return s.family(sub) + "blocks" }
func (s *Store) windowsKey(sub string) string       { return s.family(sub) + "windows" }
func (s *Store) dayKey(sub string, d string) string { return s.family(sub) + "day:" + d }
func (s *Store) totalKey(sub string) string         { return s.family(sub) + "total" }
func (s *Store) batchKey(sub, batch string) string  { return s.family(sub) + "batch:" + cleanID(batch) }

// absentKey names a key that never exists. A cluster that moves a slot, key by key,
// runs no script on either side of which it does not find all the keys it was told
// of. A script that touches others too, which it finds as it goes, would be stopped
// half-way, or find nothing where the other side still has something: with this key
// it waits until the slot has moved as a whole.
func (s *Store) absentKey(sub string) string { return s.family(sub) + "absent" }

func (s *Store) blockKey(sub string, start time.Time) string {
	return s.family(sub) + "block:" + start.UTC().Format("2006-01-02T15")
}

// parseCounts reads the counts from a hash. Fields that are absent are zero.
func parseCounts(hash map[string]string) (Counts, error) {
	var c Counts
	for i, ref := range c.refs() {
		v, ok := hash[fields[i]]
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return Counts{}, fmt.Errorf("field %s is %q, not a count", fields[i], v)
		}
		*ref = n
	}
	return c, nil
}
