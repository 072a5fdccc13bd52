package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/authpool/authpool/proxy/admin"
)

// pen draws the bars of the tables for people.
type pen struct {
	full, empty string
}

var (
	blocksPen = pen{"▓", "░"}
	asciiPen  = pen{"#", "."}
)

// pen returns what the reader can see: blocks where the locale says UTF-8, as it is
// found in POSIX' order. Whether the output is a terminal changes nothing, so that a
// pager or a file shows the same.
func (p *program) pen() pen {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		locale := strings.ToLower(p.getenv(name))
		if locale == "" {
			continue
		}
		if strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8") {
			return blocksPen
		}
		break
	}
	return asciiPen
}

// bar draws which fraction is used, with the number: it is full only when nothing is
// left.
func (p pen) bar(used float64) string {
	const (
		width = 10
		dust  = 1e-9 // 0.57 times 100 is a little less than 57
	)
	used = max(used, 0) + dust
	filled := int(min(used, 1) * width)
	return strings.Repeat(p.full, filled) + strings.Repeat(p.empty, width-filled) + fmt.Sprintf(" %3.0f%%", math.Floor(used*100))
}

// capacityCell draws how much of a block's capacity is used; ok is false when that
// is not known.
func (p pen) capacityCell(c *admin.Capacity) (cell string, ok bool) {
	if c == nil {
		return "", false
	}
	cell = p.bar(c.Used) + " of " + money(c.CostUSD)
	if c.Source == admin.Learned {
		cell += " (learned)"
	}
	return cell, true
}

// budgetCell draws how much of a budget is used.
func (p pen) budgetCell(b admin.Budget) string {
	var limits []string
	if b.CostUSD > 0 {
		limits = append(limits, money(b.CostUSD))
	}
	if b.Tokens > 0 {
		limits = append(limits, plural(b.Tokens, "token"))
	}
	if b.Requests > 0 {
		limits = append(limits, plural(b.Requests, "request"))
	}
	return p.bar(b.Used) + " of " + strings.Join(limits, " and ")
}

// money rounds an amount for people: to cents, below ten of them to the hundredth of
// one, and below that not at all.
func money(n admin.NanoUSD) string {
	switch {
	case n > 0 && n < 100_000:
		return "$" + n.String()
	case n > 0 && n < 100_000_000:
		return "$" + strconv.FormatFloat(float64(n)/1e9, 'f', 4, 64)
	}
	dollars, cents, _ := strings.Cut(strconv.FormatFloat(float64(n)/1e9, 'f', 2, 64), ".")
	whole, _ := strconv.ParseInt(dollars, 10, 64) // just written
	return "$" + grouped(whole) + "." + cents
}

// size tells bytes in the largest unit that they fill.
func size(n int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.bytes {
			return strings.TrimSuffix(strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64), ".0") + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " B"
}

// clock tells a time to come in UTC: without its date when that is clear, so not when
// it is nearly a day away.
func clock(t, now time.Time) string {
	const clear = 23 * time.Hour
	layout := "15:04 UTC"
	if away := t.Sub(now); away < 0 || away >= clear {
		layout = "2006-01-02 15:04 UTC"
	}
	return t.UTC().Format(layout)
}

// until tells the time from now to end in the two largest units that matter.
func until(end, now time.Time) string {
	d := max(0, end.Sub(now))
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	default:
		return fmt.Sprintf("%ds", (d+time.Second-1)/time.Second)
	}
}

// grouped writes n with commas between thousands.
func grouped(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return grouped(n) + " " + noun + "s"
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// lineWidth is that of a terminal as people leave it.
const lineWidth = 80

// notes joins phrases with commas and begins a new line, set in by indent, where the
// next would not fit.
func notes(indent string, phrases []string) string {
	var out strings.Builder
	column := 0
	for i, phrase := range phrases {
		if i < len(phrases)-1 {
			phrase += ","
		}
		width := utf8.RuneCountInString(phrase)
		switch {
		case i == 0:
		case len(indent)+column+len(" ")+width > lineWidth:
			out.WriteString("\n" + indent)
			column = 0
		default:
			out.WriteString(" ")
			column += len(" ")
		}
		out.WriteString(phrase)
		column += width
	}
	return out.String()
}
