package provider

import (
	"strings"
	"time"
)

// maxWait caps what a provider may say about when to come back: no limit window
// is longer than a month.
const maxWait = 35 * 24 * time.Hour

// ParseWait reads how long a provider says to wait, counted from now, in every
// form that providers use: seconds (`30`, `1.5`), Go
// and protobuf durations (`6m0s`, `2m59.56s`, `34.07s`), RFC 3339, HTTP dates,
// and epoch seconds or milliseconds, which are told by their size. Times in
// the past are no wait; negative and malformed texts are refused; what is
// longer than 35 days is cut to that.
func ParseWait(text string, now time.Time) (wait time.Duration, ok bool) {
	text = strings.TrimSpace(text)
	if text == "" || len(text) > 64 {
		return 0, false
	}
	if n, rest := number(text); rest == "" {
		switch {
		case n < 0:
			return 0, false
		case n > 1e15:
			return 0, false
		case n > 1e12:
			return until(time.UnixMilli(int64(n)), now), true
		case n > 1e9:
			return until(time.Unix(int64(n), 0), now), true
		}
		return capped(n * float64(time.Second)), true
	}
	if d, rest, ok := duration(text); ok && rest == "" {
		return d, true
	}
	if t, ok := parseTime(text); ok {
		return until(t, now), true
	}
	return 0, false
}

// parseTime reads RFC 3339 and the three forms of an HTTP date, which is always
// in GMT (RFC 9110 5.6.7).
func parseTime(text string) (time.Time, bool) {
	if text != "" && isDigit(text[0]) {
		t, err := time.Parse(time.RFC3339, text)
		return t, err == nil
	}
	for _, layout := range [...]string{"Mon, 02 Jan 2006 15:04:05 GMT", "Monday, 02-Jan-06 15:04:05 GMT", time.ANSIC} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// until is the wait for t, between none and maxWait.
func until(t, now time.Time) time.Duration {
	return min(max(t.Sub(now), 0), maxWait)
}

// capped turns nanoseconds into a Duration without overflow.
func capped(nanoseconds float64) time.Duration {
	if nanoseconds >= float64(maxWait) {
		return maxWait
	}
	return time.Duration(nanoseconds)
}

// number reads the digits at the beginning of text, with at most one point
// between them; -1 when there are none.
func number(text string) (n float64, rest string) {
	i := 0
	point := false
	scale := 1.0
	n = -1
	for ; i < len(text); i++ {
		c := text[i]
		if c == '.' && !point && n >= 0 && i+1 < len(text) && isDigit(text[i+1]) {
			point = true
			continue
		}
		if !isDigit(c) {
			break
		}
		if point && scale >= 1e15 {
			continue // finer than a float64 is
		}
		n = max(n, 0)*10 + float64(c-'0')
		if point {
			scale *= 10
		}
	}
	return n / scale, text[i:]
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// units are the words for units of time in durations and messages, the longer
// ones first where one begins the other.
var units = []struct {
	name string
	unit time.Duration
}{
	{"milliseconds", time.Millisecond},
	{"millisecond", time.Millisecond},
	{"ms", time.Millisecond},
	{"microseconds", time.Microsecond},
	{"us", time.Microsecond},
	{"µs", time.Microsecond},
	{"ns", time.Nanosecond},
	{"seconds", time.Second},
	{"second", time.Second},
	{"secs", time.Second},
	{"sec", time.Second},
	{"s", time.Second},
	{"minutes", time.Minute},
	{"minute", time.Minute},
	{"mins", time.Minute},
	{"min", time.Minute},
	{"m", time.Minute},
	{"hours", time.Hour},
	{"hour", time.Hour},
	{"hrs", time.Hour},
	{"hr", time.Hour},
	{"h", time.Hour},
	{"days", 24 * time.Hour},
	{"day", 24 * time.Hour},
	{"d", 24 * time.Hour},
}

// duration reads numbers with units from the beginning of text, as many as
// follow each other: `1h2m3.5s`, `33 seconds`.
func duration(text string) (d time.Duration, rest string, ok bool) {
	total := 0.0
	for {
		n, behind := number(strings.TrimLeft(text, " "))
		if n < 0 {
			break
		}
		unit, behind := timeUnit(strings.TrimLeft(behind, " "))
		if unit == 0 {
			break
		}
		total += n * float64(unit)
		text, ok = behind, true
	}
	return capped(total), text, ok
}

// timeUnit reads a unit at the beginning of text; 0 when there is none.
func timeUnit(text string) (unit time.Duration, rest string) {
	for _, u := range units {
		if len(text) >= len(u.name) && strings.EqualFold(text[:len(u.name)], u.name) {
			rest := text[len(u.name):]
			if rest != "" && isLetter(rest[0]) {
				continue
			}
			return u.unit, rest
		}
	}
	return 0, text
}

func isLetter(c byte) bool { c = lower(c); return c >= 'a' && c <= 'z' }

// waitPhrases stand before a duration in error messages.
var waitPhrases = []string{"try again in ", "retry in ", "retry after "}

// waitInText finds the duration that a message names.
func waitInText(message string) (time.Duration, bool) {
	message = strings.ToLower(message)
	for _, phrase := range waitPhrases {
		if _, after, ok := strings.Cut(message, phrase); ok {
			if d, _, ok := duration(after); ok {
				return d, true
			}
		}
	}
	return 0, false
}

// dateInText finds the first date YYYY-MM-DD in a message, with the hour that
// may follow it (`2026-12-01 at 00:00 UTC`).
func dateInText(message string) (time.Time, bool) {
	for i := 0; i+len(time.DateOnly) <= len(message); i++ {
		day := message[i : i+len(time.DateOnly)]
		if day[4] != '-' {
			continue
		}
		t, err := time.Parse(time.DateOnly, day)
		if err != nil {
			continue
		}
		rest := strings.TrimPrefix(strings.TrimPrefix(message[i+len(day):], " at"), " ")
		if len(rest) >= len("15:04") {
			if hour, err := time.Parse("15:04", rest[:len("15:04")]); err == nil {
				t = t.Add(time.Duration(hour.Hour())*time.Hour + time.Duration(hour.Minute())*time.Minute)
			}
		}
		return t, true
	}
	return time.Time{}, false
}

// nextMonth is the beginning of the next calendar month, UTC.
func nextMonth(now time.Time) time.Time {
	now = now.UTC()
	return time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC)
}
