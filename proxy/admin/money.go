package admin

import (
	"fmt"
	"strconv"
	"strings"
)

// NanoUSD is an amount of money in nano-dollars. On the wire it is a plain
// decimal string of dollars with at most nine places and no exponent, so that
// no reader's floating point can bend it.
type NanoUSD int64

const nanosPerDollar = 1_000_000_000

// String returns the amount in dollars: "0", "1.29181785", "-0.5".
func (n NanoUSD) String() string {
	sign, magnitude := "", uint64(n)
	if n < 0 {
		sign, magnitude = "-", -magnitude
	}
	whole, fraction := magnitude/nanosPerDollar, magnitude%nanosPerDollar
	if fraction == 0 {
		return sign + strconv.FormatUint(whole, 10)
	}
	return sign + strconv.FormatUint(whole, 10) + "." + strings.TrimRight(fmt.Sprintf("%09d", fraction), "0")
}

// MarshalText implements encoding.TextMarshaler.
func (n NanoUSD) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it takes what MarshalText
// writes and nothing looser.
func (n *NanoUSD) UnmarshalText(text []byte) error {
	digits, negative := strings.CutPrefix(string(text), "-")
	whole, fraction, pointed := strings.Cut(digits, ".")
	if !allDigits(whole) || pointed && !allDigits(fraction) || len(fraction) > 9 {
		return fmt.Errorf("cannot read %q as an amount of dollars: want digits with at most nine places", text)
	}
	sign := ""
	if negative {
		sign = "-"
	}
	v, err := strconv.ParseInt(sign+whole+fraction+strings.Repeat("0", 9-len(fraction)), 10, 64)
	if err != nil {
		return fmt.Errorf("cannot read %q as an amount of dollars: %w", text, err)
	}
	*n = NanoUSD(v)
	return nil
}

func allDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
