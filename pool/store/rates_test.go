package store_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
)

// amounts is of one limit alone, that of requests.
func requests(n int64) ratelimit.Amounts { return ratelimit.Amounts{n} }

func TestDrawRates(t *testing.T) {
	s, pass := timed(t)
	seq := map[string]int64{}
	// A minute has 60 requests, and each step's process spent what it says in all,
	// keeps and needs so many, and would like more.
	f := func(process string, spent, keep, need, want int64, granted bool, held, left int64, wait time.Duration) {
		t.Helper()
		seq[process]++
		got := s.DrawRates(ctx, process, []store.RateDraw{{"one", ratelimit.Draw{
			Seq: seq[process], Limit: requests(60), Spent: requests(spent), Keep: requests(keep), Need: requests(need), Want: requests(want),
		}}})[0]
		if got.Err != nil {
			t.Fatal(got.Err)
		}
		if got.Granted != granted || got.Held != requests(held) || got.Left != requests(left) || got.Wait != wait {
			t.Errorf("granted %t, %v held, %v left, wait %v; want %t, %d, %d, %v", got.Granted, got.Held, got.Left, got.Wait, granted, held, left, wait)
		}
	}
	f("a", 0, 0, 1, 20, true, 20, 40, 0)
	f("b", 0, 0, 1, 100, true, 40, 0, 0) // all that is left
	f("a", 20, 0, 1, 5, false, 0, 0, time.Second)
	pass(500 * time.Millisecond)
	f("c", 0, 0, 1, 1, false, 0, 0, 1500*time.Millisecond) // behind a
	pass(time.Second)
	f("c", 0, 0, 1, 1, false, 0, 1, 500*time.Millisecond) // one is there: a's
	f("a", 20, 0, 1, 5, true, 1, 0, 0)
	pass(500 * time.Millisecond)
	f("c", 0, 0, 1, 1, true, 1, 0, 0)
	// What a process does not use comes back.
	f("b", 10, 0, 0, 0, true, 0, 30, 0)
	f("b", 10, 0, 0, 0, true, 0, 30, 0)
	// What was used beyond it is owed.
	f("c", 50, 0, 0, 0, true, 0, -19, 0)
	f("c", 50, 0, 1, 1, false, 0, -19, 20*time.Second)
	// An estimate that was too high is given back.
	f("c", 20, 0, 1, 1, true, 1, 10, 0)
	// It never holds more than a minute's worth, with what is held.
	for i := range int64(8) {
		pass(8 * time.Second)
		f("a", 20, 1, 0, 0, true, 1, min(18+8*i, 58), 0)
		f("c", 20, 1, 0, 0, true, 1, min(18+8*i, 58), 0)
	}
	// What a dead process held is as if it had been spent.
	pass(8 * time.Second)
	f("a", 20, 1, 0, 0, true, 1, 58, 0)
	pass(8 * time.Second)
	f("a", 20, 1, 0, 0, true, 1, 59, 0)
}

// A draw that comes twice, or late, changes nothing.
func TestDrawRatesAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		s := store.New(client, client, healthy{}, "authpool")
		draw := func(d ratelimit.Draw) ratelimit.Drawn {
			t.Helper()
			d.Limit = ratelimit.Amounts{1, 0, 2} // refills too slowly to matter
			got := s.DrawRates(ctx, "a", []store.RateDraw{{"one", d}})[0]
			if got.Err != nil {
				t.Fatal(got.Err)
			}
			return got.Drawn
		}
		one := ratelimit.Draw{Seq: 1, Need: ratelimit.Amounts{1, 0, 1}, Want: ratelimit.Amounts{1, 0, 1}}
		for range 3 {
			if got := draw(one); !got.Granted || got.Held != (ratelimit.Amounts{1, 0, 1}) || got.Left != (ratelimit.Amounts{0, 0, 1}) {
				t.Errorf("first: %+v", got)
			}
		}
		// The second is not answered: what it gave is not known to the process, and
		// goes back with the third.
		draw(ratelimit.Draw{Seq: 2, Spent: ratelimit.Amounts{1, 0, 1}, Need: ratelimit.Amounts{0, 0, 1}, Want: ratelimit.Amounts{0, 0, 1}})
		if got := draw(ratelimit.Draw{Seq: 3, Spent: ratelimit.Amounts{1, 0, 1}}); got.Held != (ratelimit.Amounts{}) || got.Left != (ratelimit.Amounts{0, 0, 1}) {
			t.Errorf("third: %+v", got)
		}
		if got := draw(one); got.Held != (ratelimit.Amounts{}) || got.Left != (ratelimit.Amounts{0, 0, 1}) {
			t.Errorf("the first once more: %+v", got)
		}
		if ttl := client.PTTL(ctx, "authpool:{one}:rates").Val(); ttl < 50*time.Second || ttl > 2*time.Minute {
			t.Errorf("the rates are forgotten in %v, want when the bucket is full again", ttl)
		}
	})
}

