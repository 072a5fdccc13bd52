package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

// sources tell the admin address what the pool, the journal and Redis know. It
// implements admin.StatusSource and admin.UsageSource.
type sources struct {
	pool     *pool.Pool
	db       *redisdb.DB
	usage    *usage.Store
	recorder *usage.Recorder
	log      *slog.Logger
}

// Status implements admin.StatusSource. Only the blocks come from Redis; while
// it is away they are left out and the rest is told.
func (s *sources) Status(ctx context.Context) (admin.Status, error) {
	s.catchUp(ctx)
	members := s.pool.Status()
	status := admin.Status{
		Subscriptions: make([]admin.Subscription, 0, len(members)),
		Redis: admin.Redis{
			Mode:           s.db.Mode(),
			OK:             s.db.Healthy(),
			JournalPending: int(s.recorder.Pending()),
		},
	}
	blocks := s.activeBlocks(ctx, members)
	for _, m := range members {
		sub := subscriptionOf(m)
		if b, ok := blocks[m.ID]; ok {
			sub.Block = blockOf(b)
		}
		status.Subscriptions = append(status.Subscriptions, sub)
	}
	return status, nil
}

// catchUpWait bounds how long a look at the numbers waits for the events that the
// journal holds back a moment to send them in order.
const catchUpWait = time.Second

// catchUp lets a person who asks right after an answer find it counted. Numbers
// that are a second old are still worth showing, so that it cannot fail.
func (s *sources) catchUp(ctx context.Context) {
	if !s.db.Healthy() || s.recorder.Pending() == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpWait)
	defer cancel()
	if err := s.recorder.Flush(ctx); err != nil {
		s.log.Debug("the numbers told may be a moment old", "error", err)
	}
}

// activeBlocks reads the active blocks by subscription; none while Redis is
// away.
func (s *sources) activeBlocks(ctx context.Context, members []pool.Status) map[string]usage.Block {
	if len(members) == 0 || !s.db.Healthy() {
		return nil
	}
	ids := make([]string, 0, len(members))
	for _, m := range members {
		ids = append(ids, m.ID)
	}
	blocks, err := s.usage.Now(ctx, time.Now(), ids...)
	if err != nil {
		s.log.Warn("the active blocks are left out of the status", "error", err)
		return nil
	}
	return blocks
}

func blockOf(b usage.Block) *admin.Block {
	return &admin.Block{
		Start: b.Start, End: b.End, Requests: b.Requests, Input: b.Input, Output: b.Output, CacheRead: b.CacheRead,
		CacheWrite5m: b.CacheWrite5m, CacheWrite1h: b.CacheWrite1h, CostUSD: admin.NanoUSD(b.CostNanoUSD),
	}
}

// Usage implements admin.UsageSource.
func (s *sources) Usage(ctx context.Context, q usage.Query) ([]admin.UsageRow, error) {
	s.catchUp(ctx)
	sums, err := s.usage.Usage(ctx, q, time.Now())
	if err != nil {
		return nil, err
	}
	rows := make([]admin.UsageRow, 0, len(sums))
	for _, r := range sums {
		rows = append(rows, admin.UsageRow{
			Key: r.Key, Requests: r.Requests, Input: r.Input, Output: r.Output, CacheRead: r.CacheRead,
			CacheWrite5m: r.CacheWrite5m, CacheWrite1h: r.CacheWrite1h, CostUSD: admin.NanoUSD(r.CostNanoUSD),
			Estimated: r.Estimated, Unpriced: r.Unpriced, Unknown: r.Unknown,
		})
	}
	return rows, nil
}

// subscriptionOf brings the pool's view into the API's words.
func subscriptionOf(m pool.Status) admin.Subscription {
	sub := admin.Subscription{
		ID:             m.ID,
		Provider:       m.Provider,
		State:          string(m.State),
		Reason:         m.Reason,
		Health:         m.Health,
		CooldownUntil:  moment(m.CooldownUntil),
		CooldownModels: m.CooldownModels,
		Breaker:        m.Breaker,
		Sessions:       m.Sessions,
		InFlight:       m.InFlight,
	}
	for _, w := range m.Windows {
		sub.Windows = append(sub.Windows, admin.Window{
			Name: w.Name, Kind: w.Kind, Utilization: w.Utilization, Status: w.Status,
			Reset: moment(w.Reset), Seen: w.Seen,
		})
	}
	return sub
}

// moment is nil for the zero time.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
