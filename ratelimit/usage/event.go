// Package usage adds up what answers used: tokens and cost in blocks, days and
// months, per model, agent and session, each answer exactly once.
//
// The way of an Event: the request path gives it to a Recorder, which has it in its
// Journal on disk before the answer's last bytes go on. In the journal it gets the
// next number of its subscription. The Recorder's loop takes events from there in
// batches to the Store, whose one script in Redis (apply.lua) counts each number of
// each writer once, however often it is sent, and says where the writer stands. So
// a killed process, an answer that got lost, and a Redis that lost its last writes
// all end in the same sums; what cannot be mended is raised as an alarm.
//
// Start at Recorder for writing and at Store for reading. The names of keys and
// fields in Redis are a contract with people who look with redis-cli: see Store
// and apply.lua.
package usage

// Event is one billable answer: what it used, of which subscription, for whom.
// Exactly one Event is recorded for each answer, also for one that was cut
// short or that told no usage; Further and Batch say where an answer has more.
//
// The names are already cleaned (contract "Words"): they can stand in a Redis
// key or field as they are.
type Event struct {
	ID           string // request id, UUIDv7, and what sets apart the Events of one answer; no two Events share it
	Time         int64  // when the final usage was read, epoch milliseconds UTC
	Provider     string
	Subscription string
	Agent        string
	Session      string
	Model        string // the model that served, as the answer names it
	Tokens       Tokens
	Units        Units
	CostNanoUSD  int64  // nano-dollars
	PriceVersion string // version of the price table that gave CostNanoUSD, so that a later correction can be told
	Unpriced     bool   // CostNanoUSD is not the full price: 0 for an unknown model, the standard class's for an unknown class of service
	Estimated    bool   // Tokens is not exact: the answer was cut before its final usage, or left out a part of it
	Unknown      bool   // the answer told no tokens at all: Tokens holds no more than an estimate of the output
	// Further says that this is the share of one more model in an answer that
	// has an Event of its own: it adds tokens, units and cost, but no request.
	// Estimated and Unknown are those of requests and not counted again.
	Further bool
	// Batch and Item name a request of a provider's batch, or both of them a
	// response that the provider made in the background. Its result may be read any
	// number of times and by any process: it is counted once for each subscription,
	// Batch and Item (and model, of Further ones), as long as there are never 35 days
	// in which no result of the Batch is read. Names longer than 128 bytes are kept
	// as a hash. Both are empty for everything else.
	Batch, Item string
}
