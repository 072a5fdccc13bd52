package redisdb

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens a DB that ends with the test.
func open(t *testing.T, opts Options) *DB {
	t.Helper()
	opts.Logger = slog.New(slog.DiscardHandler)
	db, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatalf("cannot open %v: %v", opts.Mode, err)
	}
	t.Cleanup(func() {
		if err := db.Close(context.Background()); err != nil {
			t.Errorf("cannot close: %v", err)
		}
	})
	return db
}

// ups returns a channel that receives each time db comes back.
func ups(db *DB) <-chan struct{} {
	up := make(chan struct{}, 16)
	db.OnUp(func() { up <- struct{}{} })
	return up
}

// await fails the test when up does not receive in a time that only a broken
// prober needs.
func await(t *testing.T, up <-chan struct{}) {
	t.Helper()
	select {
	case <-up:
	case <-time.After(30 * time.Second):
		t.Fatal("Redis answers again and nobody noticed")
	}
}
