package provider_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
)

// TestSessionSources has a row for each source, with a weaker one beside it.
func TestSessionSources(t *testing.T) {
	const (
		id     = "0c1d6c3e-52a5-4f0f-9b5e-8dbb8d6d0001"
		weaker = `{"prompt_cache_key":"weaker","messages":[{"role":"user","content":"hi"}]}`
	)
	tests := []struct {
		source, headers, body, want, parent string
	}{
		{"x-authpool-session", "X-Authpool-Session: mine\r\nX-Claude-Code-Session-Id: " + id + "\r\n", weaker, "mine", ""},
		{"x-claude-code-session-id", "x-claude-code-session-id: " + id + "\r\nthread-id: other\r\n", weaker, id, ""},
		{"thread-id", "session-id: other\r\nThread-Id: " + id + "\r\n", weaker, id, ""},
		{"session-id", "session_id: other\r\nsession-id: " + id + "\r\n", weaker, id, ""},
		{"session_id", "conversation_id: other\r\nSession_Id: " + id + "\r\n", weaker, id, ""},
		{"conversation_id", "x-session-id: other\r\nconversation_id: " + id + "\r\n", weaker, id, ""},
		{"x-session-id", "x-session-affinity: other\r\nX-Session-Id: ses_1\r\n", weaker, "ses_1", ""},
		{"x-session-affinity", "X-Session-Affinity: ses_1\r\n", weaker, "ses_1", ""},
		{"metadata.user_id", "", `{"prompt_cache_key":"k","metadata":{"user_id":"{\"device_id\":\"d\",\"session_id\":\"` + id + `\"}"}}`, id, ""},
		{"metadata.user_id", "", `{"metadata":{"user_id":"user_abc_account_def_session_` + id + `"}}`, id, ""},
		{"prompt_cache_key", "", `{"metadata":{"user_id":"jane"},"conversation":"conv_1","prompt_cache_key":"` + id + `"}`, id, ""},
		{"conversation", "", `{"conversation":"conv_1"}`, "conv_1", ""},
		{"conversation", "", `{"conversation":{"id":"conv_1"}}`, "conv_1", ""},
		{"x-session-id", "x-session-id: ses_1\r\n", `{"conversation_id":"conv_1"}`, "ses_1", ""},

		// Sub-agents.
		{"x-session-id", "x-session-id: ses_2\r\nX-Parent-Session-Id: ses_1\r\n", "", "ses_2", "ses_1"},
		{"thread-id", "session-id: root\r\nthread-id: child\r\nx-codex-parent-thread-id: root\r\n", "", "child", "root"},
		{"x-claude-code-session-id", "x-claude-code-session-id: s\r\nx-claude-code-agent-id: a1\r\n", "", "s.a1", "s"},
		{"x-claude-code-session-id", "x-claude-code-session-id: s\r\nx-claude-code-agent-id: a2\r\nx-claude-code-parent-agent-id: a1\r\n", "", "s.a2", "s.a1"},
		{"x-claude-code-session-id", "x-claude-code-session-id: s\r\nx-claude-code-agent-id: s\r\n", "", "s", ""},
		{"x-session-id", "x-session-id: ses_1\r\nX-Parent-Session-Id: ses_1\r\n", "", "ses_1", ""},
		{"x-session-id", "x-session-id:\r\nx-session-id: ses_1\r\n", "", "ses_1", ""},
	}
	for _, test := range tests {
		got := inspect(t, "openrouter", "/api/v1/responses", test.headers, test.body).Session
		if got != (provider.Session{ID: test.want, Source: test.source, Parent: test.parent}) {
			t.Errorf("%q %s: got %+v, want %+v", test.headers, test.body, got, test)
		}
	}
}

var hashForm = regexp.MustCompile(`^h-[0-9a-f]{32}$`)

