package usage_test

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Events of these tests lie in a far future, so that no key expires while it is
// looked at.
var epoch = time.Date(2096, 2, 28, 9, 0, 0, 0, time.UTC)

func ms(offset time.Duration) int64 { return epoch.Add(offset).UnixMilli() }

// event is a plain event at epoch+offset.
func event(offset time.Duration) usage.Event {
	return usage.Event{
		Time: ms(offset), Agent: "coder", Session: "s1", Model: "claude-sonnet-4-5",
		Tokens:      usage.Tokens{Input: 1, Output: 2, CacheRead: 3, CacheWrite5m: 4, CacheWrite1h: 5},
		CostNanoUSD: 6, PriceVersion: "v1",
	}
}

func batch(first int64, events ...usage.Event) usage.Batch {
	return usage.Batch{Subscription: "team-a", Writer: "w1", Lives: usage.Lives{{ID: "a1"}}, First: first, Events: events}
}

func apply(t testing.TB, s *usage.Store, b usage.Batch) usage.Result {
	t.Helper()
	r, err := s.Apply(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestBlockRule holds vectors written by hand from ccusage's rule.
func TestBlockRule(t *testing.T) {
	const hms = "15:04:05.000"
	type want struct {
		id, start, end, first, last string
		requests                    int
	}
	at := func(day int, clock string) time.Duration {
		c, err := time.Parse(hms, clock)
		if err != nil {
			t.Fatal(err)
		}
		midnight := time.Date(2096, 2, 28+day, 0, 0, 0, 0, time.UTC)
		return midnight.Add(time.Duration(c.Hour())*time.Hour + time.Duration(c.Minute())*time.Minute +
			time.Duration(c.Second())*time.Second + time.Duration(c.Nanosecond())).Sub(epoch)
	}
	cases := map[string]struct {
		events []time.Duration
		want   []want
	}{
		"floored to the hour": {
			[]time.Duration{at(0, "09:59:59.999")},
			[]want{{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:59:59.999", "09:59:59.999", 1}},
		},
		"exactly on the hour": {
			[]time.Duration{at(0, "09:00:00.000")},
			[]want{{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:00:00.000", "09:00:00.000", 1}},
		},
		"exactly at the end still belongs": {
			[]time.Duration{at(0, "09:00:00.000"), at(0, "12:00:00.000"), at(0, "14:00:00.000")},
			[]want{{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:00:00.000", "14:00:00.000", 3}},
		},
		"a millisecond later opens the next": {
			[]time.Duration{at(0, "09:00:00.000"), at(0, "12:00:00.000"), at(0, "14:00:00.001")},
			[]want{
				{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:00:00.000", "12:00:00.000", 2},
				{"2096-02-28T14", "14:00:00.000", "19:00:00.000", "14:00:00.001", "14:00:00.001", 1},
			},
		},
		"a gap of exactly five hours": {
			[]time.Duration{at(0, "09:00:00.000"), at(0, "14:00:00.000")},
			[]want{{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:00:00.000", "14:00:00.000", 2}},
		},
		"a gap of a millisecond more": {
			[]time.Duration{at(0, "09:00:00.000"), at(0, "14:00:00.001")},
			[]want{
				{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:00:00.000", "09:00:00.000", 1},
				{"2096-02-28T14", "14:00:00.000", "19:00:00.000", "14:00:00.001", "14:00:00.001", 1},
			},
		},
		"late, a millisecond before the hour of the current one": {
			[]time.Duration{at(0, "09:10:00.000"), at(0, "15:00:00.000"), at(0, "14:59:59.999"), at(0, "15:00:00.001")},
			[]want{
				{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:10:00.000", "09:10:00.000", 1},
				{"2096-02-28T14", "14:00:00.000", "19:00:00.000", "14:59:59.999", "14:59:59.999", 1},
				{"2096-02-28T15", "15:00:00.000", "20:00:00.000", "15:00:00.000", "15:00:00.001", 2},
			},
		},
		"a gap of exactly five hours after the last, past the end": {
			[]time.Duration{at(0, "09:30:00.000"), at(0, "14:30:00.000")},
			[]want{
				{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:30:00.000", "09:30:00.000", 1},
				{"2096-02-28T14", "14:00:00.000", "19:00:00.000", "14:30:00.000", "14:30:00.000", 1},
			},
		},
		"the next block starts at its own floor, not at the end of the former": {
			[]time.Duration{at(0, "09:30:00.000"), at(0, "17:45:00.000")},
			[]want{
				{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:30:00.000", "09:30:00.000", 1},
				{"2096-02-28T17", "17:00:00.000", "22:00:00.000", "17:45:00.000", "17:45:00.000", 1},
			},
		},
		"over midnight, a leap day and a month": {
			[]time.Duration{at(0, "22:10:00.000"), at(1, "02:00:00.000"), at(1, "23:59:59.999"), at(2, "04:00:00.000")},
			[]want{
				{"2096-02-28T22", "22:00:00.000", "03:00:00.000", "22:10:00.000", "02:00:00.000", 2},
				{"2096-02-29T23", "23:00:00.000", "04:00:00.000", "23:59:59.999", "04:00:00.000", 2},
			},
		},
		"late, into the block that holds it": {
			[]time.Duration{at(0, "09:10:00.000"), at(0, "15:00:00.000"), at(0, "13:00:00.000")},
			[]want{
				{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:10:00.000", "13:00:00.000", 2},
				{"2096-02-28T15", "15:00:00.000", "20:00:00.000", "15:00:00.000", "15:00:00.000", 1},
			},
		},
		"late, exactly at the end of an older one": {
			[]time.Duration{at(0, "09:10:00.000"), at(0, "15:00:00.000"), at(0, "14:00:00.000")},
			[]want{
				{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:10:00.000", "14:00:00.000", 2},
				{"2096-02-28T15", "15:00:00.000", "20:00:00.000", "15:00:00.000", "15:00:00.000", 1},
			},
		},
		"late, into a block of its own": {
			[]time.Duration{at(0, "09:10:00.000"), at(0, "15:00:00.000"), at(0, "14:00:00.001"), at(0, "03:30:00.000")},
			[]want{
				{"2096-02-28T03", "03:00:00.000", "08:00:00.000", "03:30:00.000", "03:30:00.000", 1},
				{"2096-02-28T09", "09:00:00.000", "14:00:00.000", "09:10:00.000", "09:10:00.000", 1},
				{"2096-02-28T14", "14:00:00.000", "19:00:00.000", "14:00:00.001", "14:00:00.001", 1},
				{"2096-02-28T15", "15:00:00.000", "20:00:00.000", "15:00:00.000", "15:00:00.000", 1},
			},
		},
	}
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				empty(t, client)
				store := usage.NewStore(client, "authpool")
				for i, offset := range c.events {
					apply(t, store, batch(int64(i+1), event(offset)))
				}
				var got []want
				hashes, _ := dump(t, client, "team-a")
				for _, start := range client.ZRange(t.Context(), "authpool:{team-a}:blocks", 0, -1).Val() {
					n, _ := strconv.ParseInt(start, 10, 64)
					id := time.UnixMilli(n).UTC().Format("2006-01-02T15")
					h := hashes["block:"+id]
					clock := func(field string) string {
						n, _ := strconv.ParseInt(h[field], 10, 64)
						return time.UnixMilli(n).UTC().Format(hms)
					}
					requests, _ := strconv.Atoi(h["requests"])
					got = append(got, want{id, clock("start"), clock("end"), clock("first"), clock("last"), requests})
				}
				if fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("\n got %v\nwant %v", got, c.want)
				}
			})
		}
	})
}

// TestNowIsOneCommand pins what the contract promises to redis-cli users.
func TestNowIsOneCommand(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		cut := event(20 * time.Minute)
		cut.Estimated, cut.Unpriced, cut.CostNanoUSD = true, true, 0
		silent := event(30 * time.Minute)
		silent.Unknown = true
		silent.Tokens, silent.CostNanoUSD = usage.Tokens{Output: 5}, 0 // an estimate
		apply(t, store, batch(1, event(10*time.Minute), cut, silent))

		got := client.HGetAll(t.Context(), "authpool:{team-a}:now").Val()
		want := map[string]string{
			"block": "2096-02-28T09", "start": fmt.Sprint(ms(0)), "end": fmt.Sprint(ms(5 * time.Hour)), "last": fmt.Sprint(ms(30 * time.Minute)),
			"requests": "3", "input": "2", "output": "9", "cache_read": "6", "cache_write_5m": "8", "cache_write_1h": "10",
			"cost_nano_usd": "6", "estimated": "1", "unpriced": "1", "unknown": "1",
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("\n got %v\nwant %v", got, want)
		}
		_, expiry := dump(t, client, "team-a")
		if off := expiry["now"] - ms(5*time.Hour); off < -near || off > near {
			t.Errorf("it expires %d ms from the block's end", off)
		}
		if subs := client.SMembers(t.Context(), "authpool:subscriptions").Val(); len(subs) != 1 || subs[0] != "team-a" {
			t.Errorf("the subscriptions are %v", subs)
		}

		apply(t, store, batch(4, event(-10*time.Hour)))
		if after := client.HGetAll(t.Context(), "authpool:{team-a}:now").Val(); fmt.Sprint(after) != fmt.Sprint(want) {
			t.Errorf("a late event changed it to %v", after)
		}
	})
}

func TestOutcomes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		f := func(b usage.Batch, want usage.Result) {
			t.Helper()
			if got := apply(t, store, b); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		e := event(0)
		f(batch(1), usage.Result{Outcome: usage.Duplicate})
		f(batch(2, e), usage.Result{Outcome: usage.Gap})
		f(batch(1, e, e), usage.Result{Outcome: usage.Applied, Last: 2, Applied: 2})
		f(batch(1, e, e), usage.Result{Outcome: usage.Duplicate, Last: 2})
		f(batch(2, e), usage.Result{Outcome: usage.Duplicate, Last: 2})
		f(batch(2, e, e, event(-time.Hour)), usage.Result{Outcome: usage.Applied, Last: 4, Applied: 2, Late: 1})
		f(batch(5), usage.Result{Outcome: usage.Duplicate, Last: 4})
		f(batch(6), usage.Result{Outcome: usage.Gap, Last: 4})

		// It starts again, and then an older state of it, and a copy.
		with := func(b usage.Batch, lives ...usage.Life) usage.Batch {
			b.Lives = append(usage.Lives{{ID: "a1"}}, lives...)
			return b
		}
		f(with(batch(5, e), usage.Life{ID: "b2", After: 4}), usage.Result{Outcome: usage.Applied, Last: 5, Applied: 1})
		f(with(batch(4, e), usage.Life{ID: "c3", After: 3}), usage.Result{Outcome: usage.Fenced, Last: 5, Fork: 3})
		f(batch(6, e), usage.Result{Outcome: usage.Fenced, Last: 5, Fork: 4})
		// A fail-over back to where both have all that is counted: the next one goes on.
		lost := with(batch(6, e), usage.Life{ID: "b2", After: 4}, usage.Life{ID: "d4", After: 5})
		f(lost, usage.Result{Outcome: usage.Applied, Last: 6, Applied: 1})
		f(with(batch(6, e, e), usage.Life{ID: "b2", After: 4}), usage.Result{Outcome: usage.Fenced, Last: 6, Fork: 5})
	})
}

// TestWhereFoldersPart: Redis finds the last number that means the same event in two
// folders by their lives, and does not let one count beyond it what is the other's.
func TestWhereFoldersPart(t *testing.T) {
	lives := func(text string) usage.Lives {
		var l usage.Lives
		if err := l.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return l
	}
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		for i, test := range []struct {
			name, holder, other string
			fork                int64 // 100: they do not part
		}{
			{"the same life", "a1@0", "a1@0", 100},
			{"it started again", "a1@0", "a1@0,b2@30", 30},
			{"a copy of it started", "a1@0,b2@30", "a1@0", 30},
			{"both started again, the copy at 30", "a1@0,b2@40,d4@60", "a1@0,c3@30", 30},
			{"the copy started again", "a1@0,b2@30,c3@40,d4@50", "a1@0", 30},
			{"made from one without a number", "a1@0", "b2@0", 0},
			{"all that is kept is shared", "a1@7,b2@9", "a1@7,b2@9,c3@12", 12},
			{"the oldest are dropped on one side", "b2@20,c3@30", "a1@0,b2@20,d4@25", 25},
			{"nothing that is kept is shared", "c3@30,d4@40", "a1@0,b2@20", -1},
			{"nothing that is kept is shared, the other way round", "a1@0,b2@20", "c3@30,d4@40", -1},
		} {
			for _, done := range []int64{10, 45} {
				b := batch(1)
				b.Writer, b.Lives = fmt.Sprint("w", i, "-", done), lives(test.holder)
				for range done {
					b.Events = append(b.Events, event(0))
				}
				if r := apply(t, store, b); r.Last != done {
					t.Fatalf("%s: counted %+v", test.name, r)
				}
				other := b
				other.First, other.Lives, other.Events = done+1, lives(test.other), b.Events[:1]
				want := usage.Result{Outcome: usage.Applied, Last: done + 1, Applied: 1}
				if test.fork < done {
					want = usage.Result{Outcome: usage.Fenced, Last: done, Fork: test.fork}
				}
				if got := apply(t, store, other); got != want {
					t.Errorf("%s, with %d counted: the other got %+v, want %+v", test.name, done, got, want)
				}
			}
		}
	})
}

// TestSkipFollowsNumbersNotTimes: the events of a batch are counted in the order
// of their time, but left out by their number.
func TestSkipFollowsNumbersNotTimes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		first, second := event(time.Minute), event(0)
		first.Tokens, second.Tokens = usage.Tokens{Input: 100}, usage.Tokens{Input: 1}
		apply(t, store, batch(1, first))
		apply(t, store, batch(1, first, second))
		if got := client.HGet(t.Context(), "authpool:{team-a}:now", "input").Val(); got != "101" {
			t.Errorf("counted %s, want 101", got)
		}
	})
}

func TestOldWritersAreForgotten(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		at := func(writer string, offset time.Duration) {
			b := batch(1, event(offset))
			b.Writer = writer
			apply(t, store, b)
		}
		at("gone", 0)
		at("idle", 24*time.Hour)
		at("new", 36*24*time.Hour)
		writers := client.HKeys(t.Context(), "authpool:{team-a}:writers").Val()
		if len(writers) != 2 || client.HExists(t.Context(), "authpool:{team-a}:writers", "gone").Val() {
			t.Errorf("the writers are %v, want idle and new", writers)
		}
		if blocks := client.ZCard(t.Context(), "authpool:{team-a}:blocks").Val(); blocks != 2 {
			t.Errorf("%d blocks are listed, want those of 35 days", blocks)
		}
	})
}

