package usage

import (
	"math"
	"time"
)

// Burn is how fast a block is spent, by ccusage's rule: over the time from the
// block's first event to its last, not over the time that has gone by. So a block
// that pauses keeps its rate.
type Burn struct {
	TokensPerMinute float64 // all kinds
	// IndicatorPerMinute has only input and output: cached prompts, which are many
	// and cheap, would hide how busy a block is.
	IndicatorPerMinute float64
	PerHour            Amount
	// Steady tells that the rate stands on a minute at least. Two answers of the
	// same second burn a fortune an hour: by such a rate nothing is foretold.
	Steady bool
}

// steadyAfter is how far a block's first and last event must lie apart for its rate
// to be Steady.
const steadyAfter = time.Minute

// Burn returns the block's burn rate. ok is false while the block has no two events
// at different times.
func (b Block) Burn() (burn Burn, ok bool) {
	minutes := b.Last.Sub(b.First).Minutes()
	if b.First.IsZero() || minutes <= 0 {
		return Burn{}, false
	}
	indicator := float64(max(b.Input, 0)) + float64(max(b.Output, 0))
	cached := float64(max(b.CacheRead, 0)) + float64(max(b.CacheWrite5m, 0)) + float64(max(b.CacheWrite1h, 0))
	return Burn{
		TokensPerMinute:    (indicator + cached) / minutes,
		IndicatorPerMinute: indicator / minutes,
		PerHour: Amount{
			CostNanoUSD: whole(float64(max(b.CostNanoUSD, 0)) / minutes * 60),
			Tokens:      whole((indicator + cached) / minutes * 60),
			Requests:    whole(float64(max(b.Requests, 0)) / minutes * 60),
		},
		Steady: b.Last.Sub(b.First) >= steadyAfter,
	}, true
}

// Projection is what a block will have come to at its end if it goes on as it did.
type Projection struct {
	Remaining   time.Duration // until the end, in whole minutes
	Tokens      int64         // all kinds, those so far included
	CostNanoUSD int64         // that so far included
}

// Project returns the block's projection at now. ok is false when the block is not
// active or has no burn rate.
func (b Block) Project(now time.Time) (p Projection, ok bool) {
	burn, ok := b.Burn()
	if !ok || !b.Active(now) {
		return Projection{}, false
	}
	left := b.End.Sub(now).Round(time.Minute)
	tokens := burn.TokensPerMinute * (left.Minutes() + b.Last.Sub(b.First).Minutes())
	cost := float64(max(b.CostNanoUSD, 0)) + float64(burn.PerHour.CostNanoUSD)*left.Hours()
	return Projection{Remaining: left, Tokens: whole(tokens), CostNanoUSD: whole(cost)}, true
}

// EmptiesAt returns when left (nano-dollars, say) is gone if perHour of them go from now
// on. ok is false when that is not before end, at which they are given anew; a zero
// end never comes, but nothing is foretold beyond a year.
func EmptiesAt(left, perHour int64, now, end time.Time) (at time.Time, ok bool) {
	if end.IsZero() {
		end = now.AddDate(1, 0, 0)
	}
	switch {
	case !now.Before(end):
		return time.Time{}, false
	case left <= 0:
		return now, true
	case perHour <= 0:
		return time.Time{}, false
	}
	lasts := float64(left) / float64(perHour) * float64(time.Hour)
	if lasts >= float64(end.Sub(now)) {
		return time.Time{}, false
	}
	return now.Add(time.Duration(lasts)), true
}

// whole rounds to an integer within the bounds of an amount.
func whole(f float64) int64 {
	const most = 1 << 62
	return int64(math.Round(min(max(f, 0), most)))
}
