package usage_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

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

// TestCrashRightAfterRedisIsBack: of the life that was the first for long to reach
// Redis, no more may be on disk than that it did: it dies before it has saved how far
// it came.
func TestCrashRightAfterRedisIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, store, told := filepath.Join(t.TempDir(), "journal"), newLedger(), &alarms{}
		events := 0
		// live returns the folder as it is in the moment of the crash, after at most wait.
		live := func(shut bool, wait time.Duration, counted int) string {
			g := &gate{Applier: store}
			g.shut.Store(shut)
			r := usage.NewRecorder(openJournal(t, dir, options), g, usage.RecorderOptions{Alarm: told.add, Hold: time.Millisecond})
			r.Start(context.Background())
			add(t, r, "team-a", 1)
			events++
			for begun := time.Now(); time.Since(begun) < wait; time.Sleep(time.Millisecond) {
				if synctest.Wait(); len(store.counted("team-a")) >= counted {
					break
				}
			}
			crash := copyDir(t, dir)
			g.shut.Store(true)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			r.Close(ctx) //nolint:errcheck // it may not send, and says so
			return crash
		}
		dir = live(false, time.Second, 1)
		for round := range 3 {
			for range 12 {
				dir = live(true, 10*time.Millisecond, events+1)
			}
			dir = live(false, time.Second, events+1)
			if n := len(store.counted("team-a")); n != events {
				t.Fatalf("round %d: %d of %d events are counted", round, n, events)
			}
			if round == 2 { // Redis is there, and nobody gets to know what it has counted
				for range 12 {
					dir = live(false, time.Second, events+1)
				}
			}
		}
		dir = live(false, time.Minute, events+1)
		if n := len(store.counted("team-a")); n != events {
			t.Errorf("%d of %d events are counted", n, events)
		}
		told.want(t)
	})
}

// asked is a Redis that tells what it has counted, and counts nothing more.
type asked struct{ usage.Applier }

func (a asked) Apply(ctx context.Context, b usage.Batch) (usage.Result, error) {
	if len(b.Events) > 0 {
		return usage.Result{}, errors.New("it hangs")
	}
	return a.Applier.Apply(ctx, b)
}

// TestAnyLivesAreKnown: whatever a crashing process came to in each of its lives, Redis
// knows it again.
func TestAnyLivesAreKnown(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, store, told := filepath.Join(t.TempDir(), "journal"), newLedger(), &alarms{}
		events := 0
		var plan []string
		for range rapid.IntRange(1, 3).Draw(rt, "kinds") {
			life := rapid.SampledFrom([]string{
				"away", "away, gives one", "asks", "asks, gives one", "counts", "counts, gives one",
			}).Draw(rt, "life")
			plan = append(plan, slices.Repeat([]string{life}, rapid.SampledFrom([]int{1, 9}).Draw(rt, "times"))...)
		}
		synctest.Test(t, func(t *testing.T) {
			for _, life := range append(plan, "counts, gives one") {
				g := &gate{Applier: store}
				does, gives := strings.CutSuffix(life, ", gives one")
				g.shut.Store(does == "away")
				if does == "asks" {
					g.Applier = asked{store}
				}
				r := usage.NewRecorder(openJournal(t, dir, options), g, usage.RecorderOptions{Alarm: told.add, Hold: time.Millisecond})
				if gives {
					add(t, r, "team-a", 1)
					events++
				}
				r.Start(context.Background())
				for begun := time.Now(); time.Since(begun) < 300*time.Millisecond; time.Sleep(time.Millisecond) {
					if synctest.Wait(); does == "counts" && len(store.counted("team-a")) >= events {
						break
					}
				}
				progress := filepath.Join(dir, "progress.json")
				saved, err := os.ReadFile(progress) // as it is in the moment of the crash
				if err != nil {
					t.Fatal(err)
				}
				g.shut.Store(true)
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				r.Close(ctx) //nolint:errcheck // it may not send, and says so
				if err := os.WriteFile(progress, saved, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
		if n := len(store.counted("team-a")); n != events {
			rt.Errorf("%d of %d events are counted", n, events)
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
