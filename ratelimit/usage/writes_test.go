package usage_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/pool/redisdb/embedded"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// replayed reads a journal's log of writes.
func replayed(t testing.TB, j *usage.Journal, after int64) (numbers []int64, entries []string) {
	t.Helper()
	if err := j.Writes().Replay(after, func(number int64, entry []byte) error {
		numbers, entries = append(numbers, number), append(entries, string(entry))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return numbers, entries
}

func appendWrites(t testing.TB, j *usage.Journal, entries ...string) (last int64) {
	t.Helper()
	for _, e := range entries {
		number, err := j.Writes().Append([]byte(e))
		if err != nil {
			t.Fatal(err)
		}
		last = number
	}
	if err := j.Writes().Sync(); err != nil {
		t.Fatal(err)
	}
	return last
}

// TestWritesComeBack: entries stand among events, over many segments, and a start
// reads those that are wanted. Events do not see them.
func TestWritesComeBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir := filepath.Join(t.TempDir(), "journal")
		small := usage.JournalOptions{Sync: time.Hour, Max: usage.MinJournal, Keep: time.Hour}
		j := openJournal(t, dir, small)
		if numbers, _ := replayed(t, j, 0); len(numbers) > 0 {
			t.Fatalf("a fresh log has %v", numbers)
		}
		r := usage.NewRecorder(j, usage.NewStore(client, "authpool"), usage.RecorderOptions{})
		var want []string
		for i := range 20 {
			want = append(want, strings.Repeat(fmt.Sprint(i), 100*i))
			appendWrites(t, j, want[i])
			add(t, r, "team-a", 5)
		}
		if n := len(segments(t, dir)); n < 3 {
			t.Fatalf("%d segments", n)
		}
		crashed := copyDir(t, dir) // what was answered is there
		stop(t, r)

		j = openJournal(t, crashed, small)
		numbers, entries := replayed(t, j, 7)
		if !slices.Equal(entries, want[7:]) || numbers[0] != 8 || numbers[12] != 20 {
			t.Errorf("read back %v", numbers)
		}
		if n := appendWrites(t, j, "next"); n != 21 {
			t.Errorf("the next entry is number %d", n)
		}
		a := &alarms{}
		r = usage.NewRecorder(j, usage.NewStore(client, "authpool"), usage.RecorderOptions{Alarm: a.add})
		r.Start(t.Context())
		flush(t, r)
		wantCounted(t, client, "team-a", 100)
		stop(t, r)
		a.want(t)
	})
}

