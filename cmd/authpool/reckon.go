package main

import (
	"context"
	"maps"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

// budgetsFromConfig are the limits of the budgets, by subscription. Nothing is spent
// of them yet.
func budgetsFromConfig(c *config.Config) map[string][]usage.Budget {
	budgets := map[string][]usage.Budget{}
	for _, s := range c.Subscriptions {
		for _, b := range s.Budgets {
			budgets[s.ID] = append(budgets[s.ID], usage.Budget{
				Period: usage.Period(b.Window),
				Limit:  usage.Amount{CostNanoUSD: int64(b.CostUSD), Tokens: b.Tokens, Requests: b.Requests},
			})
		}
	}
	return budgets
}

// stored is what Redis knows of one subscription.
type stored struct {
	block   *usage.Block // nil when none is active
	windows []usage.Window
	spent   []usage.PeriodCounts // in the order of its budgets
	minute  usage.Counts
}

// readStored reads it of subscriptions, by id, as their budgets are.
func readStored(ctx context.Context, store *usage.Store, now time.Time, ids []string, budgets map[string][]usage.Budget) (map[string]*stored, error) {
	blocks, err := store.Now(ctx, now, ids...)
	if err != nil {
		return nil, err
	}
	windows, err := store.Windows(ctx, ids...)
	if err != nil {
		return nil, err
	}
	var periods []usage.PeriodOf
	for _, id := range ids {
		for _, b := range budgets[id] {
			periods = append(periods, usage.PeriodOf{Subscription: id, Period: b.Period})
		}
	}
	spent, err := store.InPeriods(ctx, now, periods)
	if err != nil {
		return nil, err
	}
	minutes, err := store.LastMinute(ctx, now, ids...)
	if err != nil {
		return nil, err
	}
	all := make(map[string]*stored, len(ids))
	for _, id := range ids {
		n := len(budgets[id])
		c := &stored{windows: windows[id], spent: spent[:n:n], minute: minutes[id]}
		spent = spent[n:]
		if b, ok := blocks[id]; ok {
			c.block = &b
		}
		all[id] = c
	}
	return all, nil
}

// reckon completes a subscription with what was counted and what follows from that
// at now; c is nil while Redis is away, and then only the pool's view remains.
func reckon(sub *admin.Subscription, c *stored, budgets []usage.Budget, now time.Time) {
	for i, w := range sub.Windows {
		sub.Windows[i].Effective = usage.Window{ProviderWindow: viewOf(w)}.Effective(now)
	}
	if c == nil {
		if len(budgets) > 0 {
			sub.BudgetState = admin.Unknown
		}
		return
	}
	var rate usage.Amount // an hour, by which is foretold
	if c.block != nil {
		if burn, ok := c.block.Burn(); ok && burn.Steady {
			rate = burn.PerHour
		}
	}
	limits := map[usage.Period]int64{}
	for _, b := range budgets {
		limits[b.Period] = b.Limit.CostNanoUSD
	}
	reckonWindows(sub, c.windows, limits, rate.CostNanoUSD, now)
	reckonBudgets(sub, c, budgets, rate, now)
	if c.block != nil {
		sub.Block = blockOf(*c.block, limits[usage.PeriodBlock], c.windows, rate.CostNanoUSD, now)
	}
	sub.Minute = &admin.Minute{Requests: c.minute.Requests, Input: c.minute.Input, Output: c.minute.Output}
}

// sameLength are our own periods that are as long as a window of a provider. A budget
// for one stands in for the window's capacity while that is not learned.
var sameLength = map[string]usage.Period{"5h": usage.PeriodBlock, "7d": usage.PeriodWeek}

// reckonWindows puts what the whole fleet learned beside what this process was told.
// Another process may have been told later; a process that has just started was told
// nothing.
func reckonWindows(sub *admin.Subscription, known []usage.Window, limits map[usage.Period]int64, rate int64, now time.Time) {
	at := map[string]int{}
	for i, w := range sub.Windows {
		if w.Kind == providerWindow {
			at[w.Name] = i
		}
	}
	for _, k := range known {
		if !k.Reset.IsZero() && !now.Before(k.Reset) {
			continue // over; what was learned is told again with the next view
		}
		i, ok := at[k.Name]
		if !ok {
			i = len(sub.Windows)
			sub.Windows = append(sub.Windows, admin.Window{Name: k.Name, Kind: providerWindow})
		}
		w := &sub.Windows[i]
		// Redis keeps milliseconds.
		if !k.Seen.Before(w.Seen.Truncate(time.Millisecond)) {
			w.Utilization, w.Status, w.Reset, w.Seen = k.Utilization, k.Status, moment(k.Reset), k.Seen
			w.Effective = k.Effective(now)
		}
		w.SpentUSD, w.Foreign = amountOf(k.SpentNanoUSD), k.Foreign
		if k.CapacityNanoUSD > 0 {
			w.CapacityUSD = amountOf(k.CapacityNanoUSD)
			left := float64(k.CapacityNanoUSD) * max(0, 1-w.Effective)
			w.EmptiesAt = emptiesAt(int64(left), rate, now, k.Reset)
		}
		if drift, ok := k.Drift(now, limits[sameLength[k.Name]]); ok {
			w.Drift = &drift
		}
	}
}

func reckonBudgets(sub *admin.Subscription, c *stored, budgets []usage.Budget, rate usage.Amount, now time.Time) {
	full := make([]usage.Budget, 0, len(budgets))
	for i, b := range budgets {
		b.Spent, b.Resets = c.spent[i].Amount(), c.spent[i].End
		full = append(full, b)
		show := admin.Budget{
			Window: string(b.Period), CostUSD: admin.NanoUSD(b.Limit.CostNanoUSD), SpentUSD: admin.NanoUSD(b.Spent.CostNanoUSD),
			Tokens: b.Limit.Tokens, Requests: b.Limit.Requests, UsedTokens: b.Spent.Tokens, UsedRequests: b.Spent.Requests,
			Used: float64(b.PerMille()) / 1000, State: b.State().String(), Resets: moment(b.Resets),
		}
		if at, ok := b.EmptiesAt(rate, now); ok {
			show.EmptiesAt = &at
		}
		sub.Budgets = append(sub.Budgets, show)
	}
	worst, free := usage.Worst(full)
	sub.BudgetState, sub.BudgetFreeAt = worst.String(), moment(free)
}

// blockOf brings a block into the API's words. Its capacity is the configured limit,
// else what the provider's window of that length was learned to hold.
func blockOf(b usage.Block, limit int64, windows []usage.Window, rate int64, now time.Time) *admin.Block {
	block := &admin.Block{
		Start: b.Start, End: b.End, Requests: b.Requests, Input: b.Input, Output: b.Output, CacheRead: b.CacheRead,
		CacheWrite5m: b.CacheWrite5m, CacheWrite1h: b.CacheWrite1h, CostUSD: admin.NanoUSD(b.CostNanoUSD),
		First: b.First, Last: b.Last, Reasoning: b.Reasoning, Units: maps.Collect(b.Units.All()),
		Estimated: b.Estimated, Unpriced: b.Unpriced, Unknown: b.Unknown,
	}
	if burn, ok := b.Burn(); ok {
		block.Burn = &admin.Burn{
			TokensPerMinute: burn.TokensPerMinute, IndicatorPerMinute: burn.IndicatorPerMinute,
			CostUSDPerHour: admin.NanoUSD(burn.PerHour.CostNanoUSD), Steady: burn.Steady,
		}
	}
	if p, ok := b.Project(now); ok {
		block.Projection = &admin.Projection{
			RemainingMinutes: int64(p.Remaining / time.Minute), Tokens: p.Tokens, CostUSD: admin.NanoUSD(p.CostNanoUSD),
		}
	}
	source := admin.Configured
	if limit == 0 {
		source = admin.Learned
		for _, w := range windows {
			if sameLength[w.Name] == usage.PeriodBlock {
				limit = w.CapacityNanoUSD
			}
		}
	}
	if limit > 0 {
		used := usage.Budget{Limit: usage.Amount{CostNanoUSD: limit}, Spent: usage.Amount{CostNanoUSD: b.CostNanoUSD}}.PerMille()
		block.Capacity = &admin.Capacity{CostUSD: admin.NanoUSD(limit), Source: source, Used: float64(used) / 1000}
		block.EmptiesAt = emptiesAt(limit-b.CostNanoUSD, rate, now, b.End)
	}
	return block
}

// viewOf is the provider's part of a window of the API.
func viewOf(w admin.Window) usage.ProviderWindow {
	view := usage.ProviderWindow{Name: w.Name, Utilization: w.Utilization, Status: w.Status, Seen: w.Seen}
	if w.Reset != nil {
		view.Reset = *w.Reset
	}
	return view
}

// emptiesAt is usage.EmptiesAt for the API.
func emptiesAt(left, rate int64, now, end time.Time) *time.Time {
	at, ok := usage.EmptiesAt(left, rate, now, end)
	if !ok {
		return nil
	}
	return &at
}

func amountOf(nano int64) *admin.NanoUSD {
	amount := admin.NanoUSD(nano)
	return &amount
}
