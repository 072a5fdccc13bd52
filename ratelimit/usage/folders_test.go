package usage_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/ratelimit/usage"
)

// running is a process with a state folder of its own, which reaches Redis through a
// gate.
type running struct {
	*usage.Recorder
	dir  string
	gate *gate
}

// folders makes folders, and processes that run on them.
type folders struct {
	t      *rapid.T
	root   string
	redis  *ledger
	alarms *alarms
	made   int
	added  int
}

func (f *folders) dir() string {
	f.made++
	return filepath.Join(f.root, fmt.Sprint(f.made))
}

// copied returns a copy of a folder, as it is at this moment.
func (f *folders) copied(dir string) string {
	f.t.Helper()
	to := f.dir()
	for os.CopyFS(to, os.DirFS(dir)) != nil { // a file went meanwhile
		to = f.dir()
	}
	return to
}

// run starts a process on dir.
func (f *folders) run(dir string, shut bool) *running {
	f.t.Helper()
	j, err := usage.OpenJournal(dir, options)
	if err != nil {
		f.t.Fatal(err)
	}
	p := &running{dir: dir, gate: &gate{Applier: f.redis}}
	p.gate.shut.Store(shut)
	p.Recorder = usage.NewRecorder(j, p.gate, usage.RecorderOptions{Alarm: f.alarms.add})
	p.Start(context.Background())
	return p
}

// kill ends a process; nothing that it has not counted yet reaches Redis.
func (f *folders) kill(p *running) {
	p.gate.shut.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p.Close(ctx) //nolint:errcheck // it may not send any more, and says so
}

// add records events, each with an id of its own.
func (f *folders) add(p *running, n int) {
	f.t.Helper()
	for range n {
		e := event(time.Second)
		e.ID, e.Subscription = fmt.Sprint("event-", f.added), "team-a"
		f.added++
		if err := p.Add(e); err != nil {
			f.t.Fatal(err)
		}
	}
}

// flush lets a process send all that it has.
func (f *folders) flush(p *running) {
	f.t.Helper()
	p.gate.shut.Store(false)
	if err := p.Flush(context.Background()); err != nil {
		f.t.Fatal(err)
	}
}

// TestFoldersAreCountedOnce: whatever is copied, put back, killed and started again,
// with or without Redis meanwhile, each answer is counted once, and nothing is told to
// be lost.
func TestFoldersAreCountedOnce(t *testing.T) {
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, foldersAreCountedOnce)
		})
	}
}

func foldersAreCountedOnce(t *testing.T) {
	root, checks := t.TempDir(), 0
	rapid.Check(struct{ rapid.TB }{t}, func(t *rapid.T) {
		checks++
		f := &folders{t: t, root: filepath.Join(root, fmt.Sprint(checks)), redis: newLedger(), alarms: &alarms{}}
		processes := []*running{f.run(f.dir(), true)}
		defer func() {
			for _, p := range processes {
				f.kill(p)
			}
		}()
		var backups []string
		for range rapid.IntRange(1, 16).Draw(t, "steps") {
			i := rapid.IntRange(0, len(processes)-1).Draw(t, "process")
			p := processes[i]
			switch rapid.SampledFrom([]string{"add", "add", "add", "flush", "wait", "restart", "copy", "back up", "restore"}).Draw(t, "step") {
			case "add":
				f.add(p, rapid.IntRange(1, 5).Draw(t, "events"))
			case "flush":
				f.flush(p)
				p.gate.shut.Store(rapid.Bool().Draw(t, "shut"))
			case "wait":
				<-time.After(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 20 * time.Minute}).Draw(t, "wait"))
			case "restart":
				f.kill(p)
				processes[i] = f.run(p.dir, rapid.Bool().Draw(t, "shut"))
			case "copy":
				processes = append(processes, f.run(f.copied(p.dir), rapid.Bool().Draw(t, "shut")))
			case "back up":
				backups = append(backups, f.copied(p.dir))
			case "restore":
				if len(backups) == 0 {
					continue
				}
				f.flush(p) // what was not counted would be lost with the folder
				f.kill(p)
				processes[i] = f.run(f.copied(rapid.SampledFrom(backups).Draw(t, "backup")), rapid.Bool().Draw(t, "shut"))
			}
		}
		for _, p := range processes {
			f.flush(p)
		}
		counted := map[string]int{}
		for _, id := range f.redis.account("team-a").ids {
			counted[id]++
		}
		for i := range f.added {
			if n := counted[fmt.Sprint("event-", i)]; n != 1 {
				t.Fatalf("event %d is counted %d times", i, n)
			}
		}
		for _, alarm := range f.alarms.list {
			if !errors.Is(alarm, usage.ErrRestored) && !errors.Is(alarm, usage.ErrFenced) && !errors.Is(alarm, usage.ErrWaiting) {
				t.Fatal(alarm)
			}
		}
	})
}
