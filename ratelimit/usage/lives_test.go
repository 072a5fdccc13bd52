package usage_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

// TestCrashesWhileRedisIsAway: a process that dies again and again, and gives numbers
// each time, is still known to Redis by what it had counted before.
func TestCrashesWhileRedisIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, store, told := filepath.Join(t.TempDir(), "journal"), newLedger(), &alarms{}
		run := func(shut bool) (*usage.Recorder, *gate) {
			g := &gate{Applier: store}
			g.shut.Store(shut)
			r := usage.NewRecorder(openJournal(t, dir, options), g, usage.RecorderOptions{Alarm: told.add})
			r.Start(context.Background())
			return r, g
		}
		lives := func() int {
			for _, e := range store.account("team-a").writers {
				return len(e.lives)
			}
			return 0
		}
		r, _ := run(false)
		add(t, r, "team-a", 1)
		stop(t, r)
		for range 3 {
			r, _ = run(false) // a life that gives no number
			stop(t, r)
		}
		r, _ = run(false)
		add(t, r, "team-a", 1)
		stop(t, r)
		if lives() != 2 {
			t.Errorf("Redis is told of %d lives, want the two that gave numbers", lives())
		}
		for range 12 {
			r, g := run(true)
			add(t, r, "team-a", 1)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			r.Close(ctx) //nolint:errcheck // it may not send, and says so
			g.shut.Store(false)
		}
		r, _ = run(false)
		add(t, r, "team-a", 1)
		stop(t, r)
		if n := len(store.account("team-a").ids); n != 15 || lives() != 8 {
			t.Errorf("%d of 15 events are counted, by %d lives, want 8", n, lives())
		}
		told.want(t)
	})
}

// TestCopyAfterAFailOver: Redis has lost what one folder had counted, and a copy of
// it comes first. What was lost is counted again.
func TestCopyAfterAFailOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, store, told := filepath.Join(t.TempDir(), "journal"), newLedger(), &alarms{}
		added := 0
		record := func(r *usage.Recorder, n int) {
			t.Helper()
			for range n {
				added++
				if err := r.Add(usage.Event{ID: fmt.Sprint(added), Subscription: "team-a", Time: time.Now().UnixMilli()}); err != nil {
					t.Fatal(err)
				}
			}
		}
		run := func(dir string) *usage.Recorder {
			r := usage.NewRecorder(openJournal(t, dir, options), store, usage.RecorderOptions{Alarm: told.add})
			r.Start(context.Background())
			return r
		}
		r := run(dir)
		record(r, 10)
		flush(t, r)
		replica, copied := store.snapshot(), copyDir(t, dir)
		record(r, 5)
		flush(t, r)
		store.restore(replica)
		r2 := run(copied)
		record(r2, 3)
		flush(t, r2)
		record(r, 1)
		flush(t, r)
		<-time.After(time.Minute)
		synctest.Wait()
		counted := map[string]int{}
		for _, id := range store.account("team-a").ids {
			counted[id]++
		}
		for i := range added {
			if n := counted[fmt.Sprint(i+1)]; n != 1 {
				t.Errorf("event %d is counted %d times", i+1, n)
			}
		}
		told.want(t, usage.ErrFenced)
		stop(t, r)
		stop(t, r2)
	})
}

// TestWherePartedIsNotKnown: who missed more lives of the other folder than are kept
// goes on after what it knows as counted: nothing of its own is lost.
func TestWherePartedIsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, store, told := filepath.Join(t.TempDir(), "journal"), newLedger(), &alarms{}
		run := func(dir string) *usage.Recorder {
			r := usage.NewRecorder(openJournal(t, dir, options), store, usage.RecorderOptions{Alarm: told.add})
			r.Start(context.Background())
			return r
		}
		r := run(dir)
		add(t, r, "team-a", 10)
		flush(t, r)
		copied := copyDir(t, dir)
		for range 9 {
			r2 := run(copied)
			add(t, r2, "team-a", 1)
			stop(t, r2)
		}
		add(t, r, "team-a", 5)
		flush(t, r)
		if n := len(store.account("team-a").ids); n != 10+9+5 {
			t.Errorf("%d events are counted, want 24", n)
		}
		told.want(t, usage.ErrFenced)
		stop(t, r)
	})
}