func TestHostileNames(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		names := []string{
			"", "a:b:requests", "{x}", "}{", "requests", ":", "%d%s%.0f", "'; return 1 --", "]]", "\x00", "\xff\xfe",
			"a\nb", "модель", strings.Repeat("m", 500), "other",
		}
		var events []usage.Event
		for _, name := range names {
			e := event(0)
			e.Agent, e.Session, e.Model, e.PriceVersion = name, name, name, name
			events = append(events, e)
		}
		apply(t, store, batch(1, events...))
		hashes, _ := dump(t, client, "team-a")
		if got := hashes["now"]["requests"]; got != fmt.Sprint(len(names)) {
			t.Errorf("%s requests counted, want %d", got, len(names))
		}
		var perModel int
		for field, v := range hashes["block:2096-02-28T09"] {
			for i := range len(field) {
				if field[i] < '!' || field[i] > '~' {
					t.Errorf("field %q", field)
				}
			}
			if _, ok := cutKind(field, "requests"); ok {
				n, _ := strconv.Atoi(v)
				perModel += n
			}
		}
		if perModel != len(names) {
			t.Errorf("the models' requests add up to %d, want %d", perModel, len(names))
		}
		for key := range hashes {
			if strings.ContainsAny(key, "{}\x00\n ") {
				t.Errorf("key %q", key)
			}
		}
	})
}