// testTime is a time that the test makes, real one that it cannot.
func testTime(pass func(time.Duration)) func(time.Duration) time.Duration {
	return func(d time.Duration) time.Duration {
		pass(d)
		return d
	}
}

func realTime() func(time.Duration) time.Duration {
	last := time.Now()
	return func(time.Duration) time.Duration {
		now := time.Now()
		d := now.Sub(last)
		last = now
		return d
	}
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

var subs atomic.Int64 // so that each sharing has a subscription of its own

// sharing is a fleet whose processes share a subscription's rates over one Redis,
// in a time that the test makes.
type sharing struct {
	t     rapid.TB
	s     *store.Store
	sub   string
	tick  func(time.Duration) time.Duration
	now   time.Time
	limit ratelimit.Amounts
	all   []*sharer
	names int

	spent [3]float64 // by all, less what was refilled since the beginning
	least [3]float64 // of that so far: where the worst span begins
	worst [3]float64 // what was spent in the worst span, less what was refilled in it
}

// sharer is one of the processes.
type sharer struct {
	*sharing
	name   string
	gate   *ratelimit.Gate
	skew   time.Duration // of its clock
	absent bool          // it knows that Redis is away
	apart  bool          // it spends its own part: that is not the fleet's
	silent time.Time     // since when a draw is not answered
	wake   bool
	ticked time.Time
	asks   []ratelimit.Amounts // requests that wait
	served ratelimit.Amounts
}

func newSharing(t rapid.TB, s *store.Store, tick func(time.Duration) time.Duration, n int, limit ratelimit.Amounts) *sharing {
	f := &sharing{t: t, s: s, sub: fmt.Sprint("sub-", subs.Add(1)), tick: tick, now: noon, limit: limit}
	for range n {
		f.join(0)
	}
	return f
}

func (f *sharing) join(skew time.Duration) *sharer {
	p := &sharer{sharing: f, name: fmt.Sprint("process-", f.names), skew: skew}
	f.names++
	p.gate = ratelimit.NewGate(f.sub, ratelimit.Rates{Requests: int(f.limit[0]), InputTokens: int(f.limit[1]), OutputTokens: int(f.limit[2])}, ratelimit.NewCooldowns())
	p.gate.LeaseRates(func() bool { return p.absent })
	f.all = append(f.all, p)
	return p
}

// pass lets time pass for Redis and all processes.
func (f *sharing) pass(d time.Duration) {
	d = f.tick(d)
	f.now = f.now.Add(d)
	for k, limit := range f.limit {
		f.spent[k] -= float64(limit) * d.Minutes()
		f.least[k] = min(f.least[k], f.spent[k])
	}
}

// book notes what a process spent.
func (p *sharer) book(n ratelimit.Amounts) {
	for k := range n {
		p.served[k] += n[k]
		if !p.apart {
			p.spent[k] += float64(n[k])
			p.least[k] = min(p.least[k], p.spent[k])
			p.worst[k] = max(p.worst[k], p.spent[k]-p.least[k])
		}
	}
}

func (p *sharer) clock() time.Time { return p.now.Add(p.skew) }

// allow lets one request try.
func (p *sharer) allow(n ratelimit.Amounts) (ratelimit.Pass, bool) {
	p.apart = p.apart || p.absent || !p.silent.IsZero() && p.now.Sub(p.silent) > 1500*time.Millisecond
	pass, r := p.gate.Allow(p.clock(), "m", n[1], n[2])
	if r.Why == ratelimit.Open {
		p.book(n)
		return pass, true
	}
	if wait := r.Until.Sub(p.clock()); wait <= 0 {
		p.t.Fatalf("refused until %v from now", wait)
	}
	p.wake = p.gate.Demand(p.clock(), n[1], n[2]) || p.wake
	return pass, false
}

// What may become of a draw.
type fate int

const (
	arrives fate = iota
	replyLost
	requestLost
	replySilent // and nobody says so
)

// draw talks to Redis if that is due; meanwhile happens while it is under way.
func (p *sharer) draw(leaves bool, what fate, meanwhile func()) {
	sent := p.clock()
	d, due := p.gate.Draw(sent, len(p.asks), leaves)
	if !due {
		return
	}
	var got store.RateDrawn
	if what != requestLost {
		if got = p.s.DrawRates(ctx, p.name, []store.RateDraw{{Subscription: p.sub, Draw: d}})[0]; got.Err != nil {
			p.t.Fatal(got.Err)
		}
	}
	p.pass(0)
	p.silent = p.now
	meanwhile()
	switch what {
	case arrives:
		p.gate.Drawn(sent, p.clock(), d, got.Drawn)
		p.apart, p.silent = false, time.Time{}
	case replyLost, requestLost:
		p.gate.Undrawn()
		p.apart, p.silent = true, time.Time{}
	case replySilent:
	}
}

// serve lets all that wait try once, in order.
func (p *sharer) serve() {
	kept := p.asks[:0]
	for _, n := range p.asks {
		if _, ok := p.allow(n); !ok {
			kept = append(kept, n)
		}
	}
	p.asks = kept
}

// run plays the processes for a time: each tries whatever waits, as more gives
// it, and talks to Redis when it is woken and every quarter of a second.
func (f *sharing) run(d time.Duration, more func(p *sharer)) {
	const step = 10 * time.Millisecond
	for range int(d / step) {
		f.pass(step)
		for _, p := range f.all {
			more(p)
			p.serve()
			if !p.absent && (p.wake || f.now.Sub(p.ticked) >= 250*time.Millisecond) {
				p.wake, p.ticked = false, f.now
				p.draw(false, arrives, func() {})
				p.serve()
			}
		}
	}
}

func (f *sharing) sum() (sum ratelimit.Amounts) {
	for _, p := range f.all {
		for k := range sum {
			sum[k] += p.served[k]
		}
	}
	return sum
}

// check says what the limits were kept to: the worst span had no more than a
// minute's worth beyond what was refilled in it.
func (f *sharing) check() {
	f.t.Helper()
	for k, limit := range f.limit {
		if limit > 0 && f.worst[k] > float64(limit)+0.01 {
			f.t.Fatalf("in some span of time %.1f more were spent than are refilled in it, most is %d", f.worst[k], limit)
		}
	}
}

// Whoever asks, and however many: all of the limit is used and no more.
func TestRatesAreUsedUp(t *testing.T) {
	all := func(*sharer) bool { return true }
	for name, c := range map[string]struct {
		processes   int
		limit, size ratelimit.Amounts
		time        time.Duration
		greedy      func(*sharer) bool
	}{
		"one process alone":             {1, ratelimit.Amounts{600}, ratelimit.Amounts{1}, time.Minute, all},
		"one process alone, seldom":     {1, ratelimit.Amounts{5}, ratelimit.Amounts{1}, 5 * time.Minute, all},
		"four processes":                {4, ratelimit.Amounts{600}, ratelimit.Amounts{1}, time.Minute, all},
		"four processes, seldom":        {4, ratelimit.Amounts{5}, ratelimit.Amounts{1}, 5 * time.Minute, all},
		"four processes, input":         {4, ratelimit.Amounts{0, 60_000}, ratelimit.Amounts{1, 500}, time.Minute, all},
		"four processes, large input":   {4, ratelimit.Amounts{0, 40_000}, ratelimit.Amounts{1, 12_000}, 4 * time.Minute, all},
		"four processes, of many kinds": {4, ratelimit.Amounts{1000, 60_000, 100_000}, ratelimit.Amounts{1, 500, 300}, time.Minute, all},
		"one of four":                   {4, ratelimit.Amounts{600}, ratelimit.Amounts{1}, time.Minute, func(p *sharer) bool { return p.name == "process-2" }},
		"one after the other": {4, ratelimit.Amounts{60}, ratelimit.Amounts{1}, time.Minute, func(p *sharer) bool {
			return p.name == fmt.Sprint("process-", p.now.Second()/5%4)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s, tick := timed(t)
			f := newSharing(t, s, testTime(tick), c.processes, c.limit)
			f.run(c.time, func(p *sharer) {
				if !c.greedy(p) {
					p.asks = nil
				}
				for c.greedy(p) && len(p.asks) < 5 {
					p.asks = append(p.asks, c.size)
				}
			})
			// A request of which only a part is there cannot be sent yet.
			enough := false
			for k, limit := range c.limit {
				enough = enough || limit > 0 && float64(f.sum()[k]+c.size[k]) > 0.97*float64(limit)*(1+c.time.Minutes())
			}
			if !enough {
				t.Errorf("%v were spent in %v of %v a minute", f.sum(), c.time, c.limit)
			}
			f.check()
		})
	}
}

// A request that needs nearly all of a minute goes out among many small ones, in
// twice the time that it would take alone.
func TestLargeRequestsAreNotStarved(t *testing.T) {
	s, tick := timed(t)
	f := newSharing(t, s, testTime(tick), 4, ratelimit.Amounts{0, 40_000})
	small, large := ratelimit.Amounts{1, 200}, ratelimit.Amounts{1, 39_000}
	f.run(30*time.Second, func(p *sharer) {
		for len(p.asks) < 3 {
			p.asks = append(p.asks, small)
		}
	})
	before := f.sum()[0]
	f.all[0].asks = []ratelimit.Amounts{large}
	f.run(2*time.Minute, func(p *sharer) {
		for p != f.all[0] && len(p.asks) < 3 {
			p.asks = append(p.asks, small)
		}
	})
	if len(f.all[0].asks) > 0 {
		t.Error("a request of nearly the whole limit waited for more than two minutes")
	}
	if n := f.sum()[0] - before; n < 150 {
		t.Errorf("beside it %d small ones were served, want about half of 400", n)
	}
	f.check()
}

// Larger than the limit: sent when the bucket is full, and the rest is owed by all.
func TestRequestLargerThanTheLimit(t *testing.T) {
	s, tick := timed(t)
	f := newSharing(t, s, testTime(tick), 2, ratelimit.Amounts{0, 1000})
	f.all[0].asks = []ratelimit.Amounts{{1, 2500}}
	f.run(time.Second, func(*sharer) {})
	if len(f.all[0].asks) > 0 {
		t.Fatal("with a full bucket it is refused")
	}
	f.all[1].asks = []ratelimit.Amounts{{1, 100}}
	f.run(90*time.Second, func(*sharer) {})
	if len(f.all[1].asks) == 0 {
		t.Error("another process sends while 1500 tokens are owed, which takes 90 s")
	}
	f.run(10*time.Second, func(*sharer) {})
	if len(f.all[1].asks) > 0 {
		t.Error("another process waits although nothing is owed any more")
	}
}

// Whatever happens to processes and to their talk with Redis, the fleet spends no
// more than the limit. What a process spends that knows of no fleet is its own.
func TestRatesHoldInAFleet(t *testing.T) {
	t.Run("in made time", func(t *testing.T) {
		s, tick := timed(t)
		testRatesHold(t, s, func() func(time.Duration) time.Duration { return testTime(tick) })
	})
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) { testRatesHold(t, s, realTime) })
}

