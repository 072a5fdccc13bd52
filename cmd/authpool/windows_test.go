package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// windowsProvider answers as Anthropic does for a subscription, and tells its windows.
type windowsProvider struct {
	used  atomic.Value // string: utilization of 5h
	reset map[string]time.Time
}

func (p *windowsProvider) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Anthropic-Ratelimit-Unified-Status", "allowed")
	h.Set("Anthropic-Ratelimit-Unified-5h-Utilization", p.used.Load().(string))
	h.Set("Anthropic-Ratelimit-Unified-5h-Reset", strconv.FormatInt(p.reset["5h"].Unix(), 10))
	h.Set("Anthropic-Ratelimit-Unified-5h-Status", "allowed")
	h.Set("Anthropic-Ratelimit-Unified-7d-Utilization", "0.8")
	h.Set("Anthropic-Ratelimit-Unified-7d-Reset", strconv.FormatInt(p.reset["7d"].Unix(), 10))
	h.Set("Anthropic-Ratelimit-Unified-7d-Status", "allowed_warning")
	h.Set("Anthropic-Ratelimit-Unified-Representative-Claim", "seven_day_opus")
	h.Set("Anthropic-Ratelimit-Requests-Limit", "50")
	h.Set("Anthropic-Ratelimit-Requests-Remaining", "49")
	_, _ = io.WriteString(w, `{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[],"stop_reason":"end_turn","usage":{"input_tokens":1000,"output_tokens":1}}`)
}

// startWithWindows serves the subscription team of such a provider.
func startWithWindows(t *testing.T) (*service, *windowsProvider) {
	t.Helper()
	provider := &windowsProvider{reset: map[string]time.Time{"5h": time.Now().Add(2 * time.Hour), "7d": time.Now().Add(50 * time.Hour)}}
	provider.used.Store("0.25")
	upstream := httptest.NewServer(provider)
	t.Cleanup(upstream.Close)
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "team.key"), []byte("sk-sim-team\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse(filepath.Join(folder, "authpool.yaml"), []byte(`
listen: 127.0.0.1:0
admin: {listen: 127.0.0.1:0}
agents: {auth: none}
redis: {listen: 127.0.0.1:0}
state_dir: state
intercept: {enabled: false}
providers:
  anthropic: {base_url: `+upstream.URL+`, allow_plaintext: true}
subscriptions:
  - {id: team, provider: anthropic, credential: {value: file:team.key}, budgets: [{window: week, cost_usd: 1}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := newService(t.Context(), cfg, os.Getenv, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	return s, provider
}

// askOnce lets an agent have one answer.
func askOnce(t *testing.T, s *service) {
	t.Helper()
	resp, err := ask(t.Context(), http.MethodPost, "http://"+s.agentAddress()+"/v1/messages",
		headers{"Anthropic-Version: 2023-06-01"}, `{"model":"claude-sonnet-4-5","max_tokens":1,"messages":[]}`)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the answer is %s, %v", resp.Status, err)
	}
}

// newFrontClient is redis-cli.
func newFrontClient(t *testing.T, s *service) *redis.Client {
	t.Helper()
	cli := redis.NewClient(&redis.Options{Addr: s.db.FrontAddr().String(), Password: s.dir.RedisPassword(), DisableIdentity: true})
	t.Cleanup(func() { _ = cli.Close() }) // nothing was written through it
	return cli
}

// TestWindowsInRedis: what an answer's headers tell about a subscription's usage
// windows can be read with redis-cli.
func TestWindowsInRedis(t *testing.T) {
	s, provider := startWithWindows(t)
	askOnce(t, s)
	cli := newFrontClient(t, s)
	var got map[string]string
	if !eventually(func(ctx context.Context) bool {
		got = cli.HGetAll(ctx, "authpool:{team}:windows").Val()
		return len(got) > 0
	}) {
		t.Fatal("no windows came")
	}
	for name, at := range provider.reset {
		seen, err1 := strconv.ParseInt(got[name+":seen"], 10, 64)
		told, err2 := strconv.ParseInt(got[name+":reset"], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			t.Errorf("%v: %v", got, err)
		}
		// It follows from what the provider's clock says, in whole seconds.
		if off := time.UnixMilli(told).Sub(at).Abs(); off > 3*time.Second {
			t.Errorf("the reset of %s is off by %v", name, off)
		}
		if age := time.Since(time.UnixMilli(seen)); age < 0 || age > awaitLimit {
			t.Errorf("%s was seen %v ago", name, age)
		}
		delete(got, name+":seen")
		delete(got, name+":reset")
		// Whether the answer itself was counted by then is a matter of luck.
		if got[name+":total_nano"] == "" || got[name+":total_nano"] != got[name+":base_nano"] {
			t.Errorf("the reckoning of %s does not begin: %v", name, got)
		}
		delete(got, name+":total_nano")
		delete(got, name+":base_nano")
	}
	want := map[string]string{
		"5h:util": "250000", "5h:status": "allowed", "5h:spent_nano": "0", "5h:base_util": "250000",
		"7d:util": "800000", "7d:status": "allowed_warning", "7d:spent_nano": "0", "7d:base_util": "800000",
		"claim": "seven_day_opus",
	}
	if !maps.Equal(got, want) {
		t.Errorf("Redis holds %v, want %v", got, want)
	}
}

// TestStatusTellsWhatAWindowHolds: from how far our own cost moves a window, by
// the way of headers, Redis and the admin API; with it comes the drift.
func TestStatusTellsWhatAWindowHolds(t *testing.T) {
	s, provider := startWithWindows(t)
	cli := newFrontClient(t, s)
	window := func(name string) admin.Window {
		t.Helper()
		status, err := (&sources{
			pool: s.pool, db: s.db, usage: s.usage, recorder: s.recorder, budgets: s.roster.budgets, log: s.log,
		}).Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range status.Subscriptions[0].Windows {
			if w.Name == name {
				return w
			}
		}
		t.Fatalf("no window %s in %+v", name, status)
		return admin.Window{}
	}
	field := func(key, field, want string) {
		t.Helper()
		got := ""
		if !eventually(func(ctx context.Context) bool {
			got = cli.HGet(ctx, key, field).Val()
			return got == want
		}) {
			t.Fatalf("%s of %s is %q, want %q", field, key, got, want)
		}
	}
	askOnce(t, s)
	field("authpool:{team}:windows", "5h:util", "250000")
	if w := window("5h"); w.CapacityUSD != nil || w.Drift != nil || w.Effective != 0.25 {
		t.Errorf("nothing is learned yet: %+v", w)
	}
	// The budget of a week stands in for what the seven days hold.
	if w := window("7d"); w.Drift == nil || *w.Drift < 0.79 || *w.Drift > 0.8 {
		t.Errorf("%+v", w)
	}
	// Two more that are counted for sure, since none of their windows moves, ...
	askOnce(t, s)
	field("authpool:{team}:total", "requests", "2")
	// ... and a view of what they came to.
	provider.used.Store("0.35")
	askOnce(t, s)
	field("authpool:{team}:windows", "5h:util", "350000")
	w := window("5h")
	if w.CapacityUSD == nil || *w.CapacityUSD <= 0 || w.Drift == nil || *w.Drift < 0.2 || *w.Drift > 0.3 || w.Foreign < 0.2 || w.Effective < 0.35 || w.Effective > 0.5 {
		t.Errorf("got %+v", w)
	}
}

// windowsStub is a pool, a Redis and its health in one.
type windowsStub struct {
	mu      sync.Mutex
	members []pool.Status
	healthy bool
	err     error
	written []string // subscriptions
	last    []usage.ProviderWindow
}

func (s *windowsStub) deps() windowsDeps {
	return windowsDeps{
		status: func() []pool.Status {
			s.mu.Lock()
			defer s.mu.Unlock()
			return slices.Clone(s.members)
		},
		healthy: func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.healthy
		},
		observe: func(_ context.Context, sub, _ string, windows []usage.ProviderWindow) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.written, s.last = append(s.written, sub), windows
			return s.err
		},
	}
}

