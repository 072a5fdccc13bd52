package meter

import "github.com/authpool/authpool/ratelimit/usage"

// State says how far the usage of an answer is known. An answer that tells no
// usage has not used nothing.
type State uint8

// The states, from least to most known.
const (
	// Absent: the answer has told no usage. Tokens are zero and mean nothing.
	Absent State = iota
	// Partial: the answer has told some usage, but not the final one: it goes
	// on, was cut, or has left out a part.
	Partial
	// Reported: the final usage is known.
	Reported
)

// Result is what an answer has told about itself so far.
type Result struct {
	// Tokens is the usage in normal form; the numbers of a Partial answer are
	// the last ones told.
	Tokens usage.Tokens
	// Others is the usage of further models that the provider ran within this
	// answer (Anthropic's advisors, and models that declined). It is not in Tokens,
	// because each model has its own price. Usually empty.
	Others []ModelTokens
	// Model is the model that served, else the one asked for.
	Model string
	State State
	// Billable is false when the answer itself says that nothing was spent:
	// a background response that has not ended as far as this answer shows it, a
	// conversation that was only made, or a failure before anything was generated.
	Billable bool
	// Background is the id of a response that was made in the background and has
	// ended, which other answers may show as well: what it has used is to be
	// counted once, by this id. Empty for everything else.
	Background string
	// Units is usage that is not counted in tokens. Usually zero.
	Units usage.Units
	// Service is how the answer was served, where that has a price of its own.
	Service usage.Service
	// Spoken says that some of the tokens are sound or pictures, which have prices of
	// their own. It is told of sockets only.
	Spoken bool
	// Raw is the usage as the provider tells it.
	Raw Raw
}

// ModelTokens is the usage of one model.
type ModelTokens struct {
	Model  string
	Tokens usage.Tokens
}

// Item is one finished request that an answer shows: of a batch, as a line of the
// batch's results tells it, or a background response.
type Item struct {
	// CustomID names the request within its batch; the agent has chosen it. Of a
	// background response it is the id.
	CustomID string
	// Result is what is said of it. Its slices are valid until Item returns.
	Result Result
}

// Raw holds an answer's numbers as the provider tells them, before they are
// brought to normal form; -1 where it tells none. What is inside what differs
// from dialect to dialect.
type Raw struct {
	Input, Output, Total                   int64
	CacheRead                              int64
	CacheWrite, CacheWrite5m, CacheWrite1h int64
	Reasoning                              int64
}

// Failure is an error that a stream, or a JSON answer with a good status, ended
// in. Fields that the error does not have are empty.
type Failure struct {
	Type    string // error.type; a Responses stream has none
	Code    string // error.code, or Anthropic's error.details.error_code
	Message string // cut to 1 KiB
	Status  int    // the HTTP status it stands for, where it says so
	// ResetsAt is when the limit opens again, in epoch seconds, where the error
	// says so (Codex: resets_at).
	ResetsAt int64
	// Details are what few errors have; nil: none of it.
	Details *FailureDetails
}

// FailureDetails are what an error says in places of one provider's own. Fields
// that it does not have are empty.
type FailureDetails struct {
	// What Google's details say (google.rpc.ErrorInfo, RetryInfo, QuotaFailure):
	// the cause, how long to wait, and the quotas that are used up, one a line.
	Reason, RetryDelay, QuotaIDs string
	// What OpenRouter's metadata says: which limit it was, who served behind it,
	// and whether it gives reasons for a refusal.
	LimitSource, Upstream string
	Moderated             bool
	// ResetsIn is in how many seconds the limit opens again (Codex).
	ResetsIn int64
}
