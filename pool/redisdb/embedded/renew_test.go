package embedded

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
)

// setAll and deleteAll write many keys in one call.
var (
	setAll = redis.NewScript(`for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do redis.call('SET', 'authpool:{sub}:recent:' .. i, '1') end`)
	delAll = redis.NewScript(`for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do redis.call('DEL', 'authpool:{sub}:recent:' .. i) end`)
)

// churn makes n keys and ends them, in batches, each seen by a save.
func churn(t testing.TB, s *Store, client redis.UniversalClient, n int) {
	t.Helper()
	const batch = 10_000
	for first := 0; first < n; first += batch {
		for _, script := range []*redis.Script{setAll, delAll} {
			if err := script.Run(t.Context(), client, nil, first, first+batch-1).Err(); err != nil && !errors.Is(err, redis.Nil) {
				t.Fatal(err)
			}
			if err := s.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// miniredis keeps something of every key that it ever had. Keys that come and go
// must not fill the process.
func TestDeadKeysAreForgotten(t *testing.T) {
	s, client := open(t, Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot"), Interval: time.Hour})
	fill(t, client, 1000)
	want := contents(t, client)
	churn(t, s, client, renewAfter)
	before := heap()
	churn(t, s, client, 4*renewAfter)
	if grown := heap() - before; grown > 2*renewAfter*100 {
		t.Errorf("the process grew by %d bytes over %d keys that ended", grown, 4*renewAfter)
	}
	got := contents(t, client)
	if len(got) != 1000 || len(want) != 1000 {
		t.Errorf("%d keys of %d are left", len(got), len(want))
	}
}

// renewNow does what a save does after many keys have ended.
func renewNow(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.saving.Lock()
	defer s.saving.Unlock()
	if err := s.renew(); err != nil {
		t.Fatal(err)
	}
}

// Renewal loses no write, also none that is made during it.
func TestRenewalLosesNoWrite(t *testing.T) {
	s, client := open(t, Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot"), Interval: time.Hour})
	ctx := t.Context()
	fill(t, client, 1000)
	stop := make(chan struct{})
	var writer sync.WaitGroup
	written := 0
	writer.Go(func() {
		for {
			if err := addAll.Run(ctx, client, []string{"authpool:{a}:now"}, 1).Err(); err != nil {
				t.Error(err)
				return
			}
			written++
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for range 20 {
		renewNow(t, s)
	}
	close(stop)
	writer.Wait()
	if n, err := client.HGet(ctx, "authpool:{a}:now", "field20").Int(); n != written || err != nil {
		t.Errorf("%d of %d writes are left, %v", n, written, err)
	}
	if err := s.Save(ctx); err != nil {
		t.Fatal(err)
	}
	_, copied := open(t, copyOf(t, s.opts.Snapshot))
	if n, err := copied.HGet(ctx, "authpool:{a}:now", "field20").Int(); n != written || err != nil {
		t.Errorf("the snapshot has %d of %d writes, %v", n, written, err)
	}
	if n := copied.DBSize(ctx).Val(); n != 1001 {
		t.Errorf("%d keys", n)
	}
}

// withoutTimes cuts the times to live off, which move with the clock between ticks
// while a save goes on.
func withoutTimes(all map[string]string) map[string]string {
	for key, text := range all {
		all[key] = text[:strings.LastIndexByte(text, ' ')]
	}
	return all
}

// Keys, their times and those who wait for messages survive a renewal.
func TestRenewalIsNotSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := open(t, Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot"), Interval: time.Hour})
		ctx := t.Context()
		fill(t, client, 1000)
		sub := client.Subscribe(ctx, "hints")
		defer sub.Close()
		messages := sub.Channel()
		want := withoutTimes(contents(t, client))
		renewNow(t, s)
		if diff := cmp.Diff(want, withoutTimes(contents(t, client))); diff != "" {
			t.Error(diff)
		}
		// fill gives every key a day.
		if left := client.PTTL(ctx, "authpool:{sub-7}:session:default/7").Val(); left > 24*time.Hour || left < 24*time.Hour-2*tickEvery {
			t.Errorf("a day has become %v", left)
		}
		time.Sleep(10 * time.Second) // as long as a client takes to subscribe anew
		if n := client.Publish(ctx, "hints", "hello").Val(); n != 1 {
			t.Errorf("published to %d", n)
		}
		if message := <-messages; message.Payload != "hello" {
			t.Errorf("got %v", message)
		}
	})
}

// A flush between the image and the end of a renewal is kept.
func TestFlushDuringRenewal(t *testing.T) {
	s, client := open(t, Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot"), Interval: time.Hour})
	ctx := context.Background()
	client.Set(ctx, "k", "v", 0)
	if err := s.Save(ctx); err != nil {
		t.Fatal(err)
	}
	client.FlushAll(ctx)
	client.Set(ctx, "l", "v", 0)
	s.saving.Lock()
	err := s.renew()
	s.saving.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if keys := client.Keys(ctx, "*").Val(); len(keys) != 1 || keys[0] != "l" {
		t.Errorf("left: %v", keys)
	}
}
