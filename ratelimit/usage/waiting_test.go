package usage_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

// refusing is a Redis that counts nothing of some subscriptions.
type refusing struct {
	*ledger
	mu   sync.Mutex
	subs []string
}

var errTryAgain = errors.New("TRYAGAIN Multiple keys request during rehashing of slot")

func (r *refusing) set(subs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subs = subs
}

func (r *refusing) Apply(ctx context.Context, b usage.Batch) (usage.Result, error) {
	r.mu.Lock()
	refused := slices.Contains(r.subs, b.Subscription)
	r.mu.Unlock()
	if refused {
		return usage.Result{}, errTryAgain
	}
	return r.ledger.Apply(ctx, b)
}

// TestUsageThatWaitsIsTold: what Redis does not take of a subscription for five
// minutes is told once, by name and with the reason, and seen all the time.
func TestUsageThatWaitsIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, store, told := filepath.Join(t.TempDir(), "journal"), &refusing{ledger: newLedger()}, &alarms{}
		run := func() *usage.Recorder {
			r := usage.NewRecorder(openJournal(t, dir, options), store, usage.RecorderOptions{Hold: time.Second, Alarm: told.add})
			r.Start(context.Background())
			return r
		}
		record := func(r *usage.Recorder, sub string) {
			t.Helper()
			if err := r.Add(usage.Event{ID: sub + time.Now().String(), Subscription: sub, Time: time.Now().UnixMilli()}); err != nil {
				t.Fatal(err)
			}
		}
		wait := func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		}
		oldest := func(r *usage.Recorder, sub string, at time.Time) {
			t.Helper()
			if w := r.Journal().Oldest; w == nil || w.Subscription != sub || !w.Time.Equal(at.Truncate(time.Millisecond)) || !errors.Is(w.Err, errTryAgain) {
				t.Errorf("the oldest is %+v, want %s of %s", w, sub, at)
			}
		}

		r := run()
		// It is refused already when it has nothing to count.
		record(r, "team-a")
		record(r, "team-bad")
		flush(t, r)
		store.set("team-bad")
		wait(time.Hour)
		since := time.Now()
		for range 4 {
			record(r, "team-bad")
			record(r, "team-a")
			wait(time.Minute)
		}
		oldest(r, "team-bad", since)
		told.want(t)
		wait(2 * time.Minute)
		told.want(t, usage.ErrWaiting)
		if s := told.list[0].Error(); !strings.HasPrefix(s, "team-bad since "+since.UTC().Format(time.RFC3339)+": ") || !errors.Is(told.list[0], errTryAgain) {
			t.Errorf("the alarm says %q", s)
		}
		for range 10 {
			record(r, "team-a")
			record(r, "team-bad")
			wait(time.Minute)
		}
		oldest(r, "team-bad", since)
		told.want(t, usage.ErrWaiting)

		// It ends, and begins again: in a process that finds what waits when it starts.
		store.set()
		flush(t, r)
		if w := r.Journal().Oldest; w != nil {
			t.Errorf("%+v waits after a flush", w)
		}
		store.set("team-bad")
		since = time.Now()
		record(r, "team-bad")
		wait(4 * time.Minute)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		r.Close(ctx) //nolint:errcheck // it may not send any more, and says so
		wait(time.Hour)
		r = run()
		wait(4 * time.Minute)
		oldest(r, "team-bad", since)
		told.want(t, usage.ErrWaiting)
		wait(2 * time.Minute)
		told.want(t, usage.ErrWaiting, usage.ErrWaiting)

		// Redis as a whole: one alarm is enough, and it is there. Who still waits when
		// it takes usage again is told.
		store.set("team-a", "team-b", "team-bad")
		record(r, "team-a")
		record(r, "team-b")
		wait(12 * time.Minute)
		told.want(t, usage.ErrWaiting, usage.ErrWaiting)
		store.set("team-a")
		for range 11 {
			record(r, "team-b")
			wait(time.Minute)
		}
		told.want(t, usage.ErrWaiting, usage.ErrWaiting, usage.ErrWaiting)
		if s := told.list[2].Error(); !strings.HasPrefix(s, "team-a since ") || !errors.Is(told.list[2], errTryAgain) {
			t.Errorf("the alarm says %q", s)
		}
		store.set()
		stop(t, r)
	})
}

// TestStartSendsWhatIsLeft: what a former process could not send is sent without
// waiting for the next answer.
func TestStartSendsWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, store := filepath.Join(t.TempDir(), "journal"), newLedger()
		r := usage.NewRecorder(openJournal(t, dir, options), store, usage.RecorderOptions{})
		add(t, r, "team-a", 3)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r.Close(ctx) //nolint:errcheck // it was never started
		r = usage.NewRecorder(openJournal(t, dir, options), store, usage.RecorderOptions{})
		r.Start(t.Context())
		<-time.After(10 * time.Second)
		synctest.Wait()
		if n := len(store.account("team-a").ids); n != 3 || r.Pending() != 0 {
			t.Errorf("%d of 3 events are counted, %d wait", n, r.Pending())
		}
		stop(t, r)
	})
}
