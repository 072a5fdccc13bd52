package embedded

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

// contents reads a whole store through a client: key → type, what it holds, and
// what is left of its time.
func contents(t testing.TB, client redis.UniversalClient) map[string]string {
	t.Helper()
	ctx := context.Background()
	all := map[string]string{}
	for _, key := range client.Keys(ctx, "*").Val() {
		var value any
		kind := client.Type(ctx, key).Val()
		switch kind {
		case "string":
			value = client.Get(ctx, key).Val()
		case "hash":
			value = client.HGetAll(ctx, key).Val()
		case "set":
			value = client.SMembers(ctx, key).Val()
		case "zset":
			value = client.ZRangeWithScores(ctx, key, 0, -1).Val()
		case "list":
			value = client.LRange(ctx, key, 0, -1).Val()
		}
		all[key] = fmt.Sprintf("%s %q %v", kind, value, client.PTTL(ctx, key).Val())
	}
	return all
}

func TestSnapshotKeepsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot")}
		s, client := open(t, opts)
		ctx := t.Context()
		_, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			pipe.Set(ctx, "text", "\x00\xff\r\n$5\r\n*", 0)
			pipe.Set(ctx, "empty", "", 0)
			pipe.HSet(ctx, "authpool:{a}:now", "requests", 7, "claude-x:input", 1<<62, "", "")
			pipe.PExpire(ctx, "authpool:{a}:now", 90*time.Minute+7*time.Millisecond)
			pipe.SAdd(ctx, "authpool:subscriptions", "a", "b")
			pipe.ZAdd(ctx, "authpool:{a}:blocks",
				redis.Z{Score: 1795348800123, Member: "1795348800123"}, redis.Z{Score: 0.1 + 0.2, Member: "frac"}, redis.Z{Score: -1e300, Member: ""})
			pipe.RPush(ctx, "list", "b", "a", "b")
			pipe.Set(ctx, "short", "gone by then", 5*time.Second)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		before := contents(t, client)
		closeStore(t, s)
		if info, err := os.Stat(opts.Snapshot); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file: %v, %v", info.Mode(), err)
		}

		again, client := open(t, opts)
		if diff := cmp.Diff(before, contents(t, client)); diff != "" {
			t.Error(diff)
		}
		closeStore(t, again)

		// Time goes on while nothing runs.
		time.Sleep(time.Minute)
		_, client = open(t, opts)
		delete(before, "short")
		before["authpool:{a}:now"] = strings.Replace(before["authpool:{a}:now"], "1h30m0.007s", "1h29m0.007s", 1)
		if diff := cmp.Diff(before, contents(t, client)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestSnapshotsAreTakenWhileSomethingChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot"), Interval: 10 * time.Second}
		s, client := open(t, opts)
		ctx := t.Context()
		if !s.Saved().IsZero() {
			t.Error("a fresh store says that it is saved")
		}
		if err := client.Set(ctx, "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
		written := time.Now()
		time.Sleep(11 * time.Second)
		first, err := os.ReadFile(opts.Snapshot)
		if err != nil || !bytes.Contains(first, []byte("$1\r\nk\r\n")) {
			t.Fatalf("after an interval the file holds %q, %v", first, err)
		}
		if s.Saved().Before(written) {
			t.Error("the write is on disk and Saved does not say so")
		}
		time.Sleep(10 * time.Second)
		second, err := os.ReadFile(opts.Snapshot)
		if err != nil || !bytes.Equal(first, second) {
			t.Error("nothing changed and the file did")
		}
		if time.Since(s.Saved()) > opts.Interval {
			t.Error("Saved stands still while nothing changes")
		}
	})
}

