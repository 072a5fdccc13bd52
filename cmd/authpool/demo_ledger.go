package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/proxy/admin"
)

// settleLimit is how long the demo waits for the journal to reach Redis.
const settleLimit = 10 * time.Second

// settled returns the status once every event of the journal is in Redis.
func (s *stage) settled(ctx context.Context) (admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var status admin.Status
		if _, err := s.asked.get(ctx, admin.StatusPath, nil, &status); err != nil {
			return admin.Status{}, err
		}
		if status.Redis.JournalPending == 0 {
			return status, nil
		}
		select {
		case <-ctx.Done():
			return admin.Status{}, fmt.Errorf("%s did not reach Redis within %s", plural(int64(status.Redis.JournalPending), "event"), settleLimit)
		case <-tick.C:
		}
	}
}

// reader connects to the read-only port of the embedded Redis, as redis-cli
// would.
func (s *stage) reader() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr:            s.service.db.FrontAddr().String(),
		Password:        s.service.dir.RedisPassword(),
		Protocol:        2,
		DisableIdentity: true,
	})
}

// showBlock prints the active block of team-a as redis-cli does.
func (d *demo) showBlock(ctx context.Context) (err error) {
	r := d.reader()
	defer func() { err = errors.Join(err, r.Close()) }()
	block, err := r.HGetAll(ctx, "authpool:{team-a}:now").Result()
	if err != nil {
		return fmt.Errorf("cannot read the block of team-a: %w", err)
	}
	if len(block) == 0 {
		return errors.New("redis has no active block of team-a")
	}
	d.say("")
	d.say("5. redis-cli HGETALL 'authpool:{team-a}:now':")
	for _, field := range slices.Sorted(maps.Keys(block)) {
		d.say("   %-16s %s", field, block[field])
	}
	return nil
}

// tally is what was used of one subscription.
type tally struct {
	requests, input, output, cacheRead, cacheWrite5m, cacheWrite1h int64
}

func (t tally) cells() string {
	return fmt.Sprintf("%d\t%d\t%d\t%d\t%d", t.requests, t.input, t.output, t.cacheRead, t.cacheWrite5m+t.cacheWrite1h)
}

// compare sets what Redis says beside what the provider billed.
func (d *demo) compare(ctx context.Context) error {
	if _, err := d.settled(ctx); err != nil {
		return err
	}
	inRedis, err := d.countedInRedis(ctx)
	if err != nil {
		return err
	}
	billed := d.billed()
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "\t\tREQUESTS\tINPUT\tOUTPUT\tCACHE READ\tCACHE WRITE\t") // a strings.Builder takes all
	var wrong []string
	for _, subscription := range slices.Sorted(maps.Keys(d.keys)) {
		verdict := "equal"
		if inRedis[subscription] != billed[subscription] {
			verdict = "DIFFERENT"
			wrong = append(wrong, subscription)
		}
		_, _ = fmt.Fprintf(w, "%s\tRedis\t%s\t\n\tledger\t%s\t  %s\n", subscription, inRedis[subscription].cells(), billed[subscription].cells(), verdict)
	}
	_ = w.Flush() // a strings.Builder takes all
	d.say("")
	d.say("6. Redis beside the provider's own ledger:")
	d.say("%s", indent(table.String()))
	if len(wrong) > 0 {
		return fmt.Errorf("redis and the provider's ledger differ for %s", strings.Join(wrong, ", "))
	}
	d.say("")
	d.say("Equal to the token.")
	return nil
}

// countedInRedis adds up the blocks of every subscription.
func (s *stage) countedInRedis(ctx context.Context) (_ map[string]tally, err error) {
	r := s.reader()
	defer func() { err = errors.Join(err, r.Close()) }()
	sums := make(map[string]tally)
	for subscription := range s.keys {
		family := "authpool:{" + subscription + "}:"
		starts, err := r.ZRange(ctx, family+"blocks", 0, -1).Result()
		if err != nil {
			return nil, fmt.Errorf("cannot list the blocks of %s: %w", subscription, err)
		}
		for _, start := range starts {
			ms, err := strconv.ParseInt(start, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("cannot read the blocks of %s: %q is no time", subscription, start)
			}
			block, err := r.HGetAll(ctx, family+"block:"+time.UnixMilli(ms).UTC().Format("2006-01-02T15")).Result()
			if err != nil {
				return nil, fmt.Errorf("cannot read a block of %s: %w", subscription, err)
			}
			sums[subscription] = add(sums[subscription], block)
		}
	}
	return sums, nil
}

// add counts a block's hash into t. A field that is absent is zero.
func add(t tally, block map[string]string) tally {
	for field, sum := range map[string]*int64{
		"requests": &t.requests, "input": &t.input, "output": &t.output, "cache_read": &t.cacheRead,
		"cache_write_5m": &t.cacheWrite5m, "cache_write_1h": &t.cacheWrite1h,
	} {
		n, err := strconv.ParseInt(block[field], 10, 64)
		if err == nil {
			*sum += n
		}
	}
	return t
}

// billed adds up the simulator's ledger by subscription.
func (s *stage) billed() map[string]tally {
	bySecret := make(map[string]string, len(s.keys))
	for subscription, key := range s.keys {
		bySecret[key.Key] = subscription
	}
	sums := make(map[string]tally)
	for _, e := range s.sim.Ledger() {
		t := sums[bySecret[e.Key]]
		t.requests++
		t.input += e.Input
		t.output += e.Output
		t.cacheRead += e.CacheRead
		t.cacheWrite5m += e.CacheWrite5m
		t.cacheWrite1h += e.CacheWrite1h
		sums[bySecret[e.Key]] = t
	}
	return sums
}
