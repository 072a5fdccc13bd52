package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/pool/managed"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/proxy"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

// roster brings together what the config file says of subscriptions and what
// operators did at run time, and gives the pool what comes of it (see merge). It
// implements admin.Roster.
//
// What another process changed is heard of by the store's Watch; what this one
// changed is in the pool before the operator has the answer.
type roster struct {
	pool    *pool.Pool
	records *managed.Store
	vault   *managed.Vault
	shared  *store.Store
	audit   *audit.Log
	log     *slog.Logger

	mu      sync.Mutex // held from a read until the pool has what comes of it
	cfg     *config.Config
	known   []managed.Record // as last read
	entries []listed
	lender  lender
	leaving map[string]time.Time // since when this process knows that one is being removed

	stop context.CancelFunc
	done sync.WaitGroup
}

const (
	// rosterPatience bounds a look into Redis that nobody has asked for: traffic does
	// not wait at the start for a Redis that hangs.
	rosterPatience = 2 * time.Second
	// rosterSweep is how often subscriptions that are being removed are looked at.
	rosterSweep = time.Second
)

// newRoster gives p the subscriptions of cfg, each with what operators have done with it
// so far. While Redis cannot tell that, what was last known holds.
func newRoster(ctx context.Context, cfg *config.Config, p *pool.Pool, shared *store.Store, memory managed.Memory, dir *statedir.Dir, log *audit.Log, logger *slog.Logger) *roster {
	records := managed.New(shared.ManagedRecords(), memory, shared.Healthy)
	vault := newVaultFromConfig(cfg.Sealing, dir, records)
	r := &roster{
		pool: p, records: records, vault: vault, shared: shared, audit: log, log: logger,
		cfg: cfg, lender: lender{vault: vault}, leaving: make(map[string]time.Time),
	}
	err := store.ErrAway
	if shared.Healthy() {
		err = r.read(ctx)
	}
	if err != nil {
		r.recall(err)
	}
	return r
}

// recall takes over what operators had done when Redis was last there; why says why it
// cannot be asked.
func (r *roster) recall(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, since, err := r.records.Recall()
	if err != nil {
		r.log.Warn("what was changed of subscriptions at run time is not known yet: they are as the config says", "error", errors.Join(why, err))
	} else {
		r.log.Warn("Redis is away: what was changed of subscriptions at run time is as it was last known", "error", why, "known", since)
	}
	r.known = known
	r.apply()
}

// start follows what operators do, until close.
func (r *roster) start(ctx context.Context) {
	ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.done.Go(func() {
		defer r.shared.Hear(func(e store.Event) {
			if e.Managed || e == (store.Event{}) {
				r.records.Heard()
			}
		})()
		r.records.Watch(ctx, func(records []managed.Record, err error) { r.heard(ctx, records, err) })
	})
	r.done.Go(func() { r.sweep(ctx) })
}

// close ends what start began.
func (r *roster) close() {
	r.stop()
	r.done.Wait()
	r.records.Close()
}

// configure takes another config over: its subscriptions are in the pool when it
// returns.
func (r *roster) configure(c *config.Config) pool.Changes {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cfg = c
	return r.apply()
}

// budgets are the limits of the budgets, by subscription.
func (r *roster) budgets() map[string][]usage.Budget {
	r.mu.Lock()
	defer r.mu.Unlock()
	var c config.Config
	for _, e := range r.entries {
		if !e.record.Shadowed {
			c.Subscriptions = append(c.Subscriptions, e.said)
		}
	}
	return budgetsFromConfig(&c)
}

// read asks the store for what there is, and gives it to the pool. One at a time, so
// that what was read first is never taken for the news.
func (r *roster) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rosterPatience)
	defer cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	records, err := r.records.List(ctx)
	if err != nil {
		return err
	}
	if r.entries == nil || !sameVersions(records, r.known) {
		r.known = records
		r.apply()
	}
	return nil
}

