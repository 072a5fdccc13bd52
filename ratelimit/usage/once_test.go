package usage_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/ratelimit/usage"
)

// ledger is a Redis in memory that remembers which events it has counted, and can
// fail and forget in every way that matters.
type ledger struct {
	mu    sync.Mutex
	state map[string]*account // by subscription
	fail  func() failure      // drawn for each call
	calls []call
}

type account struct {
	writers map[string]entry
	ids     []string
}

type entry struct {
	last  int64
	lives usage.Lives
}

type call struct {
	at     time.Time
	events int
}

type failure int

const (
	works failure = iota
	lostRequest
	lostAnswer
)

var errNetwork = errors.New("the network failed")

func newLedger() *ledger {
	return &ledger{state: map[string]*account{}, fail: func() failure { return works }}
}

func (l *ledger) account(sub string) *account {
	a := l.state[sub]
	if a == nil {
		a = &account{writers: map[string]entry{}}
		l.state[sub] = a
	}
	return a
}

// counted returns the ids of the events that are counted.
func (l *ledger) counted(sub string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.account(sub).ids)
}

// snapshot returns a copy of the state, to be put back later.
func (l *ledger) snapshot() map[string]*account {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := map[string]*account{}
	for sub, a := range l.state {
		s[sub] = &account{maps.Clone(a.writers), slices.Clone(a.ids)}
	}
	return s
}

func (l *ledger) restore(s map[string]*account) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
}

// shared returns up to which number two folders have the same events: to where the
// first life began that comes, on either side, after the last one of both; -1 when
// none of both is left.
func shared(a, b usage.Lives) int64 {
	last := func(of, in usage.Lives) int {
		for i, life := range slices.Backward(of) {
			if slices.ContainsFunc(in, func(l usage.Life) bool { return l.ID == life.ID }) {
				return i
			}
		}
		return -1
	}
	i, j := last(a, b), last(b, a)
	fork := int64(math.MaxInt64)
	if i < 0 && (a[0].After > 0 || b[0].After > 0) {
		return -1
	}
	if i+1 < len(a) {
		fork = min(fork, a[i+1].After)
	}
	if j+1 < len(b) {
		fork = min(fork, b[j+1].After)
	}
	return fork
}

func (l *ledger) Apply(_ context.Context, b usage.Batch) (usage.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, call{time.Now(), len(b.Events)})
	f := l.fail()
	if f == lostRequest {
		return usage.Result{}, errNetwork
	}
	a := l.account(b.Subscription)
	w := a.writers[b.Writer]
	skip := w.last + 1 - b.First
	r := usage.Result{Last: w.last}
	switch {
	case w.last > 0 && w.last > shared(b.Lives, w.lives):
		r.Outcome, r.Fork = usage.Fenced, shared(b.Lives, w.lives)
	case skip < 0:
		r.Outcome = usage.Gap
	case skip >= int64(len(b.Events)):
		r.Outcome = usage.Duplicate
	default:
		for _, e := range b.Events[skip:] {
			a.ids = append(a.ids, e.ID)
		}
		r.Last += int64(len(b.Events)) - skip
		r.Applied = int64(len(b.Events)) - skip
		a.writers[b.Writer] = entry{r.Last, b.Lives}
	}
	if f == lostAnswer {
		return usage.Result{}, errNetwork
	}
	return r, nil
}

// TestExactlyOnce: whatever the network, Redis and the process do, each event that
// was added is counted once. A check takes an hour of the bubble's time and rapid
// stops after a day: hence some bubbles.
func TestExactlyOnce(t *testing.T) {
	for i := range 5 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, exactlyOnce)
		})
	}
}

