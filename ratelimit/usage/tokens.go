package usage

// Tokens is the usage of one answer in the one normal form that every dialect
// is brought to. All fields are counts of tokens and never negative.
//
// The kinds do not overlap, except for Reasoning, which is a part of Output
// and therefore never added to a total.
type Tokens struct {
	Input        int64 // uncached input
	Output       int64 // everything generated, reasoning included
	CacheRead    int64 // input read from the provider's prompt cache
	CacheWrite5m int64 // input written to the cache for five minutes (and writes without a stated life)
	CacheWrite1h int64 // input written to the cache for one hour
	Reasoning    int64 // the part of Output that was reasoning, where the provider says so
}

// Total is the sum of all kinds, as ccusage counts it: input, output, cache
// writes and cache reads.
func (t Tokens) Total() int64 {
	return t.Input + t.Output + t.CacheRead + t.CacheWrite5m + t.CacheWrite1h
}

// Prompt is the request's whole input side, cached or not. It decides the
// price tier of a request.
func (t Tokens) Prompt() int64 {
	return t.Input + t.CacheRead + t.CacheWrite5m + t.CacheWrite1h
}

// Add returns the sum of t and u, kind by kind.
func (t Tokens) Add(u Tokens) Tokens {
	return Tokens{
		Input:        t.Input + u.Input,
		Output:       t.Output + u.Output,
		CacheRead:    t.CacheRead + u.CacheRead,
		CacheWrite5m: t.CacheWrite5m + u.CacheWrite5m,
		CacheWrite1h: t.CacheWrite1h + u.CacheWrite1h,
		Reasoning:    t.Reasoning + u.Reasoning,
	}
}
