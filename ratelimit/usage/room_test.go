package usage_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

// TestRoom fills the journal while Redis is away, and lets it come back: what is
// refused is told before it begins, when it begins and when it has ended, each once,
// and the state shows it.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		l.fail = func() failure { return lostRequest }
		a := &alarms{}
		small := usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal, Keep: time.Hour}
		r := usage.NewRecorder(openJournal(t, filepath.Join(t.TempDir(), "journal"), small), l, usage.RecorderOptions{Alarm: a.add})
		r.Start(t.Context())
		e := usage.Event{Subscription: "team-a"}
		began := time.Now()
		addUntil := func(done func(usage.JournalState) bool) (taken int64, refused error) {
			for !done(r.Journal()) {
				e.Time = time.Now().UnixMilli()
				if err := r.Add(e); err != nil {
					refused = err
				} else {
					taken++
				}
				synctest.Wait() // the loop makes what room it can
			}
			<-time.After(3 * time.Second)
			synctest.Wait()
			return taken, refused
		}

		taken, err := addUntil(func(s usage.JournalState) bool { return s.Bytes >= usage.MinJournal*7/10 })
		a.want(t)
		if s := r.Journal(); err != nil || s.Held != s.Bytes || s.Max != usage.MinJournal || s.Pending != taken || s.Refusing ||
			s.Oldest == nil || s.Oldest.Time.UnixMilli() != began.UnixMilli() {
			t.Fatalf("at seven tenths: %+v, %v", s, err)
		}
		n, err := addUntil(func(s usage.JournalState) bool { return s.Bytes >= usage.MinJournal*9/10 })
		taken += n
		if err != nil {
			t.Fatal(err)
		}
		a.want(t, usage.ErrNearlyFull)
		n, err = addUntil(func(s usage.JournalState) bool { return s.Refused == 7 })
		taken += n
		a.want(t, usage.ErrNearlyFull, usage.ErrJournalFull)
		if s := r.Journal(); !errors.Is(err, usage.ErrJournalFull) || !s.Refusing || s.Pending != taken || s.Bytes > s.Max {
			t.Fatalf("full: %+v, %v", s, err)
		}
		<-time.After(time.Hour)
		a.want(t, usage.ErrNearlyFull, usage.ErrJournalFull, usage.ErrWaiting)

		l.mu.Lock()
		l.fail = func() failure { return works }
		l.mu.Unlock()
		flush(t, r)
		<-time.After(3 * time.Second) // the oldest segments go, although Keep is not over
		synctest.Wait()
		if s := r.Journal(); s.Refusing || s.Held != 0 {
			t.Errorf("there is room again, and nobody has asked yet: %+v", s)
		}
		a.want(t, usage.ErrNearlyFull, usage.ErrJournalFull, usage.ErrWaiting, usage.ErrGap)
		if err := r.Add(e); err != nil {
			t.Fatal(err)
		}
		flush(t, r)
		<-time.After(2 * time.Second)
		a.want(t, usage.ErrNearlyFull, usage.ErrJournalFull, usage.ErrWaiting, usage.ErrGap)
		if s := a.list[3].Error(); !strings.HasPrefix(s, "7 answers since ") {
			t.Errorf("the alarm says %q", s)
		}
		if s := r.Journal(); s.Refusing || s.Refused != 7 || s.Pending != 0 || s.Oldest != nil || s.Held != 0 {
			t.Errorf("afterwards: %+v", s)
		}
		if got := int64(len(l.state["team-a"].ids)); got != taken+1 {
			t.Errorf("counted %d events of %d", got, taken+1)
		}

		// The next time is told anew.
		l.mu.Lock()
		l.fail = func() failure { return lostRequest }
		l.mu.Unlock()
		if _, err := addUntil(func(s usage.JournalState) bool { return s.Refused == 8 }); !errors.Is(err, usage.ErrJournalFull) {
			t.Errorf("full again: %v", err)
		}
		a.want(t, usage.ErrNearlyFull, usage.ErrJournalFull, usage.ErrWaiting, usage.ErrGap, usage.ErrNearlyFull, usage.ErrJournalFull)
		l.mu.Lock()
		l.fail = func() failure { return works }
		l.mu.Unlock()
		stop(t, r)
	})
}

// TestVerifyAsksAtOnce: Redis has lost its last writes while no event came. Told
// that it was away, the recorder finds out without waiting.
func TestVerifyAsksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := usage.NewRecorder(openJournal(t, filepath.Join(t.TempDir(), "journal"), options), l, usage.RecorderOptions{})
		r.Start(t.Context())
		add(t, r, "team-a", 3)
		add(t, r, "team-b", 4)
		flush(t, r)
		l.restore(map[string]*account{})
		<-time.After(options.Keep / 8)
		synctest.Wait()
		if len(l.state) != 0 {
			t.Fatal("it was found out before anybody told: the test proves nothing")
		}
		r.Verify()
		<-time.After(time.Second)
		synctest.Wait()
		if a, b := len(l.account("team-a").ids), len(l.account("team-b").ids); a != 3 || b != 4 {
			t.Errorf("%d and %d events, want 3 and 4", a, b)
		}
		stop(t, r)
	})
}

// TestKeepCountsFromTheCount: events that Redis took late are kept as long as
// others, in case that it loses them again.
func TestKeepCountsFromTheCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		l.fail = func() failure { return lostRequest }
		dir := filepath.Join(t.TempDir(), "journal")
		opts := usage.JournalOptions{Sync: time.Millisecond, Max: usage.MinJournal, Keep: time.Hour}
		r := usage.NewRecorder(openJournal(t, dir, opts), l, usage.RecorderOptions{})
		r.Start(t.Context())
		add(t, r, "team-a", 300)
		was := len(segments(t, dir))
		<-time.After(3 * time.Hour)
		l.mu.Lock()
		l.fail = func() failure { return works }
		l.mu.Unlock()
		flush(t, r)
		<-time.After(50 * time.Minute)
		if n := len(segments(t, dir)); n != was || n < 3 {
			t.Errorf("%d segments of %d are left before Keep is over", n, was)
		}
		<-time.After(20 * time.Minute)
		if n := len(segments(t, dir)); n != 1 {
			t.Errorf("%d segments are left after Keep", n)
		}
		stop(t, r)
	})
}

// slow is a Redis that takes its time.
type slow struct{ *ledger }

func (s slow) Apply(ctx context.Context, b usage.Batch) (usage.Result, error) {
	time.Sleep(time.Second) // of the bubble
	return s.ledger.Apply(ctx, b)
}

// TestLongReplayMakesRoomOnItsWay: after a long outage what is counted is let go
// while the rest is still being sent.
func TestLongReplayMakesRoomOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "journal")
		opts := usage.JournalOptions{Sync: time.Millisecond, Max: 64 * usage.MinJournal}
		r := usage.NewRecorder(openJournal(t, dir, opts), slow{newLedger()}, usage.RecorderOptions{})
		for r.Journal().Bytes < opts.Max/2 {
			add(t, r, "team-a", 100)
		}
		all := r.Pending()
		was := len(segments(t, dir))
		r.Start(t.Context())
		// One call asks where Redis stands.
		<-time.After(time.Duration(1+all/usage.MaxBatch-2) * time.Second)
		synctest.Wait()
		left := r.Pending()
		if n := len(segments(t, dir)); n >= was || left == 0 {
			t.Errorf("%d segments of %d are left with %d events of %d to go", n, was, left, all)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := r.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		stop(t, r)
	})
}
