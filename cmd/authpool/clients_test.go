package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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

// TestFaultsBehindNodeSDKs: an SDK, which does not repeat anything here, makes its
// turns whatever one of the subscriptions answers, and that is one request more
// than without. Only what breaks behind content is for the agent to repeat.
func TestFaultsBehindNodeSDKs(t *testing.T) {
	for _, sdk := range []struct {
		script  string
		turns   int
		streams []int // which of its turns are streams
	}{
		{"anthropic.mjs", 2, []int{1}},
		{"openai.mjs", 4, []int{1, 3}},
	} {
		want := startStage(t).node(t, sdk.script).Answers
		check := func(t *testing.T, r *stage, upstream int) {
			t.Helper()
			if u := r.node(t, sdk.script); !slices.Equal(u.Answers, want) {
				t.Errorf("got %q, want %q", u.Answers, want)
			}
			if n := len(r.sim.Arrivals()); n != upstream {
				t.Errorf("the provider was asked %d times, want %d", n, upstream)
			}
		}
		for name, fault := range map[string]simulator.Fault{
			"401":                {Kind: simulator.Status, Status: 401},
			"429":                {Kind: simulator.RateLimit, RetryAfter: 600},
			"429 without a time": {Kind: simulator.RateLimit},
			"overload":           {Kind: simulator.Overloaded},
			"500":                {Kind: simulator.Status, Status: 500},
		} {
			t.Run(sdk.script+"/"+name, func(t *testing.T) {
				r := startStage(t)
				r.inject(t, fault)
				check(t, r, sdk.turns+1)
			})
		}
		for _, at := range sdk.streams {
			for name, kind := range map[string]simulator.Kind{"error event": simulator.ErrorEvent, "cut before content": simulator.EarlyCut} {
				t.Run(fmt.Sprintf("%s/%s in turn %d", sdk.script, name, at), func(t *testing.T) {
					r := startStage(t)
					r.inject(t, simulator.Fault{Kind: kind, After: at})
					check(t, r, sdk.turns+1)
				})
			}
			t.Run(fmt.Sprintf("%s/cut behind content in turn %d", sdk.script, at), func(t *testing.T) {
				r := startStage(t)
				r.inject(t, simulator.Fault{Kind: simulator.Cut, After: at})
				if u, err := r.tryNode(t, sdk.script); err == nil {
					t.Errorf("the SDK takes %q for whole", u.Answers)
				}
				check(t, r, at+1+sdk.turns)
			})
			t.Run(fmt.Sprintf("%s/error event behind content in turn %d", sdk.script, at), func(t *testing.T) {
				r := startStage(t)
				r.inject(t, simulator.Fault{Kind: simulator.LateErrorEvent, After: at})
				// authpool may see the error together with the first content, in time.
				if u, err := r.tryNode(t, sdk.script); err == nil {
					if n := len(r.sim.Arrivals()); n != sdk.turns+1 || !slices.Equal(u.Answers, want) {
						t.Errorf("got %q in %d requests, want %q", u.Answers, n, want)
					}
					return
				}
				check(t, r, at+1+sdk.turns)
			})
		}
	}
}

// inject has the simulator do something wrong.
func (s *stage) inject(t *testing.T, fault simulator.Fault) {
	t.Helper()
	if err := s.sim.Inject(simulator.Injection{Fault: fault}); err != nil {
		t.Fatal(err)
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
	u, err := s.tryNode(t, script)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// tryNode is node where the program may fail.
func (s *stage) tryNode(t *testing.T, script string) (u used, err error) {
	t.Helper()
	folder := filepath.Join("testdata", "clients")
	_, noNode := exec.LookPath("node")
	_, noSDKs := os.Stat(filepath.Join(folder, "node_modules", ".package-lock.json"))
	if noNode != nil || noSDKs != nil {
		if os.Getenv("AUTHPOOL_REQUIRE_REDIS") == "1" {
			t.Fatal("node or the npm SDKs are missing: .ci/clients")
		}
		t.Skip("node or the npm SDKs are missing: .ci/clients")
	}
	w, err := newWay(&program{}, s.service.cfg, s.service.dir.Path(), modeBaseURL, "http://"+s.service.agentAddress())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", script)
	cmd.Dir = folder
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	for _, v := range w.variables(&program{}) {
		cmd.Env = append(cmd.Env, v.name+"="+v.value)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return u, fmt.Errorf("%s: %w\n%s", script, err, stderr.Bytes())
	}
	if err := json.Unmarshal(out, &u); err != nil {
		t.Fatalf("%s printed %q: %v", script, out, err)
	}
	return u, nil
}

// startStage runs an authpool with the subscriptions team (anthropic) and lab
// (openai), each with a reserve for when it cannot serve, until the test ends.
func startStage(t *testing.T) *stage {
	t.Helper()
	s, err := newStage(t.Context(), t.TempDir(), map[string]simulator.Key{
		"team":    {Key: "sk-sim-canary-team", Provider: simulator.Anthropic},
		"reserve": {Key: "sk-sim-canary-reserve", Provider: simulator.Anthropic},
		"lab":     {Key: "sk-sim-canary-lab", Provider: simulator.OpenAI},
		"annex":   {Key: "sk-sim-canary-annex", Provider: simulator.OpenAI},
	}, `
  - {id: team, provider: anthropic, credential: {value: file:team.key}}
  - {id: reserve, provider: anthropic, priority: 2, credential: {value: file:reserve.key}}
  - {id: lab, provider: openai, credential: {value: file:lab.key}}
  - {id: annex, provider: openai, priority: 2, credential: {value: file:annex.key}}
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
