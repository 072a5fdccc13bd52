package usage_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

var options = usage.JournalOptions{Sync: time.Millisecond, Max: 1 << 20, Keep: time.Hour}

func openJournal(t testing.TB, dir string, opts usage.JournalOptions) *usage.Journal {
	t.Helper()
	j, err := usage.OpenJournal(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// alarms gathers what a Recorder raises.
type alarms struct {
	mu   sync.Mutex
	list []error
}

func (a *alarms) add(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, err)
}

// want fails unless exactly these alarms were raised.
func (a *alarms) want(t testing.TB, want ...error) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	ok := len(a.list) == len(want)
	for i := range want {
		ok = ok && errors.Is(a.list[i], want[i])
	}
	if !ok {
		t.Fatalf("the alarms are %v, want %v", a.list, want)
	}
}

// start opens the journal in dir and a started Recorder over it, which ends with
// the test unless it is closed before.
func start(t testing.TB, dir string, store usage.Applier) (*usage.Recorder, *alarms) {
	t.Helper()
	a := &alarms{}
	r := usage.NewRecorder(openJournal(t, dir, options), store, usage.RecorderOptions{Alarm: a.add})
	r.Start(context.Background())
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		r.Close(ctx) //nolint:errcheck // closed already, or there is no Redis any more
	})
	return r, a
}

func stop(t testing.TB, r *usage.Recorder) {
	t.Helper()
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func flush(t testing.TB, r *usage.Recorder) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := r.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n := r.Pending(); n != 0 {
		t.Fatalf("%d events pending after a flush", n)
	}
}

// add records n events of a subscription, numbered from first by their input
// tokens' sum being one each.
func add(t testing.TB, r *usage.Recorder, sub string, n int) {
	t.Helper()
	for range n {
		e := event(time.Second)
		e.Subscription = sub
		if err := r.Add(e); err != nil {
			t.Fatal(err)
		}
	}
}

// counted returns the requests that Redis has counted for a subscription.
func counted(t testing.TB, client redis.UniversalClient, sub string) int {
	t.Helper()
	n, err := client.HGet(context.Background(), "authpool:{"+sub+"}:month:2096-02", "requests").Int()
	if err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
	return n
}

func wantCounted(t testing.TB, client redis.UniversalClient, sub string, want int) {
	t.Helper()
	if got := counted(t, client, sub); got != want {
		t.Fatalf("Redis has counted %d events of %s, want %d", got, sub, want)
	}
}

func TestRecorder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir, store := filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool")
		r, a := start(t, dir, store)
		add(t, r, "team-a", 250)
		add(t, r, "team-b", 3)
		flush(t, r)
		wantCounted(t, client, "team-a", 250)
		wantCounted(t, client, "team-b", 3)
		stop(t, r)
		if err := r.Add(event(0)); !errors.Is(err, usage.ErrJournalClosed) {
			t.Errorf("Add after Close gave %v", err)
		}

		// A restart sends nothing twice and goes on with the same writer.
		r, a2 := start(t, dir, store)
		add(t, r, "team-a", 5)
		flush(t, r)
		wantCounted(t, client, "team-a", 255)
		if n := client.HLen(t.Context(), "authpool:{team-a}:writers").Val(); n != 1 {
			t.Errorf("%d writers, want 1", n)
		}
		a.want(t)
		a2.want(t)
	})
}

// TestProgressMayLag: what was counted but not noted is sent again and not counted
// again.
func TestProgressMayLag(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir, store := filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool")
		r, _ := start(t, dir, store)
		add(t, r, "team-a", 10)
		flush(t, r)
		before := copyDir(t, dir)
		add(t, r, "team-a", 120)
		flush(t, r)
		stop(t, r)

		// The segments are of now, the progress is of before.
		moveFile(t, filepath.Join(before, "progress.json"), filepath.Join(dir, "progress.json"))
		r, a := start(t, dir, store)
		add(t, r, "team-a", 1)
		flush(t, r)
		wantCounted(t, client, "team-a", 131)
		a.want(t)
	})
}

// TestRedisAway: Redis stops for a while and comes back empty. All the time events
// are taken, and in the end all are there.
func TestRedisAway(t *testing.T) {
	server := redistest.NewServer(t)
	client := server.Client()
	r, a := start(t, filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool"))
	add(t, r, "team-a", 30)
	add(t, r, "team-idle", 2)
	flush(t, r)
	server.Stop()
	add(t, r, "team-a", 200)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := r.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a flush without Redis gave %v", err)
	}
	if n := r.Pending(); n != 200 {
		t.Fatalf("%d pending, want 200", n)
	}
	server.Start()
	// team-a's next batch meets a gap, team-idle is asked for.
	eventually(t, r, func() bool { return counted(t, client, "team-a") == 230 && counted(t, client, "team-idle") == 2 })
	flush(t, r)
	a.want(t)
}

