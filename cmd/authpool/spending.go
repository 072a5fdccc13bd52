package main

import (
	"context"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/ratelimit/usage"
)

// spending tells the pool what the whole fleet has counted. It implements
// pool.Ledger.
type spending struct {
	store    *usage.Store
	recorder *usage.Recorder
	healthy  func() bool
}

// InPeriods implements pool.Ledger. What this process has recorded is sent first,
// so that it is in what is read; the pool counts on that.
func (s *spending) InPeriods(ctx context.Context, now time.Time, periods []usage.PeriodOf) ([]usage.PeriodCounts, error) {
	if !s.healthy() {
		return nil, redisdb.ErrAway
	}
	if s.recorder.Pending() > 0 {
		if err := s.recorder.Flush(ctx); err != nil {
			return nil, err
		}
	}
	return s.store.InPeriods(ctx, now, periods)
}

// countedRecorder lets the pool know at once what goes into the journal. It
// implements proxy.Recorder.
type countedRecorder struct {
	*usage.Recorder
	pool *pool.Pool
}

// Add counts the event for the pool before the ledger can tell of it.
func (r countedRecorder) Add(e usage.Event) error {
	r.pool.Count(&e)
	return r.Recorder.Add(e)
}