func TestManyModels(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store, m := usage.NewStore(client, "authpool"), newModel()
		var n, others int64
		// Twice as many as the limit, in batches that cut them anywhere; the last
		// one has more than a call may add.
		for _, size := range []int{47, 47, 47, 141} {
			var events []usage.Event
			for range size {
				e := event(time.Duration(n) * time.Second)
				e.Model = fmt.Sprintf("m-%d", n%130)
				// As wide as hashes become.
				e.Tokens.Reasoning, e.Estimated, e.Unpriced = 1, true, true
				e.Units = usage.Units{WebSearches: 1, WebFetches: 2, Seconds: 3, Images: 4, SearchUnits: 5}
				events = append(events, e)
				if n%130 >= 64 {
					others++
				}
				n++
			}
			b := batch(n-int64(len(events))+1, events...)
			m.apply(b)
			apply(t, store, b)
		}
		equalsModel(t, client, "team-a", m)
		if got := client.HGet(t.Context(), "authpool:{team-a}:day:2096-02-28", "other:requests").Val(); got != fmt.Sprint(others) {
			t.Errorf("%s requests of other models", got)
		}
	})
}

func TestSumsBeyondDoubles(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		e := event(0)
		e.CostNanoUSD = math.MaxInt64 // clamped to 2^46
		e.Tokens.Input = -7           // clamped to 0
		events := make([]usage.Event, usage.MaxBatch)
		for i := range events {
			events[i] = e
		}
		odd := event(0)
		odd.CostNanoUSD = 1
		for i := range int64(3) {
			apply(t, store, batch(1+i*usage.MaxBatch, events...))
		}
		apply(t, store, batch(1+3*usage.MaxBatch, odd))
		now := client.HGetAll(t.Context(), "authpool:{team-a}:now").Val()
		if want := fmt.Sprint(3*usage.MaxBatch*(int64(1)<<46) + 1); now["cost_nano_usd"] != want || now["input"] != "1" {
			t.Errorf("cost %s and input %s, want %s and 1", now["cost_nano_usd"], now["input"], want)
		}
	})
}

