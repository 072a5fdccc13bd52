package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/proxy/admin"
)

// lockedBuffer takes the log of many goroutines.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestNoSecretGetsOut runs good, refused, limited, failing, broken and echoing
// answers through an authpool whose secrets are all known words, and then looks
// for these words wherever authpool writes: log, answers and errors to agents,
// status, usage, metrics, every key of Redis, journal and snapshot.
func TestNoSecretGetsOut(t *testing.T) {
	var log lockedBuffer
	folder := t.TempDir()
	s, err := newStage(t.Context(), folder, map[string]simulator.Key{
		"team": {Key: "sk-ant-canary-0123456789abcdef", Provider: simulator.Anthropic, Faults: []simulator.Fault{
			{After: 1, Count: 3, Kind: simulator.EchoCredential},
			{After: 1, Count: 1, Kind: simulator.Cut},
			{After: 1, Count: 1, Kind: simulator.LateErrorEvent},
			{After: 1, Count: 1, Kind: simulator.Garbage},
			{After: 1, Count: 1, Kind: simulator.Status, Status: 401},
		}},
		"lab": {Key: "sk-canary-fedcba9876543210", Provider: simulator.OpenAI, Faults: []simulator.Fault{
			{After: 1, Count: 3, Kind: simulator.EchoCredential},
			{After: 1, Count: 1, Kind: simulator.Status, Status: 500},
			{After: 1, Count: 1, Kind: simulator.RateLimit},
		}},
	}, `
  - {id: team, provider: anthropic, credential: {value: file:team.key}}
  - {id: lab, provider: openai, credential: {value: file:lab.key}}
  - {id: wrong, provider: openai, credential: {value: file:wrong.key}}
`, 0, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	open := true
	t.Cleanup(func() {
		if open {
			_ = s.close(context.Background())
		}
	})

	seen := map[string]string{}
	anthropic := http.Header{"X-Api-Key": {s.service.dir.AgentToken()}, "Anthropic-Version": {"2023-06-01"}}
	openai := http.Header{"Authorization": {"Bearer " + s.service.dir.AgentToken()}}
	stranger := http.Header{"Authorization": {"Bearer apa_not-the-token"}}
	messages := `{"model":"%s","max_tokens":30,"stream":%t,"messages":[{"role":"user","content":"hello"}]}`
	for i := range 6 {
		for _, model := range []string{"claude-sonnet-4-5", "sim-echo"} {
			body := fmt.Sprintf(messages, model, i%2 == 0)
			seen[fmt.Sprint("messages ", model, i)] = s.send(t, "/v1/messages", anthropic, body)
			seen[fmt.Sprint("chat ", model, i)] = s.send(t, "/v1/chat/completions", openai, body)
		}
	}
	seen["broken body"] = s.send(t, "/v1/messages", anthropic, `{"model":`)
	seen["stranger"] = s.send(t, "/v1/messages", stranger, `{}`)
	seen["forbidden"] = s.send(t, "/v1/organizations/api_keys", anthropic, `{}`)
	seen["no route"] = s.send(t, "/elsewhere", anthropic, `{}`)
	seen["no subscription"] = s.send(t, "/groq/openai/v1/chat/completions", openai, `{}`)

	status, err := s.settled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen["status"] = fmt.Sprint(status)
	var rows []admin.UsageRow
	if _, err := s.asked.get(t.Context(), admin.UsagePath, nil, &rows); err != nil {
		t.Fatal(err)
	}
	seen["usage"] = fmt.Sprint(rows)
	seen["metrics"] = s.metrics(t)
	seen["redis"] = dump(t, s.service.db.Client())
	open = false
	if err := s.close(context.Background()); err != nil {
		t.Fatal(err)
	}
	seen["log"] = log.String()

	secrets := []string{s.service.dir.AdminToken(), s.service.dir.AgentToken(), s.service.dir.RedisPassword()}
	for _, key := range s.keys {
		secrets = append(secrets, key.Key)
	}
	state := filepath.Join(folder, "state")
	if err := filepath.WalkDir(state, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		switch e.Name() {
		case "agent.token", "admin.token", "redis.password": // this is where they belong
			return nil
		}
		text, err := os.ReadFile(path)
		seen[path] = string(text)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for where, text := range seen {
		if text == "" && !strings.HasPrefix(where, state) {
			t.Errorf("%s: nothing was seen, so nothing was proved", where)
		}
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %s", where, secret)
			}
		}
	}
}

// send posts body as an agent and returns head and body of the answer.
func (s *stage) send(t *testing.T, path string, head http.Header, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.service.agentAddress()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = head.Clone()
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err.Error() // one of the answers is cut before its head
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body) // one of the answers is cut
	return fmt.Sprint(resp.Status, resp.Header, string(text), err)
}

func (s *stage) metrics(t *testing.T) string {
	t.Helper()
	resp, err := s.asked.http.Get(s.asked.base.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// dump is every key with its whole value.
func dump(t *testing.T, client redis.UniversalClient) string {
	t.Helper()
	var out strings.Builder
	keys, err := client.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		kind, err := client.Type(t.Context(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		var value any
		switch kind {
		case "hash":
			value, err = client.HGetAll(t.Context(), key).Result()
		case "zset":
			value, err = client.ZRangeWithScores(t.Context(), key, 0, -1).Result()
		case "set":
			value, err = client.SMembers(t.Context(), key).Result()
		case "string":
			value, err = client.Get(t.Context(), key).Result()
		default:
			t.Fatalf("%s is a %s: teach this test to read it", key, kind)
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&out, key, value)
	}
	return out.String()
}
