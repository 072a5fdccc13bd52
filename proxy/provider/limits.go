package provider

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// limits are what an answer's headers say about limits, found by the names'
// prefixes in one walk, since providers add limits without notice.
type limits struct {
	list  [maxLimits]limit
	count int

	// texts holds what was kept of the headers' values, which are another's
	// memory.
	texts     [maxTexts]byte
	textsUsed int

	retryAfter, retryAfterMS []byte
	date                     time.Time // of the answer, by the provider's clock

	// Anthropic's subscriptions: the state over all windows.
	unifiedStatus, unifiedReset, unifiedClaim []byte

	// Codex: which family of limits refused, and how.
	codexActive, codexReached []byte

	amazonType []byte // the name of Amazon's exception

	organisation []byte // the account that the credential is of

	html       bool // the body is a page for people
	challenged bool // Cloudflare wants to know whether it talks to a browser
}

// maxLimits is how many limits are kept of one answer, and maxTexts how many
// bytes of what they say. What is above is not looked at.
const (
	maxLimits = 16
	maxTexts  = 2 << 10
)

// maxRefill caps what the reset of a bucket may say: none counts more than a
// day's requests or tokens, and one that drifts must not close a model for long.
const maxRefill = 24 * time.Hour

// keep copies a header's value.
func (l *limits) keep(value []byte) []byte {
	if len(value) > maxTexts-l.textsUsed {
		return nil
	}
	kept := l.texts[l.textsUsed : l.textsUsed+copy(l.texts[l.textsUsed:], value)]
	l.textsUsed += len(kept)
	return kept
}

// limit is one limit as its headers tell it, each text as it was sent.
type limit struct {
	kind            limitKind
	name            string
	size, remaining []byte // of a bucket
	utilization     []byte
	percent         bool   // utilization counts to 100
	status          []byte // allowed, allowed_warning, rejected
	reset           []byte
	resetIn         []byte // Codex: seconds
	minutes         []byte // Codex: length of the window
}

type limitKind uint8

const (
	bucketLimit limitKind = iota // requests or tokens a minute
	windowLimit                  // a usage window of Anthropic
	codexLimit                   // a usage window of ChatGPT
)

// read takes one header.
func (l *limits) read(name, value []byte) {
	var buf [maxName]byte
	key := foldName(&buf, name)
	switch {
	case len(key) < 4:
	case key[0] == 'a' && bytes.HasPrefix(key, []byte("anthropic-ratelimit-")):
		key = key[len("anthropic-ratelimit-"):]
		if rest, ok := bytes.CutPrefix(key, []byte("unified-")); ok {
			l.readUnified(rest, value)
			return
		}
		if bucket, what, ok := cutLast(key, '-'); ok {
			l.readBucket(bucket, what, value)
		}
	case string(key) == "anthropic-organization-id", string(key) == "openai-organization":
		l.organisation = l.keep(value)
	case key[0] == 'x' && bytes.HasPrefix(key, []byte("x-ratelimit-")):
		// OpenAI puts what it is first, and what it is of last.
		what, bucket, ok := bytes.Cut(key[len("x-ratelimit-"):], []byte{'-'})
		if !ok {
			bucket = []byte("requests")
		}
		l.readBucket(bucket, what, value)
	case key[0] == 'x':
		l.readCodex(key, value)
	case string(key) == "retry-after":
		l.retryAfter = l.keep(value)
	case string(key) == "retry-after-ms":
		l.retryAfterMS = l.keep(value)
	case string(key) == "content-type":
		l.html = len(value) >= len("text/html") && foldedEqual(value[:len("text/html")], "text/html")
	case string(key) == "cf-mitigated":
		l.challenged = foldedEqual(value, "challenge")
	case string(key) == "date":
		if t, ok := parseTime(string(value)); ok {
			l.date = t
		}
	}
}

// find returns the limit of that kind and name, a new one if need be, or nil
// when there are too many.
func (l *limits) find(kind limitKind, name []byte) *limit {
	for i := range l.list[:l.count] {
		if l.list[i].kind == kind && l.list[i].name == string(name) {
			return &l.list[i]
		}
	}
	if l.count == maxLimits || len(name) == 0 {
		return nil
	}
	l.list[l.count] = limit{kind: kind, name: intern(name)}
	l.count++
	return &l.list[l.count-1]
}