// TestWritesAreNumberedOn: the snapshot knows more entries than the journal, as when
// segments have gone. New entries are not taken for old ones.
func TestWritesAreNumberedOn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j := openJournal(t, dir, options)
	replayed(t, j, 41)
	if n := appendWrites(t, j, "a", "b"); n != 43 {
		t.Errorf("the second entry is number %d, want 43", n)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = openJournal(t, dir, options)
	if numbers, _ := replayed(t, j, 42); !slices.Equal(numbers, []int64{43}) {
		t.Errorf("read back %v", numbers)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTornWrite cuts the journal at every length: what is left of the entries is
// their beginning, whole.
func TestTornWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j := openJournal(t, dir, options)
	replayed(t, j, 0)
	want := []string{"one", "two", "three"}
	appendWrites(t, j, want...)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := segments(t, dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		torn := copyDir(t, dir)
		if err := os.WriteFile(filepath.Join(torn, filepath.Base(path)), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j := openJournal(t, torn, options)
		numbers, entries := replayed(t, j, 0)
		if !slices.Equal(entries, want[:len(entries)]) || cut == len(whole) && len(entries) != len(want) {
			t.Fatalf("cut at %d: %q", cut, entries)
		}
		if n := appendWrites(t, j, "more"); n != int64(len(numbers))+1 {
			t.Fatalf("cut at %d: the next entry is number %d", cut, n)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteIsRefused(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "journal"), usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal})
	if _, err := j.Writes().Append(make([]byte, usage.MaxWrite+1)); err == nil {
		t.Error("it takes a write that no reader would")
	}
	var err error
	for err == nil {
		_, err = j.Writes().Append(make([]byte, 1000))
	}
	if !errors.Is(err, usage.ErrJournalFull) {
		t.Errorf("a full journal says %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Writes().Append(nil); !errors.Is(err, usage.ErrJournalClosed) {
		t.Errorf("a closed journal says %v", err)
	}
}

// TestEmbeddedLetsGoOfWhatIsSaved: with an embedded Redis counted segments go only
// when a snapshot has what they hold, usage and writes.
func TestEmbeddedLetsGoOfWhatIsSaved(t *testing.T) {
	tmp := t.TempDir()
	dir, snapshot := filepath.Join(tmp, "journal"), filepath.Join(tmp, "snapshot")
	opts := usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal} // nothing is kept that may go
	open := func(dir, snapshot string) (*usage.Journal, *redisdb.DB) {
		t.Helper()
		j := openJournal(t, dir, opts)
		db, err := redisdb.Open(t.Context(), redisdb.Options{Mode: redisdb.Embedded, Embedded: embedded.Options{
			Snapshot: snapshot, Interval: time.Hour, Log: j.Writes(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		return j, db
	}
	j, db := open(dir, snapshot)
	a := &alarms{}
	var saves atomic.Int64
	broken := errors.New("the disk is broken")
	r := usage.NewRecorder(j, usage.NewStore(db.Client(), "authpool"), usage.RecorderOptions{
		Alarm: a.add,
		Save: func(context.Context) error {
			saves.Add(1)
			return broken
		},
	})
	ctx := t.Context()
	if err := db.Durable().Set(ctx, "told", "safe", 0).Err(); err != nil {
		t.Fatal(err)
	}
	add(t, r, "team-a", 250)
	was := len(segments(t, dir))
	r.Start(ctx)
	flush(t, r)
	flush(t, r)
	if n := len(segments(t, dir)); saves.Load() == 0 || n < was {
		t.Fatalf("%d segments of %d are left although nothing could be saved (%d times tried)", n, was, saves.Load())
	}
	a.want(t, broken) // once

	// A crash now finds all of it in the journal.
	j2, db2 := open(copyDir(t, dir), filepath.Join(t.TempDir(), "none"))
	if v := db2.Client().Get(ctx, "told").Val(); v != "safe" {
		t.Errorf("got %q", v)
	}
	r2 := usage.NewRecorder(j2, usage.NewStore(db2.Client(), "authpool"), usage.RecorderOptions{})
	r2.Start(ctx)
	eventually(t, r2, func() bool { return counted(t, db2.Client(), "team-a") == 250 })
	stop(t, r2)
	if err := db2.Close(ctx); err != nil {
		t.Fatal(err)
	}

	// And when it could be saved, in the snapshot.
	stop(t, r)
	if err := db.Close(ctx); err != nil { // saves at last
		t.Fatal(err)
	}
	j, db = open(dir, snapshot)
	r = usage.NewRecorder(j, usage.NewStore(db.Client(), "authpool"), usage.RecorderOptions{Alarm: a.add, Save: db.Save})
	r.Start(ctx)
	eventually(t, r, func() bool { return len(segments(t, dir)) == 1 })
	saved := filepath.Join(t.TempDir(), "snapshot")
	content, err := os.ReadFile(snapshot)
	if err == nil {
		err = os.WriteFile(saved, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	j2, db2 = open(copyDir(t, dir), saved)
	wantCounted(t, db2.Client(), "team-a", 250)
	if v := db2.Client().Get(ctx, "told").Val(); v != "safe" {
		t.Errorf("got %q", v)
	}
	if err := errors.Join(db2.Close(ctx), j2.Close()); err != nil {
		t.Fatal(err)
	}
	stop(t, r)
	if err := db.Close(ctx); err != nil {
		t.Fatal(err)
	}
	a.want(t, broken)
}
