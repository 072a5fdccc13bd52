package admin

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

// Groupings lists what people can add usage up by, the default first. Programs may
// also ask for usage.ByCell.
func Groupings() []usage.By {
	return []usage.By{
		usage.BySubscription, usage.ByModel, usage.BySession, usage.ByAgent, usage.ByDay, usage.ByBlock, usage.ByWeek,
	}
}

// ParseQuery reads by, since and until from a request's query. A time is RFC
// 3339, a date (YYYY-MM-DD, as until: that whole day), or a duration back from
// now (24h, 90m, 7d). The error says what is allowed.
//
// Redis keeps sums, not events: the range is therefore rounded outwards to
// whole UTC days, except by block, where every block that touches the range
// counts whole and the times stay as they were asked for.
func ParseQuery(values url.Values, now time.Time) (usage.Query, error) {
	for name := range values {
		if name != "by" && name != "since" && name != "until" {
			return usage.Query{}, fmt.Errorf("unknown parameter %q: allowed are by, since and until", name)
		}
	}
	by := usage.By(values.Get("by"))
	if by == "" {
		by = usage.BySubscription
	}
	if !slices.Contains(Groupings(), by) && by != usage.ByCell {
		return usage.Query{}, fmt.Errorf("by: %q is not one of %s", by, joinGroupings())
	}
	since, _, err := parseTime(values.Get("since"), now)
	if err != nil {
		return usage.Query{}, fmt.Errorf("since: %w", err)
	}
	until, wholeDay, err := parseTime(values.Get("until"), now)
	if err != nil {
		return usage.Query{}, fmt.Errorf("until: %w", err)
	}
	if wholeDay {
		until = until.AddDate(0, 0, 1)
	}
	if !since.IsZero() && !until.IsZero() && !since.Before(until) {
		return usage.Query{}, fmt.Errorf("since (%s) must be earlier than until (%s)", values.Get("since"), values.Get("until"))
	}
	q := usage.Query{By: by, Since: since, Until: until}
	if by != usage.ByBlock {
		roundToDays(&q)
	}
	return q, nil
}

// roundToDays widens the range to whole UTC days.
func roundToDays(q *usage.Query) {
	const day = 24 * time.Hour
	if !q.Since.IsZero() {
		q.Since = q.Since.Truncate(day)
	}
	if !q.Until.IsZero() {
		if floor := q.Until.Truncate(day); floor.Before(q.Until) {
			q.Until = floor.Add(day)
		}
	}
}

// parseTime reads one time; date tells that it was a date without a clock.
func parseTime(text string, now time.Time) (t time.Time, date bool, err error) {
	if text == "" {
		return time.Time{}, false, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t.UTC(), false, nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, true, nil
	}
	if back, ok := parseBack(text); ok {
		return now.UTC().Add(-back), false, nil
	}
	return time.Time{}, false, fmt.Errorf("%q is no time: want RFC 3339 (2026-11-22T10:00:00Z), a date (2026-11-22) or a duration back (24h, 7d)", text)
}

// maxBack is the longest duration back: longer than anything is kept (months
// are kept for five years).
const maxBack = 10 * 366 * 24 * time.Hour

func parseBack(text string) (time.Duration, bool) {
	if number, ok := strings.CutSuffix(text, "d"); ok {
		days, err := strconv.Atoi(number)
		if err != nil || days < 0 || days > int(maxBack/(24*time.Hour)) {
			return 0, false
		}
		return time.Duration(days) * 24 * time.Hour, true
	}
	d, err := time.ParseDuration(text)
	return d, err == nil && d >= 0 && d <= maxBack
}

func joinGroupings() string {
	names := make([]string, 0, len(Groupings()))
	for _, by := range Groupings() {
		names = append(names, string(by))
	}
	return strings.Join(names, ", ")
}
