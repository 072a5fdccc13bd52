package price

import (
	"fmt"
	"strings"
)

// picoDigits is the number of decimal places a price per million tokens may
// have: its millionth is one pico-dollar per token.
const picoDigits = 6

// maxIntegerDigits keeps a price far below overflow: 999,999 USD per million
// tokens is dearer than anything sold.
const maxIntegerDigits = 6

// parsePico reads a plain decimal, US dollars per million tokens, as whole
// pico-dollars per token. It never goes through a float, so that 0.1 is 0.1.
func parsePico(s string) (int64, error) {
	whole, frac, point := strings.Cut(s, ".")
	frac = strings.TrimRight(frac, "0")
	switch {
	case whole == "" || point && len(s) == len(whole)+1:
		return 0, fmt.Errorf("%q is not a plain decimal such as 0.3", s)
	case len(whole) > maxIntegerDigits:
		return 0, fmt.Errorf("%q is too large: US dollars per million tokens, at most %d digits before the point", s, maxIntegerDigits)
	case len(frac) > picoDigits:
		return 0, fmt.Errorf("%q is finer than a pico-dollar per token: at most %d decimal places", s, picoDigits)
	}
	var pico int64
	for _, digits := range []string{whole, frac} {
		for _, c := range []byte(digits) {
			if c < '0' || c > '9' {
				return 0, fmt.Errorf("%q is not a plain decimal such as 0.3", s)
			}
			pico = pico*10 + int64(c-'0')
		}
	}
	for range picoDigits - len(frac) {
		pico *= 10
	}
	return pico, nil
}