// TestRedisLostItsLastWrites: it comes back with what was saved before.
func TestRedisLostItsLastWrites(t *testing.T) {
	server := redistest.NewServer(t)
	client := server.Client()
	r, a := start(t, filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool"))
	add(t, r, "team-a", 130)
	flush(t, r)
	if err := client.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	add(t, r, "team-a", 170)
	add(t, r, "team-b", 7)
	flush(t, r)
	server.Stop()
	server.Start()
	wantCounted(t, client, "team-a", 130)
	add(t, r, "team-a", 1)
	flush(t, r)
	wantCounted(t, client, "team-a", 301)
	eventually(t, r, func() bool { return counted(t, client, "team-b") == 7 })
	a.want(t)
}

// eventually waits until ok holds, looking each time the recorder has done
// something: there is nothing of it to wait for from outside.
func eventually(t testing.TB, r *usage.Recorder, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !ok() {
		if err := r.Flush(ctx); err != nil {
			t.Fatalf("it did not come: %v", err)
		}
	}
}

// TestCopiedFolder: two processes write from copies of one folder, with events that
// had not been counted when it was copied.
func TestCopiedFolder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir, store := filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool")
		gate := &gate{Applier: store}
		r, a := start(t, dir, gate)
		add(t, r, "team-a", 10)
		flush(t, r)
		gate.shut.Store(true)
		add(t, r, "team-a", 20) // both have these
		flushNothing(t, r)
		dir2 := copyDir(t, dir)
		add(t, r, "team-a", 40) // only the original has these

		r2, a2 := start(t, dir2, store)
		add(t, r2, "team-a", 80)
		flush(t, r2)
		wantCounted(t, client, "team-a", 10+20+80)
		gate.shut.Store(false)
		flush(t, r)
		wantCounted(t, client, "team-a", 10+20+80+40)
		add(t, r, "team-a", 1)
		add(t, r2, "team-a", 1)
		flush(t, r)
		flush(t, r2)
		wantCounted(t, client, "team-a", 10+20+80+40+2)
		a.want(t, usage.ErrFenced)
		a2.want(t)

		// The new writer is remembered.
		stop(t, r)
		r, a = start(t, dir, store)
		add(t, r, "team-a", 1)
		flush(t, r)
		wantCounted(t, client, "team-a", 10+20+80+40+3)
		a.want(t)
	})
}

// TestRestoredFolder: the folder is put back to an older state of itself.
func TestRestoredFolder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir, store := filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool")
		r, _ := start(t, dir, store)
		add(t, r, "team-a", 10)
		flush(t, r)
		old := copyDir(t, dir)
		add(t, r, "team-a", 20)
		stop(t, r)

		r, a := start(t, old, store)
		add(t, r, "team-a", 5)
		flush(t, r)
		wantCounted(t, client, "team-a", 35)
		a.want(t, usage.ErrRestored)
	})
}

// TestJournalTooShortForRedis: Redis lost more than the journal still has.
func TestJournalTooShortForRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir, store := filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool")
		r, _ := start(t, dir, store)
		add(t, r, "team-a", 10)
		stop(t, r)
		for _, seg := range segments(t, dir) {
			removeFile(t, seg)
		}
		r, _ = start(t, dir, store)
		add(t, r, "team-a", 7)
		stop(t, r)
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}

		r, a := start(t, dir, store)
		add(t, r, "team-a", 5)
		flush(t, r)
		wantCounted(t, client, "team-a", 12)
		a.want(t, usage.ErrLost)
		if s := a.list[0].Error(); !strings.HasPrefix(s, "10 events of team-a: ") {
			t.Errorf("the alarm says %q, want the number of events", s)
		}
		if n := client.HLen(t.Context(), "authpool:{team-a}:writers").Val(); n != 1 {
			t.Errorf("%d writers, want the new one", n)
		}
	})
}

// TestOneBadSubscription: what Redis refuses for one subscription does not keep the
// others waiting, and arrives when it is mended.
func TestOneBadSubscription(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		r, a := start(t, filepath.Join(t.TempDir(), "journal"), store)
		bad := "authpool:{team-bad}:writers"
		if err := client.Set(t.Context(), bad, "not a hash", 0).Err(); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			add(t, r, "team-bad", 150)
			add(t, r, "team-a", 150)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		go func() {
			defer cancel()
			for counted(t, client, "team-a") < 750 && ctx.Err() == nil {
				r.Flush(ctx) //nolint:errcheck // it cannot succeed: the loop's condition is what counts
			}
		}()
		for counted(t, client, "team-a") < 750 && ctx.Err() == nil {
			// However slow the machine is, the journal must not be full before.
			if r.Pending() < 2000 {
				add(t, r, "team-bad", 1)
				add(t, r, "team-b", 1)
			}
		}
		wantCounted(t, client, "team-a", 750)
		if err := client.Del(t.Context(), bad).Err(); err != nil {
			t.Fatal(err)
		}
		flush(t, r)
		if n := counted(t, client, "team-bad"); n < 750 {
			t.Errorf("%d events of the mended subscription", n)
		}
		a.want(t)
	})
}

// TestCloseTellsWhatStays: without Redis, Close returns in time and names what is
// left, and the next start brings it.
func TestCloseTellsWhatStays(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		dir, store := filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool")
		gate := &gate{Applier: store}
		gate.shut.Store(true)
		r, _ := start(t, dir, gate)
		add(t, r, "team-a", 4)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		err := r.Close(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "4 events stay in "+dir) {
			t.Errorf("got %v", err)
		}
		r, _ = start(t, dir, store)
		if n := r.Pending(); n > 4 {
			t.Errorf("%d pending", n)
		}
		flush(t, r)
		wantCounted(t, client, "team-a", 4)
	})
}

// TestManySubscriptionsInterleaved also reads the order of what arrives: within one
// subscription numbers have no hole.
func TestManySubscriptionsInterleaved(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		r, a := start(t, filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool"))
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for k := range 200 {
					add(t, r, fmt.Sprintf("team-%d", (i+k)%20), 1)
				}
			})
		}
		wg.Wait()
		flush(t, r)
		for i := range 20 {
			wantCounted(t, client, fmt.Sprintf("team-%d", i), 80)
		}
		a.want(t)
	})
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	return paths
}
