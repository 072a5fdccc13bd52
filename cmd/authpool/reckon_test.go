package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestReckon(t *testing.T) {
	const usd = 1_000_000_000
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) // a Sunday
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	amount := func(n admin.NanoUSD) *admin.NanoUSD { return &n }
	number := func(f float64) *float64 { return &f }
	// Four dollars in an hour, three of five hours left.
	block := &usage.Block{
		Start: now.Add(-2 * time.Hour), End: now.Add(3 * time.Hour), First: now.Add(-time.Hour), Last: now,
		Counts: usage.Counts{Requests: 2, Input: 100, Output: 20, CostNanoUSD: 4 * usd, Units: usage.Units{Seconds: 7}, Estimated: 1, Unpriced: 2, Unknown: 3},
	}
	known := func(name string, util float64, reset, seen time.Duration) usage.Window {
		w := usage.Window{SpentNanoUSD: 10 * usd, SinceNanoUSD: 4 * usd, CapacityNanoUSD: 40 * usd}
		w.Name, w.Utilization, w.Reset, w.Seen = name, util, now.Add(reset), now.Add(seen)
		return w
	}
	told := func(name string, util float64, reset, seen time.Duration) admin.Window {
		return admin.Window{Name: name, Kind: providerWindow, Utilization: util, Reset: at(reset), Seen: now.Add(seen)}
	}
	windows := func(name string, have []admin.Window, c *stored, budgets []usage.Budget, want ...admin.Window) {
		t.Helper()
		sub := admin.Subscription{Windows: have}
		reckon(&sub, c, budgets, now)
		if diff := cmp.Diff(want, sub.Windows); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}

	mine := told("5h", 0.3, time.Hour, -time.Minute)
	mine.Effective = 0.3
	windows("Redis is away", []admin.Window{mine}, nil, nil, mine)
	over := told("5h", 0.3, -time.Second, -time.Hour)
	windows("Redis is away, the window over", []admin.Window{over}, nil, nil, over)
	windows("Redis knows nothing", []admin.Window{mine}, &stored{}, nil, mine)

	full := told("5h", 0.5, time.Hour, -time.Second)
	full.Effective, full.SpentUSD, full.CapacityUSD, full.Drift = 0.6, amount(10*usd), amount(40*usd), number(0.25)
	theirs := []usage.Window{known("5h", 0.5, time.Hour, -time.Second)}
	windows("another process saw it later", []admin.Window{mine}, &stored{windows: theirs}, nil, full)
	windows("this process has just started", nil, &stored{windows: theirs}, nil, full)
	windows("over in Redis, too", []admin.Window{over}, &stored{windows: []usage.Window{known("5h", 0.5, -time.Second, -time.Hour)}}, nil, over)

	newer := told("5h", 0.55, time.Hour, -500*time.Microsecond)
	newer.Effective, newer.SpentUSD, newer.CapacityUSD, newer.Drift = 0.55, full.SpentUSD, full.CapacityUSD, full.Drift
	windows("this process saw it later, and Redis taught it", []admin.Window{told("5h", 0.55, time.Hour, -500*time.Microsecond)},
		&stored{windows: theirs}, nil, newer)

	soon := full
	soon.Reset, soon.EmptiesAt = at(5*time.Hour), at(4*time.Hour) // 16 of 40 dollars left, four an hour
	windows("it empties before its reset", nil, &stored{block: block, windows: []usage.Window{known("5h", 0.5, 5*time.Hour, -time.Second)}}, nil, soon)

	bucket := admin.Window{Name: "5h", Kind: "bucket", Utilization: 0.1, Effective: 0.1, Seen: now}
	windows("a limit that has the name of a window", []admin.Window{bucket}, &stored{windows: theirs}, nil, bucket, full)

	week := known("7d", 0.5, time.Hour, 0)
	week.CapacityNanoUSD = 0
	weekly := told("7d", 0.5, time.Hour, 0)
	weekly.Effective, weekly.SpentUSD, weekly.Drift = 0.5, amount(10*usd), number(0.5-10.0/50)
	windows("a budget stands in for what is not learned", nil, &stored{windows: []usage.Window{week}, spent: make([]usage.PeriodCounts, 2)},
		[]usage.Budget{{Period: usage.PeriodWeek, Limit: usage.Amount{CostNanoUSD: 50 * usd}}, {Period: usage.PeriodBlock, Limit: usage.Amount{CostNanoUSD: 1}}}, weekly)

	// The block and the budgets.
	spent := func(end *time.Time, c usage.Counts) usage.PeriodCounts {
		return usage.PeriodCounts{End: *end, Counts: c}
	}
	c := &stored{block: block, minute: usage.Counts{Requests: 1, Input: 2, Output: 3}, spent: []usage.PeriodCounts{
		spent(at(3*time.Hour), usage.Counts{Requests: 2, CostNanoUSD: 4 * usd}),
		spent(at(12*time.Hour), usage.Counts{Requests: 3, Input: 1, CacheRead: 5, CostNanoUSD: 9 * usd}),
		spent(at(12*time.Hour), usage.Counts{CostNanoUSD: 30 * usd}),
		spent(at(204*time.Hour), usage.Counts{CostNanoUSD: 100 * usd}),
		spent(at(12*time.Hour), usage.Counts{Input: 500, CacheRead: 160, Requests: 7, CostNanoUSD: usd}),
	}}
	sub := admin.Subscription{}
	reckon(&sub, c, []usage.Budget{
		{Period: usage.PeriodBlock, Limit: usage.Amount{CostNanoUSD: 8 * usd}},
		{Period: usage.PeriodDay, Limit: usage.Amount{CostNanoUSD: 10 * usd}},
		{Period: usage.PeriodWeek, Limit: usage.Amount{CostNanoUSD: 30 * usd}},
		{Period: usage.PeriodMonth, Limit: usage.Amount{CostNanoUSD: 1000 * usd}},
		{Period: usage.PeriodDay, Limit: usage.Amount{Tokens: 1000, Requests: 10}},
	}, now)
	want := admin.Subscription{
		Block: &admin.Block{
			Start: block.Start, End: block.End, First: block.First, Last: block.Last, Requests: 2, Input: 100, Output: 20, CostUSD: 4 * usd,
			Units:     map[string]int64{"seconds": 7},
			Estimated: 1, Unpriced: 2, Unknown: 3,
			Burn:       &admin.Burn{TokensPerMinute: 2, IndicatorPerMinute: 2, CostUSDPerHour: 4 * usd, Steady: true},
			Projection: &admin.Projection{RemainingMinutes: 180, Tokens: 480, CostUSD: 16 * usd},
			Capacity:   &admin.Capacity{CostUSD: 8 * usd, Source: admin.Configured, Used: 0.5},
			EmptiesAt:  at(time.Hour),
		},
		Budgets: []admin.Budget{
			{Window: "block", CostUSD: 8 * usd, SpentUSD: 4 * usd, UsedRequests: 2, Used: 0.5, State: "ok", Resets: at(3 * time.Hour), EmptiesAt: at(time.Hour)},
			{Window: "day", CostUSD: 10 * usd, SpentUSD: 9 * usd, UsedTokens: 6, UsedRequests: 3, Used: 0.9, State: "warning", Resets: at(12 * time.Hour), EmptiesAt: at(15 * time.Minute)},
			{Window: "week", CostUSD: 30 * usd, SpentUSD: 30 * usd, Used: 1, State: "exceeded", Resets: at(12 * time.Hour), EmptiesAt: at(0)},
			{Window: "month", CostUSD: 1000 * usd, SpentUSD: 100 * usd, Used: 0.1, State: "ok", Resets: at(204 * time.Hour)}, // it would last 225
			{Window: "day", Tokens: 1000, Requests: 10, SpentUSD: usd, UsedTokens: 660, UsedRequests: 7, Used: 0.7, State: "ok", Resets: at(12 * time.Hour), EmptiesAt: at(90 * time.Minute)},
		},
		BudgetState: "exceeded", BudgetFreeAt: at(12 * time.Hour),
		Minute: &admin.Minute{Requests: 1, Input: 2, Output: 3},
	}
	if diff := cmp.Diff(want, sub); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	// What was spent is not known while Redis is away, and that is not "ok".
	sub = admin.Subscription{}
	reckon(&sub, nil, []usage.Budget{{Period: usage.PeriodDay, Limit: usage.Amount{CostNanoUSD: usd}}}, now)
	if diff := cmp.Diff(admin.Subscription{BudgetState: admin.Unknown}, sub); diff != "" {
		t.Errorf("Redis is away (-want +got):\n%s", diff)
	}

	// Two answers of one second burn fast, but foretell nothing.
	moment := *block
	moment.First = now.Add(-time.Second)
	sub = admin.Subscription{}
	reckon(&sub, &stored{block: &moment, windows: theirs, spent: make([]usage.PeriodCounts, 1)}, []usage.Budget{{Period: usage.PeriodBlock, Limit: usage.Amount{CostNanoUSD: 8 * usd}}}, now)
	if b := sub.Block; b.Burn == nil || b.Burn.Steady || b.EmptiesAt != nil || sub.Budgets[0].EmptiesAt != nil || sub.Windows[0].EmptiesAt != nil {
		t.Errorf("of a moment: %+v, %+v", b, sub)
	}

	// Without a budget, what the provider's window holds.
	sub = admin.Subscription{}
	reckon(&sub, &stored{block: block, windows: theirs}, nil, now)
	if diff := cmp.Diff(&admin.Capacity{CostUSD: 40 * usd, Source: admin.Learned, Used: 0.1}, sub.Block.Capacity); diff != "" || sub.Block.EmptiesAt != nil {
		t.Error(diff, sub.Block.EmptiesAt)
	}
	// With neither, nothing.
	sub = admin.Subscription{}
	reckon(&sub, &stored{block: block}, nil, now)
	if sub.Block.Capacity != nil || sub.Block.EmptiesAt != nil {
		t.Errorf("%+v", sub.Block)
	}
}

func TestBudgetsFromConfig(t *testing.T) {
	got := budgetsFromConfig(&config.Config{Subscriptions: []config.Subscription{
		{ID: "a", Budgets: []config.Budget{{Window: "week", CostUSD: 7}, {Window: "block", CostUSD: 5}, {Window: "day", Tokens: 9, Requests: 8}}},
		{ID: "b"},
	}})
	want := map[string][]usage.Budget{"a": {{Period: usage.PeriodWeek, Limit: usage.Amount{CostNanoUSD: 7}}, {Period: usage.PeriodBlock, Limit: usage.Amount{CostNanoUSD: 5}}, {Period: usage.PeriodDay, Limit: usage.Amount{Tokens: 9, Requests: 8}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