// TestWindowsAreWrittenOnceASecond, and only those that changed.
func TestWindowsAreWrittenOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		window := func(kind string, used float64) []ratelimit.Window {
			return []ratelimit.Window{{Name: "5h", Kind: kind, Utilization: used}}
		}
		stub := &windowsStub{healthy: true, members: []pool.Status{
			{ID: "a", Windows: window("provider", 0.1)}, {ID: "b", Windows: window("bucket", 0.1)}, {ID: "c"}, {ID: "d", Windows: window("provider", 0.2)},
		}}
		w := startWindows(stub.deps(), slog.New(slog.NewTextHandler(t.Output(), nil)))
		second := func(step string, change func(), want ...string) {
			t.Helper()
			stub.mu.Lock()
			stub.written = nil
			change()
			stub.mu.Unlock()
			time.Sleep(windowsEvery)
			synctest.Wait()
			if !slices.Equal(stub.written, want) {
				t.Errorf("%s: written %v, want %v", step, stub.written, want)
			}
		}
		second("first", func() {}, "a", "d")
		second("nothing new", func() {})
		second("one changed", func() { stub.members[3].Windows = window("provider", 0.3) }, "d")
		second("Redis is away", func() { stub.healthy, stub.members[3].Windows = false, window("provider", 0.4) })
		second("it is back, perhaps empty", func() { stub.healthy = true }, "a", "d")
		second("it refuses", func() { stub.err, stub.members[0].Windows = errors.New("refused"), window("provider", 0.5) }, "a")
		second("it does not refuse any more", func() { stub.err = nil }, "a", "d")

		stub.mu.Lock()
		stub.written, stub.members[0].Windows = nil, window("provider", 0.6)
		stub.mu.Unlock()
		if err := w.close(t.Context()); err != nil || !slices.Equal(stub.written, []string{"a"}) || stub.last[0].Utilization != 0.6 {
			t.Errorf("at the end: written %v %v, %v", stub.written, stub.last, err)
		}
		second("after the end", func() {})
	})
}
