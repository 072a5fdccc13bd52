package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/admin"
)

// builtinCall is a call of one built-in provider.
type builtinCall struct {
	scheme string // of the subscription's credential; empty is the default
	path   string // the provider's own, behind its base URL
	body   string
	header string // and value, in which the credential has to arrive; %s is it
	media  string // of the answer; empty is JSON
	answer string // tells %d tokens of input and 7 of output
	output int64  // 7, or 0 where there is none
	shape  string // of authpool's own errors: how they begin
}

const (
	bearer     = "Authorization: Bearer %s"
	chatBody   = `{"model":"m-1","messages":[{"role":"user","content":"hi"}]}`
	chatAnswer = `{"id":"c-1","object":"chat.completion","model":"m-1","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,"completion_tokens":7}}`

	geminiBody   = `{"contents":[{"role":"user","parts":[{"text":"hi"}]}]}`
	geminiAnswer = `{"candidates":[{"content":{"role":"model","parts":[{"text":"Hello"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":%d,"candidatesTokenCount":7},"modelVersion":"m-1"}`

	openAIError = `{"error":{"message":"authpool: `
	geminiError = `{"error":{"code":401,"message":"authpool: `
)

// compatible is a call of a provider that speaks OpenAI's chat at path.
func compatible(path string) builtinCall {
	return builtinCall{path: path, body: chatBody, header: bearer, answer: chatAnswer, output: 7, shape: openAIError}
}

var builtinCalls = map[string]builtinCall{
	"anthropic": {
		path: "/v1/messages", body: `{"model":"m-1","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}`, header: "X-Api-Key: %s",
		answer: `{"id":"msg_1","type":"message","role":"assistant","model":"m-1","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","usage":{"input_tokens":%d,"output_tokens":7}}`,
		output: 7, shape: `{"type":"error","error":{"type":"authentication_error","message":"authpool: `,
	},
	"openai": {
		path: "/v1/responses", body: `{"model":"m-1","input":"hi"}`, header: bearer,
		answer: `{"id":"resp_1","object":"response","status":"completed","model":"m-1","output":[],"usage":{"input_tokens":%d,"output_tokens":7}}`,
		output: 7, shape: openAIError,
	},
	"gemini": {
		path: "/v1beta/models/m-1:generateContent", body: geminiBody, header: "X-Goog-Api-Key: %s", answer: geminiAnswer, output: 7, shape: geminiError,
	},
	"vertex": {
		scheme: "bearer", path: "/v1/projects/p/locations/global/publishers/google/models/m-1:generateContent", body: geminiBody,
		header: bearer, answer: geminiAnswer, output: 7, shape: geminiError,
	},
	"bedrock": {
		path: "/model/us.maker.m-1%3A0/converse", body: `{"messages":[{"role":"user","content":[{"text":"hi"}]}]}`, header: bearer,
		answer: `{"output":{"message":{"role":"assistant","content":[{"text":"Hello"}]}},"stopReason":"end_turn","usage":{"inputTokens":%d,"outputTokens":7,"totalTokens":0}}`,
		output: 7, shape: `{"message":"authpool: `,
	},
	"azure": {
		path: "/openai/deployments/d-1/chat/completions?api-version=2024-10-21", body: chatBody, header: "Api-Key: %s",
		answer: chatAnswer, output: 7, shape: openAIError,
	},
	"cohere": {
		path: "/v2/chat", body: chatBody, header: bearer,
		answer: `{"id":"1","message":{"role":"assistant","content":[{"type":"text","text":"Hello"}]},"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":1,"output_tokens":1},"tokens":{"input_tokens":%d,"output_tokens":7}}}`,
		output: 7, shape: `{"message":"authpool: `,
	},
	"mistral":     compatible("/v1/chat/completions"),
	"groq":        compatible("/openai/v1/chat/completions"),
	"deepseek":    compatible("/chat/completions"),
	"xai":         compatible("/v1/chat/completions"),
	"openrouter":  compatible("/api/v1/chat/completions"),
	"perplexity":  compatible("/chat/completions"),
	"together":    compatible("/v1/chat/completions"),
	"fireworks":   compatible("/inference/v1/chat/completions"),
	"cerebras":    compatible("/v1/chat/completions"),
	"huggingface": compatible("/v1/chat/completions"),
	"ollama": {
		path: "/api/chat", body: chatBody, header: bearer, media: "application/x-ndjson",
		answer: `{"model":"m-1","message":{"role":"assistant","content":"Hello"},"done":false}` + "\n" +
			`{"model":"m-1","message":{"role":"assistant","content":""},"done":true,"prompt_eval_count":%d,"eval_count":7}` + "\n",
		output: 7, shape: `{"error":"authpool: `,
	},
	"voyage": {
		path: "/v1/embeddings", body: `{"model":"m-1","input":["hi"]}`, header: bearer,
		answer: `{"object":"list","data":[{"object":"embedding","embedding":[0.1],"index":0}],"model":"m-1","usage":{"total_tokens":%d}}`,
		shape:  `{"detail":"authpool: `,
	},
	"zai": compatible("/api/paas/v4/chat/completions"),
}

