package price

import "github.com/authpool/authpool/ratelimit/usage"

// ratio is a factor as a fraction in lowest terms, such as 11/10. The zero ratio
// is a factor that is not known.
type ratio struct{ num, den uint64 }

func (r ratio) known() bool { return r.den != 0 }

// class is one way of serving that has a factor of its own.
type class uint8

const (
	fast class = iota
	us
	batch
	flex
	priority
	classes
)

// classFields are the names of the classes in prices.json and in an override.
var classFields = [classes]string{"fast", "us", "batch", "flex", "priority"}

// factors are what a model's whole sum is multiplied by in each class.
type factors [classes]ratio

// of returns the product of the factors of s. known is false when one of them is
// not known; it is left out of the product then.
//
// It cannot overflow: s has at most three classes (a tier, fast, US), and a
// factor has a numerator of at most 10^6 and a denominator of at most 10^3 (see
// parseFactor).
func (f *factors) of(s usage.Service) (product ratio, known bool) {
	product, known = ratio{1, 1}, true
	apply := func(r ratio) {
		if !r.known() {
			known = false
			return
		}
		product.num *= r.num
		product.den *= r.den
	}
	switch s.Tier {
	case usage.TierStandard:
	case usage.TierBatch:
		apply(f[batch])
	case usage.TierFlex:
		apply(f[flex])
	case usage.TierPriority:
		apply(f[priority])
	default: // usage.TierOther: a class that has no name here has no factor
		known = false
	}
	if s.Fast {
		apply(f[fast])
	}
	if s.US {
		apply(f[us])
	}
	return product, known
}

// or returns f with what it leaves out taken from g.
func (f factors) or(g factors) factors {
	for c, r := range f {
		if !r.known() {
			f[c] = g[c]
		}
	}
	return f
}
