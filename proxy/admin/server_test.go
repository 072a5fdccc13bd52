package admin_test

import (
	"context"
	"errors"
	"flag"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	token  = "apo_test-admin-token"
	viewer = "apo_test-viewer-token"
)

// sources is a StatusSource and a UsageSource with fixed answers.
type sources struct {
	status admin.Status
	rows   []admin.UsageRow
	err    error
	asked  usage.Query

	roster
	notified []string // tests of notifications, as "event target"
	rotated  int      // of keys
	sessions []string // what was asked about them
	requests explain.Ring
	refused  []admin.Code
}

func (s *sources) refuse(remote string, code admin.Code) {
	s.refused = append(s.refused, admin.Code(remote+" ")+code)
}

func (s *sources) Status(context.Context) (admin.Status, error) { return s.status, s.err }

func (s *sources) Usage(_ context.Context, q usage.Query) ([]admin.UsageRow, error) {
	s.asked = q
	return s.rows, s.err
}

// start serves src on a free loopback port until the test ends.
func start(t *testing.T, src *sources, ready func() error) (base string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(admin.NewCollector(src, func() time.Time { return noon }))
	if ready == nil {
		ready = func() error { return nil }
	}
	srv := admin.New(admin.Options{
		Token: credential.NewSecret(token), Viewer: credential.NewSecret(viewer), Refused: src.refuse, Ready: ready, Status: src, Usage: src, Requests: &src.requests, Roster: &src.roster, Notify: src, Sessions: src, Sealer: src, Metrics: registry,
	})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

// setBody gives r a body.
func setBody(r *http.Request, body, kind string) {
	r.Header.Set("Content-Type", kind)
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
}

type answer struct {
	status int
	head   http.Header
	body   string
}

func get(t *testing.T, url string, edit func(*http.Request)) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if edit != nil {
		edit(req)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{resp.StatusCode, resp.Header, string(body)}
	if err := described().Check(req.Method, req.URL.Path, a.status, a.head, body); err != nil {
		t.Error(err)
	}
	return a
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// fullStatus has every field set, in a zone that is not UTC and with more
// digits than the API shows.
func fullStatus() admin.Status {
	east := time.FixedZone("east", 3*3600)
	at := func(d time.Duration) time.Time { return noon.Add(d).In(east) }
	firstByte := explain.Seconds(1234567 * time.Microsecond)
	until, reset, empties := at(90*time.Second+123456789), at(2*time.Hour), at(time.Hour+7)
	spent, capacity, drift := admin.NanoUSD(20_000_000_000), admin.NanoUSD(25_500_000_000), 0.25
	return admin.Status{
		Subscriptions: []admin.Subscription{
			{
				ID: "team-a", Provider: "anthropic", Domain: "org-1", State: "cooling", Reason: "window", Health: 12,
				Score:          explain.Score{Total: 6, Availability: 0.5, Headroom: 0.24, Soundness: 1, Swiftness: math.NaN(), Idleness: 1.0 / 3},
				FirstByte:      &firstByte,
				CooldownUntil:  &until,
				CooldownModels: map[string]time.Time{"claude-opus-4-8": at(time.Minute)},
				Breaker:        "closed",
				Block: &admin.Block{
					Start: at(-time.Hour), End: at(4 * time.Hour),
					Requests: 7, Input: 1, Output: 2, CacheRead: 3, CacheWrite5m: 4, CacheWrite1h: 5, CostUSD: 1_291_817_850,
					First: at(-50 * time.Minute), Last: at(-10 * time.Minute), Reasoning: 1, Units: map[string]int64{"web_search_requests": 2},
					Estimated: 1, Unpriced: 2, Unknown: 3,
					Burn:       &admin.Burn{TokensPerMinute: 300, IndicatorPerMinute: 12.5, CostUSDPerHour: 3, Steady: true},
					Projection: &admin.Projection{RemainingMinutes: 225, Tokens: 79_500, CostUSD: 4},
					Capacity:   &admin.Capacity{CostUSD: 25_000_000_000, Source: admin.Configured, Used: 0.051},
					EmptiesAt:  &empties,
				},
				Windows: []admin.Window{{
					Name: "5h", Kind: "provider", Utilization: 1.04, Status: "rejected", Reset: &reset, Seen: at(0),
					Effective: 1.05, SpentUSD: &spent, CapacityUSD: &capacity, Drift: &drift, Foreign: 0.24, EmptiesAt: &empties,
				}},
				Sessions: 3, InFlight: 2,
				Budgets: []admin.Budget{{
					Window: "day", CostUSD: 10_000_000_000, SpentUSD: 9_000_000_000, Used: 0.9, State: "warning", Resets: &reset, EmptiesAt: &empties,
				}},
				BudgetState: "warning", BudgetFreeAt: &reset, Minute: &admin.Minute{Requests: 1, Input: 2, Output: 3},
			},
			{ID: "team-b", Provider: "openai", State: "ready", Health: 100, Breaker: "closed"},
		},
		Redis: admin.Redis{Mode: "embedded", OK: true, JournalPending: 4},
		Journal: admin.Journal{
			Bytes: 5, Held: 4, MaxBytes: 1 << 30, Refused: 6, Refusing: true,
			OldestPending: &admin.OldestPending{Subscription: "team-a", Time: until, Error: "TRYAGAIN"},
		},
	}
}

func TestStatusIsWhatTheContractSays(t *testing.T) {
	base := start(t, &sources{status: fullStatus()}, nil)
	a := get(t, base+admin.StatusPath, nil)
	if a.status != http.StatusOK || a.head.Get("Content-Type") != "application/json" {
		t.Fatalf("got %d %s", a.status, a.head)
	}
	golden(t, "status.json", a.body)
}

// TestStatusHasNoNumberThatJSONLacks whatever a source says.
func TestStatusHasNoNumberThatJSONLacks(t *testing.T) {
	nan, infinite, third := math.NaN(), math.Inf(-1), 1.0/3
	base := start(t, &sources{status: admin.Status{Subscriptions: []admin.Subscription{{
		Block:   &admin.Block{Burn: &admin.Burn{TokensPerMinute: nan, IndicatorPerMinute: infinite}, Capacity: &admin.Capacity{Used: nan}},
		Windows: []admin.Window{{Utilization: nan, Effective: infinite, Drift: &nan, Foreign: nan}, {Utilization: 1 - 0.999, Effective: third, Foreign: math.MaxFloat64}},
		Budgets: []admin.Budget{{Used: infinite}},
	}}}}, nil)
	a := get(t, base+admin.StatusPath, nil)
	for _, want := range []string{
		`"tokens_per_minute":0,"indicator_per_minute":0,`, `"used":0}`, `"utilization":0,`, `"effective":0,`, `"drift":0,"foreign":0,`, `"used":0,"state"`, `"units":{}`,
		`"utilization":0.001,`, `"effective":0.333333,`, `"foreign":1.7976931348623157e+308`,
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%d: no %s in %s", a.status, want, a.body)
		}
	}
}

func TestStatusWithoutSubscriptionsIsAnEmptyList(t *testing.T) {
	base := start(t, &sources{}, nil)
	golden(t, "status-empty.json", get(t, base+admin.StatusPath, nil).body)
}

func TestUsageIsWhatTheContractSays(t *testing.T) {
	src := &sources{rows: []admin.UsageRow{
		{
			Key: "team-a", Requests: 9, Input: 1, Output: 2, CacheRead: 3, CacheWrite5m: 4, CacheWrite1h: 5,
			CostUSD: 1, Estimated: 6, Unpriced: 7, Unknown: 8,
			Reasoning: 1, Units: map[string]int64{"images": 2, "seconds": 30},
		},
		{Key: "team-b"},
	}}
	base := start(t, src, nil)
	a := get(t, base+admin.UsagePath+"?by=model&since=2026-11-20T10:00:00Z&until=2026-11-21", nil)
	golden(t, "usage.json", a.body)
	if got := a.head.Get(admin.SinceHeader); got != "2026-11-20T00:00:00Z" {
		t.Errorf("%s: %q", admin.SinceHeader, got)
	}
	if got := a.head.Get(admin.UntilHeader); got != "2026-11-22T00:00:00Z" {
		t.Errorf("%s: %q", admin.UntilHeader, got)
	}
	if src.asked.By != usage.ByModel {
		t.Errorf("the source was asked by %q", src.asked.By)
	}
}

func TestUsageWithoutRowsIsAnEmptyList(t *testing.T) {
	base := start(t, &sources{}, nil)
	if a := get(t, base+admin.UsagePath, nil); a.status != http.StatusOK || a.body != "[]\n" {
		t.Errorf("got %d %q", a.status, a.body)
	}
}

func TestUsageRefusesAWrongQuestion(t *testing.T) {
	base := start(t, &sources{}, nil)
	a := get(t, base+admin.UsagePath+"?by=colour", nil)
	if a.status != http.StatusBadRequest || !strings.Contains(a.body, "is not one of subscription, model") {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestWhoMayIn(t *testing.T) {
	base := start(t, &sources{}, nil)
	f := func(name, path string, edit func(*http.Request), want int) {
		t.Helper()
		if a := get(t, base+path, edit); a.status != want {
			t.Errorf("%s: %s: got %d %q, want %d", name, path, a.status, a.body, want)
		}
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	without := func(r *http.Request) { r.Header.Del("Authorization") }

	for _, open := range []string{"/healthz", "/readyz", "/metrics"} {
		f("open", open, without, http.StatusOK)
	}
	for _, closed := range []string{admin.StatusPath, admin.UsagePath, admin.RequestsPath, admin.RequestPath("x"), "/api/v1/other", "/"} {
		f("no token", closed, without, http.StatusUnauthorized)
		f("wrong token", closed, header("Authorization", "Bearer "+token+"x"), http.StatusUnauthorized)
		f("empty token", closed, header("Authorization", "Bearer "), http.StatusUnauthorized)
		f("basic", closed, header("Authorization", "Basic "+token), http.StatusUnauthorized)
	}
	f("token", admin.StatusPath, nil, http.StatusOK)
	f("lower case scheme", admin.StatusPath, header("Authorization", "bearer "+token), http.StatusOK)
	f("no such path", "/api/v1/other", nil, http.StatusNotFound)

	host := func(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }
	f("rebound name", admin.StatusPath, host("evil.example"), http.StatusForbidden)
	f("rebound name", "/metrics", host("evil.example:8788"), http.StatusForbidden)
	f("name that begins well", "/healthz", host("localhost.evil.example"), http.StatusForbidden)
	for _, h := range []string{"localhost", "LOCALHOST:8788", "127.0.0.1:8788", "127.9.9.9", "[::1]:8788", "authpool.localhost"} {
		f("own name "+h, "/healthz", host(h), http.StatusOK)
	}

	f("page of another site", admin.StatusPath, header("Origin", "https://evil.example"), http.StatusForbidden)
	f("opaque origin", admin.StatusPath, header("Origin", "null"), http.StatusForbidden)
	f("cross-site", admin.StatusPath, header("Sec-Fetch-Site", "cross-site"), http.StatusForbidden)
	f("own page", admin.StatusPath, header("Origin", base), http.StatusOK)
	f("typed by hand", "/healthz", header("Sec-Fetch-Site", "none"), http.StatusOK)

	f("body", "/healthz", func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), 1
	}, http.StatusRequestEntityTooLarge)
}

func TestAnEmptyAdminTokenLetsNobodyIn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	src := &sources{}
	srv := admin.New(admin.Options{Status: src, Usage: src, Metrics: prometheus.NewRegistry()})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	a := get(t, "http://"+l.Addr().String()+admin.StatusPath, func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") })
	if a.status != http.StatusUnauthorized {
		t.Errorf("got %d", a.status)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestReadyzSaysWhyNot(t *testing.T) {
	base := start(t, &sources{}, func() error { return errors.New("no subscription is enabled") })
	a := get(t, base+"/readyz", nil)
	if a.status != http.StatusServiceUnavailable || a.body != "not ready: no subscription is enabled\n" {
		t.Errorf("got %d %q", a.status, a.body)
	}
	if a := get(t, base+"/healthz", nil); a.status != http.StatusOK {
		t.Errorf("healthz: got %d", a.status)
	}
}

func TestAStoreThatIsAwayIsA503(t *testing.T) {
	base := start(t, &sources{err: errors.New("redis is away")}, nil)
	for _, path := range []string{admin.StatusPath, admin.UsagePath} {
		a := get(t, base+path, nil)
		if a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "redis is away") {
			t.Errorf("%s: got %d %s", path, a.status, a.body)
		}
	}
}

func TestMetrics(t *testing.T) {
	base := start(t, &sources{status: fullStatus()}, nil)
	golden(t, "metrics.txt", get(t, base+"/metrics", nil).body)
}
