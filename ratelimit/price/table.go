// Package price says what tokens cost. It holds a table of list prices per
// provider and model, embedded with its date, which an operator's file may
// override row by row.
//
// Everything is integers: prices are pico-dollars per token, costs are
// nano-dollars. A model that the table does not name is unpriced; its price is
// never guessed from a part of its name.
//
// Only tokens are priced. What providers charge by other units (web searches,
// seconds of audio, images, searches of a rerank: usage.Units) is counted but has
// no part in a cost.
//
// Start at New or Load, then Table.Cost.
package price

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/ratelimit/usage"
)

// Table maps models to what they cost. It is immutable and safe for concurrent
// use.
type Table struct {
	version  string
	rates    map[key]Rate
	services map[string]factors // by provider: what holds for all its models
}

// key names a price: authpool's provider name and the model as the provider's
// answers name it.
type key struct{ provider, model string }

// New returns the embedded table.
func New() *Table {
	t, err := parseEmbedded(embedded)
	if err != nil {
		panic(fmt.Sprintf("BUG: the embedded price table: %v", err))
	}
	return t
}

// Load returns the embedded table with the rows of the file at path laid over
// it. The file's format is described at Override; every fault of it is reported
// at once.
func Load(path string) (*Table, error) {
	o, err := LoadFile(path)
	if err != nil {
		return nil, err
	}
	return New().With(o), nil
}

// Version names the prices: the date of the embedded table and, with an
// override, a hash of the override file's bytes. Equal versions give equal
// costs.
func (t *Table) Version() string { return t.version }

// Providers returns the providers that have a price, sorted.
func (t *Table) Providers() []string {
	var names []string
	for k := range t.rates {
		names = append(names, k.provider)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Lookup returns what model costs at provider. model is matched exactly, first
// as it is and then with the provider's prefix of the LiteLLM map, so that
// ("groq", "gemma-7b-it") finds "groq/gemma-7b-it"; then by the other names that
// the provider itself documents for the same model (see otherName). Nothing else
// is tolerated: a name with a date is in the map as such, or has no price.
//
// A provider declared in the config has prices only by an Override, whatever
// its type: what a compatible server charges is not known here. The same holds
// for the built-in providers of which the embedded table has no rows: cohere,
// openrouter, perplexity, together, fireworks, cerebras, huggingface, ollama,
// voyage and zai.
func (t *Table) Lookup(provider, model string) (Rate, bool) {
	r, ok := t.rates[key{provider, model}]
	if !ok {
		if name := otherName(provider, model); name != "" {
			r, ok = t.rates[key{provider, name}]
		}
	}
	return r, ok
}

// Cost returns what tokens of model cost at provider in nano-dollars when they
// were served as s. ok is false when that is not the full price, and the usage is
// then to be recorded as unpriced: either the table has no such model, and the
// cost is 0, or it has no factor for the class of service, and the cost is that of
// the standard class (see Amount.Unsettled).
func (t *Table) Cost(provider, model string, tokens usage.Tokens, s usage.Service) (nano int64, ok bool) {
	r, ok := t.Lookup(provider, model)
	if !ok {
		return 0, false
	}
	a := r.Cost(tokens, s)
	if a.Assumed {
		assumedCosts.Inc()
	}
	return a.NanoUSD, !a.Unsettled
}

// With returns a table in which the rows of o win over those of t.
func (t *Table) With(o *Override) *Table {
	out := &Table{
		version:  t.version + "+" + o.hash,
		rates:    make(map[key]Rate, len(t.rates)+len(o.rates)),
		services: t.services,
	}
	maps.Copy(out.rates, t.rates)
	for k, r := range o.rates {
		r.factors = r.factors.or(t.services[k.provider])
		out.rates[k] = r
	}
	return out
}

// newRate checks and completes a rate whose prices come from a source.
func newRate(provider string, base prices, tiers []tier, f factors) Rate {
	slices.SortFunc(tiers, func(a, b tier) int { return cmp.Compare(a.above, b.above) })
	r := Rate{base: base, tiers: tiers, inclusive: provider == tierInclusive, factors: f}
	r.fill()
	return r
}

// tierInclusive is the one provider whose long-context price begins at the
// threshold itself and not one token above it.
const tierInclusive = "xai"

var assumedCosts = promauto.NewCounter(prometheus.CounterOpts{
	Name: "authpool_price_assumed_total",
	Help: "Answers with tokens of a kind that the price table does not price for their model: the cost rests on an assumption.",
})
