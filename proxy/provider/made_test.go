package provider_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/provider"
)

func TestMade(t *testing.T) {
	const uuid = "0191e7a0-5b1c-7c3e-9d2a-0123456789ab"
	for _, test := range []struct {
		family provider.Family
		text   string
		want   []string
	}{
		{provider.OpenAI, `{"id":"file-1","object":"file"}`, []string{"file-1"}},
		{provider.OpenAI, `{"id":"` + uuid + `","object":"file"}`, []string{uuid}}, // Mistral
		{provider.OpenAI, `{"object":"conversation.response","conversation_id":"conv_1","outputs":[{"id":"msg_1"}]}`, []string{"conv_1"}},
		{provider.OpenAI, `{"id":"upload_1","file":{"id":"file-2"}}`, []string{"upload_1", "file-2"}},
		{provider.OpenAI, `{"id":"batch_1","input_file_id":"file-0","output_file_id":"file-1","error_file_id":null}`, []string{"batch_1", "file-1"}},
		{provider.OpenAI, `{"id":"run_1","thread_id":"thread_1","assistant_id":"asst_1"}`, []string{"run_1", "thread_1"}},
		{provider.OpenAI, `{"id":"resp_1","output":[{"type":"code_interpreter_call","container_id":"cntr_1"},{"content":[{"text":"{\"id\":\"file-9\"}"}]}]}`, []string{"resp_1", "cntr_1"}},
		{provider.OpenAI, `{"type":"response.created","response":{"id":"resp_1","output":[]}}`, []string{"resp_1"}},
		{provider.OpenAI, `{"id":"msg_1","name":"file-1","data":[{"id":"file-2"}],"prompt":{"id":"pmpt_1"}}`, nil},
		{provider.OpenAI, `{"id":"pmpt_1"}`, nil},                                // made by hand
		{provider.OpenAI, `{"id":"file-a b"}`, nil},                              // cannot stand in a key
		{provider.OpenAI, `{"id":"file-` + strings.Repeat("a", 300) + `"}`, nil}, // nor this
		{provider.OpenAI, `{"id":7,"output":["file-1"]}`, nil},
		{provider.Anthropic, `{"id":"msgbatch_1","type":"message_batch"}`, []string{"msgbatch_1"}},
		{provider.Anthropic, `{"id":"msg_1","container":{"id":"container_1"},"content":[{"type":"bash_code_execution_tool_result","content":{"type":"x","content":[{"file_id":"file_1"}]}}]}`, []string{"container_1", "file_1"}},
		{provider.Anthropic, `{"type":"message_delta","delta":{"container":{"id":"container_1"}}}`, []string{"container_1"}},
		{provider.Anthropic, `{"type":"content_block_start","content_block":{"content":{"content":[{"file_id":"file_1"},{"file_id":"file_1"}]}}}`, []string{"file_1"}},
		{provider.Gemini, `{"file":{"name":"files/f-1","uri":"https://h/v1beta/files/f-1"}}`, []string{"files/f-1"}},
		{provider.Gemini, `{"name":"models/veo/operations/o1"}`, []string{"operations/o1"}},
		{provider.Gemini, `{"name":"projects\/p\/locations\/l\/cachedContents\/7"}`, []string{"cachedContents/7"}},
		{provider.Gemini, `{"name":"models/gemini-x"}`, nil},
		{provider.Gemini, `{"id":"v1_x","status":"completed"}`, []string{"interactions/v1_x"}},
		{provider.Gemini, `{"event_type":"interaction.start","interaction":{"id":"v1_x"}}`, []string{"interactions/v1_x"}},
	} {
		var whole, bytewise provider.Made
		whole.Reset(test.family)
		whole.Write([]byte(test.text))
		bytewise.Reset(test.family)
		for i := range len(test.text) {
			bytewise.Write([]byte(test.text[i : i+1]))
		}
		if got := whole.IDs(); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.text, got, test.want)
		}
		if got := bytewise.IDs(); !slices.Equal(got, test.want) {
			t.Errorf("%s, byte by byte: got %q, want %q", test.text, got, test.want)
		}
		for _, id := range test.want {
			if keep := provider.KeepResource(id); keep < 24*time.Hour {
				t.Errorf("%s is kept for %v", id, keep)
			}
		}
	}
}

