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
//
// A factor of a class of service that the source leaves out stays unknown: see
// Amount.
type Rate struct {
	base prices
	// tiers stand in rising order. The whole request's prompt side decides,
	// and then all tokens of the request cost the tier's prices.
	tiers []tier
	// inclusive lets a tier begin at its threshold and not one token above.
	inclusive bool
	factors   factors
}

// Amount is what an answer costs, and how sure that is.
type Amount struct {
	NanoUSD int64
	// Assumed tells that the answer holds tokens of a kind that the source does
	// not price for this model, see Rate.
	Assumed bool
	// Unsettled tells that the answer was served in a class (batch, priority,
	// fast...) whose factor is not known for this model. NanoUSD leaves that
	// factor out: it is what the standard class would cost, which is too little
	// for a dearer class and too much for a cheaper one.
	Unsettled bool
}

// Cost returns what t costs when served as s: computed exactly in pico-dollars,
// the factors of s multiplied onto the sum, rounded once, half to even.
//
// Counts below zero count as zero; a cost beyond an int64 is the largest int64.
func (r Rate) Cost(t usage.Tokens, s usage.Service) Amount {
	counts := [kinds]int64{t.Input, t.Output, t.CacheRead, t.CacheWrite5m, t.CacheWrite1h}
	p := r.at(t.Prompt())
	var out Amount
	var sum [2]uint64 // pico-dollars, high word first: five products below 2^103 fit
	for k, n := range counts {
		if n <= 0 {
			continue
		}
		out.Assumed = out.Assumed || !p.set[k]
		h, l := bits.Mul64(uint64(n), uint64(p.pico[k]))
		var carry uint64
		sum[1], carry = bits.Add64(sum[1], l, 0)
		sum[0], _ = bits.Add64(sum[0], h, carry)
	}
	factor, known := r.factors.of(s)
	out.NanoUSD, out.Unsettled = nanoHalfEven(sum, factor), !known
	return out
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

// nanoHalfEven multiplies 128 bits of pico-dollars, high word first, by factor and
// turns them into nano-dollars.
func nanoHalfEven(pico [2]uint64, factor ratio) int64 {
	const picoInNano = 1000
	// 128 by 64 bits is 192: the words w, highest first.
	var w [3]uint64
	var h, carry uint64
	h, w[2] = bits.Mul64(pico[1], factor.num)
	w[0], w[1] = bits.Mul64(pico[0], factor.num)
	w[1], carry = bits.Add64(w[1], h, 0)
	w[0] += carry

	by := factor.den * picoInNano
	if w[0] != 0 || w[1] >= by {
		return math.MaxInt64 // the quotient has more than 64 bits
	}
	nano, rest := bits.Div64(w[1], w[2], by)
	if half := by / 2; rest > half || rest == half && nano%2 == 1 {
		nano++ // by is even, so that half of it is whole
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