func testRatesHold(t *testing.T, s *store.Store, tick func() func(time.Duration) time.Duration) {
	rapid.Check(t, func(t *rapid.T) {
		f := newSharing(t, s, tick(), 0, ratelimit.Amounts{
			rapid.SampledFrom([]int64{0, 1, 5, 60, 1000}).Draw(t, "requests"),
			rapid.SampledFrom([]int64{0, 10_000, 60_000}).Draw(t, "input"),
		})
		skew := rapid.Map(rapid.IntRange(-600, 600), func(n int) time.Duration { return time.Duration(n) * time.Second })
		for range rapid.IntRange(1, 4).Draw(t, "processes") {
			f.join(skew.Draw(t, "skew"))
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			i := rapid.IntRange(0, len(f.all)-1).Draw(t, "process")
			p := f.all[i]
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1, 2:
				for range rapid.IntRange(1, 30).Draw(t, "times") {
					p.asks = append(p.asks, ratelimit.Amounts{1, rapid.Int64Range(0, 7000).Draw(t, "tokens")})
				}
				p.serve()
				p.asks = nil
			case 3, 4, 5:
				p.draw(rapid.IntRange(0, 9).Draw(t, "leaves") == 0,
					rapid.SampledFrom([]fate{arrives, arrives, arrives, replyLost, requestLost, replySilent}).Draw(t, "fate"), p.serve)
			case 6, 7, 8:
				f.pass(time.Duration(rapid.SampledFrom([]int{1, 60, 300, 1000, 4000, 15_000, 120_000}).Draw(t, "ms")) * time.Millisecond)
			case 9:
				f.join(skew.Draw(t, "skew"))
				f.all = slices.Delete(f.all, i, i+1) // dies
			}
		}
		f.check()
	})
}