// FuzzMade: however an answer is cut, the same ids are read, and each can stand in
// a key and be learned.
func FuzzMade(f *testing.F) {
	f.Add([]byte(`{"id":"file-1","file":{"id":"upload_2"}}`), 3, false)
	f.Add([]byte(`{"name":"projects\/p\/locations\/l\/cachedContents\/7","id":"v1_\u0041"}`), 1, true)
	f.Add([]byte(`{"name":"///files//x:y","file":{"name":"files/"}}`), 5, true)
	f.Fuzz(func(t *testing.T, text []byte, size int, google bool) {
		family := provider.OpenAI
		if google {
			family = provider.Gemini
		}
		var whole, pieces provider.Made
		whole.Reset(family)
		whole.Write(text)
		pieces.Reset(family)
		for p := text; len(p) > 0; {
			n := min(max(size, 1), len(p))
			pieces.Write(p[:n])
			p = p[n:]
		}
		if !slices.Equal(whole.IDs(), pieces.IDs()) {
			t.Errorf("whole %q, in pieces %q", whole.IDs(), pieces.IDs())
		}
		for _, id := range whole.IDs() {
			if len(id) > 160 || strings.ContainsAny(id, "{} \"\\\x00\n") || provider.KeepResource(id) == 0 {
				t.Errorf("learned %q", id)
			}
		}
	})
}

func TestMadeIsBounded(t *testing.T) {
	var m provider.Made
	m.Reset(provider.OpenAI)
	m.Write([]byte(`{"output":[`))
	for i := range 1000 {
		m.Write([]byte(`{"container_id":"cntr_` + strings.Repeat("x", i%100) + `"},`))
	}
	if n := len(m.IDs()); n != 32 {
		t.Errorf("%d ids, want 32", n)
	}
}

func TestInspectTellsWhatMakesSomething(t *testing.T) {
	for _, test := range []struct {
		provider, method, rest, body string
		want                         bool
	}{
		{"openai", "POST", "/v1/files", ``, true},
		{"openai", "POST", "/v1/responses", `{"model":"m"}`, true},
		{"openai", "POST", "/v1/responses", `{"model":"m","store":true}`, true},
		{"openai", "POST", "/v1/responses", `{"model":"m","store":false}`, false},
		{"openai", "POST", "/v1/responses", `{"model":"m","store":false,"tools":[{"type":"code_interpreter","container":{"type":"auto"}}]}`, true},
		{"openai", "POST", "/v1/responses", `{"model":"m","store":false,"tools":[{"type":"web_search"}]}`, false},
		{"openai", "POST", "/v1/responses", `{"model":"m","store":false,"background":true}`, true},
		{"openai", "POST", "/v1/responses", `{"model":"m","store":false,"background":false}`, false},
		{"openai", "GET", "/v1/responses/resp_1", ``, true},
		{"openai", "POST", "/v1/chat/completions", `{"model":"m"}`, false},
		{"openai", "POST", "/v1/chat/completions", `{"model":"m","store":true}`, true},
		{"openai", "POST", "/v1/embeddings", `{"model":"m"}`, false},
		{"openai", "GET", "/v1/batches/batch_1", ``, true},
		{"openai", "GET", "/v1/files/file-1/content", ``, false},
		{"openai", "GET", "/v1/files", ``, false},
		{"openai", "DELETE", "/v1/files/file-1", ``, false},
		{"anthropic", "POST", "/v1/messages", `{"model":"m","messages":[{"content":[{"type":"code_execution_tool_result"}]}]}`, false},
		{"anthropic", "POST", "/v1/messages", `{"model":"m","container":null,"tools":[{"type":"custom","name":"code_execution"}]}`, false},
		{"anthropic", "POST", "/v1/messages", `{"model":"m","tools":[{"type":"code_execution_20250825"}]}`, true},
		{"anthropic", "POST", "/v1/messages", `{"model":"m","container":{"skills":[]}}`, true},
		{"anthropic", "POST", "/v1/messages/batches", `{"requests":[]}`, true},
		{"gemini", "POST", "/v1beta/models/m:generateContent", `{}`, false},
		{"gemini", "POST", "/v1beta/cachedContents", `{}`, true},
		{"gemini", "POST", "/upload/v1beta/files", `{}`, true},
	} {
		r := provider.Request{
			Provider: registry.Provider(test.provider), Agent: "a", Method: []byte(test.method), Rest: []byte(test.rest), Body: []byte(test.body),
			Headers: provider.Headers("Content-Type: application/json\r\n"),
		}
		c, err := provider.Inspect(&r)
		if err != nil || c.Makes != test.want {
			t.Errorf("%s %s %s: %v, %v, want %v", test.method, test.rest, test.body, c.Makes, err, test.want)
		}
	}
}
