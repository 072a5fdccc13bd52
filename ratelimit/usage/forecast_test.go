package usage_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// TestForecast holds vectors by ccusage's rule. The first is one that ccusage
// 20.0.24 itself was asked: events 50, 30 and 10 minutes ago, of 12,000 tokens.
func TestForecast(t *testing.T) {
	now := epoch.Add(75 * time.Minute)
	f := func(name string, first, last time.Duration, c usage.Counts, burn any, projection any) {
		t.Helper()
		b := usage.Block{Start: epoch, End: epoch.Add(usage.BlockLength), First: epoch.Add(first), Last: epoch.Add(last), Counts: c}
		var gotBurn, gotProjection any
		if r, ok := b.Burn(); ok {
			gotBurn = r
		}
		if p, ok := b.Project(now); ok {
			gotProjection = p
		}
		if diff := cmp.Diff([]any{burn, projection}, []any{gotBurn, gotProjection}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	counts := usage.Counts{Requests: 4, Input: 3000, Output: 1000, CacheRead: 5000, CacheWrite5m: 2000, CacheWrite1h: 1000, CostNanoUSD: 2 * dollar}
	f("ccusage's own", 25*time.Minute, 65*time.Minute, counts,
		usage.Burn{TokensPerMinute: 300, IndicatorPerMinute: 100, PerHour: usage.Amount{CostNanoUSD: 3 * dollar, Tokens: 18_000, Requests: 6}, Steady: true},
		usage.Projection{Remaining: 225 * time.Minute, Tokens: 79_500, CostNanoUSD: 2*dollar + 11*dollar + dollar/4})
	f("a minute", 64*time.Minute, 65*time.Minute, usage.Counts{Input: 40},
		usage.Burn{TokensPerMinute: 40, IndicatorPerMinute: 40, PerHour: usage.Amount{Tokens: 2400}, Steady: true}, usage.Projection{Remaining: 225 * time.Minute, Tokens: 9040})
	f("not quite a minute", 64*time.Minute+30*time.Second, 65*time.Minute, usage.Counts{Input: 40},
		usage.Burn{TokensPerMinute: 80, IndicatorPerMinute: 80, PerHour: usage.Amount{Tokens: 4800}}, usage.Projection{Remaining: 225 * time.Minute, Tokens: 18_040})
	f("one moment", 25*time.Minute, 25*time.Minute, counts, nil, nil)
	f("nothing counted", -10000*time.Hour, 25*time.Minute, usage.Counts{}, usage.Burn{Steady: true}, usage.Projection{Remaining: 225 * time.Minute})
	f("a whole minute is what is left", 25*time.Minute, 65*time.Minute, usage.Counts{Input: 40},
		usage.Burn{TokensPerMinute: 1, IndicatorPerMinute: 1, PerHour: usage.Amount{Tokens: 60}, Steady: true}, usage.Projection{Remaining: 225 * time.Minute, Tokens: 265})
	now = epoch.Add(75*time.Minute + 31*time.Second)
	f("rounded down", 25*time.Minute, 65*time.Minute, usage.Counts{Input: 40},
		usage.Burn{TokensPerMinute: 1, IndicatorPerMinute: 1, PerHour: usage.Amount{Tokens: 60}, Steady: true}, usage.Projection{Remaining: 224 * time.Minute, Tokens: 264})
	now = epoch.Add(usage.BlockLength)
	f("not active", 25*time.Minute, 65*time.Minute, usage.Counts{Input: 40}, usage.Burn{TokensPerMinute: 1, IndicatorPerMinute: 1, PerHour: usage.Amount{Tokens: 60}, Steady: true}, nil)
	if _, ok := (usage.Block{Last: epoch, Counts: counts}).Burn(); ok {
		t.Error("a block whose first event is not known has a rate")
	}
}

// What is used up first decides, and what is not limited does not.
func TestBudgetEmptiesAt(t *testing.T) {
	rate := usage.Amount{CostNanoUSD: 10, Tokens: 100, Requests: 1}
	f := func(limit, spent usage.Amount, want time.Duration) {
		t.Helper()
		at, ok := usage.Budget{Limit: limit, Spent: spent, Resets: epoch.Add(9 * time.Hour)}.EmptiesAt(rate, epoch)
		if ok != (want >= 0) || ok && at.Sub(epoch) != want {
			t.Errorf("%+v of %+v: %v %v, want %v", spent, limit, at.Sub(epoch), ok, want)
		}
	}
	f(usage.Amount{}, usage.Amount{CostNanoUSD: 1, Tokens: 1, Requests: 1}, -1)
	f(usage.Amount{Tokens: 400}, usage.Amount{CostNanoUSD: 1, Tokens: 100, Requests: 1}, 3*time.Hour)
	f(usage.Amount{CostNanoUSD: 40, Tokens: 400, Requests: 3}, usage.Amount{Tokens: 150, Requests: 1}, 2*time.Hour)
	f(usage.Amount{CostNanoUSD: 40, Tokens: 400, Requests: 3}, usage.Amount{CostNanoUSD: 30, Requests: 1}, time.Hour)
	f(usage.Amount{CostNanoUSD: 40, Requests: 3}, usage.Amount{Requests: 3}, 0)
	f(usage.Amount{Requests: 30}, usage.Amount{Requests: 3}, -1) // it is whole again before
}

func TestEmptiesAt(t *testing.T) {
	f := func(left, perHour int64, end, want time.Duration) {
		t.Helper()
		var until time.Time
		if end != 0 {
			until = epoch.Add(end)
		}
		at, ok := usage.EmptiesAt(left, perHour, epoch, until)
		got := at.Sub(epoch)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%d at %d an hour, until %v: got %v, want %v", left, perHour, end, got, want)
		}
	}
	f(10*dollar, 5*dollar, 3*time.Hour, 2*time.Hour)
	f(10*dollar, 5*dollar, 2*time.Hour, -1) // given anew just then
	f(10*dollar, 5*dollar, 2*time.Hour+1, 2*time.Hour)
	f(10*dollar, 0, 3*time.Hour, -1)
	f(0, 5*dollar, 3*time.Hour, 0)
	f(-dollar, 0, 3*time.Hour, 0)
	f(0, 5*dollar, -time.Hour, -1)
	f(10*dollar, 5*dollar, 0, 2*time.Hour)
	f(math.MaxInt64, 1, 0, -1) // not in a lifetime
}

// TestForecastsStayNumbers: no block, however odd, gives what is no number, less
// than it has, or a time outside of the block.
func TestForecastsStayNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.OneOf(rapid.Int64(), rapid.Int64Range(0, 1e9))
		offset := rapid.OneOf(rapid.Int64Range(-1, int64(usage.BlockLength)), rapid.Int64())
		at := func(name string) time.Time { return epoch.Add(time.Duration(offset.Draw(t, name))) }
		b := usage.Block{
			Start: epoch, End: epoch.Add(usage.BlockLength), First: at("first"), Last: at("last"),
			Counts: usage.Counts{
				Input: count.Draw(t, "input"), Output: count.Draw(t, "output"), CacheRead: count.Draw(t, "read"),
				CacheWrite5m: count.Draw(t, "5m"), CacheWrite1h: count.Draw(t, "1h"), CostNanoUSD: count.Draw(t, "cost"),
			},
		}
		now := at("now")
		burn, ok := b.Burn()
		if ok != b.Last.After(b.First) {
			t.Fatalf("a rate: %v", ok)
		}
		for _, rate := range []float64{burn.TokensPerMinute, burn.IndicatorPerMinute, float64(burn.PerHour.CostNanoUSD)} {
			if !(rate >= 0) || math.IsInf(rate, 0) {
				t.Fatalf("%+v", burn)
			}
		}
		if burn.IndicatorPerMinute > burn.TokensPerMinute {
			t.Fatalf("%+v", burn)
		}
		p, ok := b.Project(now)
		if ok && !b.Active(now) || p.Remaining < 0 || p.Tokens < 0 || p.CostNanoUSD < 0 || ok && p.CostNanoUSD < min(b.CostNanoUSD, 1<<62) {
			t.Fatalf("%+v of %+v", p, b)
		}
		end := at("end")
		empty, ok := usage.EmptiesAt(count.Draw(t, "left"), burn.PerHour.CostNanoUSD, now, end)
		if ok && (empty.Before(now) || !empty.Before(end)) {
			t.Fatalf("it empties at %v, now is %v, the end %v", empty, now, end)
		}
	})
}