// While Redis is away each process has an equal part, and when it is back there is
// no more than if it had been there.
func TestRatesWithoutRedis(t *testing.T) {
	for _, limit := range []int64{5, 600} {
		s, tick := timed(t)
		f := newSharing(t, s, testTime(tick), 4, ratelimit.Amounts{limit})
		greedy := func(p *sharer) {
			for len(p.asks) < 3 {
				p.asks = append(p.asks, ratelimit.Amounts{1})
			}
		}
		sent := func(d time.Duration) float64 {
			before := f.sum()[0]
			f.run(d, greedy)
			return float64(f.sum()[0] - before)
		}
		sent(time.Minute)
		for _, p := range f.all {
			p.absent = true
		}
		if n, most := sent(4*time.Minute), float64(4*limit); n < 0.95*most-4 || n > 1.02*most+4 {
			t.Errorf("limit %d: in 4 minutes without Redis %.0f were sent, want about %.0f", limit, n, most)
		}
		for i, p := range f.all {
			if share := float64(p.served[0]) / float64(f.sum()[0]); share < 0.15 || share > 0.35 {
				t.Errorf("limit %d: process %d sent %d of %d, want about a quarter", limit, i, p.served[0], f.sum()[0])
			}
			p.absent = false
		}
		if n, most := sent(2*time.Minute), float64(2*limit); n < 0.95*most-4 || n > 1.02*most+4 {
			t.Errorf("limit %d: in 2 minutes after it was back %.0f were sent, want about %.0f", limit, n, most)
		}
	}
}

