package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestStatusTable(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { end := now.Add(d); return &end }
	slow := explain.Seconds(4200 * time.Millisecond)
	drift, capacity := 0.24, admin.NanoUSD(180_000_000_000)
	status := admin.Status{
		Subscriptions: []admin.Subscription{
			{
				ID: "team-a", Provider: "anthropic", State: "cooling", Reason: "window", Health: 7, Breaker: "closed",
				CooldownUntil: at(90 * time.Minute),
				Block: &admin.Block{
					Start: now.Add(-2 * time.Hour), End: now.Add(3 * time.Hour), Input: 1_000_000, Output: 234_567, CostUSD: 13_340_000_000,
					Burn:       &admin.Burn{TokensPerMinute: 10_288.06, CostUSDPerHour: 6_670_000_000, Steady: true},
					Projection: &admin.Projection{RemainingMinutes: 180, Tokens: 3_000_000, CostUSD: 33_350_000_000},
					Capacity:   &admin.Capacity{CostUSD: 25_000_000_000, Source: admin.Configured, Used: 0.533},
					EmptiesAt:  at(105 * time.Minute),
				},
				Budgets: []admin.Budget{
					{Window: "block", CostUSD: 25_000_000_000, SpentUSD: 13_340_000_000, Used: 0.533, State: "ok", Resets: at(3 * time.Hour)},
					{Window: "month", CostUSD: 500_000_000_000, SpentUSD: 504_500_000_000, Used: 1.009, State: "exceeded", Resets: at(204 * time.Hour), EmptiesAt: at(0)},
				},
				Windows: []admin.Window{
					{Name: "5h", Kind: "provider", Utilization: 1.02, Effective: 1.04, Status: "rejected", Reset: at(2 * time.Hour)},
					{
						Name: "7d", Kind: "provider", Utilization: 0.5, Effective: 0.5, Status: "allowed", Reset: at(50 * time.Hour),
						CapacityUSD: &capacity, Drift: &drift, Foreign: drift, EmptiesAt: at(13 * time.Hour),
					},
					{Name: "requests", Kind: "bucket", Utilization: 0.02, Effective: 0.02},
					{Name: "tokens", Kind: "bucket", Utilization: 0.9, Effective: 0.9, Status: "allowed_warning"},
				},
				Sessions: 12, InFlight: 3, Minute: &admin.Minute{Requests: 12, Input: 4000, Output: 900},
			},
			{
				ID: "b", Provider: "openai", State: "probing", Reason: "breaker", Health: 100, Breaker: "half-open",
				CooldownUntil: at(-time.Second), // over: not worth a word
				Score:         explain.Score{Total: 10, Availability: 0.5, Headroom: 0.404, Soundness: 0.999, Swiftness: 0.25, Idleness: 0.1}, FirstByte: &slow,
				CooldownModels: map[string]time.Time{"gpt-b": *at(30 * time.Hour), "gpt-a": *at(1500 * time.Millisecond), "gpt-c": *at(-time.Second)},
				Block: &admin.Block{
					Start: now.Add(-4 * time.Hour), End: now.Add(time.Hour), Input: 20, CostUSD: 4_200_000,
					Estimated: 1, Unpriced: 1200, Unknown: 2,
					// Of a moment, and not worth telling.
					Burn: &admin.Burn{TokensPerMinute: 9000, CostUSDPerHour: 6_670_000_000}, Projection: &admin.Projection{CostUSD: 33_350_000_000},
				},
				Budgets: []admin.Budget{
					{Window: "block", CostUSD: 1_000_000_000, Requests: 10, SpentUSD: 4_200_000, UsedTokens: 20, UsedRequests: 9, Used: 0.9, State: "warning", Resets: at(time.Hour)},
					{Window: "day", CostUSD: 10_000_000_000, SpentUSD: 4_200_000, State: "ok", Resets: at(12 * time.Hour)},
					{Window: "week", Tokens: 1000, UsedTokens: 520, UsedRequests: 9, Used: 0.52, State: "ok", Resets: at(50 * time.Hour), EmptiesAt: at(13 * time.Hour)},
				},
				Minute: &admin.Minute{},
			},
		},
		Redis:   admin.Redis{Mode: "single", JournalPending: 1},
		Journal: admin.Journal{Bytes: 8 << 20, Held: 11 << 20, MaxBytes: 1 << 30},
	}
	want := `SUBSCRIPTION  PROVIDER   STATE                                 HEALTH  SESSIONS  IN FLIGHT
team-a        anthropic  cooling (window)                      7       12        3
  cooldown   1h30m
  block      ▓▓▓▓▓░░░░░  53% of $25.00, resets 15:00 UTC (3h00m), $13.34,
             1,234,567 tokens, 10,288/min, $6.67/h, $33.35 at the end,
             used up by 13:45 UTC
  month      ▓▓▓▓▓▓▓▓▓▓ 100% of $500.00, exceeded, $504.50 spent,
             resets 2026-12-01 00:00 UTC
  window 5h  ▓▓▓▓▓▓▓▓▓▓ 104% rejected, resets 14:00 UTC
  window 7d  ▓▓▓▓▓░░░░░  50% of about $180.00, resets 2026-11-24 14:00 UTC,
             drift +24.0%, 24% used elsewhere, used up by 01:00 UTC
  limits     requests 2%, tokens 90% allowed_warning
  minute     12 requests, 4,000 in, 900 out
b             openai     probing (breaker), breaker half-open  100     0         0
  cooldown   gpt-a 2s, gpt-b 1d6h
  health     availability 50%, headroom 40%, swiftness 25%,
             first byte after 4.2s
  block      resets 13:00 UTC (1h00m), $0.0042, 20 tokens, 1 estimated,
             1,200 unpriced, 2 unknown
  budget     ▓▓▓▓▓▓▓▓▓░  90% of $1.00 and 10 requests, warning,
             $0.0042 and 9 requests spent, resets 13:00 UTC
  day        ░░░░░░░░░░   0% of $10.00, $0.0042 spent, resets 00:00 UTC
  week       ▓▓▓▓▓░░░░░  52% of 1,000 tokens, 520 tokens spent,
             resets 2026-11-24 14:00 UTC, used up by 01:00 UTC
Redis single: away: blocks and budgets are not known, usage is kept in the journal; 1 event waiting in the journal
Journal: 11 MiB of 1 GiB taken
`
	if diff := cmp.Diff(want, statusTable(status, now, blocksPen)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	// What is said of a subscription fits a terminal, and a plain one shows no bytes
	// that it cannot.
	for line := range strings.Lines(statusTable(status, now, asciiPen)) {
		if strings.HasPrefix(line, " ") && len(line) > lineWidth+1 {
			t.Errorf("%d columns: %s", len(line)-1, line)
		}
		if i := strings.IndexFunc(line, func(r rune) bool { return r > '~' }); i >= 0 {
			t.Errorf("not ASCII: %s", line)
		}
	}
}

func TestWaitingLine(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	f := func(w *admin.OldestPending, want string) {
		t.Helper()
		if got := waitingLine(w, now); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(nil, "")
	f(&admin.OldestPending{Subscription: "team-a", Time: now.Add(-59 * time.Second), Error: "TRYAGAIN"}, "")
	f(&admin.OldestPending{Subscription: "team-a", Time: now.Add(-90 * time.Minute)}, "Journal: usage of team-a waits for 1h30m\n")
	f(&admin.OldestPending{Subscription: "team-a", Time: now.Add(-time.Minute), Error: "TRYAGAIN"}, "Journal: usage of team-a waits for 1m00s: TRYAGAIN\n")

	status := admin.Status{Journal: admin.Journal{OldestPending: &admin.OldestPending{Subscription: "team-a", Time: now.Add(-time.Hour)}}}
	if got := statusTable(status, now, asciiPen); !strings.Contains(got, "usage of team-a waits for 1h00m") {
		t.Errorf("the status does not tell what waits:\n%s", got)
	}
}

func TestJournalLine(t *testing.T) {
	f := func(j admin.Journal, want string) {
		t.Helper()
		if got := journalLine(j); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(admin.Journal{MaxBytes: 1 << 30}, "")
	f(admin.Journal{Held: 1 << 20, MaxBytes: 1 << 20, Refused: 1, Refusing: true},
		"Journal: 1 MiB of 1 MiB taken, the usage of 1 answer was LOST since the start, and NEW USAGE IS LOST\n")
	f(admin.Journal{Held: 10 << 20, MaxBytes: 1 << 30}, "") // less than a hundredth
	f(admin.Journal{Held: 1536, MaxBytes: 1 << 20, Refused: 1200}, "Journal: 1.5 KiB of 1 MiB taken, the usage of 1,200 answers was LOST since the start\n")
}

func TestActiveBlocks(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	block := func(cost admin.NanoUSD, left time.Duration, c *admin.Capacity) *admin.Block {
		return &admin.Block{End: now.Add(left), CostUSD: cost, Capacity: c}
	}
	f := func(draw pen, want string, subs ...admin.Subscription) {
		t.Helper()
		if diff := cmp.Diff(want, activeBlocks(admin.Status{Subscriptions: subs}, now, draw)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	half := block(13_000_000_000, 2*time.Hour, &admin.Capacity{CostUSD: 25_000_000_000, Source: admin.Configured, Used: 0.52})
	f(blocksPen, "", admin.Subscription{ID: "idle"})
	f(blocksPen, `Active blocks
  team-a  ▓▓▓▓▓░░░░░  52% of $25.00, resets 14:00 UTC
  b       ▓▓▓▓▓▓▓▓▓▓ 109% of $12.00 (learned), resets 01:00 UTC
  lab     $1.30, no budget, resets 15:00 UTC
  tokens  ▓▓▓▓▓▓▓░░░  70% of 1,000 tokens and 10 requests, resets 15:00 UTC
`,
		admin.Subscription{ID: "team-a", Block: half},
		admin.Subscription{ID: "b", Block: block(1, 13*time.Hour, &admin.Capacity{CostUSD: 12_000_000_000, Source: admin.Learned, Used: 1.099})},
		admin.Subscription{ID: "idle"},
		admin.Subscription{ID: "lab", Block: block(1_300_000_000, 3*time.Hour, nil), Budgets: []admin.Budget{{Window: "day", CostUSD: 1}}},
		admin.Subscription{ID: "tokens", Block: block(1_300_000_000, 3*time.Hour, nil), Budgets: []admin.Budget{{Window: "block", Tokens: 1000, Requests: 10, Used: 0.7}}},
	)
	f(asciiPen, "Active blocks\n  team-a  #####.....  52% of $25.00, resets 14:00 UTC\n", admin.Subscription{ID: "team-a", Block: half})
}

func TestBar(t *testing.T) {
	f := func(used float64, want string) {
		t.Helper()
		if got := asciiPen.bar(used); got != want {
			t.Errorf("%v: got %q, want %q", used, got, want)
		}
	}
	f(0, "..........   0%")
	f(0.0999, "..........   9%")
	f(0.999, "#########.  99%") // full only when nothing is left
	f(1, "########## 100%")
	f(12.5, "########## 1250%")
	f(0.57, "#####.....  57%")
	f(-1, "..........   0%")
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 11, 22, 16, 0, 30, 0, time.UTC)
	f := func(away time.Duration, want string) {
		t.Helper()
		if got := clock(now.Add(away), now); got != want {
			t.Errorf("in %v: got %s, want %s", away, got, want)
		}
	}
	f(0, "16:00 UTC")
	f(10*time.Hour, "02:00 UTC")
	f(23*time.Hour, "2026-11-23 15:00 UTC")
	f(24*time.Hour-time.Second, "2026-11-23 16:00 UTC") // and not today's
	f(-time.Second, "2026-11-22 16:00 UTC")
}

// TestPen: the locale decides, in the order of POSIX.
func TestPen(t *testing.T) {
	f := func(want pen, environ ...string) {
		t.Helper()
		p := &program{environ: environ}
		if got := p.pen(); got != want {
			t.Errorf("%v: got %v, want %v", environ, got, want)
		}
	}
	f(asciiPen)
	f(asciiPen, "LANG=C")
	f(blocksPen, "LANG=en_US.UTF-8")
	f(blocksPen, "LC_CTYPE=C.utf8", "LANG=C")
	f(asciiPen, "LC_ALL=C", "LANG=en_US.UTF-8")
	f(blocksPen, "LC_ALL=", "LANG=de_DE.UTF-8")
}

func TestMoney(t *testing.T) {
	f := func(n admin.NanoUSD, want string) {
		t.Helper()
		if got := money(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
	f(0, "$0.00")
	f(1, "$0.000000001")
	f(99_999, "$0.000099999")
	f(4_200_000, "$0.0042")
	f(100_000_000, "$0.10")
	f(1_999_999_999, "$2.00")
	f(1_234_560_000_000, "$1,234.56")
	f(999_995_000_000, "$1,000.00")
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
		{Key: "claude-sonnet-4-5", Requests: 1200, Input: 5, Output: 6, CacheRead: 7, CacheWrite5m: 8, CacheWrite1h: 9, CostUSD: 1_500_000_000, Estimated: 2, Units: map[string]int64{"web_search_requests": 3, "images": 1000}},
		{Key: "llama", Requests: 1, Unpriced: 1, Unknown: 1, Units: map[string]int64{"images": 1}},
	}, `Usage by model, whole UTC days from 2026-11-21
  REQUESTS  INPUT  OUTPUT  CACHE READ  CACHE WRITE  COST  MODEL
     1,200      5       6           7           17  $1.5  claude-sonnet-4-5 (2 estimated, 1,000 images, 3 web_search_requests)
         1      0       0           0            0    $0  llama (1 unpriced, 1 unknown, 1 images)
     1,201      5       6           7           17  $1.5  total (2 estimated, 1 unpriced, 1 unknown, 1,001 images, 3 web_search_requests)
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

// TestWatchStatus: a serve that is started anew meanwhile is waited for; one that
// never answered is not.
func TestWatchStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var out, notes strings.Builder
		p := &program{Stdio: Stdio{Out: &out, Err: &notes}}
		asked := 0
		err := watchStatus(ctx, p, func(context.Context) (admin.Status, error) {
			switch asked++; asked {
			case 2:
				return admin.Status{}, errors.New("away")
			case 4:
				stop()
				return admin.Status{}, ctx.Err()
			}
			return admin.Status{Redis: admin.Redis{Mode: "single", OK: true}}, nil
		}, false)
		if n := strings.Count(out.String(), "Redis single: ok"); err != nil || n != 2 || notes.String() != "authpool: away\n" {
			t.Errorf("%v after %d times of %q, %q", err, n, out.String(), notes.String())
		}

		away := errors.New("away")
		if err := watchStatus(t.Context(), p, func(context.Context) (admin.Status, error) { return admin.Status{}, away }, true); !errors.Is(err, away) {
			t.Errorf("never there: %v", err)
		}
	})
}