func TestPeriods(t *testing.T) {
	f := func(now, day, week, month string) {
		t.Helper()
		at, err := time.Parse(time.RFC3339Nano, now)
		if err != nil {
			t.Fatal(err)
		}
		for p, want := range map[usage.Period]string{usage.PeriodDay: day, usage.PeriodWeek: week, usage.PeriodMonth: month} {
			start, end := p.Bounds(at, nil)
			if got := start.Format(time.DateOnly) + " " + end.Format(time.DateOnly); got != want {
				t.Errorf("the %s of %s is %s, want %s", p, now, got, want)
			}
			if end.Truncate(24*time.Hour) != end || end.Location() != time.UTC {
				t.Errorf("%v is no midnight", end)
			}
		}
	}
	f("2026-11-22T12:00:00Z", "2026-11-22 2026-11-23", "2026-11-16 2026-11-23", "2026-11-01 2026-12-01") // a Sunday
	f("2026-11-23T00:00:00Z", "2026-11-23 2026-11-24", "2026-11-23 2026-11-30", "2026-11-01 2026-12-01")
	f("2026-12-31T23:59:59.999999999Z", "2026-12-31 2027-01-01", "2026-12-28 2027-01-04", "2026-12-01 2027-01-01")
	f("2028-02-29T01:00:00+02:00", "2028-02-28 2028-02-29", "2028-02-28 2028-03-06", "2028-02-01 2028-03-01")

	start, end := usage.PeriodBlock.Bounds(epoch, nil)
	if !start.IsZero() || !end.IsZero() {
		t.Errorf("no block: %v %v", start, end)
	}
	b := &usage.Block{Start: epoch, End: epoch.Add(usage.BlockLength)}
	if start, end := usage.PeriodBlock.Bounds(epoch, b); start != b.Start || end != b.End {
		t.Errorf("the block: %v %v", start, end)
	}
}

