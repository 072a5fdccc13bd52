package embedded

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

// memoryLog is a WriteLog in memory, which a crash leaves as it is.
type memoryLog struct {
	first   int64 // number of the entry before entries
	entries [][]byte
	synced  int
	syncs   int
	full    bool  // it takes nothing
	broken  error // no sync succeeds
}

var errLogFull = errors.New("the log is full")

func (l *memoryLog) Append(entry []byte) (int64, error) {
	if l.full {
		return 0, errLogFull
	}
	l.entries = append(l.entries, slices.Clone(entry))
	return l.first + int64(len(l.entries)), nil
}

func (l *memoryLog) Sync() error {
	if l.broken != nil {
		return l.broken
	}
	l.synced = len(l.entries)
	l.syncs++
	return nil
}

func (l *memoryLog) Replay(after int64, visit func(int64, []byte) error) error {
	for i, entry := range l.entries {
		if number := l.first + int64(i) + 1; number > after {
			if err := visit(number, entry); err != nil {
				return err
			}
		}
	}
	if last := l.first + int64(len(l.entries)); last < after {
		l.first, l.entries, l.synced = after, nil, 0
	}
	return nil
}

// crash is what a killed store leaves behind: the log as far as it was synced, and
// the snapshot. It returns the options of the store that comes next.
func crash(t testing.TB, opts Options) Options {
	t.Helper()
	l := opts.Log.(*memoryLog)
	opts.Log = &memoryLog{first: l.first, entries: slices.Clone(l.entries[:l.synced]), synced: l.synced}
	snapshot := filepath.Join(t.TempDir(), "redis.snapshot")
	for _, end := range []string{"", ".1"} {
		if content, err := os.ReadFile(opts.Snapshot + end); err == nil {
			if err := os.WriteFile(snapshot+end, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	opts.Snapshot = snapshot
	return opts
}

// durable returns a client whose answers mean that a write is on disk.
func durable(t testing.TB, s *Store) *redis.Client {
	t.Helper()
	opts := newClient(t, s).Options()
	opts.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) { return s.DialDurable(ctx) }
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func logged(t testing.TB) Options {
	return Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot"), Interval: time.Hour, Log: &memoryLog{}}
}

// closeLike is a script as pool/store has them: a hash, and its end by Redis' clock.
var closeLike = redis.NewScript(`
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'until', t[1] + ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('PUBLISH', 'events', KEYS[1])
return t[1] + ARGV[1]`)

func TestDurableWritesSurvive(t *testing.T) { synctest.Test(t, durableWritesSurvive) }

func durableWritesSurvive(t *testing.T) {
	opts := logged(t)
	s, client := open(t, opts)
	sure := durable(t, s)
	ctx := t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(client.Set(ctx, "usual", "before", 0).Err())
	check(client.HSet(ctx, "agent", "name", "a", "token", "old").Err())
	check(sure.Set(ctx, "deleted later", "x", 0).Err())
	check(s.Save(ctx))
	check(client.Set(ctx, "usual", "after", 0).Err())
	check(client.HSet(ctx, "agent", "seen", "now").Err())
	check(sure.HSet(ctx, "agent", "token", "new").Err())
	end, err := closeLike.Run(ctx, sure, []string{"closed"}, 3600).Int64()
	check(err)
	check(sure.SAdd(ctx, "set", "\r\n", "").Err())
	check(sure.ZAdd(ctx, "zset", redis.Z{Score: 0.1, Member: "m"}).Err())
	check(sure.RPush(ctx, "list", "a", "a").Err())
	check(sure.Del(ctx, "deleted later", "never was").Err())
	check(sure.Set(ctx, "short", "x", 5*time.Second).Err())

	time.Sleep(10 * time.Second)
	again, client := open(t, crash(t, opts))
	got := contents(t, client)
	want := map[string]string{
		"usual": `string "before" -1ns`,
		"agent": `hash map["name":"a" "seen":"now" "token":"new"] -1ns`,
		"set":   got["set"], "zset": `zset [{%!q(float64=0.1) "m"}] -1ns`, "list": `list ["a" "a"] -1ns`,
		"closed": got["closed"],
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if v, left := client.HGet(ctx, "closed", "until").Val(), client.TTL(ctx, "closed").Val(); v != strconv.FormatInt(end, 10) || left < time.Hour-time.Minute {
		t.Errorf("closed until %s for %v, want until %d", v, left, end)
	}
	if n, _ := client.SCard(ctx, "set").Result(); n != 2 {
		t.Errorf("the set has %d members", n)
	}
	// What came back is in the next snapshot, and the log may go.
	check(again.Save(ctx))
	opts = again.opts
	opts.Log = &memoryLog{}
	_, client = open(t, crash(t, opts))
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(contents(t, client)))); diff != "" {
		t.Error(diff)
	}
}

// TestSnapshotWinsOverOlderEntries: the log still has an entry for a key that was
// changed after it, and the snapshot has the change.
func TestSnapshotWinsOverOlderEntries(t *testing.T) {
	opts := logged(t)
	s, client := open(t, opts)
	sure := durable(t, s)
	ctx := t.Context()
	for _, err := range []error{
		sure.Set(ctx, "k", "logged", 0).Err(), sure.Set(ctx, "gone", "logged", 0).Err(),
		client.Set(ctx, "k", "later", 0).Err(), client.Del(ctx, "gone").Err(),
		s.Save(ctx), sure.Set(ctx, "other", "x", 0).Err(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	_, client = open(t, crash(t, opts))
	if diff := cmp.Diff(map[string]string{"k": `string "later" -1ns`, "other": `string "x" -1ns`}, contents(t, client)); diff != "" {
		t.Error(diff)
	}
}

// TestSnapshotFromBeforeTheLog: the file has the header that it had then.
func TestSnapshotFromBeforeTheLog(t *testing.T) {
	opts := logged(t)
	body := "*3\r\n$6\r\nstring\r\n$1\r\n0\r\n$1\r\nk\r\n*1\r\n$1\r\nv\r\n"
	if err := os.WriteFile(opts.Snapshot, []byte("authpool-snapshot 1 1795348800123 1 41 666a58cc\n"+body), 0o600); err != nil {
		t.Fatal(err)
	}
	_, client := open(t, opts)
	if v := client.Get(t.Context(), "k").Val(); v != "v" {
		t.Errorf("got %q", v)
	}
}

// TestAnswerWaitsForTheDisk: an answer says that the write is safe, in a pipeline
// with one sync for all. What the log does not take is safe in a snapshot, and
// without that either, the answer is an error, also when the write is tried again.
func TestAnswerWaitsForTheDisk(t *testing.T) {
	opts := logged(t)
	log := opts.Log.(*memoryLog)
	s, _ := open(t, opts)
	sure := durable(t, s)
	ctx := t.Context()
	survives := func(key string) {
		t.Helper()
		_, client := open(t, crash(t, opts))
		if n := client.Exists(ctx, key).Val(); n != 1 {
			t.Errorf("%s was answered and is lost", key)
		}
	}
	if err := sure.Set(ctx, "one", "x", 0).Err(); err != nil || log.syncs != 1 {
		t.Fatalf("%v after %d syncs", err, log.syncs)
	}
	_, err := sure.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i := range 20 {
			pipe.HSet(ctx, "many", i, strings.Repeat("x", 100))
		}
		return nil
	})
	if err != nil || log.syncs != 2 {
		t.Fatalf("%v after %d syncs, want one for the pipeline", err, log.syncs)
	}
	survives("many")
	if err := sure.Get(ctx, "one").Err(); err != nil || log.syncs != 2 {
		t.Fatalf("%v after %d syncs, want none for a read", err, log.syncs)
	}

	log.full = true
	if err := sure.Set(ctx, "full", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	survives("full")
	log.full, log.broken = false, errors.New("the disk is broken")
	if err := sure.Set(ctx, "unsynced", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	survives("unsynced")

	log.full, log.broken = true, nil
	blocked := opts.Snapshot + ".new"
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it finds everything done
		if err := sure.SetNX(ctx, "nowhere", "x", 0).Err(); err == nil || !strings.Contains(err.Error(), "may be lost") {
			t.Errorf("got %v for a write that is nowhere", err)
		}
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	if err := sure.SetNX(ctx, "nowhere", "x", 0).Err(); err != nil {
		t.Error(err)
	}
	survives("nowhere")
}

func TestDurableConnectionRefuses(t *testing.T) {
	s, client := open(t, logged(t))
	sure := durable(t, s)
	ctx := t.Context()
	if err := client.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := sure.FlushAll(ctx).Err(); err == nil {
		t.Error("it deleted everything")
	}
	if err := sure.Do(ctx, "SUBSCRIBE", "c").Err(); err == nil {
		t.Error("it takes messages")
	}
	if v := client.Get(ctx, "k").Val(); v != "v" {
		t.Errorf("got %q", v)
	}
}

// TestDurableIsWhatWasAnswered: whatever mixture of durable and usual writes, snapshots
// and crashes, each key that only durable writes touch is as it was last answered.
func TestDurableIsWhatWasAnswered(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		opts := logged(t)
		s, client := open(t, opts)
		sure := durable(t, s)
		ctx := context.Background()
		want := map[string]string{}
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			key := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key")
			var err error
			switch rapid.SampledFrom([]string{"set", "set", "del", "usual", "save", "crash"}).Draw(rt, "step") {
			case "set":
				want[key] = rapid.StringN(0, 5, -1).Draw(rt, "value")
				err = sure.Set(ctx, key, want[key], 0).Err()
			case "del":
				delete(want, key)
				err = sure.Del(ctx, key).Err()
			case "usual":
				err = client.Incr(ctx, "count").Err()
			case "save":
				err = s.Save(ctx)
			case "crash":
				opts = crash(t, opts)
				s, client = open(t, opts)
				sure = durable(t, s)
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		_, client = open(t, crash(t, opts))
		for _, key := range []string{"a", "b", "c"} {
			v, err := client.Get(ctx, key).Result()
			if w, ok := want[key]; ok != (err == nil) || v != w {
				rt.Fatalf("%s is %q, %v; want %q, %t", key, v, err, w, ok)
			}
		}
	})
}
