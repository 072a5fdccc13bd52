package main

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/ratelimit/usage"
)

// sessionUsage is what a session has used so far, with all of its agents; it waits until
// what was counted has reached Redis.
func (s *usedServe) sessionUsage(ctx context.Context, session string) (admin.UsageRow, error) {
	err := waitFor(ctx, "usage to reach Redis", func() (bool, error) {
		status, err := s.asked.status(ctx)
		return !status.Redis.OK || status.Redis.JournalPending == 0, err
	})
	if err != nil {
		return admin.UsageRow{}, err
	}
	var rows []admin.UsageRow
	if _, err := s.asked.get(ctx, admin.UsagePath, url.Values{"by": {string(usage.BySession)}}, &rows); err != nil {
		return admin.UsageRow{}, err
	}
	var total admin.UsageRow
	for _, row := range rows {
		if _, id, _ := strings.Cut(row.Key, "/"); id == session {
			total = sum(total, row)
		}
	}
	return total, nil
}

// servedBy are the subscriptions that a session was served by of late, sorted.
func (s *usedServe) servedBy(ctx context.Context, session string) ([]string, error) {
	var requests []explain.Request
	if _, err := s.asked.get(ctx, admin.RequestsPath, url.Values{"session": {session}}, &requests); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for i := range requests {
		if name := requests[i].Subscription; name != "" {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// report tells what the session has used since before. That it cannot be told is no fault
// of the command.
func (r *run) report(ctx context.Context, s *usedServe, before admin.UsageRow) {
	line, err := s.summary(ctx, r.session, before)
	if err != nil {
		line = "session " + r.session + ": cannot tell what it has used: " + err.Error()
	}
	_, _ = fmt.Fprintf(r.Err, "authpool: %s\n", line) // a note, not the answer
}

func (s *usedServe) summary(ctx context.Context, session string, before admin.UsageRow) (string, error) {
	u, err := s.sessionUsage(ctx, session)
	if err != nil {
		return "", err
	}
	requests := u.Requests - before.Requests
	if requests == 0 {
		return "session " + session + ": nothing was counted", nil
	}
	names, err := s.servedBy(ctx, session)
	if err != nil {
		return "", err
	}
	read, written := u.CacheRead-before.CacheRead, u.CacheWrite5m+u.CacheWrite1h-before.CacheWrite5m-before.CacheWrite1h
	line := fmt.Sprintf("session %s: %s, %s input, %s output, %s cached, %s cache written, %s",
		session, plural(requests, "request"), grouped(u.Input-before.Input), grouped(u.Output-before.Output),
		grouped(read), grouped(written), money(u.CostUSD-before.CostUSD))
	if len(names) > 0 {
		line += ", by " + strings.Join(names, ", ")
	}
	if notes := marks(u.Estimated-before.Estimated, u.Unpriced-before.Unpriced, u.Unknown-before.Unknown); len(notes) > 0 {
		line += " (" + strings.Join(notes, ", ") + ")"
	}
	return line, nil
}
