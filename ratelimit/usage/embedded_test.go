package usage_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/pool/redisdb/embedded"
	"github.com/authpool/authpool/ratelimit/usage"
)

// TestEmbeddedSnapshotIsOlder: the process was killed after it had counted events
// that no snapshot holds. The next start sends them again, without a new event.
func TestEmbeddedSnapshotIsOlder(t *testing.T) {
	tmp := t.TempDir()
	dir, snapshot, older := filepath.Join(tmp, "journal"), filepath.Join(tmp, "snapshot"), filepath.Join(tmp, "older")
	open := func() *redisdb.DB {
		t.Helper()
		db, err := redisdb.Open(t.Context(), redisdb.Options{Mode: redisdb.Embedded, Embedded: embedded.Options{Snapshot: snapshot}})
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	closed := func(r *usage.Recorder, db *redisdb.DB) {
		t.Helper()
		stop(t, r)
		if err := db.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	db := open()
	r, _ := start(t, dir, usage.NewStore(db.Client(), "authpool"))
	add(t, r, "team-a", 150)
	flush(t, r)
	if err := db.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(snapshot, older); err != nil {
		t.Fatal(err)
	}
	add(t, r, "team-a", 75)
	add(t, r, "team-b", 5)
	flush(t, r)
	wantCounted(t, db.Client(), "team-a", 225)
	closed(r, db)

	moveFile(t, older, snapshot)
	db = open()
	wantCounted(t, db.Client(), "team-a", 150)
	r, a := start(t, dir, usage.NewStore(db.Client(), "authpool"))
	eventually(t, r, func() bool { return counted(t, db.Client(), "team-a") == 225 && counted(t, db.Client(), "team-b") == 5 })
	store := usage.NewStore(db.Client(), "authpool")
	for _, by := range []usage.By{usage.BySubscription, usage.ByModel, usage.ByDay, usage.ByBlock, usage.ByAgent, usage.BySession} {
		sums, err := store.Usage(t.Context(), usage.Query{By: by}, epoch)
		var total int64
		for _, row := range sums {
			total += row.Requests
		}
		if err != nil || total != 230 {
			t.Errorf("by %s: %d requests, %v; want 230", by, total, err)
		}
	}
	a.want(t)
	closed(r, db)
}
