package usage_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// unstarted returns a Recorder that sends nothing, over the journal in dir.
func unstarted(t testing.TB, dir string, opts usage.JournalOptions) *usage.Recorder {
	t.Helper()
	r := usage.NewRecorder(openJournal(t, dir, opts), nil, usage.RecorderOptions{})
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestTornTail cuts the journal at every length and finds every event whose record
// is whole.
func TestTornTail(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	r := unstarted(t, dir, options)
	var ends []int64 // file size after each event
	seg := func() string { s := segments(t, dir); return s[len(s)-1] }
	for range 3 {
		add(t, r, "team-a", 1)
		info, err := os.Stat(seg())
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, info.Size())
	}
	stop(t, r)
	whole, err := os.ReadFile(seg())
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(seg())
	for cut := range len(whole) + 1 {
		torn := copyDir(t, dir)
		if err := os.WriteFile(filepath.Join(torn, name), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		var want, size int64
		size = int64(len("apjrnl\x00\x01"))
		for _, end := range ends {
			if int64(cut) >= end {
				want, size = want+1, end
			}
		}
		if int64(cut) < size {
			size = 0 // not even the head is whole
		}
		j := openJournal(t, torn, options)
		if got := j.Recovery(); got != (usage.Recovery{Torn: int64(cut) - size}) {
			t.Fatalf("cut at %d: recovered %+v, want %d torn bytes", cut, got, int64(cut)-size)
		}
		r := usage.NewRecorder(j, nil, usage.RecorderOptions{})
		if r.Pending() != want {
			t.Fatalf("cut at %d: %d events, want %d", cut, r.Pending(), want)
		}
		stop(t, r)
	}
}

// TestDamagedSegment: a bit flips inside an older segment. What is readable
// arrives, the rest is told.
func TestDamagedSegment(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir := filepath.Join(t.TempDir(), "journal")
		small := usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal, Keep: time.Hour}
		r := unstarted(t, dir, small)
		add(t, r, "team-a", 400)
		stop(t, r)
		segs := segments(t, dir)
		if len(segs) < 3 {
			t.Fatalf("%d segments", len(segs))
		}
		data, err := os.ReadFile(segs[0])
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(segs[0], data, 0o600); err != nil {
			t.Fatal(err)
		}

		j := openJournal(t, dir, small)
		if rec := j.Recovery(); rec.Damaged == 0 || rec.Torn != 0 {
			t.Errorf("recovered %+v, want damaged bytes", rec)
		}
		a := &alarms{}
		r = usage.NewRecorder(j, usage.NewStore(client, "authpool"), usage.RecorderOptions{Alarm: a.add})
		r.Start(t.Context())
		flush(t, r)
		a.want(t, usage.ErrLost)
		if n := counted(t, client, "team-a"); n < 200 || n > 399 {
			t.Errorf("counted %d of 400", n)
		}
		add(t, r, "team-a", 1)
		flush(t, r)
		stop(t, r)
	})
}

// TestOpenAnswers: what was open without an end when the process died becomes an
// estimated event, once; what came to nothing becomes none.
func TestOpenAnswers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir := filepath.Join(t.TempDir(), "journal")
		store := usage.NewStore(client, "authpool")
		r := unstarted(t, dir, options)
		open := func(id string, output int64) usage.Event {
			e := event(time.Second)
			e.ID, e.Subscription, e.Tokens = id, "team-a", usage.Tokens{Output: output}
			return e
		}
		for _, e := range []usage.Event{open("ended", 1), open("void", 5), open("cut", 10), open("cut", 100), open("cut too", 1000)} {
			if err := r.Open(e); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Add(open("ended", 10_000)); err != nil {
			t.Fatal(err)
		}
		if err := r.Void("void"); err != nil {
			t.Fatal(err)
		}
		stop(t, r)

		j := openJournal(t, dir, options)
		if rec := j.Recovery(); rec != (usage.Recovery{Estimated: 2}) {
			t.Fatalf("recovered %+v, want 2 estimated", rec)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		r, _ = start(t, dir, store)
		flush(t, r)
		month := client.HGetAll(t.Context(), "authpool:{team-a}:month:2096-02").Val()
		if month["requests"] != "3" || month["estimated"] != "2" || month["output"] != "11100" {
			t.Errorf("counted %v", month)
		}
	})
}