func TestSessionHash(t *testing.T) {
	session := func(agent, name, rest, body string) string {
		t.Helper()
		c, err := provider.Inspect(&provider.Request{
			Provider: registry.Provider(name), Agent: agent, Method: []byte("POST"), Rest: []byte(rest), Body: []byte(body),
		})
		if err != nil {
			t.Fatal(err)
		}
		if c.Session.Source != "hash" || !hashForm.MatchString(c.Session.ID) {
			t.Fatalf("%s: got session %+v", body, c.Session)
		}
		return c.Session.ID
	}
	const (
		messages  = "/v1/messages"
		chat      = "/v1/chat/completions"
		responses = "/v1/responses"
	)
	type request struct{ agent, provider, rest, body string }
	base := request{"default", "anthropic", messages, `{"model":"a","system":"S","messages":[{"role":"user","content":"U"}]}`}
	chatBase := request{"default", "openai", chat, `{"messages":[{"role":"system","content":"S"},{"role":"user","content":"U"}]}`}
	responsesBase := request{"default", "openai", responses, `{"instructions":"S","input":[{"role":"user","content":[{"type":"input_text","text":"U"}]}]}`}
	geminiBase := request{"default", "gemini", "/v1beta/models/m:generateContent", `{"systemInstruction":{"parts":[{"text":"S"}]},"contents":[{"parts":[{"text":"U"}]}]}`}

	const (
		vertexGemini = "/v1/projects/p/locations/l/publishers/google/models/m:generateContent"
		vertexClaude = "/v1/projects/p/locations/l/publishers/anthropic/models/m:rawPredict"
	)
	converseBase := request{"default", "bedrock", "/model/m/converse", `{"system":[{"text":"S"}],"messages":[{"role":"user","content":[{"text":"U"}]}]}`}
	cohereBase := request{"default", "cohere", "/v1/chat", `{"message":"U","preamble":"S"}`}
	cohere2Base := request{"default", "cohere", "/v2/chat", `{"messages":[{"role":"system","content":"S"},{"role":"user","content":"U"}]}`}
	ollamaBase := request{"default", "ollama", "/api/chat", `{"messages":[{"role":"system","content":"S"},{"role":"user","content":"U"}]}`}
	promptBase := request{"default", "ollama", "/api/generate", `{"prompt":"U","system":"S"}`}
	vertexBase := request{"default", "vertex", vertexGemini, geminiBase.body}

	// The same conversation.
	for _, pair := range [][2]request{
		{base, {"default", "anthropic", messages, `{"messages":[{"content":"U","role":"user"}],"system":"S","model":"another"}`}},
		{base, {"default", "anthropic", messages, `{"system":"S","messages":[{"role":"user","content":"U"},{"role":"assistant","content":"A"},{"role":"user","content":"V"}]}`}},
		{base, {"default", "anthropic", "/v1/messages/count_tokens", base.body}},
		{base, {"default", "anthropic", messages, `{"system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli;"},{"type":"text","text":"S"}],"messages":[{"role":"user","content":"U"}]}`}},
		{chatBase, {"default", "openai", chat, `{"model":"m","messages":[{"content":"S","role":"developer"},{"role":"user","content":"U"},{"role":"assistant","content":"A"},{"role":"user","content":"V"}]}`}},
		{responsesBase, {"default", "openai", responses, `{"instructions":"S","store":false,"input":[{"type":"message","role":"user","content":[{"text":"U","type":"input_text"}]},{"type":"reasoning","encrypted_content":"E"},{"role":"user","content":"V"}]}`}},
		{geminiBase, {"default", "gemini", "/v1beta/models/another:streamGenerateContent", `{"contents":[{"role":"user","parts":[{"text":"U"}]},{"role":"model","parts":[{"text":"A"}]}],"systemInstruction":{"parts":[{"text":"S"}]}}`}},
		{geminiBase, {"default", "gemini", "/v1beta/models/m:countTokens", `{"system_instruction":{"parts":[{"text":"S"}]},"contents":[{"role":"user","parts":[{"text":"U"}]},{"role":"model","parts":[{"functionCall":{"args":{"text":"T"}}}]}]}`}},
		{vertexBase, {"default", "vertex", vertexGemini, `{"contents":[{"role":"user","parts":[{"text":"U"}]},{"role":"model","parts":[{"text":"A"}]},{"role":"user","parts":[{"text":"V"}]}],"systemInstruction":{"role":"system","parts":[{"text":"S"}]}}`}},
		{
			{"default", "vertex", vertexClaude, `{"anthropic_version":"vertex-2023-10-16","messages":[{"role":"user","content":"U"}]}`},
			{"default", "vertex", vertexClaude, `{"messages":[{"role":"user","content":"U"},{"role":"assistant","content":"A"},{"role":"user","content":"V"}]}`},
		},
		{converseBase, {"default", "bedrock", "/model/other/converse-stream", `{"messages":[{"content":[{"text":"U"}],"role":"user"},{"role":"assistant","content":[{"toolUse":{"input":{"text":"T"}}}]},{"role":"user","content":[{"text":"V"}]}],"system":[{"text":"S"}],"inferenceConfig":{"maxTokens":5}}`}},
		{converseBase, {"default", "bedrock", "/model/m/converse", `{"system":[{"text":"S"},{"cachePoint":{"type":"default"}}],"messages":[{"role":"user","content":[{"text":"U"},{"cachePoint":{"type":"default"}}]},{"role":"assistant","content":[{"text":"A"}]}]}`}},
		{cohereBase, {"default", "cohere", "/v1/chat", `{"chat_history":[{"role":"USER","message":"U"},{"role":"CHATBOT","message":"A"}],"message":"V","preamble":"S"}`}},
		{cohereBase, {"default", "cohere", "/v1/chat", `{"message":"V","preamble":"S","chat_history":[{"message":"U","role":"User"},{"message":"A","role":"Chatbot"}]}`}},
		{cohere2Base, {"default", "cohere", "/v2/chat", `{"messages":[{"role":"system","content":"S"},{"role":"user","content":[{"type":"text","text":"U"}]},{"role":"assistant","content":"A"},{"role":"user","content":"V"}]}`}},
		{ollamaBase, {"default", "ollama", "/api/chat", `{"stream":false,"messages":[{"role":"system","content":"S"},{"role":"user","content":"U"},{"role":"assistant","content":"A"},{"role":"user","content":"V"}]}`}},
	} {
		a, b := pair[0], pair[1]
		if session(a.agent, a.provider, a.rest, a.body) != session(b.agent, b.provider, b.rest, b.body) {
			t.Errorf("%s\nand\n%s\nare different sessions", a.body, b.body)
		}
	}

	// Other conversations.
	seen := map[string]request{}
	for _, r := range []request{
		base,
		{"other", "anthropic", messages, base.body},
		{"default", "openrouter", messages, base.body},
		{"default", "anthropic", messages, `{"system":"T","messages":[{"role":"user","content":"U"}]}`},
		{"default", "anthropic", messages, `{"system":"S","messages":[{"role":"user","content":"V"}]}`},
		{"default", "anthropic", messages, `{"messages":[{"role":"user","content":"SU"}]}`},
		{"default", "anthropic", messages, `{"system":"` + strings.Repeat("S", 20000) + `","messages":[{"role":"user","content":"U"}]}`},
		{"default", "anthropic", messages, `{"system":"` + strings.Repeat("S", 20001) + `","messages":[{"role":"user","content":"U"}]}`},
		chatBase,
		{"default", "openai", chat, `{"messages":[{"role":"system","content":"S"},{"role":"assistant","content":"U"},{"role":"user","content":"W"}]}`},
		responsesBase,
		{"default", "openai", responses, `{"input":"U"}`},
		{"default", "openai", "/v1/completions", `{"prompt":"P"}`},
		geminiBase,
		vertexBase,
		converseBase,
		cohereBase,
		cohere2Base,
		ollamaBase,
		promptBase,
		{"default", "gemini", "/v1beta/models/m:generateContent", `{"contents":[{"parts":[{"text":"U"}]}]}`},
		{"default", "bedrock", "/model/m/converse", `{"system":[{"text":"T"}],"messages":[{"role":"user","content":[{"text":"U"}]}]}`},
		{"default", "bedrock", "/model/m/invoke", `{"inputText":"U"}`},
		{"default", "bedrock", "/model/m/invoke", `{"prompt":"P"}`},
		{"default", "cohere", "/v1/chat", `{"message":"V","preamble":"S"}`},
		{"default", "cohere", "/v1/chat", `{"message":"U"}`},
		{"default", "cohere", "/v1/generate", `{"prompt":"U"}`},
		{"default", "ollama", "/api/generate", `{"prompt":"U"}`},
		{"default", "openai", chat, `not JSON`},
	} {
		id := session(r.agent, r.provider, r.rest, r.body)
		if other, ok := seen[id]; ok {
			t.Errorf("%+v\nand\n%+v\nare one session", r, other)
		}
		seen[id] = r
	}
}

