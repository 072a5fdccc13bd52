package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/ratelimit/usage"
)

// journalFolder holds the usage journal in the state folder.
const journalFolder = "journal"

// recorderHold is how long an event waits for others of its subscription: long
// enough for batches in the order of time, short enough that `usage` is fresh.
const recorderHold = time.Second

// openJournalFromConfig opens the journal and tells what a crash has left in it.
func openJournalFromConfig(c config.Journal, dir *statedir.Dir, log *slog.Logger) (*usage.Journal, error) {
	journal, err := usage.OpenJournal(filepath.Join(dir.Path(), journalFolder), usage.JournalOptions{
		Sync: c.Sync.Interval,
		Max:  int64(c.Max),
		Keep: time.Duration(c.Keep),
	})
	if err != nil {
		return nil, err
	}
	if r := journal.Recovery(); r != (usage.Recovery{}) {
		log.Warn("the journal was left by a crash", "torn_bytes", r.Torn, "damaged_bytes", r.Damaged, "answers_estimated", r.Estimated)
	}
	return journal, nil
}

// startRecorder begins to bring the journal to Redis. What a former process left
// in it is sent first. What was counted is let go only when db has it safe, and when
// db comes back from being away it is asked what it still has.
func startRecorder(ctx context.Context, journal *usage.Journal, applier usage.Applier, db *redisdb.DB, events *event.Bus, log *slog.Logger) *usage.Recorder {
	recorder := usage.NewRecorder(journal, applier, usage.RecorderOptions{
		Hold: recorderHold,
		Save: db.Save,
		Alarm: func(err error) {
			log.Error("usage alarm", "error", err)
			events.Emit(usageAlarm(err))
		},
	})
	db.OnUp(recorder.Verify)
	recorder.Start(context.WithoutCancel(ctx)) // Close ends it, after everything that records
	return recorder
}
