// Package usage adds up what answers used: tokens in blocks, days and months,
// recorded exactly once. An Event goes to the journal on disk first and from
// there in batches through one Lua script to Redis.
package usage

// Event is one billable answer: what it used, of which subscription, for whom.
// Exactly one Event is recorded for each answer, also for one that was cut
// short or that told no usage.
//
// The names are already cleaned (contract "Words"): they can stand in a Redis
// key or field as they are.
type Event struct {
	ID           string // request id, UUIDv7
	Time         int64  // when the final usage was read, epoch milliseconds UTC
	Provider     string
	Subscription string
	Agent        string
	Session      string
	Model        string // the model that served, as the answer names it
	Tokens       Tokens
	CostNanoUSD  int64  // nano-dollars; 0 when Unpriced
	PriceVersion string // version of the price table that gave CostNanoUSD, so that a later correction can be told
	Unpriced     bool   // the price table does not know the model
	Estimated    bool   // the answer was cut before its final usage
	Unknown      bool   // the answer told no usage at all: Tokens is not to be trusted
}
