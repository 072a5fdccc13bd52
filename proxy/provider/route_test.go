package provider_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
)

// registry holds the providers of these tests.
var registry = func() *provider.Registry {
	r, err := provider.NewRegistry([]provider.Options{
		{Name: "anthropic", Family: provider.Anthropic, BaseURL: "https://api.anthropic.com"},
		{Name: "openai", Family: provider.OpenAI, BaseURL: "https://api.openai.com/", AskUsage: true},
		{Name: "gemini", Family: provider.Gemini, BaseURL: "https://generativelanguage.googleapis.com"},
		{Name: "azure", Family: provider.Azure, BaseURL: "https://res.openai.azure.com"},
		{Name: "azure-asking", Family: provider.Azure, BaseURL: "https://res.openai.azure.com", AskUsage: true},
		{Name: "vertex", Family: provider.Gemini, BaseURL: "https://us-east5-aiplatform.googleapis.com", AskUsage: true},
		{Name: "bedrock", Family: provider.Bedrock, BaseURL: "https://bedrock-runtime.us-east-1.amazonaws.com", AskUsage: true},
		{Name: "cohere", Family: provider.Cohere, BaseURL: "https://api.cohere.com", AskUsage: true},
		{Name: "ollama", Family: provider.Ollama, BaseURL: "http://127.0.0.1:11434", AllowPlaintext: true, AskUsage: true},
		{Name: "voyage", Family: provider.Voyage, BaseURL: "https://api.voyageai.com", AskUsage: true},
		{Name: "groq", Family: provider.OpenAI, BaseURL: "https://api.groq.com", AskUsage: true},
		{Name: "openrouter", Family: provider.OpenAI, BaseURL: "https://openrouter.ai", AskUsage: true},
		{Name: "perplexity", Family: provider.OpenAI, BaseURL: "https://api.perplexity.ai"},
		{Name: "deepseek", Family: provider.OpenAI, BaseURL: "https://api.deepseek.com"},
		{Name: "fireworks", Family: provider.OpenAI, BaseURL: "https://api.fireworks.ai"},
		{Name: "huggingface", Family: provider.OpenAI, BaseURL: "https://router.huggingface.co"},
		{Name: "versioned", Family: provider.OpenAI, BaseURL: "https://versioned.example/api/v1"},
		{Name: "gateway", Family: provider.OpenAI, BaseURL: "https://gw.example:8443/team/llm"},
		{Name: "local-vllm", Family: provider.OpenAI, BaseURL: "http://127.0.0.1:8000", AllowPlaintext: true},
	})
	if err != nil {
		panic(err)
	}
	return r
}()

