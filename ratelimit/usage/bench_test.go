package usage_test

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// typical is an event with names of usual length.
func typical(i int) usage.Event {
	e := event(time.Duration(i) * time.Second)
	e.ID = "0193a5b2-7c1e-7d3a-9f00-1234567890ab"
	e.Provider, e.Subscription = "anthropic", "team-a"
	e.Session = fmt.Sprintf("5f1c2a3e-0b7d-4a8e-9c6f-00000000000%d", i%8)
	e.Model = fmt.Sprintf("claude-sonnet-4-5-2025092%d", i%3)
	e.PriceVersion = "litellm-2026-08-01"
	return e
}

// BenchmarkRecorderAdd is what the request path pays for an event.
func BenchmarkRecorderAdd(b *testing.B) {
	opts := usage.JournalOptions{Sync: 50 * time.Millisecond, Max: 64 << 30, Keep: time.Hour}
	b.Run("alone", func(b *testing.B) {
		r := unstarted(b, filepath.Join(b.TempDir(), "journal"), opts)
		e := typical(0)
		b.ReportAllocs()
		for b.Loop() {
			if err := r.Add(e); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("all fields", func(b *testing.B) {
		r := unstarted(b, filepath.Join(b.TempDir(), "journal"), opts)
		e := typical(0)
		e.Tokens.Reasoning, e.Further, e.Unpriced = 1, true, true
		e.Units = usage.Units{WebSearches: 1, WebFetches: 2, Seconds: 3, Images: 4, SearchUnits: 5}
		e.Batch, e.Item = "msgbatch_01HkcTjaV5uDC8jWR4ZsDV8d", "my-second-request"
		b.ReportAllocs()
		for b.Loop() {
			if err := r.Add(e); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		r := unstarted(b, filepath.Join(b.TempDir(), "journal"), opts)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			e := typical(0)
			for pb.Next() {
				if err := r.Add(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// BenchmarkRecorderOpen is what the request path pays beside that of Add for a request
// that is sent, of 10,000 that are under way: its open record, another one once its
// input is known, and its end.
func BenchmarkRecorderOpen(b *testing.B) {
	const streams = 10_000
	opts := usage.JournalOptions{Sync: 50 * time.Millisecond, Max: 64 << 30, Keep: time.Hour}
	for name, end := range map[string]func(r *usage.Recorder, e usage.Event) error{
		"event": func(r *usage.Recorder, e usage.Event) error { return r.Add(e) },
		"void":  func(r *usage.Recorder, e usage.Event) error { return r.Void(e.ID) },
	} {
		b.Run(name, func(b *testing.B) {
			r := unstarted(b, filepath.Join(b.TempDir(), "journal"), opts)
			e := typical(0)
			ids := make([]string, streams)
			for i := range ids {
				ids[i] = fmt.Sprintf("0193a5b2-7c1e-7d3a-9f00-%012d", i)
				e.ID = ids[i]
				if err := r.Open(e); err != nil {
					b.Fatal(err)
				}
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				e.ID = ids[n%streams]
				if err := end(r, e); err != nil {
					b.Fatal(err)
				}
				for range 2 {
					if err := r.Open(e); err != nil {
						b.Fatal(err)
					}
				}
				n++
			}
		})
	}
}

// BenchmarkOpenJournal starts after a process that was killed with 10,000 answers
// under way.
func BenchmarkOpenJournal(b *testing.B) {
	const streams = 10_000
	for name, opts := range map[string]usage.JournalOptions{
		"interval": {Sync: 50 * time.Millisecond, Max: 64 << 20},
		"always":   {Max: 64 << 20},
	} {
		b.Run(name, func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "journal")
			r := unstarted(b, dir, opts)
			e := typical(0)
			for i := range streams {
				e.ID = fmt.Sprintf("0193a5b2-7c1e-7d3a-9f00-%012d", i)
				if err := r.Open(e); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				b.StopTimer()
				killed := copyDir(b, dir)
				b.StartTimer()
				j, err := usage.OpenJournal(killed, opts)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if n := j.Recovery().Estimated; n != streams {
					b.Fatalf("%d estimated", n)
				}
				if err := j.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkApply counts what a busy second brings: 2,000 events, which the next
// round has again as the following ones. The metrics are those of one event, of
// client and server together with miniredis, of the client alone with Redis.
func BenchmarkApply(b *testing.B) {
	const events = 2000
	servers := map[string]func(testing.TB) redis.UniversalClient{
		"miniredis": redistest.Mini,
		"redis":     func(t testing.TB) redis.UniversalClient { return redistest.NewServer(t).Client() },
	}
	loads := map[string]func(e *usage.Event, i int){
		"8 sessions, 3 models": func(*usage.Event, int) {},
		"1 session":            func(e *usage.Event, _ int) { e.Session, e.Model = "s1", "claude-sonnet-4-5" },
		"a session each":       func(e *usage.Event, i int) { e.Session = fmt.Sprintf("5f1c2a3e-0b7d-4a8e-9c6f-%012d", i) },
		"as wide as it gets": func(e *usage.Event, i int) {
			e.Session, e.Model = fmt.Sprintf("5f1c2a3e-0b7d-4a8e-9c6f-%012d", i%64), fmt.Sprintf("model-%d", i%64)
			e.Tokens.Reasoning, e.Estimated, e.Unpriced = 1, true, true
			e.Units = usage.Units{WebSearches: 1, WebFetches: 2, Seconds: 3, Images: 4, SearchUnits: 5}
		},
	}
	for server, client := range servers {
		for load, change := range loads {
			b.Run(server+"/"+load, func(b *testing.B) {
				db := client(b)
				store := usage.NewStore(db, "authpool")
				second := make([]usage.Event, events)
				for i := range second {
					second[i] = typical(i)
					second[i].Time = ms(time.Duration(i) * time.Second / events)
					change(&second[i], i)
				}
				next := batch(1)
				var busy time.Duration
				if server == "redis" {
					busy = serverCPU(b, db)
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for b.Loop() {
					for some := range slices.Chunk(second, usage.MaxBatch) {
						next.Events = some
						if _, err := store.Apply(b.Context(), next); err != nil {
							b.Fatal(err)
						}
						next.First += int64(len(some))
					}
				}
				runtime.ReadMemStats(&after)
				counted := float64(b.N * events)
				if server == "redis" {
					b.ReportMetric(float64((serverCPU(b, db)-busy).Nanoseconds())/counted, "server-ns/event")
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/counted, "ns/event")
				b.ReportMetric(float64(after.Mallocs-before.Mallocs)/counted, "allocs/event")
				b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/counted, "B/event")
			})
		}
	}
}

// BenchmarkMix is what one sender brings to a real Redis: 20 subscriptions in turn,
// 3 models, 8 sessions, in batches of some sizes. Events take the time that they
// take at 20,000 a second. Beside events/s stands what the server's processor had to
// do for one.
func BenchmarkMix(b *testing.B) {
	const subscriptions, rate = 20, 20_000
	for _, size := range []int{50, 100, 1000, usage.MaxBatch} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			client := redistest.NewServer(b).Client()
			store := usage.NewStore(client, "authpool")
			clock, events := time.Duration(0), make([]usage.Event, size)
			before := serverCPU(b, client)
			n := 0
			for b.Loop() {
				for i := range events {
					events[i] = typical(i)
					events[i].Time = ms(clock)
					clock += time.Second / rate
				}
				next := batch(int64(n/subscriptions*size)+1, events...)
				next.Subscription = fmt.Sprint("team-", n%subscriptions)
				if _, err := store.Apply(b.Context(), next); err != nil {
					b.Fatal(err)
				}
				n++
			}
			counted := float64(n * size)
			b.ReportMetric(counted/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64((serverCPU(b, client)-before).Nanoseconds())/counted, "server-ns/event")
		})
	}
}

// BenchmarkItems counts results of a batch: the claims, and the count of those that
// come for the first time.
func BenchmarkItems(b *testing.B) {
	for _, again := range []bool{false, true} {
		b.Run(map[bool]string{false: "first time", true: "again"}[again], func(b *testing.B) {
			client := redistest.NewServer(b).Client()
			store := usage.NewStore(client, "authpool")
			before, n := serverCPU(b, client), 0
			for b.Loop() {
				reading := items(fmt.Sprint("r", n), 0, 0, usage.MaxBatch)
				for i := range reading {
					if !again {
						reading[i].Batch = fmt.Sprint("batch-", n)
					}
				}
				if _, err := store.Apply(b.Context(), batch(int64(n*usage.MaxBatch)+1, reading...)); err != nil {
					b.Fatal(err)
				}
				n++
			}
			counted := float64(n * usage.MaxBatch)
			b.ReportMetric(counted/b.Elapsed().Seconds(), "items/s")
			b.ReportMetric(float64((serverCPU(b, client)-before).Nanoseconds())/counted, "server-ns/item")
		})
	}
}

// serverCPU returns the processor time that a server has used.
func serverCPU(b *testing.B, client redis.UniversalClient) time.Duration {
	info, err := client.Info(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	var used time.Duration
	for line := range strings.Lines(info) {
		name, seconds, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			d, err := time.ParseDuration(seconds + "s")
			if err != nil {
				b.Fatal(err)
			}
			used += d
		}
	}
	return used
}

// BenchmarkRecorder brings a journal to a local Redis: 20 subscriptions.
func BenchmarkRecorder(b *testing.B) {
	client := redistest.NewServer(b).Client()
	opts := usage.JournalOptions{Sync: 50 * time.Millisecond, Max: 64 << 30, Keep: time.Hour}
	r := usage.NewRecorder(openJournal(b, filepath.Join(b.TempDir(), "journal"), opts), usage.NewStore(client, "authpool"), usage.RecorderOptions{})
	subs := make([]string, 20)
	for i := range subs {
		subs[i] = fmt.Sprintf("team-%d", i)
	}
	r.Start(context.Background())
	start, i := time.Now(), 0
	for b.Loop() {
		e := typical(i / 100)
		e.Subscription = subs[i%len(subs)]
		if err := r.Add(e); err != nil {
			b.Fatal(err)
		}
		i++
	}
	flush(b, r)
	b.ReportMetric(float64(i)/time.Since(start).Seconds(), "events/s")
	stop(b, r)
}
