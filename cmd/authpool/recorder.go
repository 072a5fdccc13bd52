package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/ratelimit/usage"
)

// journalFolder holds the usage journal in the state folder.
const journalFolder = "journal"

// recorderHold is how long an event waits for others of its subscription: long
// enough for batches in the order of time, short enough that `usage` is fresh.
const recorderHold = time.Second

// newRecorderFromConfig opens the journal and begins to bring it to Redis. What
// a former process left in it is sent first.
func newRecorderFromConfig(ctx context.Context, c config.Journal, dir *statedir.Dir, applier usage.Applier, log *slog.Logger) (*usage.Recorder, error) {
	journal, err := usage.OpenJournal(filepath.Join(dir.Path(), journalFolder), usage.JournalOptions{
		Sync: c.Sync.Interval,
		Max:  int64(c.Max),
		Keep: time.Duration(c.Keep),
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open the usage journal: %w", err)
	}
	if r := journal.Recovery(); r != (usage.Recovery{}) {
		log.Warn("the journal was left by a crash", "torn_bytes", r.Torn, "damaged_bytes", r.Damaged, "answers_estimated", r.Estimated)
	}
	recorder := usage.NewRecorder(journal, applier, usage.RecorderOptions{
		Hold:  recorderHold,
		Alarm: func(err error) { log.Error("usage alarm", "error", err) },
	})
	recorder.Start(context.WithoutCancel(ctx)) // Close ends it, after everything that records
	return recorder, nil
}