func TestRoute(t *testing.T) {
	const (
		none  = ""
		ant   = "anthropic-version: 2023-06-01\r\n"
		key   = "X-Api-Key: apa_1\r\n"
		goog  = "X-Goog-Api-Key: apa_1\r\n"
		lower = "ANTHROPIC-VERSION: 2026-10-21\r\n"
	)
	tests := []struct{ path, headers, provider, rest string }{
		{"/v1/messages", none, "anthropic", "/v1/messages"},
		{"/v1/messages/count_tokens", none, "anthropic", "/v1/messages/count_tokens"},
		{"/v1/messages/batches/msgbatch_1/results", none, "anthropic", "/v1/messages/batches/msgbatch_1/results"},
		{"/v1/complete", none, "anthropic", "/v1/complete"},
		{"/v1/chat/completions", ant, "openai", "/v1/chat/completions"},
		{"/v1/completions", none, "openai", "/v1/completions"},
		{"/v1/responses", none, "openai", "/v1/responses"},
		{"/v1/responses/resp_1/input_items", none, "openai", "/v1/responses/resp_1/input_items"},
		{"/v1/embeddings", none, "openai", "/v1/embeddings"},
		{"/v1/moderations", none, "openai", "/v1/moderations"},
		{"/v1/images/generations", none, "openai", "/v1/images/generations"},
		{"/v1/audio/speech", none, "openai", "/v1/audio/speech"},
		{"/v1/realtime", none, "openai", "/v1/realtime"},
		{"/v1beta/models/gemini-2.5-pro:generateContent", none, "gemini", "/v1beta/models/gemini-2.5-pro:generateContent"},
		{"/v1alpha/models", none, "gemini", "/v1alpha/models"},
		{"/v1/models/gemini-2.5-pro:streamGenerateContent", ant, "gemini", "/v1/models/gemini-2.5-pro:streamGenerateContent"},
		{"/v1/tunedModels/mine:generateContent", none, "gemini", "/v1/tunedModels/mine:generateContent"},
		{"/vertex/v1/projects/p/locations/l/publishers/google/models/m:generateContent", none, "vertex", "/v1/projects/p/locations/l/publishers/google/models/m:generateContent"},
		{"/bedrock/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fm/converse", none, "bedrock", "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fm/converse"},
		{"/ollama/api/tags", none, "ollama", "/api/tags"},
		{"/openai/api/pull", none, "openai", "/api/pull"},
		{"/v1/models", none, "openai", "/v1/models"},
		{"/v1/models", goog, "openai", "/v1/models"},
		{"/v1/models", ant, "anthropic", "/v1/models"},
		{"/v1/models/claude-x", key, "anthropic", "/v1/models/claude-x"},
		{"/v1/files/file_1/content", lower, "anthropic", "/v1/files/file_1/content"},
		{"/v1/files", none, "openai", "/v1/files"},
		{"/v1/batches", none, "openai", "/v1/batches"},
		{"/openai/v1/responses", ant, "openai", "/v1/responses"},
		{"/groq/openai/v1/chat/completions", none, "groq", "/openai/v1/chat/completions"},
		{"/anthropic/v1/messages", none, "anthropic", "/v1/messages"},
		{"/anthropic/v1/something/new", none, "anthropic", "/v1/something/new"},
		{"/anthropic/", none, "anthropic", "/"},
		{"/openai/v1/models/org%2Fname%3Av2", none, "openai", "/v1/models/org%2Fname%3Av2"},
		{"/openai//v1//models", none, "openai", "//v1//models"},
		{"/azure/api/projects/p/agents", none, "azure", "/api/projects/p/agents"},
		{"/gateway/v1/chat/completions", none, "gateway", "/v1/chat/completions"},
		{"/openai/v1/files/a..b", none, "openai", "/v1/files/a..b"},
		{"/openai/v1/files/...", none, "openai", "/v1/files/..."},
	}
	for _, test := range tests {
		target, err := registry.Route([]byte(test.path), provider.Headers(test.headers))
		if err != nil {
			t.Errorf("%s: %v", test.path, err)
			continue
		}
		if target.Provider.Name != test.provider || string(target.Rest) != test.rest {
			t.Errorf("%s: got %s %s, want %s %s", test.path, target.Provider.Name, target.Rest, test.provider, test.rest)
		}
	}
}

