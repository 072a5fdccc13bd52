package usage

import (
	"context"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Period is the window of a budget of our own.
type Period string

// The periods, as in the config. But for the block they are UTC's.
const (
	PeriodBlock Period = "block" // the active block
	PeriodDay   Period = "day"
	PeriodWeek  Period = "week" // ISO's: from Monday
	PeriodMonth Period = "month"
)

// Bounds returns the period that holds now. block is the active one, nil if there is
// none; then PeriodBlock has no bounds, as the next block begins with its first event.
func (p Period) Bounds(now time.Time, block *Block) (start, end time.Time) {
	today := now.UTC().Truncate(day)
	switch p {
	case PeriodBlock:
		if block == nil {
			return time.Time{}, time.Time{}
		}
		return block.Start, block.End
	case PeriodDay:
		return today, today.AddDate(0, 0, 1)
	case PeriodWeek:
		monday := today.AddDate(0, 0, -int(today.Weekday()+6)%7)
		return monday, monday.AddDate(0, 0, 7)
	case PeriodMonth:
		first := today.AddDate(0, 0, 1-today.Day())
		return first, first.AddDate(0, 1, 0)
	}
	panic("BUG: a budget for a " + string(p))
}

// Spent is what a subscription cost in the periods that hold some moment, in
// nano-dollars.
type Spent struct {
	Day, Week, Month int64
}

// Spent returns what subscriptions have cost in the periods that hold now, by id; all
// of them are in the answer.
func (s *Store) Spent(ctx context.Context, now time.Time, subscriptions ...string) (map[string]Spent, error) {
	today, _ := PeriodDay.Bounds(now, nil)
	monday, _ := PeriodWeek.Bounds(now, nil)
	var keys []string
	for _, sub := range subscriptions {
		for d := monday; !d.After(today); d = d.AddDate(0, 0, 1) {
			keys = append(keys, s.dayKey(sub, d.Format(time.DateOnly)))
		}
		keys = append(keys, s.monthKey(sub, today.Format("2006-01")))
	}
	costs, err := s.costs(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("cannot read what was spent: %w", err)
	}
	spent := make(map[string]Spent, len(subscriptions))
	each := len(keys) / max(1, len(subscriptions))
	for i, sub := range subscriptions {
		days, month := costs[i*each:(i+1)*each-1], costs[(i+1)*each-1]
		is := Spent{Day: days[len(days)-1], Month: month}
		for _, cost := range days {
			is.Week += cost
		}
		spent[sub] = is
	}
	return spent, nil
}

func (s *Store) monthKey(sub, month string) string { return s.family(sub) + "month:" + month }

// costs returns what the hashes at keys say of cost; 0 where there is none.
func (s *Store) costs(ctx context.Context, keys []string) ([]int64, error) {
	costs := make([]int64, 0, len(keys))
	for chunk := range slices.Chunk(keys, pipelineSize) {
		found := make([]*redis.SliceCmd, len(chunk))
		if err := s.pipeline(ctx, func(p redis.Pipeliner) {
			for i, key := range chunk {
				found[i] = p.HMGet(ctx, key, "cost_nano_usd") // unlike HGET, it is no error without the field
			}
		}); err != nil {
			return nil, err
		}
		for i, key := range chunk {
			text, ok := found[i].Val()[0].(string)
			if !ok {
				costs = append(costs, 0)
				continue
			}
			cost, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: field cost_nano_usd is %q, not an amount", key, text)
			}
			costs = append(costs, cost)
		}
	}
	return costs, nil
}

// Budget is an amount that a subscription may cost in a period, and what it has.
type Budget struct {
	Period       Period
	LimitNanoUSD int64 // above 0
	SpentNanoUSD int64
	Resets       time.Time // when it is whole again; zero for PeriodBlock without an active block
}

// PerMille returns the spent part in thousandths, rounded down; above 1000 it is
// overspent.
func (b Budget) PerMille() int64 {
	if b.LimitNanoUSD <= 0 || b.SpentNanoUSD <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(b.SpentNanoUSD), 1000)
	if hi >= uint64(b.LimitNanoUSD) {
		return math.MaxInt64
	}
	q, _ := bits.Div64(hi, lo, uint64(b.LimitNanoUSD))
	return int64(min(q, math.MaxInt64))
}

// BudgetState is how near a budget is to its end.
type BudgetState uint8

// The states, the better before the worse.
const (
	BudgetOK       BudgetState = iota
	BudgetWarning              // at least warnPerMille are spent
	BudgetExceeded             // nothing is left
)

// warnPerMille is where a budget begins to warn.
const warnPerMille = 800

// String returns the state's name in the API.
func (s BudgetState) String() string {
	return [...]string{"ok", "warning", "exceeded"}[s]
}

// State tells how near the budget is to its end.
func (b Budget) State() BudgetState {
	switch spent := b.PerMille(); {
	case spent >= 1000:
		return BudgetExceeded
	case spent >= warnPerMille:
		return BudgetWarning
	}
	return BudgetOK
}

// Worst returns the worst state of budgets, which must all be kept, and when none of
// them is exceeded any more: the latest reset among those that are, zero when none is.
func Worst(budgets []Budget) (worst BudgetState, free time.Time) {
	for _, b := range budgets {
		state := b.State()
		worst = max(worst, state)
		if state == BudgetExceeded && b.Resets.After(free) {
			free = b.Resets
		}
	}
	return worst, free
}