func TestDamagedSnapshot(t *testing.T) {
	damage := map[string]func([]byte) []byte{
		"cut":          func(b []byte) []byte { return b[:len(b)-3] },
		"longer":       func(b []byte) []byte { return append(b, '\n') },
		"one bit":      func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"empty":        func([]byte) []byte { return nil },
		"another file": func([]byte) []byte { return []byte("REDIS0011") },
	}
	for _, name := range slices.Sorted(maps.Keys(damage)) {
		t.Run(name, func(t *testing.T) {
			opts := Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot")}
			ctx := t.Context()
			spoil := func(path string) {
				b, err := os.ReadFile(path)
				if err == nil {
					err = os.WriteFile(path, damage[name](b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s, client := open(t, opts)
			for _, v := range []string{"one", "two"} {
				if err := client.Set(ctx, "k", v, 0).Err(); err != nil {
					t.Fatal(err)
				}
				if err := s.Save(ctx); err != nil {
					t.Fatal(err)
				}
			}
			closeStore(t, s)

			spoil(opts.Snapshot)
			s, client = open(t, opts)
			if v := client.Get(ctx, "k").Val(); v != "one" {
				t.Errorf("got %q, want the snapshot before the damaged one", v)
			}
			if _, err := os.Stat(opts.Snapshot + ".damaged"); err != nil {
				t.Error(err)
			}
			closeStore(t, s)

			if err := os.Rename(opts.Snapshot+".damaged", opts.Snapshot); err != nil {
				t.Fatal(err)
			}
			spoil(opts.Snapshot + ".1")
			_, err := Open(opts)
			if err == nil || !strings.Contains(err.Error(), opts.Snapshot+".1") || !strings.Contains(err.Error(), "move both away") {
				t.Errorf("with both damaged: %v", err)
			}
			if err := os.Remove(opts.Snapshot + ".1"); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(opts); err == nil {
				t.Error("a damaged only snapshot counts as an empty store")
			}
		})
	}
}

// Between the two renames that put a snapshot into place there is only the former.
func TestStoppedBetweenRenames(t *testing.T) {
	opts := Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot")}
	ctx := t.Context()
	s, client := open(t, opts)
	if err := client.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.Rename(opts.Snapshot, opts.Snapshot+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(opts.Snapshot+".new", []byte("half a fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, client = open(t, opts)
	if v := client.Get(ctx, "k").Val(); v != "v" {
		t.Errorf("got %q", v)
	}
}

func TestUnreadableSnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "redis.snapshot")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Snapshot: path}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestFailedSaveIsMadeUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		folder := filepath.Join(t.TempDir(), "state")
		opts := Options{Snapshot: filepath.Join(folder, "redis.snapshot"), Interval: 10 * time.Second}
		var log bytes.Buffer
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s, client := open(t, opts)
		ctx := t.Context()
		if err := client.Set(ctx, "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if err := s.Save(ctx); err == nil || !strings.Contains(err.Error(), opts.Snapshot) {
			t.Errorf("saving into a missing folder: %v", err)
		}
		time.Sleep(35 * time.Second)
		if !s.Saved().IsZero() {
			t.Error("Saved tells of a snapshot that failed")
		}
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if b, err := os.ReadFile(opts.Snapshot); err != nil || !bytes.Contains(b, []byte("$1\r\nk\r\n")) {
			t.Errorf("the file holds %q, %v", b, err)
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors logged for one row of failures:\n%s", n, log.String())
		}
	})
}

// While a script keeps two keys equal, every snapshot shows them equal, though it
// is copied in slices.
func TestSnapshotShowsOneMoment(t *testing.T) {
	opts := Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot")}
	s, client := open(t, opts)
	ctx := t.Context()
	both := redis.NewScript(`
		redis.call('HINCRBY', KEYS[1], 'n', 1)
		redis.call('SET', ARGV[1], 'x')
		return redis.call('HINCRBY', KEYS[2], 'n', 1)`)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				filler := fmt.Sprintf("filler:%d:%d", w, i%300)
				if err := both.Run(ctx, client, []string{"{a}first", "{a}second"}, filler).Err(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 10 {
		fill(t, client, 1000) // many slices' worth
		if err := s.Save(ctx); err != nil {
			t.Fatal(err)
		}
		seen, other := open(t, copyOf(t, opts.Snapshot))
		first, second := other.HGet(ctx, "{a}first", "n").Val(), other.HGet(ctx, "{a}second", "n").Val()
		if first != second {
			t.Errorf("a snapshot shows %s and %s", first, second)
		}
		closeStore(t, seen)
	}
	close(stop)
	writers.Wait()
}

// copyOf returns Options that begin with a copy of a snapshot.
func copyOf(t testing.TB, path string) Options {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "copy.snapshot")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{Snapshot: path}
}

// No command waits for more than one slice of a snapshot, and a slice is small.
func TestSlicesAreSmall(t *testing.T) {
	s, client := open(t, Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot")})
	fill(t, client, 1000)
	s.saving.Lock()
	slices := 1
	for {
		before := len(s.image)
		_, done := s.slice(sliceKeys)
		if n := len(s.image) - before; n > sliceKeys {
			t.Fatalf("a slice copied %d keys", n)
		}
		if done {
			break
		}
		slices++
	}
	s.saving.Unlock()
	if slices < 1000/sliceKeys {
		t.Errorf("1000 keys took %d slices", slices)
	}
	if err := s.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	// What did not change is not copied again.
	if err := client.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n := len(s.dirty); n != 1 {
		t.Errorf("%d keys to copy after one write", n)
	}
}

// writes has one or more forms of every command that changes keys.
var writes = map[string][]string{
	"SET": {"s1 v", "s2 w EX 100", "h1 overwritten"}, "SETNX": {"s1 n", "s3 n"}, "SETEX": {"s1 50 v"}, "PSETEX": {"s2 50000 v"},
	"GETSET": {"s1 g"}, "GETDEL": {"s1"}, "GETEX": {"s2 EX 77", "s2 PERSIST"}, "APPEND": {"s1 more"}, "SETRANGE": {"s1 2 xx", "s9 0 "},
	"INCR": {"n1"}, "INCRBY": {"n1 5"}, "INCRBYFLOAT": {"n2 0.5"}, "DECR": {"n1"}, "DECRBY": {"n1 3"},
	"EXPIRE": {"h1 60", "h1 -1", "s1 30"}, "PEXPIRE": {"z1 60000"}, "EXPIREAT": {"h2 4102444800"}, "PEXPIREAT": {"l1 4102444800000"}, "PERSIST": {"h1", "s2"},
	"HSET": {"h1 a 1 b 2", "h2 c 3"}, "HMSET": {"h1 a 9"}, "HSETNX": {"h1 z 1"}, "HDEL": {"h1 a", "h1 a b z", "h2 c"},
	"HINCRBY": {"h1 n 4", "h2 n 1"}, "HINCRBYFLOAT": {"h1 f 0.25"},
	"SADD": {"m1 a b", "m2 c"}, "SREM": {"m1 a", "m1 a b"}, "SPOP": {"m2"}, "SMOVE": {"m1 m2 a", "m1 m3 b"},
	"ZADD": {"z1 1 a 2 b", "z2 3.5 c", "z1 GT 9 a"}, "ZINCRBY": {"z1 0.5 a"}, "ZREM": {"z1 a", "z2 c"},
	"ZREMRANGEBYSCORE": {"z1 -inf 1", "z1 -inf +inf"}, "ZREMRANGEBYRANK": {"z1 0 0"}, "ZPOPMIN": {"z1"}, "ZPOPMAX": {"z1"},
	"LPUSH": {"l1 a b"}, "RPUSH": {"l1 c", "l2 d"}, "LPUSHX": {"l1 x"}, "RPUSHX": {"l2 y"}, "LPOP": {"l1"}, "RPOP": {"l2"},
	"LSET": {"l1 0 set"}, "LREM": {"l1 0 a"}, "LTRIM": {"l1 0 1"}, "LINSERT": {"l1 BEFORE c q"}, "RPOPLPUSH": {"l1 l2", "l2 l2"},
	"RENAME": {"h1 h2", "s1 h1", "z1 z2"}, "RENAMENX": {"m1 m4", "l1 l3"},
	"DEL": {"h1", "s1 s2 s3", "z1 l1"}, "UNLINK": {"h2 m1"},
	"MSET": {"s1 a s2 b", "h1 x m1 y"}, "MSETNX": {"s7 a s8 b"},
	"FLUSHALL": {""}, "FLUSHDB": {""},
}

func TestEveryWriteHasAForm(t *testing.T) {
	for name, e := range effects {
		if _, ok := writes[name]; ok != (e > reads) {
			t.Errorf("%s: written down as a write: %t, its effect: %d", name, ok, e)
		}
	}
}

// step is one write of a random history, and what happens before it.
type step struct {
	args     []any
	before   int // see TestSnapshotEqualsStore
	scripted bool
}

func drawStep(r *rapid.T) step {
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(writes))).Draw(r, "command")
	args := []any{name}
	for arg := range strings.SplitSeq(rapid.SampledFrom(writes[name]).Draw(r, "arguments"), " ") {
		if arg != "" || name == "SETRANGE" {
			args = append(args, arg)
		}
	}
	return step{args, rapid.IntRange(0, 9).Draw(r, "before"), rapid.Bool().Draw(r, "by a script")}
}

// Whatever is written, plainly or by a script, with snapshots in between: the file
// holds what the store held.
func TestSnapshotEqualsStore(t *testing.T) {
	script := redis.NewScript(`return redis.pcall(unpack(ARGV))`)
	rapid.Check(t, func(r *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(drawStep), 1, 60).Draw(r, "steps")
		diff := ""
		synctest.Test(t, func(t *testing.T) {
			opts := Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot"), Interval: time.Hour}
			s, client := open(t, opts)
			time.Sleep(500 * time.Millisecond) // nothing is done in the moment in which the keys age
			ctx := t.Context()
			for _, step := range steps {
				switch step.before {
				case 0:
					if err := s.Save(ctx); err != nil {
						t.Fatal(err)
					}
				case 1: // a save cut short
					s.saving.Lock()
					s.slice(1)
					s.saving.Unlock()
				case 2:
					time.Sleep(20 * time.Second)
				}
				if step.scripted {
					_ = script.Run(ctx, client, nil, step.args...).Err() // may be refused, as a wrong type is
				} else {
					_ = client.Do(ctx, step.args...).Err()
				}
			}
			want := contents(t, client)
			closeStore(t, s)
			again, client := open(t, opts)
			diff = cmp.Diff(want, contents(t, client))
			closeStore(t, again)
		})
		if diff != "" {
			r.Fatal(diff)
		}
	})
}