func exactlyOnce(t *testing.T) {
	root, runs := t.TempDir(), 0
	// Without Deadline, which a bubble does not allow.
	rapid.Check(struct{ rapid.TB }{t}, func(t *rapid.T) {
		runs++
		tmp := filepath.Join(root, fmt.Sprint(runs))
		l := newLedger()
		odds := rapid.IntRange(0, 4).Draw(t, "failures of ten")
		var draws sync.Mutex
		dice := rapid.SliceOfN(rapid.IntRange(0, 9), 64, 64).Draw(t, "dice")
		l.fail = func() failure {
			draws.Lock()
			defer draws.Unlock()
			d := dice[0]
			dice = append(dice[1:], d)
			switch {
			case d >= odds:
				return works
			case d%2 == 0:
				return lostRequest
			}
			return lostAnswer
		}
		raised := &alarms{}
		dir := filepath.Join(tmp, "journal")
		open := func() *usage.Recorder {
			j, err := usage.OpenJournal(dir, usage.JournalOptions{Sync: time.Millisecond, Max: 16 << 20, Keep: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			r := usage.NewRecorder(j, l, usage.RecorderOptions{Hold: time.Second, Alarm: raised.add})
			r.Start(context.Background())
			return r
		}
		flush := func(r *usage.Recorder) {
			if err := r.Flush(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		r := open()
		want := map[string][]string{}
		n := 0
		saved := l.snapshot()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"add", "add", "wait", "flush", "restart", "crash", "save", "lose"}).Draw(t, "step") {
			case "add":
				sub := rapid.SampledFrom([]string{"team-a", "team-b"}).Draw(t, "subscription")
				for range rapid.SampledFrom([]int{1, 5, 100, 250, usage.MaxBatch, usage.MaxBatch + 1}).Draw(t, "events") {
					e := usage.Event{ID: fmt.Sprint(n), Subscription: sub, Time: int64(n)}
					n++
					if err := r.Add(e); err != nil {
						t.Fatal(err)
					}
					want[sub] = append(want[sub], e.ID)
				}
			case "wait":
				<-time.After(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, time.Minute}).Draw(t, "wait"))
			case "flush":
				flush(r)
			case "restart", "crash":
				crashed := filepath.Join(tmp, fmt.Sprint("crashed", n, len(raised.list)))
				copied := os.CopyFS(crashed, os.DirFS(dir)) == nil // fails when a file goes meanwhile
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				r.Close(ctx) //nolint:errcheck // it may not send any more, and says so
				if copied && rapid.Bool().Draw(t, "as the crash left it") {
					if err := errors.Join(os.RemoveAll(dir), os.Rename(crashed, dir)); err != nil {
						t.Fatal(err)
					}
				}
				r = open()
			case "save":
				saved = l.snapshot()
			case "lose":
				l.restore(saved)
				saved = l.snapshot()
			}
		}
		flush(r)
		// An idle subscription whose counts were lost is found out in time.
		<-time.After(time.Hour)
		flush(r)
		if err := r.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		for sub, ids := range want {
			if got := l.account(sub).ids; !slices.Equal(got, ids) {
				t.Fatalf("%s: counted %d events %v, want %d %v", sub, len(got), brief(got), len(ids), brief(ids))
			}
		}
		if len(raised.list) > 0 {
			t.Fatalf("alarms: %v", raised.list)
		}
	})
}

func brief(ids []string) string {
	if len(ids) > 20 {
		return fmt.Sprint(ids[:10], "...", ids[len(ids)-10:])
	}
	return fmt.Sprint(ids)
}

// TestHold: an event waits a second for others, a full batch does not.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := usage.NewRecorder(openJournal(t, filepath.Join(t.TempDir(), "journal"), options), l, usage.RecorderOptions{Hold: time.Second})
		r.Start(t.Context())
		start := time.Now()
		add(t, r, "team-a", 1)
		<-time.After(500 * time.Millisecond)
		add(t, r, "team-a", 1)
		<-time.After(time.Second)
		synctest.Wait()
		// The first one asks where Redis stands.
		if len(l.calls) != 2 || l.calls[0].events != 0 || l.calls[1].events != 2 {
			t.Fatalf("the calls are %v, want one with both events", l.calls)
		}
		if waited := l.calls[1].at.Sub(start); waited < time.Second || waited > time.Second+50*time.Millisecond {
			t.Errorf("sent after %v, want the hold", waited)
		}
		add(t, r, "team-a", usage.MaxBatch)
		<-time.After(200 * time.Millisecond)
		synctest.Wait()
		if len(l.calls) != 3 || l.calls[2].events != usage.MaxBatch {
			t.Errorf("the calls are %v, want a full batch at once", l.calls)
		}
		stop(t, r)
	})
}

// TestBackoff: while Redis is away it is asked less and less often, and never more
// than a call at a time.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := usage.NewRecorder(openJournal(t, filepath.Join(t.TempDir(), "journal"), options), l, usage.RecorderOptions{})
		r.Start(t.Context())
		for i := range 10 {
			add(t, r, fmt.Sprint("team-", i), 1)
		}
		flush(t, r)
		l.fail = func() failure { return lostRequest }
		l.calls = nil
		for i := range 10 {
			add(t, r, fmt.Sprint("team-", i), 1)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		// The first round tries all; then 0.1, 0.2, ... up to 5 s, less jitter.
		if n := len(l.calls); n < 20 || n > 10+40 {
			t.Errorf("%d calls in a minute without Redis", n)
		}
		l.mu.Lock()
		l.fail = func() failure { return works }
		l.mu.Unlock()
		back := time.Now()
		flush(t, r)
		if d := time.Since(back); d > 6*time.Second {
			t.Errorf("it took %v to notice that Redis is back", d)
		}
		stop(t, r)
	})
}

// TestWindowIsBounded: a long outage does not read the journal into memory.
func TestWindowIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		l.fail = func() failure { return lostRequest }
		opts := usage.JournalOptions{Sync: time.Millisecond, Max: 64 << 20, Keep: time.Hour}
		r := usage.NewRecorder(openJournal(t, filepath.Join(t.TempDir(), "journal"), opts), l, usage.RecorderOptions{})
		r.Start(t.Context())
		for i := range 30_000 {
			e := usage.Event{ID: fmt.Sprint(i), Subscription: fmt.Sprint("team-", i%3), Time: int64(i)}
			if err := r.Add(e); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if n := usage.Windowed(r); n > 8192 {
			t.Errorf("%d events in memory", n)
		}
		l.mu.Lock()
		l.fail = func() failure { return works }
		l.mu.Unlock()
		flush(t, r)
		for sub, a := range l.state {
			if len(a.ids) != 10_000 {
				t.Errorf("%s: %d events", sub, len(a.ids))
			}
		}
		stop(t, r)
	})
}
