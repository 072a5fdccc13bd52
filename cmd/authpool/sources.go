package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/ratelimit/usage"
)

// sources tell the admin address what the pool, the journal and Redis know. It
// implements admin.StatusSource and admin.UsageSource.
type sources struct {
	pool     *pool.Pool
	db       *redisdb.DB
	usage    *usage.Store
	recorder *usage.Recorder
	budgets  func() map[string][]usage.Budget // by subscription
	log      *slog.Logger
}

// Status implements admin.StatusSource. What was counted comes from Redis; while
// it is away that is left out and the rest is told.
func (s *sources) Status(ctx context.Context) (admin.Status, error) {
	s.catchUp(ctx)
	s.pool.CountSessions(ctx)
	members := s.pool.Status()
	journal := s.recorder.Journal()
	status := admin.Status{
		Subscriptions: make([]admin.Subscription, 0, len(members)),
		Redis: admin.Redis{
			Mode:           s.db.Mode(),
			OK:             s.db.Healthy(),
			JournalPending: int(journal.Pending),
		},
		Journal: admin.Journal{
			Bytes: journal.Bytes, Held: journal.Held, MaxBytes: journal.Max,
			Refused: journal.Refused, Refusing: journal.Refusing,
		},
	}
	if w := journal.Oldest; w != nil {
		status.Journal.OldestPending = &admin.OldestPending{Subscription: w.Subscription, Time: w.Time}
		if w.Err != nil {
			status.Journal.OldestPending.Error = w.Err.Error()
		}
	}
	now := time.Now()
	budgets := s.budgets()
	counted := s.counted(ctx, now, members, budgets)
	for _, m := range members {
		sub := subscriptionOf(m)
		reckon(&sub, counted[m.ID], budgets[m.ID], now)
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

// counted reads what was counted by subscription; nothing while Redis is away.
func (s *sources) counted(ctx context.Context, now time.Time, members []pool.Status, budgets map[string][]usage.Budget) map[string]*stored {
	if len(members) == 0 || !s.db.Healthy() {
		return nil
	}
	ids := make([]string, 0, len(members))
	for _, m := range members {
		ids = append(ids, m.ID)
	}
	all, err := readStored(ctx, s.usage, now, ids, budgets)
	if err != nil {
		s.log.Warn("what was counted is left out of the status", "error", err)
		return nil
	}
	return all
}

// Usage implements admin.UsageSource.
func (s *sources) Usage(ctx context.Context, q usage.Query) ([]admin.UsageRow, error) {
	s.catchUp(ctx)
	sums, err := s.usage.Usage(ctx, q, time.Now())
	if errors.Is(err, redisdb.ErrAway) {
		return nil, fmt.Errorf("%w; new usage is kept in the journal, ask again when authpool status says that Redis is ok", redisdb.ErrAway)
	}
	if err != nil {
		return nil, err
	}
	rows := make([]admin.UsageRow, 0, len(sums))
	for _, r := range sums {
		rows = append(rows, admin.UsageRow{
			Key: r.Key, Requests: r.Requests, Input: r.Input, Output: r.Output, CacheRead: r.CacheRead,
			CacheWrite5m: r.CacheWrite5m, CacheWrite1h: r.CacheWrite1h, CostUSD: admin.NanoUSD(r.CostNanoUSD),
			Estimated: r.Estimated, Unpriced: r.Unpriced, Unknown: r.Unknown,
			Reasoning: r.Reasoning, Units: maps.Collect(r.Units.All()),
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
		Domain:         m.Domain,
		CooldownUntil:  moment(m.CooldownUntil),
		CooldownModels: m.CooldownModels,
		Breaker:        m.Breaker,
		Sessions:       m.Sessions,
		InFlight:       m.InFlight,
		Score: explain.Score{
			Total: m.Score.Total, Availability: m.Score.Availability, Headroom: m.Score.Headroom,
			Soundness: m.Score.Soundness, Swiftness: m.Score.Swiftness, Idleness: m.Score.Idleness,
		},
	}
	if m.FirstByte > 0 {
		took := explain.Seconds(m.FirstByte)
		sub.FirstByte = &took
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