// A conversation that Cohere keeps is named by its body, at Cohere's chat only.
func TestSessionKeptByCohere(t *testing.T) {
	const body = `{"conversation_id":"c 1","message":"V"}`
	c := inspect(t, "cohere", "/v1/chat", "", body)
	if c.Session.Source != "conversation" || !hashForm.MatchString(c.Session.ID) || !c.Unsafe {
		t.Errorf("got %+v, unsafe %v", c.Session, c.Unsafe)
	}
	if c = inspect(t, "openai", "/v1/chat/completions", "", body); c.Session.Source != "hash" || c.Unsafe {
		t.Errorf("elsewhere: got %+v, unsafe %v", c.Session, c.Unsafe)
	}
}

func TestSessionOfWhatIsNoConversation(t *testing.T) {
	for _, rest := range []string{"/v1/embeddings", "/v1/files", "/v1/moderations", "/v1/images/generations"} {
		if got := inspect(t, "openai", rest, "", `{"input":"x","model":"m"}`).Session; got != (provider.Session{}) {
			t.Errorf("%s: got session %+v, want none", rest, got)
		}
		if got := inspect(t, "openai", rest, "X-Authpool-Session: mine\r\n", `{"input":"x"}`).Session.ID; got != "mine" {
			t.Errorf("%s: got session %q, want the one that was named", rest, got)
		}
	}
}