// TestBound: a full journal refuses events, keeps what is not counted, and takes
// events again once Redis has taken the old ones.
func TestBound(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir := filepath.Join(t.TempDir(), "journal")
		gate := &gate{Applier: usage.NewStore(client, "authpool")}
		gate.shut.Store(true)
		small := usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal, Keep: time.Hour}
		a := &alarms{}
		r := usage.NewRecorder(openJournal(t, dir, small), gate, usage.RecorderOptions{Alarm: a.add})
		r.Start(t.Context())
		fill := func() (n int) {
			e := event(time.Second)
			e.Subscription = "team-a"
			for {
				err := r.Add(e)
				if errors.Is(err, usage.ErrJournalFull) {
					return n
				}
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
		}
		n := fill()
		var size int64
		for _, seg := range segments(t, dir) {
			info, err := os.Stat(seg)
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		if size > usage.MinJournal || size < usage.MinJournal*9/10 {
			t.Errorf("the full journal takes %d bytes of %d", size, usage.MinJournal)
		}
		if r.Pending() != int64(n) {
			t.Errorf("%d pending of %d", r.Pending(), n)
		}
		gate.shut.Store(false)
		for range 3 {
			flush(t, r)
			wantCounted(t, client, "team-a", n)
			// Counted segments go although they are young.
			eventually(t, r, func() bool { return len(segments(t, dir)) <= 7 })
			n += fill()
		}
		flush(t, r)
		wantCounted(t, client, "team-a", n)
		stop(t, r)
		for _, err := range a.list { // see TestRoom
			if !errors.Is(err, usage.ErrNearlyFull) && !errors.Is(err, usage.ErrJournalFull) && !errors.Is(err, usage.ErrGap) {
				t.Errorf("alarm: %v", err)
			}
		}
	})
}

// TestFullJournalOpens: a process that was killed when the journal was full, with
// answers under way, is followed by one that starts and counts them.
func TestFullJournalOpens(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	small := usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal, Keep: time.Hour}
	r := unstarted(t, dir, small)
	e := event(time.Second)
	e.Subscription = "team-a"
	var opened int
	for ; opened < 50; opened++ {
		e.ID = fmt.Sprint("under way ", opened)
		if err := r.Open(e); err != nil {
			t.Fatal(err)
		}
	}
	e.ID = "ended"
	for r.Add(e) == nil {
		continue
	}
	full := copyDir(t, dir)
	j := openJournal(t, full, small)
	if rec := j.Recovery(); rec != (usage.Recovery{Estimated: opened}) {
		t.Errorf("recovered %+v, want %d estimated", rec, opened)
	}
	r = usage.NewRecorder(j, nil, usage.RecorderOptions{})
	if err := r.Add(e); !errors.Is(err, usage.ErrJournalFull) {
		t.Errorf("afterwards it takes more: %v", err)
	}
	stop(t, r)
}

// TestEndedStaysEnded: two answers begin in the same segment, and one of them ends
// in a later one. Though the other goes on, the segments go, and after a crash only
// that one is under way.
func TestEndedStaysEnded(t *testing.T) {
	f := func(name string, end func(*usage.Recorder, usage.Event) error, want int64) {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "journal")
			l := newLedger()
			opts := usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal}
			r := usage.NewRecorder(openJournal(t, dir, opts), l, usage.RecorderOptions{})
			r.Start(t.Context())
			e := event(time.Second)
			e.Subscription = "team-a"
			for _, id := range []string{"ends", "goes on"} {
				// What was told last holds, also of those carried on.
				for _, e.Tokens.Output = range []int64{1, 77} {
					e.ID = id
					if err := r.Open(e); err != nil {
						t.Fatal(err)
					}
				}
			}
			first := segments(t, dir)[0]
			add(t, r, "team-a", 150) // two segments
			e.ID = "ends"
			if err := end(r, e); err != nil {
				t.Fatal(err)
			}
			add(t, r, "team-a", 300)
			flush(t, r)
			eventually(t, r, func() bool {
				_, err := os.Stat(first)
				return errors.Is(err, os.ErrNotExist) && len(segments(t, dir)) <= 2
			})
			crashed := copyDir(t, dir)
			stop(t, r)
			j := openJournal(t, crashed, opts)
			if rec := j.Recovery(); rec != (usage.Recovery{Estimated: 1}) {
				t.Errorf("recovered %+v, want the one that goes on", rec)
			}
			r = usage.NewRecorder(j, l, usage.RecorderOptions{})
			r.Start(t.Context())
			flush(t, r)
			stop(t, r)
			if n := int64(len(l.state["team-a"].ids)); n != want {
				t.Errorf("counted %d, want %d", n, want)
			}
		})
	}
	f("event", func(r *usage.Recorder, e usage.Event) error { return r.Add(e) }, 452)
	f("void", func(r *usage.Recorder, e usage.Event) error { return r.Void(e.ID) }, 451)
}