// TestBuiltinProviders calls every built-in provider at a base URL of the
// config's, with a key or a bearer token: the credential arrives in the form
// that the provider reads, the answer is counted, and an error of authpool's own
// has the provider's shape.
func TestBuiltinProviders(t *testing.T) {
	names := config.BuiltinProviders()
	tokens := func(name string) int64 { return int64(100 + slices.Index(names, name)) }
	secret := func(name string) string { return "canary-" + name }

	var mu sync.Mutex
	arrived := map[string]*http.Request{}
	fake := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/at/"), "/")
		call := builtinCalls[name]
		mu.Lock()
		arrived[name] = r
		mu.Unlock()
		media := call.media
		if media == "" {
			media = "application/json"
		}
		w.Header().Set("Content-Type", media)
		_, _ = fmt.Fprintf(w, call.answer, tokens(name)) // the agent sees what is missing
	}))
	t.Cleanup(fake.Close)

	folder := t.TempDir()
	text := strings.Builder{}
	text.WriteString("listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\nredis: {listen: 'off'}\nstate_dir: state\nproviders:\n")
	for _, name := range names {
		fmt.Fprintf(&text, "  %s: {base_url: '%s/at/%s', allow_plaintext: true}\n", name, fake.URL, name)
	}
	text.WriteString("subscriptions:\n")
	for _, name := range names {
		scheme := builtinCalls[name].scheme
		if scheme == "" {
			scheme = "api_key"
		}
		fmt.Fprintf(&text, "  - {id: %[1]s, provider: %[1]s, credential: {type: %[2]s, value: 'file:%[1]s.key'}}\n", name, scheme)
		if err := os.WriteFile(filepath.Join(folder, name+".key"), []byte(secret(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Parse(filepath.Join(folder, "authpool.yaml"), []byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	service, err := newService(t.Context(), cfg, os.Getenv, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := service.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})

	agent := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	post := func(name, token string) (int, http.Header, string) {
		t.Helper()
		call := builtinCalls[name]
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+service.agentAddress()+"/"+name+call.path, strings.NewReader(call.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := agent.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header, string(body)
	}
	token := service.dir.AgentToken()
	for _, name := range names {
		call, known := builtinCalls[name]
		if !known {
			t.Errorf("%s is built in and not tested here", name)
			continue
		}
		status, _, body := post(name, token)
		if want := fmt.Sprintf(call.answer, tokens(name)); status != http.StatusOK || body != want {
			t.Errorf("%s: got %d %s", name, status, body)
			continue
		}
		mu.Lock()
		r := arrived[name]
		mu.Unlock()
		if want := "/at/" + name + call.path; r.RequestURI != want {
			t.Errorf("%s: the provider was asked for %s, want %s", name, r.RequestURI, want)
		}
		header, form, _ := strings.Cut(call.header, ": ")
		if got := r.Header.Values(header); len(got) != 1 || got[0] != fmt.Sprintf(form, secret(name)) {
			t.Errorf("%s: the credential came as %q", name, r.Header)
		}
		if all := fmt.Sprint(r.Header); strings.Count(all, secret(name)) != 1 || strings.Contains(all, token) {
			t.Errorf("%s: the provider got %s", name, all)
		}

		status, headers, body := post(name, "apa_nobody's")
		if status != http.StatusUnauthorized || !strings.HasPrefix(body, call.shape) || !json.Valid([]byte(body)) {
			t.Errorf("%s: an error of authpool's own is %d %s", name, status, body)
		}
		if kind := headers.Get("X-Amzn-Errortype"); (kind != "") != (name == "bedrock") {
			t.Errorf("%s: the error's kind for AWS' SDKs is %q", name, kind)
		}
	}

	asked, err := newClient(&program{}, clientFlags{
		admin: service.adminListener.Addr().String(), tokenFile: filepath.Join(service.dir.Path(), "admin.token"),
	})
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]admin.UsageRow{}
	for _, row := range (&stage{service: service, asked: asked}).usageRows(t) {
		counted[row.Key] = row
	}
	for _, name := range names {
		row := counted[name]
		if row.Requests != 1 || row.Input != tokens(name) || row.Output != builtinCalls[name].output || row.Unknown+row.Estimated != 0 {
			t.Errorf("%s: counted %+v, want %d tokens of input and %d of output", name, row, tokens(name), builtinCalls[name].output)
		}
	}
}

// TestEveryProviderTypeIsServed: what the config calls a type is a dialect that
// the proxy speaks.
func TestEveryProviderTypeIsServed(t *testing.T) {
	var schema struct {
		Defs struct {
			Provider struct {
				Properties struct {
					Type struct{ Enum []string }
				}
			}
		} `json:"$defs"`
	}
	if err := json.Unmarshal(config.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	types := schema.Defs.Provider.Properties.Type.Enum
	if len(types) < 8 {
		t.Fatalf("the schema knows the types %q", types)
	}
	for _, name := range types {
		cfg, err := config.Parse("authpool.yaml", []byte("providers: {mine: {type: "+name+", base_url: 'https://mine.example'}}"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		providers, err := newProvidersFromConfig(cfg)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := providers.Provider("mine").Family.String(); got != name {
			t.Errorf("the type %s is served as %s", name, got)
		}
	}
}