func TestRouteRefuses(t *testing.T) {
	tests := []struct {
		status int
		code   string
		paths  []string
	}{
		{404, provider.CodeNotFound, []string{
			"/", "/v1", "/v1/", "/v2/messages", "/v1/messagesx", "/v1/chat", "/v1/completions/x", "/anthropic", "/nobody/v1/messages",
			"/healthz", "/v1/unknown", "/%61nthropic/v1/messages", "/Anthropic/v1/messages",
		}},
		{400, provider.CodeBadPath, []string{
			"", "v1/messages", "*", "http://api.anthropic.com/v1/messages",
			"/v1/messages/../organizations", "/v1/messages/./x", "/anthropic/v1/..", "/..", "/anthropic/../openai/v1/models",
			"/v1/messages/%2e%2e/organizations", "/v1/messages/%2E./organizations", "/v1/messages/.%2e/x",
			"/v1/messages/%252e%252e/organizations", "/v1/messages/%25252e%25252e/x", "/v1/x%2525252fy",
			"/v1/messages/..%2forganizations", "/v1/messages%2f..%2forganizations", "/v1/messages/..;/organizations",
			"/v1/messages/..;a=b/organizations", "/v1/messages/%2e%2e%3b/organizations", "/v1/messages/..%20/x", "/v1/messages/..%09/x",
			`/v1/messages\..\organizations`, "/v1/messages%5c..%5corganizations", "/v1/messages%5Corganizations", "/v1/messages%255cx",
			"/v1/messages%00", "/v1/messages\x00", "/v1/messages%0d%0aX:y", "/v1/mess\nages", "/v1/messages%2500",
			"/v1/messages#x", "/v1/messages%23x", "/v1/messages%3fx=y", "/v1/messages%253f",
			"/v1/messages HTTP/1.1", "/v1/messages%", "/v1/messages%2", "/v1/messages%zz", "/v1/messages%u002e%u002e/x",
			"/v1/messages/%c0%ae%c0%ae/x", "/v1/messages/\xc0\xae/x", "/v1/messages/%ef%bc%8e%ef%bc%8e/x", "/v1/modèles",
		}},
		{403, provider.CodeForbiddenPath, []string{
			"/v1/organizations", "/v1/organizations/api_keys", "/anthropic/v1/organizations/me", "/anthropic/V1/Organizations",
			"/openai/v1/organization/admin_api_keys", "/v1/organization/usage/completions", "/openai/v1/projects", "/v1/projects/proj_1",
			"/v1/oauth/token", "/anthropic/v1/oauth/token", "/api/oauth/profile", "/anthropic/api/oauth/claude_cli/create_api_key",
			"/v1/user_profiles", "/v1/tunnels/x", "/v1/realtime/client_secrets", "/v1/realtime/sessions", "/v1/realtime/transcription_sessions",
			"/v1/realtime/translations/client_secrets", "/openai/v1/chatkit/sessions", "/openai/dashboard/billing/usage", "/openai/v1/dashboard/billing/credit_grants",
			"/openrouter/api/v1/keys", "/openrouter/api/v1/auth/keys", "/openrouter/api/v1/credits", "/gemini/v1beta/auth_tokens", "/v1beta/auth_tokens",
			"/v1/%6frganizations", "/v1%2forganizations", "/v1/%256frganizations", "/v1//organizations", "//v1/organizations", "/v1/organizations%20",
			"/v1/organizations;x=y", "/v1;x/organizations", "/v1/organizations.", "/openai/organization/users", "/openai/v1/vendor/api_keys",
			"/azure/openai/realtimeapi/sessions",
			"/ollama/api/pull", "/ollama/api/push", "/ollama/api/create", "/ollama/api/copy", "/ollama/api/delete", "/ollama/api/blobs/sha256:0",
			"/ollama/api/me", "/ollama/api/signout", "/ollama/api/user/keys/k", "/ollama/API/%70ull",
			"/vertex/v1/projects/p/locations/l/endpoints/1:setIamPolicy", "/vertex/v1/projects/p/locations/l/models/1%3AsetIamPolicy",
			"/bedrock/v1/projects", "/v1/projects/p/locations/l/publishers/google/models/m:generateContent",
		}},
	}
	for _, test := range tests {
		for _, path := range test.paths {
			_, err := registry.Route([]byte(path), nil)
			var refusal *provider.Refusal
			if !errors.As(err, &refusal) || refusal.Status != test.status || refusal.Code != test.code {
				t.Errorf("%q: got %v, want %d %s", path, err, test.status, test.code)
			}
		}
	}
}

func TestRouteListsRoutes(t *testing.T) {
	_, err := registry.Route([]byte("/nothing"), provider.Headers("anthropic-version: 1\r\n"))
	var refusal *provider.Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("got %v, want a Refusal", err)
	}
	for _, want := range []string{"/v1/messages", "/v1/responses", "/v1beta", "local-vllm"} {
		if !strings.Contains(refusal.Message, want) {
			t.Errorf("the message does not name %s: %s", want, refusal.Message)
		}
	}
	for header, want := range map[string]provider.Family{
		"anthropic-version: 1\r\n": provider.Anthropic, "X-Goog-Api-Key: k\r\n": provider.Gemini,
		"amz-sdk-invocation-id: 1\r\n": provider.Bedrock, "authorization: Bearer k\r\n": provider.OpenAI,
	} {
		_, err := registry.Route([]byte("/nothing"), provider.Headers(header))
		if !errors.As(err, &refusal) || refusal.Family != want {
			t.Errorf("%q: the answer is in the shape of %v, want that of the SDK that asked", header, refusal.Family)
		}
	}
}

