package admin_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/admin"
)

func TestParseQuery(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 30, 0, 0, time.FixedZone("east", 3*3600)) // 09:30 UTC
	f := func(query, by, since, until string) {
		t.Helper()
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		q, err := admin.ParseQuery(values, now)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			return
		}
		if string(q.By) != by || show(q.Since) != since || show(q.Until) != until {
			t.Errorf("%s: got %s [%s, %s), want %s [%s, %s)", query, q.By, show(q.Since), show(q.Until), by, since, until)
		}
	}
	f("", "subscription", "", "")
	f("by=day", "day", "", "")
	f("since=2026-11-20", "subscription", "2026-11-20T00:00:00Z", "")
	f("until=2026-11-20", "subscription", "", "2026-11-21T00:00:00Z") // a date as an end means that day too
	f("until=2026-11-20T00:00:00Z", "subscription", "", "2026-11-20T00:00:00Z")
	f("until=2026-11-20T00:00:01Z", "subscription", "", "2026-11-21T00:00:00Z")
	f("since=2026-11-20T23:30:00-01:00", "subscription", "2026-11-21T00:00:00Z", "")
	f("by=model&since=24h", "model", "2026-11-21T00:00:00Z", "")
	f("by=cell&since=24h", "cell", "2026-11-21T00:00:00Z", "")
	f("since=7d&until=1d", "subscription", "2026-11-15T00:00:00Z", "2026-11-22T00:00:00Z")
	f("since=0s", "subscription", "2026-11-22T00:00:00Z", "")
	f("by=block&since=24h&until=2026-11-22T09:10:11Z", "block", "2026-11-21T09:30:00Z", "2026-11-22T09:10:11Z")
}

func TestParseQueryRefuses(t *testing.T) {
	f := func(query, want string) {
		t.Helper()
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := admin.ParseQuery(values, time.Now()); err == nil {
			t.Errorf("%s: got %+v, want an error", query, q)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %q, want %q in it", query, err, want)
		}
	}
	f("by=colour", "subscription, model, session, agent, day, block, week")
	f("since=yesterday", "want RFC 3339")
	f("since=-24h", "want RFC 3339")
	f("since=-1d", "want RFC 3339")
	f("since=99999999d", "want RFC 3339")
	f("until=2026-13-01", "want RFC 3339")
	f("since=2026-11-22&until=2026-11-20", "since (2026-11-22) must be earlier than until (2026-11-20)") // as they were asked for
	f("since=2h&until=3h", "since (2h) must be earlier than until (3h)")
	f("limit=5", "unknown parameter")
}

// TestRoundingOnlyWidens holds for any range: what was asked for is inside what
// is counted, and less than a day is added at either end.
func TestRoundingOnlyWidens(t *testing.T) {
	start := time.Date(2026, 2, 27, 0, 0, 0, 0, time.UTC)
	for i := range 500 {
		since := start.Add(time.Duration(i) * 37 * time.Minute)
		until := since.Add(time.Duration(1+i*i) * time.Second)
		q, err := admin.ParseQuery(url.Values{"since": {since.Format(time.RFC3339)}, "until": {until.Format(time.RFC3339)}}, start)
		if err != nil {
			t.Fatal(err)
		}
		const day = 24 * time.Hour
		if q.Since.After(since) || q.Until.Before(until) || since.Sub(q.Since) >= day || q.Until.Sub(until) >= day ||
			q.Since.Truncate(day) != q.Since || q.Until.Truncate(day) != q.Until {
			t.Fatalf("[%s, %s) became [%s, %s)", since, until, q.Since, q.Until)
		}
	}
}

func show(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}