// heard learns of a change. What it is told may be older than what read has seen
// since, so that it is read again.
func (r *roster) heard(ctx context.Context, records []managed.Record, err error) {
	if err == nil && !r.knows(records) {
		err = r.read(ctx)
	}
	if err != nil && ctx.Err() == nil {
		r.log.Warn("what is changed of subscriptions at run time is not seen", "error", err)
	}
}

func (r *roster) knows(records []managed.Record) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entries != nil && sameVersions(records, r.known)
}

// sameVersions tells whether both, which are sorted by id, are the same records. One
// that was removed and added again may have its former version.
func sameVersions(a, b []managed.Record) bool {
	return slices.EqualFunc(a, b, func(a, b managed.Record) bool {
		return a.ID == b.ID && a.Version == b.Version && a.Change == b.Change
	})
}

// apply merges and gives the pool the outcome. The caller holds mu.
func (r *roster) apply() pool.Changes {
	r.entries = merge(r.cfg, r.known)
	r.lender.equip(r.cfg, r.entries)
	subs := make([]pool.Subscription, 0, len(r.entries))
	for _, e := range r.entries {
		if !e.record.Shadowed {
			subs = append(subs, e.sub)
		}
	}
	changes := r.pool.Apply(subs)
	for _, id := range changes.Removed {
		proxy.ForgetMetrics(id)
	}
	if len(changes.Added)+len(changes.Changed)+len(changes.Removed) > 0 {
		r.log.Info("subscriptions", "added", changes.Added, "changed", changes.Changed, "removed", changes.Removed)
	}
	return changes
}

// all are the entries as they are now. They are not changed.
func (r *roster) all() []listed {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entries
}

// target tells where the secret of a managed record may go.
func (r *roster) target(record *managed.Record) (managed.Target, error) {
	r.mu.Lock()
	c := r.cfg
	r.mu.Unlock()
	said, err := parseRecord(c, *record)
	if err != nil {
		return managed.Target{}, err
	}
	return targetOf(c, said)
}

// sweep finishes removals until ctx ends.
func (r *roster) sweep(ctx context.Context) {
	tick := time.NewTicker(rosterSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.finish(ctx)
			r.records.Flush()
		}
	}
}

// finish removes for good what is being removed and has no session any more, or had the
// time in which an idle one ends. Every process tries; the store lets one.
func (r *roster) finish(ctx context.Context) {
	now := time.Now()
	leaving := make(map[string]time.Time)
	var due []managed.Record
	for _, e := range r.all() {
		if e.record.Source != admin.SourceManaged || e.kept.Switch != managed.Removing {
			continue
		}
		since, known := r.leaving[e.record.ID]
		if !known {
			since = now
		}
		leaving[e.record.ID] = since
		due = append(due, e.kept)
	}
	r.leaving = leaving // of this goroutine alone
	if len(due) == 0 || !r.shared.Healthy() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, rosterPatience)
	defer cancel()
	for _, one := range due {
		counts, err := r.shared.Counts(ctx, []string{one.ID})
		waited := now.Sub(leaving[one.ID]) >= time.Duration(r.idle())
		if err != nil || counts[0] > 0 && !waited || r.inFlight(one.ID) && !waited {
			continue
		}
		// A session of it that comes back between the count and this has its answer: leases
		// outlive their subscription, and it moves with its next request, as it would have
		// after the idle time-out. No lock over both keys, which lie on different nodes of a
		// Cluster, is worth that one move.
		if r.records.Remove(ctx, one.ID, one.Version) == nil {
			r.log.Info("a subscription is removed", "subscription", one.ID)
			r.audit.Add(audit.Entry{Kind: audit.SubscriptionsRemoved, Actor: audit.Itself, Fields: map[string]string{"subscription": one.ID}})
		}
	}
	if err := r.read(ctx); err != nil && ctx.Err() == nil {
		r.log.Warn("what is changed of subscriptions at run time is not seen", "error", err)
	}
}

func (r *roster) idle() config.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cfg.Sessions.IdleTimeout
}

// inFlight tells whether requests are under way there, in this process.
func (r *roster) inFlight(id string) bool {
	return slices.ContainsFunc(r.pool.Status(), func(s pool.Status) bool { return s.ID == id && s.InFlight > 0 })
}
