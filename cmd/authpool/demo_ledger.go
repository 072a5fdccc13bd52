package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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

// compare sets what Redis says beside what the provider billed, as `authpool audit
// usage` does.
func (d *demo) compare(ctx context.Context) error {
	if _, err := d.settled(ctx); err != nil {
		return err
	}
	l := d.billed()
	counted, err := d.asked.counted(ctx, l.days)
	if err != nil {
		return err
	}
	result := compare(l, counted, l.days)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "\t\tREQUESTS\tINPUT\tOUTPUT\tCACHE READ\tCACHE WRITE\t") // a strings.Builder takes all
	for _, row := range result.rows {
		verdict := "equal"
		if !row.equal() && !row.explained() {
			verdict = "DIFFERENT"
		}
		_, _ = fmt.Fprintf(w, "%s, %s\tRedis\t%s\t\n\tledger\t%s\t  %s\n", row.subscription, row.model,
			demoCells(row.redis), demoCells(row.ledger), verdict) // a strings.Builder takes all
	}
	_ = w.Flush() // a strings.Builder takes all
	d.say("")
	d.say("6. Redis beside the provider's own ledger:")
	d.say("%s", indent(table.String()))
	if err := result.err(); err != nil {
		return err
	}
	d.say("")
	d.say("%s", result.verdict())
	d.say("")
	d.say("Your own pool is compared so with a simulator's ledger or a provider's usage export by")
	d.say("  authpool audit usage --ledger FILE|URL")
	return nil
}

func demoCells(s sums) string {
	return fmt.Sprintf("%d\t%d\t%d\t%d\t%d", s[requests], s[input], s[output], s[cacheRead], s[cacheWrite5m]+s[cacheWrite1h])
}

// billed is the simulator's ledger.
func (s *stage) billed() *ledger {
	bySecret := make(map[string]string, len(s.keys))
	for subscription, key := range s.keys {
		bySecret[key.Key] = subscription
	}
	l := newSimulated(slices.Collect(maps.Keys(s.keys)))
	for _, e := range s.sim.Ledger() {
		l.add(simulated(bySecret[e.Key], &e))
	}
	return l
}