// 20,000 keys is the size that the store is made for. While they age and are
// being saved, scripts go on far inside the 50 ms that a request may wait.
func TestScriptsDoNotWaitAtFullSize(t *testing.T) {
	s, client := open(t, Options{Snapshot: filepath.Join(t.TempDir(), "redis.snapshot"), Interval: time.Hour})
	fill(t, client, 20_000)
	ctx := t.Context()
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		defer close(done)
		if err := s.Save(ctx); err != nil { // all keys are new: the largest save there is
			t.Error(err)
		}
		s.age(time.Second)
	})
	var took []time.Duration
	for saving := true; saving; {
		select {
		case <-done:
			saving = false
		default:
		}
		start := time.Now()
		if err := addAll.Run(ctx, client, []string{"authpool:{a}:now"}, 1).Err(); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	group.Wait()
	slices.Sort(took)
	median, worst := took[len(took)/2], took[len(took)-1]
	t.Logf("%d scripts of 20 HINCRBYs during a save of 20,000 keys: median %v, worst %v", len(took), median, worst)
	if median > 50*time.Millisecond {
		t.Errorf("half of the scripts took longer than %v", median)
	}
}

func BenchmarkScriptAt20000Keys(b *testing.B) {
	_, client := open(b, Options{})
	fill(b, client, 20_000)
	for b.Loop() {
		if err := addAll.Run(b.Context(), client, []string{"authpool:{a}:now"}, 1).Err(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTickAt20000Keys(b *testing.B) {
	s, client := open(b, Options{})
	fill(b, client, 20_000)
	for b.Loop() {
		s.age(time.Nanosecond)
	}
}

func BenchmarkSlice(b *testing.B) {
	s, client := open(b, Options{Snapshot: filepath.Join(b.TempDir(), "redis.snapshot"), Interval: time.Hour})
	fill(b, client, 20_000)
	keys := client.Keys(b.Context(), "*").Val()[:sliceKeys]
	s.saving.Lock()
	defer s.saving.Unlock()
	for b.Loop() {
		s.mu.Lock()
		clear(s.dirty)
		for _, key := range keys {
			s.dirty[key] = struct{}{}
		}
		s.mu.Unlock()
		s.slice(sliceKeys)
	}
}