// intern returns name as a string, without allocating for the usual ones.
func intern(name []byte) string {
	switch string(name) {
	case "requests":
		return "requests"
	case "tokens":
		return "tokens"
	case "input-tokens":
		return "input-tokens"
	case "output-tokens":
		return "output-tokens"
	case "5h":
		return "5h"
	case "7d":
		return "7d"
	case "codex-primary":
		return "codex-primary"
	case "codex-secondary":
		return "codex-secondary"
	}
	return string(name)
}

// readUnified reads a header of Anthropic's subscription windows: a fact about
// all of them, or WINDOW-FACT.
func (l *limits) readUnified(key, value []byte) {
	switch string(key) {
	case "status":
		l.unifiedStatus = l.keep(value)
		return
	case "reset":
		l.unifiedReset = l.keep(value)
		return
	case "representative-claim":
		l.unifiedClaim = l.keep(value)
		return
	}
	window, what, ok := cutLast(key, '-')
	if !ok || window[0] == 'o' || window[0] == 'f' || window[0] == 'u' {
		return // overage-…, fallback-…, upgrade-…: about paying more
	}
	switch string(what) {
	case "utilization", "reset", "status":
		if w := l.find(windowLimit, window); w != nil {
			switch what[0] {
			case 'u':
				w.utilization = l.keep(value)
			case 'r':
				w.reset = l.keep(value)
			case 's':
				w.status = l.keep(value)
			}
		}
	}
}

// readBucket reads a header of a limit that refills: limit, remaining or reset.
func (l *limits) readBucket(bucket, what, value []byte) {
	switch string(what) {
	case "limit", "remaining", "reset":
		b := l.find(bucketLimit, bucket)
		if b == nil {
			return
		}
		switch {
		case what[0] == 'l':
			b.size = l.keep(value)
		case what[2] == 'm':
			b.remaining = l.keep(value)
		default:
			b.reset = l.keep(value)
		}
	}
}

// readCodex reads a header of ChatGPT's usage windows,
// x-FAMILY-{primary,secondary}-FACT (openai/codex, codex-api rate_limits.rs).
func (l *limits) readCodex(key, value []byte) {
	switch string(key) {
	case "x-codex-active-limit":
		l.codexActive = l.keep(value)
		return
	case "x-codex-rate-limit-reached-type":
		l.codexReached = l.keep(value)
		return
	case "x-amzn-errortype":
		l.amazonType = l.keep(value)
		return
	}
	for _, fact := range [...]string{"-used-percent", "-window-minutes", "-reset-at", "-reset-after-seconds"} {
		name, ok := bytes.CutSuffix(key[len("x-"):], []byte(fact))
		if !ok || !bytes.HasSuffix(name, []byte("-primary")) && !bytes.HasSuffix(name, []byte("-secondary")) {
			continue
		}
		w := l.find(codexLimit, name)
		if w == nil {
			return
		}
		switch fact {
		case "-used-percent":
			w.utilization, w.percent = l.keep(value), true
		case "-window-minutes":
			w.minutes = l.keep(value)
		case "-reset-at":
			w.reset = l.keep(value)
		case "-reset-after-seconds":
			w.resetIn = l.keep(value)
		}
	}
}

// clock is the time that the provider's stated times are counted from: its own
// clock where the answer tells it, so that a wrong local clock does not matter.
func (l *limits) clock(now time.Time) time.Time {
	if l.date.IsZero() {
		return now
	}
	return l.date
}

// wait is how long the limit says to wait; false when it does not say.
func (w *limit) wait(clock time.Time) (time.Duration, bool) {
	if d, ok := ParseWait(string(w.reset), clock); ok {
		return d, true
	}
	return ParseWait(string(w.resetIn), clock)
}

// used is the spent fraction of the limit; false when it is not told.
func (w *limit) used() (float64, bool) {
	if w.kind != bucketLimit {
		used, ok := fraction(w.utilization)
		if w.percent {
			used /= 100
		}
		return used, ok
	}
	size, ok1 := fraction(w.size)
	remaining, ok2 := fraction(w.remaining)
	if !ok1 || !ok2 || size == 0 {
		return 0, false
	}
	return max(1-remaining/size, 0), true
}

