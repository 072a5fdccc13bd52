package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestStatusTable(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { end := now.Add(d); return &end }
	got := statusTable(admin.Status{
		Subscriptions: []admin.Subscription{
			{
				ID: "team-a", Provider: "anthropic", State: "cooling", Reason: "window", Health: 7, Breaker: "closed",
				CooldownUntil: at(90 * time.Minute),
				Block:         &admin.Block{Start: now.Add(-2 * time.Hour), End: now.Add(3 * time.Hour), Input: 1_000_000, Output: 234_567, CostUSD: 12_340_000_000},
				Windows: []admin.Window{
					{Name: "5h", Utilization: 1.04, Status: "rejected"},
					{Name: "7d", Utilization: 0.5, Status: "allowed"},
				},
				Sessions: 12, InFlight: 3,
			},
			{
				ID: "b", Provider: "openai", State: "probing", Reason: "breaker", Health: 100, Breaker: "half-open",
				CooldownUntil:  at(-time.Second), // over: not worth a word
				CooldownModels: map[string]time.Time{"gpt-b": *at(30 * time.Hour), "gpt-a": *at(1500 * time.Millisecond), "gpt-c": *at(-time.Second)},
			},
		},
		Redis: admin.Redis{Mode: "single", JournalPending: 1},
	}, now)
	want := `SUBSCRIPTION  PROVIDER   STATE                                 HEALTH  BLOCK                  TOKENS     COST    WINDOWS                   COOLDOWN              SESSIONS  IN FLIGHT
team-a        anthropic  cooling (window)                      7       ████░░░░░░ 3h00m left  1,234,567  $12.34  5h 104% rejected, 7d 50%  1h30m                 12        3
b             openai     probing (breaker), breaker half-open  100     -                      -          -       -                         gpt-a 2s, gpt-b 1d6h  0         0
Redis single: away: usage is kept in the journal, 1 event waiting in the journal
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestUsageTable(t *testing.T) {
	f := func(by usage.By, counted string, rows []admin.UsageRow, want string) {
		t.Helper()
		if diff := cmp.Diff(want, usageTable(by, counted, rows)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	f(usage.ByDay, "", nil, "Usage by day\nNothing was used.\n")
	f(usage.ByModel, "whole UTC days from 2026-11-21", []admin.UsageRow{
		{Key: "claude-sonnet-4-5", Requests: 1200, Input: 5, Output: 6, CacheRead: 7, CacheWrite5m: 8, CacheWrite1h: 9, CostUSD: 1_500_000_000, Estimated: 2},
		{Key: "llama", Requests: 1, Unpriced: 1, Unknown: 1},
	}, `Usage by model, whole UTC days from 2026-11-21
  REQUESTS  INPUT  OUTPUT  CACHE READ  CACHE WRITE  COST  MODEL
     1,200      5       6           7           17  $1.5  claude-sonnet-4-5 (2 estimated)
         1      0       0           0            0    $0  llama (1 unpriced, 1 unknown)
     1,201      5       6           7           17  $1.5  total (2 estimated, 1 unpriced, 1 unknown)
`)
	// One row is its own sum.
	f(usage.BySubscription, "", []admin.UsageRow{{Key: "team-a", Requests: 1}}, `Usage by subscription
  REQUESTS  INPUT  OUTPUT  CACHE READ  CACHE WRITE  COST  SUBSCRIPTION
         1      0       0           0            0    $0  team-a
`)
}

func TestGrouped(t *testing.T) {
	f := func(n int64, want string) {
		t.Helper()
		if got := grouped(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
	f(0, "0")
	f(999, "999")
	f(1000, "1,000")
	f(-1234567, "-1,234,567")
	f(-999, "-999")
}

func TestAdminURL(t *testing.T) {
	f := func(address, want string) {
		t.Helper()
		u, err := adminURL(address)
		got := "error"
		if err == nil {
			got = u.String()
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", address, got, want)
		}
	}
	f("127.0.0.1:8788", "http://127.0.0.1:8788")
	f("0.0.0.0:8788", "http://127.0.0.1:8788") // what serve listens on can be asked
	f(":8788", "http://127.0.0.1:8788")
	f("[::]:8788", "http://127.0.0.1:8788")
	f("https://authpool.internal:8788/", "https://authpool.internal:8788")
	f("localhost", "error")
	f("ftp://localhost:1", "error")
	f("http://user:password@localhost:1", "error")
	f("http://localhost:1/api", "error")
}
