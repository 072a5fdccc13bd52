package price

import (
	"errors"
	"fmt"
	"strings"
)

// picoDigits is the number of decimal places a price per million tokens may
// have: its millionth is one pico-dollar per token.
const picoDigits = 6

// maxIntegerDigits keeps a price far below overflow: 999,999 USD per million
// tokens is dearer than anything sold.
const maxIntegerDigits = 6

// factorDigits is the number of digits that a factor may have before and after
// the point: 1.1 and 6 are typical, and the product of three must fit (see
// factors.of).
const factorDigits = 3

var errNotPlain = errors.New("is not a plain decimal such as 0.3")

// parsePico reads a plain decimal, US dollars per million tokens, as whole
// pico-dollars per token. It never goes through a float, so that 0.1 is 0.1.
func parsePico(s string) (int64, error) {
	whole, frac, err := splitDecimal(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q %w", s, err)
	case len(whole) > maxIntegerDigits:
		return 0, fmt.Errorf("%q is too large: US dollars per million tokens, at most %d digits before the point", s, maxIntegerDigits)
	case len(frac) > picoDigits:
		return 0, fmt.Errorf("%q is finer than a pico-dollar per token: at most %d decimal places", s, picoDigits)
	}
	return int64(scaled(whole, frac, picoDigits)), nil
}

// parseFactor reads a plain decimal as an exact fraction.
func parseFactor(s string) (ratio, error) {
	whole, frac, err := splitDecimal(s)
	if err != nil {
		return ratio{}, fmt.Errorf("%q %w", s, err)
	}
	if len(whole) > factorDigits || len(frac) > factorDigits {
		return ratio{}, fmt.Errorf("%q is no factor: at most %d digits before and after the point", s, factorDigits)
	}
	r := ratio{scaled(whole, frac, factorDigits), scaled("1", "", factorDigits)}
	a, b := r.num, r.den
	for b != 0 {
		a, b = b, a%b
	}
	return ratio{r.num / a, r.den / a}, nil
}

// splitDecimal returns the digits before and after the point, without zeros at
// the end.
func splitDecimal(s string) (whole, frac string, err error) {
	whole, frac, point := strings.Cut(s, ".")
	if whole == "" || point && frac == "" || strings.Trim(whole+frac, "0123456789") != "" {
		return "", "", errNotPlain
	}
	return whole, strings.TrimRight(frac, "0"), nil
}

// scaled is the decimal times 10^places. The digits were checked to be few enough.
func scaled(whole, frac string, places int) uint64 {
	var n uint64
	for _, digits := range []string{whole, frac, strings.Repeat("0", places-len(frac))} {
		for _, c := range []byte(digits) {
			n = n*10 + uint64(c-'0')
		}
	}
	return n
}