func TestCleanSession(t *testing.T) {
	const kept = "AZaz09._-"
	for _, id := range []string{kept, strings.Repeat("a", 128), ""} {
		if got := provider.CleanSession([]byte(id)); got != id {
			t.Errorf("%q became %q", id, got)
		}
	}
	// SHA-256 of `a b` begins with these 128 bit.
	if got, want := provider.CleanSession([]byte("a b")), "h-c8687a08aa5d6ed2044328fa6a697ab8"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, id := range []string{"a/b", "a:b", "{x}", "é", "a\x00", strings.Repeat("a", 129)} {
		if got := provider.CleanSession([]byte(id)); !hashForm.MatchString(got) {
			t.Errorf("%q became %q", id, got)
		}
	}
}

// An id of nothing but what cannot stand in a key is an id all the same.
func TestOldFaultIDsThatCleanToNothing(t *testing.T) {
	for _, id := range []string{"/", ":::", "{}", " ", "\x00", "..", "éé", "../../", "\n"} {
		if got := provider.CleanSession([]byte(id)); got == "" {
			t.Errorf("nothing is left of %q", id)
		}
	}
}

// What is left of two ids differs as they do.
func TestOldFaultIDsThatCleanToTheSame(t *testing.T) {
	from := map[string]string{}
	for _, id := range []string{
		"a b", "a  b", "a_b", "a-b", "ab", "a/b", "a:b", "a\\b", "A B", "/", "//", ":", "::", " ", "  ", "é", "e\u0301",
		strings.Repeat("a", 128), strings.Repeat("a", 129), strings.Repeat("a", 130),
	} {
		got := provider.CleanSession([]byte(id))
		if other, taken := from[got]; taken {
			t.Errorf("%q and %q both became %q", id, other, got)
		}
		from[got] = id
	}
}
