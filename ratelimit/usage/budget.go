package usage

import (
	"math"
	"math/bits"
	"time"
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

func (s *Store) monthKey(sub, month string) string { return s.family(sub) + "month:" + month }

// Amount is an amount of what budgets limit.
type Amount struct {
	CostNanoUSD int64
	Tokens      int64 // of all kinds, as Tokens.Total adds them up
	Requests    int64
}

// Amount is the part of c that budgets limit.
func (c Counts) Amount() Amount {
	return Amount{
		CostNanoUSD: c.CostNanoUSD,
		Tokens:      c.Input + c.Output + c.CacheRead + c.CacheWrite5m + c.CacheWrite1h,
		Requests:    c.Requests,
	}
}

// Budget is what a subscription may use in a period, and what it has.
type Budget struct {
	Period Period
	Limit  Amount // a part of 0 is not limited
	Spent  Amount
	Resets time.Time // when it is whole again; zero for PeriodBlock without an active block
}

// PerMille returns the spent part in thousandths, rounded down: of what is limited,
// that of which the most is spent. Above 1000 it is overspent.
func (b Budget) PerMille() int64 {
	return max(
		perMille(b.Spent.CostNanoUSD, b.Limit.CostNanoUSD),
		perMille(b.Spent.Tokens, b.Limit.Tokens),
		perMille(b.Spent.Requests, b.Limit.Requests),
	)
}

func perMille(spent, limit int64) int64 {
	if limit <= 0 || spent <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(spent), 1000)
	if hi >= uint64(limit) {
		return math.MaxInt64
	}
	q, _ := bits.Div64(hi, lo, uint64(limit))
	return int64(min(q, math.MaxInt64))
}

// EmptiesAt is the function of that name for the part of the budget that is used up
// first.
func (b Budget) EmptiesAt(perHour Amount, now time.Time) (at time.Time, ok bool) {
	for _, part := range [...]struct{ limit, spent, perHour int64 }{
		{b.Limit.CostNanoUSD, b.Spent.CostNanoUSD, perHour.CostNanoUSD},
		{b.Limit.Tokens, b.Spent.Tokens, perHour.Tokens},
		{b.Limit.Requests, b.Spent.Requests, perHour.Requests},
	} {
		if part.limit <= 0 {
			continue
		}
		if t, empties := EmptiesAt(part.limit-part.spent, part.perHour, now, b.Resets); empties && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	return at, ok
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
