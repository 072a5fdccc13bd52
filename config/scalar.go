package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// wrong is what a scalar type says about a text it does not take. The decoder
// adds where.
type wrong struct{ problem, allowed string }

func (w wrong) Error() string { return w.problem + " → " + w.allowed }

// Duration is a positive time span, written as Go does: 500ms, 30s, 10m, 720h.
type Duration time.Duration

const durationAllowed = `a positive duration such as "500ms", "30s", "10m" or "720h"`

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return wrong{fmt.Sprintf("%s is not a duration", quoted(string(text))), durationAllowed}
	}
	if v <= 0 {
		return wrong{fmt.Sprintf("%s is not positive", quoted(string(text))), durationAllowed}
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String writes the span as Go does.
func (d Duration) String() string { return time.Duration(d).String() }

// Size is a positive number of bytes, written with a binary unit: 512B, 32KiB,
// 64MiB, 1GiB. A bare number counts bytes.
type Size int64

const sizeAllowed = `a positive size such as "32KiB", "64MiB" or "1GiB"`

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := string(text), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = rest, u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil {
		return wrong{fmt.Sprintf("%s is not a size", quoted(string(text))), sizeAllowed}
	}
	if n == 0 || n > uint64(math.MaxInt64/unit) {
		return wrong{fmt.Sprintf("%s is out of range", quoted(string(text))), sizeAllowed}
	}
	*s = Size(int64(n) * unit)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String writes the size in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range []int{2, 1, 0} {
		if unit := sizeUnits[u]; s != 0 && int64(s)%unit.bytes == 0 {
			return strconv.FormatInt(int64(s)/unit.bytes, 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// USD is an amount of money in nano-dollars. It is written as a plain decimal
// with at most nine places and read without going through a float.
type USD int64

const usdAllowed = "a positive decimal number with at most 9 places, such as 25 or 0.50"

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *USD) UnmarshalText(text []byte) error {
	whole, fraction, _ := strings.Cut(string(text), ".")
	if whole == "" || len(fraction) > 9 || !digits(whole) || !digits(fraction) {
		return wrong{fmt.Sprintf("%s is not an amount", quoted(string(text))), usdAllowed}
	}
	n, err := strconv.ParseInt(whole+fraction+strings.Repeat("0", 9-len(fraction)), 10, 64)
	if err != nil || n == 0 {
		return wrong{fmt.Sprintf("%s is out of range", quoted(string(text))), usdAllowed}
	}
	*u = USD(n)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (u USD) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// String writes dollars as a plain decimal, without trailing zeros.
func (u USD) String() string {
	text := fmt.Sprintf("%d.%09d", int64(u)/1e9, int64(u)%1e9)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// SyncPolicy says when the journal is synced to disk: after every append, or at
// most Interval after it.
type SyncPolicy struct {
	Always   bool
	Interval time.Duration
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *SyncPolicy) UnmarshalText(text []byte) error {
	if string(text) == "always" {
		*p = SyncPolicy{Always: true}
		return nil
	}
	var d Duration
	if err := d.UnmarshalText(text); err != nil {
		return wrong{fmt.Sprintf("%s is not a sync policy", quoted(string(text))), durationAllowed + ", or always"}
	}
	*p = SyncPolicy{Interval: time.Duration(d)}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (p SyncPolicy) MarshalText() ([]byte, error) {
	if p.Always {
		return []byte("always"), nil
	}
	return []byte(p.Interval.String()), nil
}

// digits tells whether text holds nothing but decimal digits.
func digits(text string) bool {
	return strings.Trim(text, "0123456789") == ""
}

// quoted shows a text of the file in a message, shortened and escaped.
func quoted(text string) string {
	const most = 60
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return strconv.Quote(text)
}