// A process that cannot reach Redis goes on with its part, and the others learn
// afterwards what is missing of that.
func TestRatesOfOneThatIsCutOff(t *testing.T) {
	s, tick := timed(t)
	f := newSharing(t, s, testTime(tick), 2, ratelimit.Amounts{60})
	one, other := f.all[0], f.all[1]
	sent := func(greedy ...*sharer) (n int64) {
		before := f.sum()[0]
		f.run(time.Minute, func(p *sharer) {
			p.asks = p.asks[:0]
			for slices.Contains(greedy, p) && len(p.asks) < 3 {
				p.asks = append(p.asks, ratelimit.Amounts{1})
			}
		})
		return f.sum()[0] - before
	}
	sent(one, other)
	other.absent = true
	if n := sent(other); n < 28 || n > 32 {
		t.Errorf("cut off, it sent %d in a minute, want half the limit", n)
	}
	other.absent = false
	if n := sent(one); n < 88 || n > 92 {
		t.Errorf("in a minute after it was back %d were sent, want what comes in and the other half", n)
	}
}

// Estimates that are too low or too high are made good by all: what was really
// used keeps to the limit, but for what is under way, and comes near to it.
func TestRatesOfAFleetAreSettled(t *testing.T) {
	for _, used := range []int64{200, 500, 900} {
		const limit, estimate, length = 60_000, 500, 2 * time.Minute
		s, tick := timed(t)
		f := newSharing(t, s, testTime(tick), 4, ratelimit.Amounts{0, limit})
		type answer struct {
			at   time.Time
			pass ratelimit.Pass
		}
		under := map[*sharer][]answer{}
		total, most := int64(0), 0.0
		f.run(length, func(p *sharer) {
			for list := under[p]; len(list) > 0 && !p.now.Before(list[0].at); list = under[p] {
				list[0].pass.Done(p.clock(), used, 0, true)
				under[p] = list[1:]
				total += used
			}
			for len(under[p]) < 8 {
				pass, ok := p.allow(ratelimit.Amounts{1, estimate})
				if !ok {
					break
				}
				under[p] = append(under[p], answer{p.now.Add(time.Second), pass})
			}
			most = max(most, float64(total)-limit*p.now.Sub(noon).Minutes())
		})
		allowed := limit * (1 + length.Minutes())
		if most > limit+4*8*float64(max(used-estimate, 0)) || float64(total) < 0.97*allowed-4*8*float64(max(used, estimate)) {
			t.Errorf("%d used of an estimate of %d: %d tokens in %v, at worst %.0f more than came in; want %.0f and %d at most",
				used, estimate, total, length, most, allowed, limit)
		}
	}
}
