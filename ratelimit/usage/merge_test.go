package usage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// borders are where two neighbouring milliseconds may count differently, from
// epoch on, when a block begins there.
var borders = map[string]time.Duration{
	"a slot":                      10 * time.Second,
	"an hour":                     time.Hour,
	"a block's end":               5 * time.Hour,
	"a block's end on a midnight": 15 * time.Hour,
	"midnight":                    39 * time.Hour,
	"a month":                     15*time.Hour + 24*time.Hour, // 2096-03-01
	"the gap rule, in an hour":    20*time.Minute + 5*time.Hour,
}

// around returns events of two models and two sessions in the milliseconds about
// at, many of each.
func around(at time.Duration) []usage.Event {
	var events []usage.Event
	for range 3 {
		for _, off := range []time.Duration{-2, -1, 0, 1, 2} {
			for _, name := range []string{"s1", "s2"} {
				e := event(at + off*time.Millisecond)
				e.Session, e.Model, e.PriceVersion = name, "model-of-"+name, fmt.Sprint("v", off)
				events = append(events, e)
			}
		}
	}
	return events
}

// TestMergeBorders: however many events a batch has on both sides of a border, and
// whatever was there before, each is counted on its own side.
func TestMergeBorders(t *testing.T) {
	before := map[string][]time.Duration{
		"nothing":                                 nil,
		"a block from the epoch":                  {0},
		"an event in the first hour":              {20 * time.Minute},
		"a block that ends at the border at 15 h": {10 * time.Hour},
		"a block long after":                      {100 * time.Hour},
		"two blocks, one long after":              {0, 100 * time.Hour},
	}
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		for name, at := range borders {
			for earlier, times := range before {
				t.Run(name+" after "+earlier, func(t *testing.T) {
					empty(t, client)
					m := newModel()
					both := func(b usage.Batch) {
						t.Helper()
						want := m.apply(b)
						if got := apply(t, store, b); got != want {
							t.Errorf("got %+v, want %+v", got, want)
						}
					}
					next := int64(1)
					for _, offset := range times {
						both(batch(next, event(offset)))
						next++
					}
					events := around(at)
					rand.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
					both(batch(next, events...))
					equalsModel(t, client, "team-a", m)
				})
			}
		}
	})
}

// TestMergedEqualsModel does the same with large batches, which overlap, of events
// that crowd about the borders.
func TestMergedEqualsModel(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		ctx := t.Context()
		rapid.Check(t, func(t *rapid.T) {
			empty(t, client)
			m := newModel()
			var events []usage.Event
			clock := int64(0)
			for range rapid.IntRange(1, 5).Draw(t, "batches") {
				// Where the clock stands, an event is drawn some times over.
				for range rapid.IntRange(1, 6).Draw(t, "crowds") {
					clock += rapid.SampledFrom([]int64{0, 1, 10_000, hour, block - 1, block, block + 1, day, 36 * day, -hour, -7 * hour}).Draw(t, "step")
					if rapid.Bool().Draw(t, "on the hour") {
						clock -= clock % hour
					}
					e := drawEvent(t, 0)
					for range rapid.IntRange(1, 12).Draw(t, "size") {
						e.Time = epoch.UnixMilli() + clock + rapid.Int64Range(-2, 2).Draw(t, "off")
						e.Model = rapid.SampledFrom([]string{"m1", "m2"}).Draw(t, "model")
						e.PriceVersion = rapid.SampledFrom([]string{"", "v1", "v2"}).Draw(t, "prices")
						e.ID = fmt.Sprint(len(events))
						events = append(events, e)
					}
				}
				first := rapid.IntRange(max(0, int(m.done["w1"])-10), int(m.done["w1"])).Draw(t, "first")
				b := batch(int64(first+1), events[first:]...)
				want := m.apply(b)
				got, err := store.Apply(ctx, b)
				if err != nil {
					t.Fatal(err)
				}
				if got != want {
					t.Fatalf("got %+v, want %+v", got, want)
				}
			}
			equalsModel(t, client, "team-a", m)
		})
	})
}

// breaking is a hook of a client that loses the answers of a connection from
// some call on.
type breaking struct{ calls, after int }

var errBroken = errors.New("the connection broke")

func (b *breaking) DialHook(next redis.DialHook) redis.DialHook { return next }

func (b *breaking) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (b *breaking) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() != "evalsha" || err != nil {
			return err
		}
		if b.calls++; b.calls == b.after {
			cmd.SetErr(errBroken)
			return errBroken
		}
		return nil
	}
}

// TestBusySecondIsOneCall: what Redis has to do does not grow with the number of
// events, only with what they are counted under.
func TestBusySecondIsOneCall(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		calls := &breaking{}
		client.AddHook(calls)
		store, m := usage.NewStore(client, "authpool"), newModel()
		events := make([]usage.Event, usage.MaxBatch)
		for i := range events {
			events[i] = typical(i)
			events[i].Time = ms(time.Duration(i) * time.Second / usage.MaxBatch)
		}
		apply(t, store, batch(1)) // loads the script
		calls.calls = 0
		want := m.apply(batch(1, events...))
		if got := apply(t, store, batch(1, events...)); got != want || calls.calls != 1 {
			t.Errorf("got %+v by %d calls, want %+v by one", got, calls.calls, want)
		}
		equalsModel(t, client, "team-a", m)
	})
}

// TestManyRows: a batch of events that have nothing in common is counted in several
// calls, and goes on where it was when one of their answers is lost.
func TestManyRows(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		events := make([]usage.Event, 1500)
		for i := range events {
			e := event(time.Duration(i) * time.Millisecond)
			e.Session = fmt.Sprint("s", i)
			events[i] = e
		}
		lost := &breaking{after: 3}
		client.AddHook(lost)
		store, m := usage.NewStore(client, "authpool"), newModel()
		apply(t, store, batch(1, events[0]))
		if _, err := store.Apply(t.Context(), batch(1, events...)); !errors.Is(err, errBroken) {
			t.Fatalf("got %v, want the broken connection's error", err)
		}
		got := apply(t, store, batch(1, events...))
		if lost.calls < 6 {
			t.Errorf("it took %d calls: one of them did too much", lost.calls)
		}
		if got.Outcome != usage.Applied || got.Last != int64(len(events)) || got.Applied >= got.Last || got.Applied == 0 {
			t.Errorf("got %+v", got)
		}
		for some := range slices.Chunk(events, 100) {
			m.apply(batch(m.done["w1"]+1, some...))
		}
		equalsModel(t, client, "team-a", m)
	})
}
