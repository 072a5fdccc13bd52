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
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/proxy/admin"
)

// The tests of this file put real clients behind a whole serve: the answers
// must be what the client's own SDK makes of them, and the tokens in Redis what
// the SDK itself reports.

// used is what a client says that it used.
type used struct {
	Answers    []string `json:"answers"` // the same question has the same answer
	Stray      int      `json:"chunks_without_choices"`
	Requests   int64    `json:"requests"`
	Input      int64    `json:"input"`
	Output     int64    `json:"output"`
	CacheRead  int64    `json:"cache_read"`
	cacheWrite int64
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
	got := used{Requests: row.Requests, Input: row.Input, Output: row.Output, CacheRead: row.CacheRead, cacheWrite: row.CacheWrite5m + row.CacheWrite1h}
	want := used{Requests: u.Requests, Input: u.Input, Output: u.Output, CacheRead: u.CacheRead, cacheWrite: u.cacheWrite}
	if got.Requests != want.Requests || got.Input != want.Input || got.Output != want.Output ||
		got.CacheRead != want.CacheRead || got.cacheWrite != want.cacheWrite {
		t.Errorf("counted %+v, the client says %+v", got, want)
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

func TestAnthropicGo(t *testing.T) {
	r := startStage(t)
	client := anthropic.NewClient(
		anthropicoption.WithBaseURL("http://"+r.service.agentAddress()),
		anthropicoption.WithAPIKey(r.service.dir.AgentToken()),
		anthropicoption.WithMaxRetries(0),
	)
	ask := anthropic.MessageNewParams{
		Model:     "claude-sonnet-4-5",
		MaxTokens: 64,
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Say something short."))},
	}
	whole, err := client.Messages.New(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	stream := client.Messages.NewStreaming(t.Context(), ask)
	var streamed anthropic.Message
	for stream.Next() {
		if err := streamed.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	u := used{}
	for _, m := range []*anthropic.Message{whole, &streamed} {
		u.Answers = append(u.Answers, m.Content[0].Text)
		u.Requests++
		u.Input += m.Usage.InputTokens
		u.Output += m.Usage.OutputTokens
		u.CacheRead += m.Usage.CacheReadInputTokens
		u.cacheWrite += m.Usage.CacheCreationInputTokens
	}
	u.same(t)
	u.check(t, r, "team")
}

func TestOpenAIGo(t *testing.T) {
	r := startStage(t)
	client := openai.NewClient(
		openaioption.WithBaseURL("http://"+r.service.agentAddress()+"/v1"),
		openaioption.WithAPIKey(r.service.dir.AgentToken()),
		openaioption.WithMaxRetries(0),
	)
	const question = "Say something short."
	ask := openai.ChatCompletionNewParams{
		Model:    "gpt-4.1",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)},
	}
	whole, err := client.Chat.Completions.New(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	u := used{Requests: 4, Answers: []string{whole.Choices[0].Message.Content}}
	stream := client.Chat.Completions.NewStreaming(t.Context(), ask)
	var text strings.Builder
	for stream.Next() {
		chunk := stream.Current()
		if len(chunk.Choices) == 0 {
			u.Stray++
			continue
		}
		text.WriteString(chunk.Choices[0].Delta.Content)
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	u.Answers = append(u.Answers, text.String())
	u.same(t)
	// The stream told the SDK no usage. The same question has the same one.
	chat := whole.Usage
	u.Input += 2 * (chat.PromptTokens - chat.PromptTokensDetails.CachedTokens)
	u.Output += 2 * chat.CompletionTokens

	response, err := client.Responses.New(t.Context(), responses.ResponseNewParams{
		Model: "gpt-4.1", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(question)},
	})
	if err != nil {
		t.Fatal(err)
	}
	events := client.Responses.NewStreaming(t.Context(), responses.ResponseNewParams{
		Model: "gpt-4.1", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(question)},
	})
	var streamed responses.Response
	for events.Next() {
		if event := events.Current(); event.Type == "response.completed" {
			streamed = event.Response
		}
	}
	if err := events.Err(); err != nil {
		t.Fatal(err)
	}
	if response.OutputText() != streamed.OutputText() {
		t.Errorf("the same question was answered %q and %q", response.OutputText(), streamed.OutputText())
	}
	for _, usage := range []responses.ResponseUsage{response.Usage, streamed.Usage} {
		u.Input += usage.InputTokens - usage.InputTokensDetails.CachedTokens
		u.Output += usage.OutputTokens
		u.CacheRead += usage.InputTokensDetails.CachedTokens
	}
	u.check(t, r, "lab")
}

func TestAnthropicNode(t *testing.T) {
	r := startStage(t)
	u := r.node(t, "anthropic.mjs")
	u.same(t)
	u.check(t, r, "team")
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

// startStage runs an authpool with the subscriptions team (anthropic) and lab
// (openai) until the test ends.
func startStage(t *testing.T) *stage {
	t.Helper()
	s, err := newStage(t.Context(), t.TempDir(), map[string]simulator.Key{
		"team": {Key: "sk-sim-canary-team", Provider: simulator.Anthropic},
		"lab":  {Key: "sk-sim-canary-lab", Provider: simulator.OpenAI},
	}, `
  - {id: team, provider: anthropic, credential: {value: file:team.key}}
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
