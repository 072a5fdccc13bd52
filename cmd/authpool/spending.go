package main

import (
	"context"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/ratelimit/usage"
)

// spending tells the pool what the whole fleet has counted. It implements
// pool.Ledger and agents.Ledger.
type spending struct {
	store    *usage.Store
	recorder *usage.Recorder
	healthy  func() bool
}

// InPeriods implements pool.Ledger. What this process has recorded is sent first,
// so that it is in what is read; the pool counts on that.
func (s *spending) InPeriods(ctx context.Context, now time.Time, periods []usage.PeriodOf) ([]usage.PeriodCounts, error) {
	if err := s.flush(ctx); err != nil {
		return nil, err
	}
	return s.store.InPeriods(ctx, now, periods)
}

// AgentDays implements agents.Ledger, as InPeriods does pool.Ledger.
func (s *spending) AgentDays(ctx context.Context, days []usage.AgentDay) ([]usage.Counts, error) {
	if err := s.flush(ctx); err != nil {
		return nil, err
	}
	return s.store.AgentDays(ctx, days)
}

func (s *spending) flush(ctx context.Context) error {
	if !s.healthy() {
		return redisdb.ErrAway
	}
	if s.recorder.Pending() > 0 {
		return s.recorder.Flush(ctx)
	}
	return nil
}

// countedRecorder lets the pool and the agents know at once what goes into the journal. It
// implements proxy.Recorder.
type countedRecorder struct {
	*usage.Recorder
	pool   *pool.Pool
	agents *agents.Book
}

// Add counts the event for them before the ledger can tell of it.
func (r countedRecorder) Add(e usage.Event) error {
	r.pool.Count(&e)
	r.agents.Count(&e)
	return r.Recorder.Add(e)
}
