package usage

import "iter"

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

// Units is usage that is not counted in tokens. Providers charge for it apart;
// it has no part in a total of tokens.
type Units struct {
	WebSearches int64 // web_search_requests: searches that the provider made
	WebFetches  int64 // web_fetch_requests: pages that it fetched
	Seconds     int64 // seconds of audio, rounded up
	Images      int64 // images made
	SearchUnits int64 // search_units of reranking
}

// Add returns the sum of u and v, unit by unit.
func (u Units) Add(v Units) Units {
	return Units{
		WebSearches: u.WebSearches + v.WebSearches,
		WebFetches:  u.WebFetches + v.WebFetches,
		Seconds:     u.Seconds + v.Seconds,
		Images:      u.Images + v.Images,
		SearchUnits: u.SearchUnits + v.SearchUnits,
	}
}

// unitNames are the names of Units, in the order of Units.refs.
var unitNames = [...]string{"web_search_requests", "web_fetch_requests", "seconds", "images", "search_units"}

// refs returns the units in the order of unitNames.
func (u *Units) refs() [len(unitNames)]*int64 {
	return [...]*int64{&u.WebSearches, &u.WebFetches, &u.Seconds, &u.Images, &u.SearchUnits}
}

// All yields every unit that is not zero, by the name that it has in Redis, in
// metrics and in the API.
func (u Units) All() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		for i, n := range u.refs() {
			if *n != 0 && !yield(unitNames[i], *n) {
				return
			}
		}
	}
}

// Tier is the class of service that an answer was served in.
type Tier uint8

// The tiers. Providers name them alike (service_tier).
const (
	TierStandard Tier = iota // also when the answer names none
	TierBatch
	TierFlex
	TierPriority
	TierOther // a name that is not known here
)

// Service is how an answer was served, as far as that changes its price. The
// zero Service is the usual one.
type Service struct {
	Tier Tier
	Fast bool // Anthropic: speed is "fast"
	US   bool // Anthropic: inference_geo is "us"
}