// TestApplyEqualsModel sends events of three writers with overlaps, repeats,
// jumps, restarts and late events, and compares all of Redis with the model.
func TestApplyEqualsModel(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		ctx := t.Context()
		rapid.Check(t, func(t *rapid.T) {
			empty(t, client)
			m := newModel()
			type writer struct{ events []usage.Event }
			writers := map[string]*writer{}
			clock := int64(0)
			for range rapid.IntRange(1, 25).Draw(t, "batches") {
				id := rapid.SampledFrom([]string{"w1", "w2", "w3"}).Draw(t, "writer")
				w := writers[id]
				if w == nil {
					w = &writer{}
					writers[id] = w
				}
				for range rapid.IntRange(0, 8).Draw(t, "new events") {
					clock += rapid.OneOf(
						rapid.Int64Range(0, 5_000),
						rapid.Int64Range(0, 3*hour),
						rapid.SampledFrom([]int64{block, block + 1, block - 1, hour, 40 * day}),
						rapid.Int64Range(-8*hour, 0),
					).Draw(t, "step")
					e := drawEvent(t, clock)
					e.ID = fmt.Sprint(id, "-", len(w.events))
					w.events = append(w.events, e)
				}
				first := rapid.IntRange(max(0, len(w.events)-20), len(w.events)+1).Draw(t, "first")
				n := rapid.IntRange(0, 20).Draw(t, "n")
				b := usage.Batch{Subscription: "team-a", Writer: id, Lives: usage.Lives{{ID: "a1"}}, First: int64(first + 1)}
				if first < len(w.events) {
					b.Events = w.events[first:min(first+n, len(w.events))]
				}
				if rapid.IntRange(0, 9).Draw(t, "another folder") == 0 {
					b.Lives = usage.Lives{{ID: "b2"}}
				}
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

func drawEvent(t *rapid.T, clock int64) usage.Event {
	count := rapid.OneOf(rapid.Int64Range(0, 10), rapid.Int64Range(0, 1<<46))
	e := usage.Event{
		Time:    epoch.UnixMilli() + clock,
		Agent:   rapid.SampledFrom([]string{"coder", "ci", ""}).Draw(t, "agent"),
		Session: rapid.SampledFrom([]string{"s1", "s.2", ""}).Draw(t, "session"),
		Model:   rapid.SampledFrom([]string{"m1", "m:2", "{m}"}).Draw(t, "model"),
		Tokens: usage.Tokens{
			Input: count.Draw(t, "in"), Output: count.Draw(t, "out"), CacheRead: count.Draw(t, "cr"),
			CacheWrite5m: count.Draw(t, "cw5m"), CacheWrite1h: count.Draw(t, "cw1h"),
		},
		Units:        drawUnits(t),
		Further:      rapid.IntRange(0, 3).Draw(t, "further") == 0,
		CostNanoUSD:  count.Draw(t, "cost"),
		PriceVersion: rapid.SampledFrom([]string{"v1", "v2", ""}).Draw(t, "prices"),
		Estimated:    rapid.Bool().Draw(t, "estimated"),
		Unpriced:     rapid.Bool().Draw(t, "unpriced"),
		Unknown:      rapid.IntRange(0, 5).Draw(t, "unknown") == 0,
	}
	if rapid.Bool().Draw(t, "reasoning told") {
		e.Tokens.Reasoning = count.Draw(t, "reasoning")
	}
	if rapid.IntRange(0, 3).Draw(t, "of a batch") == 0 {
		e.Batch = rapid.SampledFrom([]string{"b1", "b2"}).Draw(t, "batch")
		e.Item = rapid.SampledFrom([]string{"i1", "i2", "i3"}).Draw(t, "item")
	}
	return e
}

func drawUnits(t *rapid.T) usage.Units {
	if rapid.IntRange(0, 3).Draw(t, "has units") > 0 {
		return usage.Units{}
	}
	count := rapid.SampledFrom([]int64{0, 1, 1 << 46})
	return usage.Units{
		WebSearches: count.Draw(t, "searches"), WebFetches: count.Draw(t, "fetches"), Seconds: count.Draw(t, "seconds"),
		Images: count.Draw(t, "images"), SearchUnits: count.Draw(t, "search units"),
	}
}
