package price

import (
	"math"
	"math/bits"

	"github.com/authpool/authpool/ratelimit/usage"
)

// kind is one kind of token that has a price of its own.
type kind uint8

const (
	input kind = iota
	output
	cacheRead
	cacheWrite5m
	cacheWrite1h
	kinds
)

// prices are pico-dollars per token of each kind.
type prices struct {
	pico [kinds]int64
	// set says which kinds the source prices; the others were filled in by
	// fill and are assumed.
	set [kinds]bool
}

// tier is the prices of a request whose prompt side is long.
type tier struct {
	above  int64 // tokens
	prices prices
}

// Rate is what one model costs. The zero Rate is free of charge. A Rate is
// immutable.
//
// What a source leaves out is completed, first for the base, then for each tier:
//
//   - a tier's missing price is the base's, if the base has one;
//   - a missing cache write of an hour is twice the input price where the write
//     of five minutes is 1.25 times it: these are Anthropic's published factors,
//     and wherever the source has both prices for a current Claude they hold;
//   - any other missing cache price is the input price, as if there were no cache;
//   - missing input or output is free: the source leaves it out where the model
//     has none, such as the output of an embedding.
type Rate struct {
	base prices
	// tiers stand in rising order. The whole request's prompt side decides,
	// and then all tokens of the request cost the tier's prices.
	tiers []tier
	// inclusive lets a tier begin at its threshold and not one token above.
	inclusive bool
}

// Cost returns what t costs in nano-dollars: computed exactly in pico-dollars,
// rounded once, half to even. assumed tells that t holds tokens of a kind that
// the source does not price for this model.
//
// Counts below zero count as zero; a cost beyond an int64 is the largest int64.
func (r Rate) Cost(t usage.Tokens) (nano int64, assumed bool) {
	counts := [kinds]int64{t.Input, t.Output, t.CacheRead, t.CacheWrite5m, t.CacheWrite1h}
	p := r.at(t.Prompt())
	var hi, lo uint64
	for k, n := range counts {
		if n <= 0 {
			continue
		}
		assumed = assumed || !p.set[k]
		h, l := bits.Mul64(uint64(n), uint64(p.pico[k]))
		var carry uint64
		lo, carry = bits.Add64(lo, l, 0)
		hi, _ = bits.Add64(hi, h, carry)
	}
	return nanoHalfEven(hi, lo), assumed
}

// at returns the prices for a request with that many prompt tokens.
func (r *Rate) at(prompt int64) *prices {
	p := &r.base
	for i := range r.tiers {
		t := &r.tiers[i]
		if prompt > t.above || r.inclusive && prompt == t.above {
			p = &t.prices
		}
	}
	return p
}

// nanoHalfEven turns 128 bits of pico-dollars into nano-dollars.
func nanoHalfEven(hi, lo uint64) int64 {
	const pico = 1000
	if hi >= pico {
		return math.MaxInt64
	}
	nano, rest := bits.Div64(hi, lo, pico)
	if rest > pico/2 || rest == pico/2 && nano%2 == 1 {
		nano++
	}
	return int64(min(nano, math.MaxInt64))
}

// fill completes the prices that the source leaves out, as Rate describes.
func (r *Rate) fill() {
	r.base.fill(nil)
	for i := range r.tiers {
		r.tiers[i].prices.fill(&r.base)
	}
}

func (p *prices) fill(base *prices) {
	for k := range kinds {
		if p.set[k] {
			continue
		}
		in := p.pico[input]
		switch {
		case k == cacheWrite1h && p.set[cacheWrite5m] && 4*p.pico[cacheWrite5m] == 5*in:
			p.pico[k] = 2 * in
		case base != nil && base.set[k]:
			p.pico[k], p.set[k] = base.pico[k], true
		case k == cacheRead || k == cacheWrite5m || k == cacheWrite1h:
			p.pico[k] = in
		}
	}
}
