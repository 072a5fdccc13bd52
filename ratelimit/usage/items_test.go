package usage_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// items are the events of one reading of a batch's results.
func items(reading string, at time.Duration, from, to int) []usage.Event {
	var events []usage.Event
	for i := from; i < to; i++ {
		e := event(at)
		e.ID = fmt.Sprint(reading, "/", i)
		e.Batch, e.Item = "msgbatch_01", fmt.Sprint("request-", i)
		events = append(events, e)
	}
	return events
}

func TestItemsAreCountedOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		f := func(b usage.Batch, want usage.Result) {
			t.Helper()
			if got := apply(t, store, b); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		total := func(want string) {
			t.Helper()
			if got := client.HGet(t.Context(), "authpool:{team-a}:total", "requests").Val(); got != want {
				t.Errorf("%s requests, want %s", got, want)
			}
		}
		other := func(b usage.Batch) usage.Batch {
			b.Writer = "w2"
			return b
		}
		// A part of the results, then all of them through another process.
		f(batch(1, items("r1", 0, 0, 3)...), usage.Result{Outcome: usage.Applied, Last: 3, Applied: 3})
		f(other(batch(1, items("r2", time.Hour, 0, 5)...)), usage.Result{Outcome: usage.Applied, Last: 5, Applied: 2, Repeated: 3})
		total("5")
		// A month later by the first one: nothing is counted, no block begins, the
		// numbers go on, and the claims are kept for longer.
		before, _ := dump(t, client, "team-a")
		f(batch(4, items("r3", 30*24*time.Hour, 0, 5)...), usage.Result{Outcome: usage.Applied, Last: 8, Repeated: 5})
		after, expiry := dump(t, client, "team-a")
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("the repeated reading changed (-before +after):\n%s", diff)
		}
		if off := expiry["batch:msgbatch_01"] - ms(65*24*time.Hour); off < -near || off > near {
			t.Errorf("the claims expire %d ms from when they should", off)
		}
		// The same names in another batch, of another subscription, and a batch
		// that tells no names.
		elsewhere := items("r4", 0, 0, 1)
		elsewhere[0].Batch = "a batch with {odd} characters"
		f(other(batch(6, elsewhere...)), usage.Result{Outcome: usage.Applied, Last: 6, Applied: 1})
		nameless := items("r5", 0, 0, 2)
		nameless[0].Item, nameless[1].Item = "", ""
		f(other(batch(7, nameless...)), usage.Result{Outcome: usage.Applied, Last: 8, Applied: 2})
		// The writer that only repeated is not forgotten for it.
		late := batch(1, event(60*24*time.Hour))
		late.Writer = "w3"
		f(late, usage.Result{Outcome: usage.Applied, Last: 1, Applied: 1})
		f(batch(9), usage.Result{Outcome: usage.Duplicate, Last: 8})

		b := batch(1, items("r6", 0, 0, 3)...)
		b.Subscription = "team-b"
		f(b, usage.Result{Outcome: usage.Applied, Last: 3, Applied: 3})
		total("9")
	})
}

// TestItemOfTwoModels: the shares of an item's further models belong to it, whoever
// of its events comes first.
func TestItemOfTwoModels(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		reading := func(name string) []usage.Event {
			main := items(name, 0, 0, 1)[0]
			further := main
			further.ID, further.Further, further.Model = main.ID+"+1", true, "claude-haiku-4-5"
			return []usage.Event{further, main}
		}
		want := usage.Result{Outcome: usage.Applied, Last: 2, Applied: 2}
		if got := apply(t, store, batch(1, reading("r1")...)); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		want = usage.Result{Outcome: usage.Applied, Last: 4, Repeated: 2}
		if got := apply(t, store, batch(3, reading("r2")...)); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		day, _ := dump(t, client, "team-a")
		h := day["day:2096-02-28"]
		if h["requests"] != "1" || h["claude-haiku-4-5:requests"] != "0" || h["input"] != "2" || h["claude-haiku-4-5:input"] != "1" {
			t.Errorf("Redis holds %v", h)
		}
	})
}

// TestItemsBetweenClaimAndCount: what another process reads meanwhile is a repetition,
// and the one that has the claim counts when it comes again.
func TestItemsBetweenClaimAndCount(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		apply(t, store, batch(1, items("r0", 0, 100, 101)...)) // loads the scripts
		first := batch(2, items("r1", 0, 0, 3)...)
		first.Events[0].Time = ms(2 * time.Hour)
		lost := &breaking{after: 1} // the answer to the claim
		client.AddHook(lost)
		if _, err := store.Apply(t.Context(), first); !errors.Is(err, errBroken) {
			t.Fatalf("got %v, want the broken connection's error", err)
		}
		second := batch(1, items("r2", time.Hour, 0, 4)...)
		second.Writer = "w2"
		if got, want := apply(t, store, second), (usage.Result{Outcome: usage.Applied, Last: 4, Applied: 1, Repeated: 3}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if got, want := apply(t, store, first), (usage.Result{Outcome: usage.Applied, Last: 4, Applied: 3}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// TestManyItems: no call is larger than Redis should be held for, and the events of a
// batch larger than that are told apart all the same.
func TestManyItems(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		calls := &breaking{}
		client.AddHook(calls)
		first := items("r1", 0, 0, 1000)
		apply(t, store, batch(1, first...))
		want := usage.Result{Outcome: usage.Applied, Last: 1000 + usage.MaxBatch, Applied: usage.MaxBatch - 1000, Repeated: 1000}
		calls.calls = 0
		if got := apply(t, store, batch(1001, items("r2", 0, 0, usage.MaxBatch)...)); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if calls.calls != usage.MaxBatch/512+1 {
			t.Errorf("it took %d calls", calls.calls)
		}
		if n := client.HGet(t.Context(), "authpool:{team-a}:total", "requests").Val(); n != fmt.Sprint(usage.MaxBatch) {
			t.Errorf("%s requests", n)
		}
	})
}

// TestItemsMemory measures what Redis keeps for the largest batch that a provider
// takes: what the comment on the keys in store.go tells.
func TestItemsMemory(t *testing.T) {
	const size = 100_000
	client := redistest.NewServer(t).Client()
	store := usage.NewStore(client, "authpool")
	for from := 0; from < size; from += usage.MaxBatch {
		events := items(strings.Repeat("x", 36), 0, from, min(from+usage.MaxBatch, size))
		apply(t, store, batch(int64(from+1), events...))
	}
	bytes, err := client.MemoryUsage(t.Context(), "authpool:{team-a}:batch:msgbatch_01", 0).Result()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d items: %d bytes, %.1f each", size, bytes, float64(bytes)/size)
	if bytes > 80*size {
		t.Errorf("a batch of %d items takes %d bytes", size, bytes)
	}
}
