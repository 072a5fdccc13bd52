package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/proxy/admin"
)

// The tests of this file put the npm SDKs behind an authpool, configured by what
// `authpool env` prints and nothing else: the answers must be what the SDK makes
// of them, and the tokens in Redis what the SDK itself reports.

// used is what a client says that it used.
type used struct {
	Answers   []string `json:"answers"` // the same question has the same answer
	Stray     int      `json:"chunks_without_choices"`
	Requests  int64    `json:"requests"`
	Input     int64    `json:"input"`
	Output    int64    `json:"output"`
	CacheRead int64    `json:"cache_read"`
}

// check compares what a client said with what Redis holds for the subscription.
func (u used) check(t *testing.T, r *stage, subscription string) {
	t.Helper()
	if len(u.Answers) == 0 || u.Answers[0] == "" {
		t.Errorf("no answer came: %q", u.Answers)
	}
	if u.Stray != 0 {
		t.Errorf("the client saw %d chunks that authpool had asked for", u.Stray)
	}
	rows := r.usageRows(t)
	i := slices.IndexFunc(rows, func(row admin.UsageRow) bool { return row.Key == subscription })
	if i < 0 {
		t.Fatalf("nothing was counted for %s: %+v", subscription, rows)
	}
	row := rows[i]
	if row.Requests != u.Requests || row.Input != u.Input || row.Output != u.Output || row.CacheRead != u.CacheRead {
		t.Errorf("counted %+v, the client says %+v", row, u)
	}
	if row.Estimated+row.Unknown != 0 {
		t.Errorf("%d estimated, %d unknown", row.Estimated, row.Unknown)
	}
}

// same checks that all answers to one question are alike, whole or streamed.
func (u used) same(t *testing.T) {
	t.Helper()
	for _, answer := range u.Answers[1:] {
		if answer != u.Answers[0] {
			t.Errorf("the same question was answered %q and %q", u.Answers[0], answer)
		}
	}
}

func TestAnthropicNode(t *testing.T) {
	r := startStage(t)
	u := r.node(t, "anthropic.mjs")
	u.same(t)
	u.check(t, r, "team")
}

// TestFaultsBehindNodeSDK: the SDK, which does not repeat anything here, makes its
// two turns whatever one of the subscriptions answers, and that is one request
// more than without.
func TestFaultsBehindNodeSDK(t *testing.T) {
	want := startStage(t).node(t, "anthropic.mjs").Answers
	for name, fault := range map[string]simulator.Fault{
		"401":         {Kind: simulator.Status, Status: 401},
		"429":         {Kind: simulator.RateLimit, RetryAfter: 600},
		"529":         {Kind: simulator.Overloaded},
		"error event": {Kind: simulator.ErrorEvent, After: 1}, // of the second turn, which is a stream
	} {
		t.Run(name, func(t *testing.T) {
			r := startStage(t)
			if err := r.sim.Inject(simulator.Injection{Fault: fault}); err != nil {
				t.Fatal(err)
			}
			if u := r.node(t, "anthropic.mjs"); !slices.Equal(u.Answers, want) || u.Requests != 2 {
				t.Errorf("got %q in %d requests, want %q", u.Answers, u.Requests, want)
			}
			if n := len(r.sim.Arrivals()); n != 3 {
				t.Errorf("the provider was asked %d times, want 3", n)
			}
		})
	}
}

func TestOpenAINode(t *testing.T) {
	r := startStage(t)
	u := r.node(t, "openai.mjs")
	u.check(t, r, "lab")
}

// node runs a program of testdata/clients with the environment that
// `authpool env` prints, as an agent's shell has it.
func (s *stage) node(t *testing.T, script string) used {
	t.Helper()
	folder := filepath.Join("testdata", "clients")
	_, noNode := exec.LookPath("node")
	_, noSDKs := os.Stat(filepath.Join(folder, "node_modules", ".package-lock.json"))
	if noNode != nil || noSDKs != nil {
		if os.Getenv("AUTHPOOL_REQUIRE_REDIS") == "1" {
			t.Fatal("node or the npm SDKs are missing: make clients")
		}
		t.Skip("node or the npm SDKs are missing: make clients")
	}
	cfg := *s.service.cfg
	cfg.Listen = []string{s.service.agentAddress()}
	vars, err := agentVariables(&program{}, &cfg, s.service.dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", script)
	cmd.Dir = folder
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	for _, v := range vars {
		cmd.Env = append(cmd.Env, v.name+"="+v.value)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, stderr.Bytes())
	}
	var u used
	if err := json.Unmarshal(out, &u); err != nil {
		t.Fatalf("%s printed %q: %v", script, out, err)
	}
	return u
}

// startStage runs an authpool with the subscriptions team and, for when it cannot
// serve, reserve (anthropic), and lab (openai), until the test ends.
func startStage(t *testing.T) *stage {
	t.Helper()
	s, err := newStage(t.Context(), t.TempDir(), map[string]simulator.Key{
		"team":    {Key: "sk-sim-canary-team", Provider: simulator.Anthropic},
		"reserve": {Key: "sk-sim-canary-reserve", Provider: simulator.Anthropic},
		"lab":     {Key: "sk-sim-canary-lab", Provider: simulator.OpenAI},
	}, `
  - {id: team, provider: anthropic, credential: {value: file:team.key}}
  - {id: reserve, provider: anthropic, priority: 2, credential: {value: file:reserve.key}}
  - {id: lab, provider: openai, credential: {value: file:lab.key}}
`, 0, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// usageRows asks for the usage once the journal is in Redis.
func (s *stage) usageRows(t *testing.T) []admin.UsageRow {
	t.Helper()
	if _, err := s.settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	var rows []admin.UsageRow
	if _, err := s.asked.get(t.Context(), admin.UsagePath, nil, &rows); err != nil {
		t.Fatal(err)
	}
	return rows
}