// TestKeep: counted segments go once they are older than Keep; of an answer under
// way only its record stays.
func TestKeep(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir := filepath.Join(t.TempDir(), "journal")
		opts := usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal}
		r := usage.NewRecorder(openJournal(t, dir, opts), usage.NewStore(client, "authpool"), usage.RecorderOptions{})
		r.Start(t.Context())
		add(t, r, "team-a", 300)
		e := event(time.Second)
		e.ID, e.Subscription = "under way", "team-a"
		if err := r.Open(e); err != nil {
			t.Fatal(err)
		}
		add(t, r, "team-a", 300)
		flush(t, r)
		eventually(t, r, func() bool { return len(segments(t, dir)) == 1 })
		stop(t, r)

		j := openJournal(t, dir, opts)
		if rec := j.Recovery(); rec != (usage.Recovery{Estimated: 1}) {
			t.Errorf("recovered %+v, want the answer that was under way", rec)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSyncAlways(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	r := unstarted(t, dir, usage.JournalOptions{Max: 1 << 20})
	add(t, r, "team-a", 20)
	if r.Pending() != 20 {
		t.Errorf("%d pending, want 20", r.Pending())
	}
}

// TestSyncAlwaysWaitsForEvents: with a disk that hangs, answers begin and come to
// nothing all the same; only those that end wait for it.
func TestSyncAlwaysWaitsForEvents(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "journal"), usage.JournalOptions{Max: 1 << 20})
	r := usage.NewRecorder(j, nil, usage.RecorderOptions{})
	release := usage.HoldDisk(j)
	e := event(time.Second)
	e.ID, e.Subscription = "ends", "team-a"
	done := make(chan error, 1)
	go func() {
		done <- errors.Join(r.Open(e), r.Open(usage.Event{ID: "void"}), r.Void("void"))
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		release()
		t.Fatal("an answer that begins waits for the disk")
	}
	go func() { done <- r.Add(e) }()
	for r.Pending() == 0 { // then it is written
		runtime.Gosched()
	}
	for range 10_000 {
		runtime.Gosched()
	}
	select {
	case err := <-done:
		t.Errorf("an event does not wait for the disk: %v", err)
		release()
	default:
		release()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	stop(t, r)
}

func TestOpenJournalFaults(t *testing.T) {
	f := func(name string, opts usage.JournalOptions, prepare func(dir string), want string) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "journal")
		stop(t, unstarted(t, dir, options))
		prepare(dir)
		_, err := usage.OpenJournal(dir, opts)
		if err == nil || !strings.HasPrefix(err.Error(), "cannot open the usage journal in "+dir+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	progress := func(text string) func(string) {
		return func(dir string) {
			if err := os.WriteFile(filepath.Join(dir, "progress.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	f("too small", usage.JournalOptions{Max: 1000}, func(string) {}, "at least 65536")
	f("damaged progress", options, progress("{"), "to start anew")
	f("newer progress", options, progress(`{"version": 2, "writer": "x"}`), "version 2")
}

// TestFolderIsPrivate: names of agents and sessions are nobody else's business.
func TestFolderIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	stop(t, unstarted(t, dir, options))
	r := unstarted(t, dir, options)
	add(t, r, "team-a", 1)
	for _, path := range append(segments(t, dir), dir, filepath.Join(dir, "progress.json")) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
}