// fraction reads a decimal number that is not negative.
func fraction(text []byte) (float64, bool) {
	n, rest := number(string(text))
	return n, n >= 0 && rest == ""
}

// exhausted tells whether nothing is left of the limit.
func (w *limit) exhausted() bool {
	if w.kind == bucketLimit {
		remaining, ok := fraction(w.remaining)
		return ok && remaining == 0
	}
	used, ok := w.used()
	return string(w.status) == "rejected" || ok && used >= 1
}

// window names the usage window that the limit is of.
func (w *limit) window() string {
	switch w.kind {
	case bucketLimit:
		return strings.ReplaceAll(w.name, "-", "_")
	case windowLimit:
		return w.name
	case codexLimit:
	}
	length := w.name
	switch string(w.minutes) {
	case "300":
		length = "5h"
	case "10080":
		length = "7d"
	}
	if family := w.family(); family != "codex" && length != w.name {
		return family + "_" + length
	}
	return length
}

// family is the name of the limit family of a Codex window.
func (w *limit) family() string {
	return strings.TrimSuffix(strings.TrimSuffix(w.name, "-primary"), "-secondary")
}

// windows appends the limits that say how much of them is spent.
func (l *limits) windows(dst []ratelimit.Window, now time.Time) []ratelimit.Window {
	clock := l.clock(now)
	for i := range l.list[:l.count] {
		w := &l.list[i]
		used, ok := w.used()
		if !ok && len(w.status) == 0 {
			continue
		}
		window := ratelimit.Window{Name: w.window(), Kind: "provider", Utilization: used, Status: status(w.status), Seen: now}
		if w.kind == bucketLimit {
			window.Kind = "bucket"
			window.Size, _ = fraction(w.size)
			window.Left, _ = fraction(w.remaining)
		} else if claim, of := claimed(l.unifiedClaim); of == window.Name {
			window.Claim = claim
		}
		if wait, ok := w.wait(clock); ok {
			window.Reset = now.Add(wait)
		}
		dst = append(dst, window)
	}
	return dst
}

// claimed returns anthropic-ratelimit-unified-representative-claim and the name
// of the window that it is about; both empty for what is none of them (overage
// is not a window, providers.md 4.1).
func claimed(text []byte) (claim, window string) {
	switch string(text) {
	case "five_hour":
		return "five_hour", "5h"
	case "seven_day":
		return "seven_day", "7d"
	case "seven_day_opus":
		return "seven_day_opus", "7d"
	case "seven_day_sonnet":
		return "seven_day_sonnet", "7d"
	case "seven_day_overage_included":
		return "seven_day_overage_included", "7d_oi"
	}
	return "", ""
}

// status returns the state of a window as the headers name it, without
// allocating for those that are known.
func status(text []byte) string {
	switch string(text) {
	case "allowed":
		return "allowed"
	case "allowed_warning":
		return "allowed_warning"
	case "rejected":
		return "rejected"
	}
	return string(text)
}

// afterHeader is what retry-after-ms or else retry-after says; a wait of zero
// says nothing (seen on Azure beside a retry-after that does).
func (l *limits) afterHeader(now time.Time) (time.Duration, bool) {
	if ms, ok := fraction(l.retryAfterMS); ok && ms > 0 {
		return capped(ms * float64(time.Millisecond)), true
	}
	wait, ok := ParseWait(string(l.retryAfter), l.clock(now))
	return wait, ok && wait > 0
}

// exhaustedWait is the longest wait of the limits of these kinds that are
// exhausted; the others' resets do not matter.
func (l *limits) exhaustedWait(now time.Time, kinds ...limitKind) (longest time.Duration, ok bool) {
	for i := range l.list[:l.count] {
		w := &l.list[i]
		for _, kind := range kinds {
			if w.kind != kind || !w.exhausted() {
				continue
			}
			if wait, told := w.wait(l.clock(now)); told && wait > 0 {
				if kind == bucketLimit {
					wait = min(wait, maxRefill)
				}
				longest, ok = max(longest, wait), true
			}
		}
	}
	return longest, ok
}

// intOf reads a whole number; false for anything else.
func intOf(text string) (int, bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil
}