func TestBudgets(t *testing.T) {
	f := func(spent, limit, perMille int64, state usage.BudgetState) {
		t.Helper()
		b := usage.Budget{Spent: usage.Amount{CostNanoUSD: spent}, Limit: usage.Amount{CostNanoUSD: limit}}
		if got := b.PerMille(); got != perMille || b.State() != state {
			t.Errorf("%d of %d: %d %s, want %d %s", spent, limit, got, b.State(), perMille, state)
		}
	}
	f(0, 25*dollar, 0, usage.BudgetOK)
	f(13*dollar, 25*dollar, 520, usage.BudgetOK)
	f(20*dollar-1, 25*dollar, 799, usage.BudgetOK)
	f(20*dollar, 25*dollar, 800, usage.BudgetWarning)
	f(25*dollar-1, 25*dollar, 999, usage.BudgetWarning)
	f(25*dollar, 25*dollar, 1000, usage.BudgetExceeded)
	f(26*dollar, 25*dollar, 1040, usage.BudgetExceeded)
	f(math.MaxInt64, math.MaxInt64, 1000, usage.BudgetExceeded)
	f(math.MaxInt64, 1, math.MaxInt64, usage.BudgetExceeded)
	f(math.MaxInt64, 2000, math.MaxInt64/2, usage.BudgetExceeded)
	f(1, 0, 0, usage.BudgetOK) // there is none
	f(-1, 1, 0, usage.BudgetOK)
	parts := usage.Budget{Limit: usage.Amount{CostNanoUSD: 10, Tokens: 10, Requests: 10}}
	for want, spent := range map[int64]usage.Amount{
		0: {}, 400: {CostNanoUSD: 4, Tokens: 1}, 800: {CostNanoUSD: 4, Tokens: 8, Requests: 7}, 1000: {Tokens: 9, Requests: 10},
	} {
		parts.Spent = spent
		if got := parts.PerMille(); got != want {
			t.Errorf("%+v of 10 each: %d, want %d", spent, got, want)
		}
	}

	at := func(h int) time.Time { return epoch.Add(time.Duration(h) * time.Hour) }
	g := func(want usage.BudgetState, free time.Time, budgets ...usage.Budget) {
		t.Helper()
		if got, when := usage.Worst(budgets); got != want || when != free {
			t.Errorf("%v: got %s %v, want %s %v", budgets, got, when, want, free)
		}
	}
	fine := usage.Budget{Limit: usage.Amount{Tokens: 10}, Spent: usage.Amount{Tokens: 1}, Resets: at(9)}
	tight := usage.Budget{Limit: usage.Amount{Tokens: 10}, Spent: usage.Amount{Tokens: 9}, Resets: at(8)}
	spent := usage.Budget{Limit: usage.Amount{Tokens: 10}, Spent: usage.Amount{Tokens: 10}, Resets: at(2)}
	long := usage.Budget{Limit: usage.Amount{Tokens: 10}, Spent: usage.Amount{Tokens: 11}, Resets: at(5)}
	g(usage.BudgetOK, time.Time{})
	g(usage.BudgetOK, time.Time{}, fine)
	g(usage.BudgetWarning, time.Time{}, tight, fine)
	g(usage.BudgetExceeded, at(2), fine, spent, tight)
	g(usage.BudgetExceeded, at(5), long, spent)
}

func TestLastMinute(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		apply(t, store, batch(1, event(0), event(9999*time.Millisecond), event(10*time.Second), event(59*time.Second)))
		f := func(now time.Duration, requests int64) {
			t.Helper()
			got, err := store.LastMinute(t.Context(), epoch.Add(now), "team-none", "team-a")
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]usage.Counts{}
			if requests > 0 {
				want["team-a"] = usage.Counts{Requests: requests, Input: requests, Output: 2 * requests}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("at %v (-want +got):\n%s", now, diff)
			}
		}
		f(-time.Millisecond, 0)
		f(9*time.Second, 2)
		f(59999*time.Millisecond, 4)
		f(time.Minute, 2) // the first ten seconds have left
		f(70*time.Second, 1)
		f(110*time.Second-time.Millisecond, 1)
		f(110*time.Second, 0)
	})
}