func TestRouteToAnUndeclaredProvider(t *testing.T) {
	r, err := provider.NewRegistry(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Route([]byte("/v1/messages"), nil)
	var refusal *provider.Refusal
	if !errors.As(err, &refusal) || refusal.Status != 404 || refusal.Code != provider.CodeNoSuchProvider {
		t.Errorf("got %v, want 404 %s", err, provider.CodeNoSuchProvider)
	}
}

func TestNewRegistryRefuses(t *testing.T) {
	tests := []struct {
		options provider.Options
		want    string
	}{
		{provider.Options{Name: "", BaseURL: "https://x"}, "name"},
		{provider.Options{Name: "a/b", BaseURL: "https://x"}, "name"},
		{provider.Options{Name: "v1", BaseURL: "https://x"}, "name"},
		{provider.Options{Name: "x", BaseURL: "http://x"}, "allow_plaintext"},
		{provider.Options{Name: "x", BaseURL: "ftp://x"}, "https"},
		{provider.Options{Name: "x", BaseURL: "https://"}, "host"},
		{provider.Options{Name: "x", BaseURL: "api.example.com"}, "host"},
		{provider.Options{Name: "x", BaseURL: "https://user:hunter2@x"}, "more than"},
		{provider.Options{Name: "x", BaseURL: "https://x?key=1"}, "more than"},
		{provider.Options{Name: "x", BaseURL: "https://x/a/../b"}, "characters"},
		{provider.Options{Name: "x", BaseURL: "https://x/%0d%0aHost:y"}, "characters"},
		{provider.Options{Name: "x", BaseURL: "https://%zz:hunter2@x"}, "URL"},
	}
	for _, test := range tests {
		_, err := provider.NewRegistry([]provider.Options{test.options})
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: got %v, want an error about %s", test.options, err, test.want)
		}
	}
	twice := provider.Options{Name: "x", BaseURL: "https://x"}
	if _, err := provider.NewRegistry([]provider.Options{twice, twice}); err == nil {
		t.Error("a provider that is declared twice was accepted")
	}
}

func FuzzRoute(f *testing.F) {
	for _, seed := range []string{
		"/v1/messages", "/openai/v1/responses", "/v1/messages/%2e%2e/organizations", "/anthropic/v1%2forganizations",
		"/anthropic//v1/;x/organizations", "/gemini/v1beta/models/a:b", "/%25252e", "/v1/organizations%2520",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		target, err := registry.Route([]byte(path), nil)
		if err != nil {
			return
		}
		rest := string(target.Rest)
		if rest != path && "/"+target.Provider.Name+rest != path {
			t.Fatalf("%q: the rest %q is not the end of the path", path, rest)
		}
		// However often it is decoded, a passed path stays below its root and
		// away from administration.
		for text := rest; ; {
			for segment := range strings.SplitSeq(strings.ReplaceAll(text, `\`, "/"), "/") {
				if segment == ".." || segment == "." {
					t.Fatalf("%q: a dot segment passed", path)
				}
			}
			if strings.ContainsAny(text, "\x00\r\n#\\") {
				t.Fatalf("%q: a byte that cuts requests passed", path)
			}
			if strings.HasPrefix(strings.ToLower(text), "/v1/organizations") && (len(text) == 17 || text[17] == '/') {
				t.Fatalf("%q: administration passed", path)
			}
			next := string(decodeOnce([]byte(text)))
			if next == text {
				return
			}
			text = next
		}
	})
}

// decodeOnce undoes the percent escapes that are well formed.
func decodeOnce(text []byte) []byte {
	const digits = "0123456789abcdef"
	var out []byte
	for i := 0; i < len(text); i++ {
		if text[i] == '%' && i+2 < len(text) {
			pair := bytes.ToLower(text[i+1 : i+3])
			high, low := strings.IndexByte(digits, pair[0]), strings.IndexByte(digits, pair[1])
			if high >= 0 && low >= 0 {
				out = append(out, byte(high<<4|low))
				i += 2
				continue
			}
		}
		out = append(out, text[i])
	}
	return out
}

// BenchmarkRoute is all that is asked of the path manifest for a request: its route, and
// the row of its path.
func BenchmarkRoute(b *testing.B) {
	for name, path := range map[string]string{
		"messages": "/anthropic/v1/messages", "batch": "/openai/v1/files/file-1/content", "vertex": "/vertex/v1/projects/p/locations/l/publishers/google/models/m:generateContent",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				target, err := registry.Route([]byte(path), provider.Headers(agentHeaders))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := provider.Inspect(&provider.Request{Provider: target.Provider, Method: []byte("GET"), Rest: target.Rest}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
