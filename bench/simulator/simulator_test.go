package simulator_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/authpool/authpool/bench/simulator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sim is a simulator on a socket of its own.
type sim struct {
	*simulator.Simulator
	url    string
	client *http.Client
}

func run(t *testing.T, o simulator.Options) *sim {
	t.Helper()
	s, err := simulator.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	return &sim{s, "http://" + ln.Addr().String(), &http.Client{Transport: transport}}
}

// post sends a request with the credential "k1" as the provider of the path wants it.
func (s *sim) post(t *testing.T, path, body string, header ...string) *http.Response {
	t.Helper()
	resp, err := s.client.Do(request(t, s.url+path, body, header...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func request(t *testing.T, url, body string, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(url, "/v1/messages") {
		req.Header.Set("X-Api-Key", "k1")
		req.Header.Set("Anthropic-Version", "2023-06-01")
	} else {
		req.Header.Set("Authorization", "Bearer k1")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	return req
}

func text(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("after %d bytes: %v", len(b), err)
	}
	return string(b)
}

// counts is what an answer or a ledger entry says was spent.
type counts struct{ Input, Output, CacheRead, Write5m, Write1h int64 }

func billed(e simulator.Entry) counts {
	return counts{e.Input, e.Output, e.CacheRead, e.CacheWrite5m, e.CacheWrite1h}
}

// reported reads the usage out of an answer: of a stream, the last object in which each field occurs.
func reported(t *testing.T, body string) counts {
	t.Helper()
	var c counts
	found := false
	take := func(data string) {
		var any map[string]json.RawMessage
		if err := json.Unmarshal([]byte(data), &any); err != nil {
			t.Fatalf("%v in %q", err, data)
		}
		for _, in := range []string{"message", "response"} {
			if nested, ok := any[in]; ok {
				any = nil
				if err := json.Unmarshal(nested, &any); err != nil {
					t.Fatal(err)
				}
			}
		}
		var u *struct {
			Input       int64 `json:"input_tokens"`
			Output      int64 `json:"output_tokens"`
			Prompt      int64 `json:"prompt_tokens"`
			Completion  int64 `json:"completion_tokens"`
			CacheRead   int64 `json:"cache_read_input_tokens"`
			CacheWrite  int64 `json:"cache_creation_input_tokens"`
			WriteDetail *struct {
				H1 int64 `json:"ephemeral_1h_input_tokens"`
			} `json:"cache_creation"`
			PromptDetail *struct {
				Cached int64 `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
			InputDetail *struct {
				Cached int64 `json:"cached_tokens"`
			} `json:"input_tokens_details"`
		}
		if raw, ok := any["usage"]; !ok || json.Unmarshal(raw, &u) != nil || u == nil {
			return
		}
		found = true
		c.Input, c.Output = u.Input+u.Prompt, u.Output+u.Completion
		c.CacheRead = u.CacheRead
		if u.PromptDetail != nil {
			c.CacheRead = u.PromptDetail.Cached
			c.Input -= c.CacheRead
		}
		if u.InputDetail != nil {
			c.CacheRead = u.InputDetail.Cached
			c.Input -= c.CacheRead
		}
		if u.WriteDetail != nil {
			c.Write1h = u.WriteDetail.H1
		}
		c.Write5m = u.CacheWrite - c.Write1h
	}
	if strings.HasPrefix(body, "{") {
		take(body)
	} else {
		for line := range strings.Lines(body) {
			if data, ok := strings.CutPrefix(line, "data: "); ok && !strings.HasPrefix(data, "[DONE]") {
				take(data)
			}
		}
	}
	if !found {
		t.Fatalf("no usage in %q", body)
	}
	return c
}

const (
	messages  = `{"model":"claude-haiku-4-5","max_tokens":500,"system":"be brief","messages":[{"role":"user","content":"hello"}]}`
	chat      = `{"model":"gpt-5.1","messages":[{"role":"user","content":"hello"}]}`
	responses = `{"model":"gpt-5.1","input":"hello"}`
)

// with adds fields to a JSON body.
func with(body, fields string) string { return body[:len(body)-1] + "," + fields + "}" }

var everyAnswer = []struct {
	name, path, body string
}{
	{"messages", "/v1/messages", messages},
	{"messages stream", "/v1/messages", with(messages, `"stream":true`)},
	{"messages thinking", "/v1/messages", with(messages, `"thinking":{"type":"enabled","budget_tokens":1024}`)},
	{"messages thinking stream", "/v1/messages", with(messages, `"thinking":{"type":"adaptive"},"stream":true`)},
	{"messages tool", "/v1/messages", with(messages, `"tools":[{"name":"f"}],"tool_choice":{"type":"any"}`)},
	{"messages tool stream", "/v1/messages", with(messages, `"tools":[{"name":"f"}],"tool_choice":{"type":"tool","name":"f"},"stream":true`)},
	{"messages cut by max_tokens", "/v1/messages", strings.Replace(messages, "500", "3", 1)},
	{"chat", "/v1/chat/completions", chat},
	{"chat stream", "/v1/chat/completions", with(chat, `"stream":true,"stream_options":{"include_usage":true}`)},
	{"chat tool", "/v1/chat/completions", with(chat, `"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required"`)},
	{"chat tool stream", "/v1/chat/completions", with(chat, `"tools":[],"tool_choice":"required","stream":true,"stream_options":{"include_usage":true}`)},
	{"completions", "/v1/completions", `{"model":"gpt-3.5-turbo-instruct","prompt":"hello"}`},
	{"completions stream", "/v1/completions", `{"model":"gpt-3.5-turbo-instruct","prompt":"hello","stream":true,"stream_options":{"include_usage":true}}`},
	{"responses", "/v1/responses", responses},
	{"responses stream", "/v1/responses", with(responses, `"stream":true`)},
	{"responses reasoning stream", "/v1/responses", with(responses, `"stream":true,"reasoning":{"effort":"low"},"include":["reasoning.encrypted_content"]`)},
	{"responses tool", "/v1/responses", with(responses, `"tools":[{"type":"function","name":"f"}],"tool_choice":"required"`)},
	{"responses tool stream", "/v1/responses", with(responses, `"tools":[{"type":"function","name":"f"}],"tool_choice":"required","stream":true`)},
	{"responses incomplete stream", "/v1/responses", with(responses, `"stream":true,"max_output_tokens":3`)},
	{"embeddings", "/v1/embeddings", `{"model":"text-embedding-3-small","input":["hello"]}`},
}

func TestAnswersReportWhatTheLedgerBilled(t *testing.T) {
	t.Parallel()
	for _, test := range everyAnswer {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := run(t, simulator.Options{Keys: []simulator.Key{{Key: "k1", Provider: simulator.Anthropic}, {Key: "k1", Provider: simulator.OpenAI}}})
			resp := s.post(t, test.path, test.body)
			body := text(t, resp.Body)
			if resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status, body)
			}
			l := s.Ledger()
			if len(l) != 1 {
				t.Fatalf("%d entries in the ledger, want 1", len(l))
			}
			if got, want := reported(t, body), billed(l[0]); got != want {
				t.Errorf("the answer reports %+v, the ledger has %+v", got, want)
			}
			if l[0].Input == 0 || l[0].Output == 0 && test.name != "embeddings" {
				t.Errorf("nothing billed: %+v", l[0])
			}
			if !l[0].Finished || l[0].Key != "k1" {
				t.Errorf("entry %+v, want finished and of k1", l[0])
			}
			if id := resp.Header.Get("Request-Id") + resp.Header.Get("X-Request-Id"); l[0].RequestID != id || id == "" {
				t.Errorf("entry of request %q, the answer says %q", l[0].RequestID, id)
			}
		})
	}
}

func TestAnswersComeInTheCodingThatWasAskedFor(t *testing.T) {
	t.Parallel()
	decoders := map[string]func(io.Reader) (io.Reader, error){
		"gzip":    func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"deflate": func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) },
		"br":      func(r io.Reader) (io.Reader, error) { return brotli.NewReader(r), nil },
		"zstd": func(r io.Reader) (io.Reader, error) {
			return zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		},
	}
	accept := map[string]string{"gzip": "gzip, br", "deflate": "gzip;q=0, deflate", "br": "snappy, BR;q=0.5", "zstd": "zstd"}
	for coding, decode := range decoders {
		for _, body := range []string{messages, with(messages, `"stream":true`)} {
			s := run(t, simulator.Options{})
			resp := s.post(t, "/v1/messages", body, "Accept-Encoding", accept[coding])
			if got := resp.Header.Get("Content-Encoding"); got != coding {
				t.Errorf("%s: Content-Encoding %q, want %q", accept[coding], got, coding)
				continue
			}
			plain, err := decode(resp.Body)
			if err != nil {
				t.Fatal(coding, err)
			}
			if got, want := reported(t, text(t, plain)), billed(s.Ledger()[0]); got != want {
				t.Errorf("%s: the answer reports %+v, the ledger has %+v", coding, got, want)
			}
		}
	}
	s := run(t, simulator.Options{})
	if got := s.post(t, "/v1/messages", messages).Header.Get("Content-Encoding"); got != "" {
		t.Errorf("Content-Encoding %q though none was asked for", got)
	}
}

func TestRequestsMayBeEncoded(t *testing.T) {
	t.Parallel()
	var body bytes.Buffer
	z, err := zstd.NewWriter(&body, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(z, responses); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	s := run(t, simulator.Options{})
	for encoding, status := range map[string]int{"zstd": 200, "gzip": 400, "rot13": 400} {
		if resp := s.post(t, "/v1/responses", body.String(), "Content-Encoding", encoding); resp.StatusCode != status {
			t.Errorf("%s: %s, want %d", encoding, resp.Status, status)
		}
	}
}

// Codex asks with an empty prompt to warm a socket up.
func TestAnEmptyPromptIsAnswered(t *testing.T) {
	s := run(t, simulator.Options{Keys: []simulator.Key{{Key: "k1", Provider: simulator.OpenAI}}})
	if resp := s.post(t, "/v1/responses", `{"model":"gpt-5","input":[]}`); resp.StatusCode != http.StatusOK {
		t.Errorf("got %s", resp.Status)
	}
}

func TestAnswersDependOnTheSeedAndThePromptOnly(t *testing.T) {
	t.Parallel()
	answer := func(seed int64, key, body string) string {
		s := run(t, simulator.Options{Seed: seed})
		var m struct {
			Content []struct{ Text string }
		}
		if err := json.NewDecoder(s.post(t, "/v1/messages", body, "X-Api-Key", key).Body).Decode(&m); err != nil {
			t.Fatal(err)
		}
		return m.Content[0].Text
	}
	base := answer(1, "a", messages)
	if got := answer(1, "b", with(messages, `"metadata":{"user_id":"u"}`)); got != base {
		t.Errorf("another key and metadata: %q, want %q", got, base)
	}
	for name, got := range map[string]string{
		"seed":   answer(2, "a", messages),
		"prompt": answer(1, "a", strings.Replace(messages, "hello", "hullo", 1)),
		"model":  answer(1, "a", strings.Replace(messages, "haiku", "opus", 1)),
	} {
		if got == base {
			t.Errorf("another %s gave the same answer %q", name, got)
		}
	}
}

func TestChatStreamReportsUsageOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	silent := text(t, s.post(t, "/v1/chat/completions", with(chat, `"stream":true`)).Body)
	if strings.Contains(silent, `"usage"`) || strings.Contains(silent, `"choices":[]`) {
		t.Errorf("not asked for usage, but: %s", silent)
	}
	asked := text(t, s.post(t, "/v1/chat/completions", with(chat, `"stream":true,"stream_options":{"include_usage":true}`)).Body)
	events := strings.Split(strings.TrimSpace(asked), "\n\n")
	for _, e := range events[:len(events)-2] {
		if !strings.Contains(e, `"usage":null`) {
			t.Errorf("chunk without usage:null: %s", e)
		}
	}
	if last := events[len(events)-2]; !strings.Contains(last, `"choices":[],"usage":{"prompt_tokens"`) {
		t.Errorf("the chunk before the end is %s", last)
	}
	if events[len(events)-1] != "data: [DONE]" {
		t.Errorf("the end is %s", events[len(events)-1])
	}
}

func TestKnobs(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	knob := func(model, header string) counts {
		t.Helper()
		body := strings.Replace(messages, "claude-haiku-4-5", model, 1)
		body = strings.Replace(body, "500", "100000000", 1)
		resp := s.post(t, "/v1/messages", body, "X-Simulate", header)
		if resp.StatusCode != http.StatusOK {
			t.Fatal(model, header, resp.Status, text(t, resp.Body))
		}
		return reported(t, text(t, resp.Body))
	}
	if got := knob("sim-tokens-77", ""); got.Output != 77 {
		t.Errorf("tokens-77: %d tokens", got.Output)
	}
	if got := knob("claude-haiku-4-5", "thinking-tokens-5"); got.Output != 11 {
		t.Errorf("thinking-tokens-5: %d tokens, want 6 of thinking and 5", got.Output)
	}
	if got := knob("sim-large-3", ""); got.Output != 3<<20/4 {
		t.Errorf("large-3: %d tokens", got.Output)
	}
	echo := text(t, s.post(t, "/v1/chat/completions", chat, "X-Simulate", "echo").Body)
	if !strings.Contains(echo, `"content":"{\"role\":\"user\",\"content\":\"hello\"}"`) {
		t.Errorf("echo: %s", echo)
	}
	if resp := s.post(t, "/v1/messages", messages, "X-Simulate", "fast"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("unknown knob: %s", resp.Status)
	}
}

func TestLargeStreamComesInPieces(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	body := with(strings.Replace(messages, "claude-haiku-4-5", "sim-large-8", 1), `"stream":true`)
	resp := s.post(t, "/v1/messages", body)
	n, longest := 0, 0
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		n += len(lines.Bytes())
		longest = max(longest, len(lines.Bytes()))
	}
	if lines.Err() != nil || n < 8<<20 || longest > 8<<10 {
		t.Errorf("%d bytes, longest line %d, %v", n, longest, lines.Err())
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := simulator.New(simulator.Options{Keys: []simulator.Key{
			{Key: "k1", Provider: simulator.Anthropic, RPM: 2, ITPM: 30000, OTPM: 6000},
			{Key: "k1", Provider: simulator.OpenAI, RPM: 100, ITPM: 60},
		}})
		if err != nil {
			t.Fatal(err)
		}
		h := s.Handler()
		do := func(path, body string) *http.Response {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request(t, path, body))
			return w.Result()
		}
		first := do("/v1/messages", messages)
		want := map[string]string{
			"Anthropic-Ratelimit-Requests-Limit":         "2",
			"Anthropic-Ratelimit-Requests-Remaining":     "1",
			"Anthropic-Ratelimit-Requests-Reset":         time.Now().Add(30 * time.Second).UTC().Format(time.RFC3339),
			"Anthropic-Ratelimit-Input-Tokens-Limit":     "30000",
			"Anthropic-Ratelimit-Input-Tokens-Remaining": "30000", // rounded to thousands
			"Anthropic-Ratelimit-Tokens-Limit":           "6000",  // the nearest
		}
		for name, value := range want {
			if got := first.Header.Get(name); got != value {
				t.Errorf("%s: %q, want %q", name, got, value)
			}
		}
		if resp := do("/v1/messages", messages); resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		refused := do("/v1/messages", messages)
		if refused.StatusCode != 429 || refused.Header.Get("Retry-After") != "30" || refused.Header.Get("Anthropic-Ratelimit-Requests-Remaining") != "0" {
			t.Errorf("%s, headers %v", refused.Status, refused.Header)
		}
		if body := text(t, refused.Body); !strings.Contains(body, `"type":"rate_limit_error"`) {
			t.Error(body)
		}
		<-time.After(30*time.Second - time.Millisecond)
		if resp := do("/v1/messages", messages); resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "1" {
			t.Errorf("1 ms early: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
		}
		<-time.After(time.Millisecond)
		if resp := do("/v1/messages", messages); resp.StatusCode != 200 {
			t.Errorf("after Retry-After: %s", resp.Status)
		}
		if n := len(s.Ledger()); n != 3 {
			t.Errorf("%d entries, want 3: refused requests are not billed", n)
		}

		short := with(chat, `"max_tokens":40`)
		if resp := do("/v1/chat/completions", short); resp.StatusCode != 200 || resp.Header.Get("X-Ratelimit-Limit-Tokens") != "60" {
			t.Errorf("%s, headers %v", resp.Status, resp.Header)
		}
		refused = do("/v1/chat/completions", strings.Replace(short, "hello", "hullo", 1))
		body := text(t, refused.Body)
		if refused.StatusCode != 429 || refused.Header.Get("Retry-After-Ms") == "" || !strings.Contains(body, `"code": "rate_limit_exceeded"`) || !strings.Contains(body, "Please try again in") {
			t.Errorf("%s, headers %v, %s", refused.Status, refused.Header, body)
		}
		refused = do("/v1/chat/completions", strings.Replace(chat, "hello", strings.Repeat("a", 400), 1))
		if body := text(t, refused.Body); refused.Header.Get("Retry-After") != "" || !strings.Contains(body, "Request too large") {
			t.Errorf("larger than the limit: headers %v, %s", refused.Header, body)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPromptCacheIsKeptForEachKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := simulator.New(simulator.Options{})
		if err != nil {
			t.Fatal(err)
		}
		h := s.Handler()
		ask := func(key, body string) counts {
			w := httptest.NewRecorder()
			r := request(t, "/v1/messages", body, "X-Api-Key", key)
			if !strings.Contains(body, "max_tokens") {
				r = request(t, "/v1/chat/completions", body, "Authorization", "Bearer "+key)
			}
			h.ServeHTTP(w, r)
			c := reported(t, w.Body.String())
			c.Output = 0
			return c
		}
		turn := func(ttl, messages string) string {
			return fmt.Sprintf(`{"model":"m","max_tokens":9,"system":[{"text":"12345678","cache_control":{"type":"ephemeral"%s}}],"messages":[%s]}`, ttl, messages)
		}
		const m1, m2, m3 = `"aaaaaa"`, `"bbbbbb"`, `"cccccc"` // two tokens each; the system is 15, with a ttl 18
		steps := []struct {
			name, key, body string
			wait            time.Duration
			want            counts
		}{
			{"first", "k1", turn("", m1), 0, counts{Input: 2, Write5m: 15}},
			{"next turn reads", "k1", turn("", m1+","+m2), 4 * time.Minute, counts{Input: 2, CacheRead: 15, Write5m: 2}},
			{"reading renews", "k1", turn("", m1+","+m2+","+m3), 4 * time.Minute, counts{Input: 2, CacheRead: 17, Write5m: 2}},
			{"another key is cold", "k2", turn("", m1+","+m2+","+m3), 0, counts{Input: 2, Write5m: 19}},
			{"expired", "k1", turn("", m1+","+m2+","+m3), 5 * time.Minute, counts{Input: 2, Write5m: 19}},
			{"an hour", "k3", turn(`,"ttl":"1h"`, m1), 0, counts{Input: 2, Write1h: 18}},
			{"lasts", "k3", turn(`,"ttl":"1h"`, m1), 59 * time.Minute, counts{Input: 2, CacheRead: 18}},
			{"not asked for", "k1", `{"model":"m","max_tokens":9,"messages":["aaaaaa","bbbbbb"]}`, 0, counts{Input: 4}},
			{"openai first", "k1", `{"model":"m","messages":["aaaaaa","bbbbbb"]}`, 0, counts{Input: 4}},
			{"openai caches by itself", "k1", `{"model":"m","messages":["aaaaaa","bbbbbb","cccccc"]}`, 0, counts{Input: 4, CacheRead: 2}},
		}
		for _, step := range steps {
			<-time.After(step.wait)
			if got := ask(step.key, step.body); got != step.want {
				t.Errorf("%s: %+v, want %+v", step.name, got, step.want)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{Keys: []simulator.Key{{Key: "k1", Provider: simulator.Anthropic}, {Key: "sk-proj-0123456789abcdef", Provider: simulator.OpenAI}}})
	tests := []struct {
		name, path string
		header     []string
		status     int
		body       string
	}{
		{"x-api-key", "/v1/messages", nil, 200, ""},
		{"bearer at Anthropic", "/v1/messages", []string{"X-Api-Key", "", "Authorization", "Bearer k1"}, 200, ""},
		{"none", "/v1/messages", []string{"X-Api-Key", ""}, 401, `"message":"invalid x-api-key"`},
		{"unknown", "/v1/messages", []string{"X-Api-Key", "k2"}, 401, `"type":"authentication_error"`},
		{"the other provider's", "/v1/chat/completions", nil, 401, `"code": "invalid_api_key"`},
		{"covered in the answer", "/v1/chat/completions", []string{"Authorization", "Bearer sk-proj-0123456789abcdeX"}, 401, "provided: sk-proj-************cdeX."},
		{"x-api-key at OpenAI", "/v1/chat/completions", []string{"Authorization", "", "X-Api-Key", "sk-proj-0123456789abcdef"}, 401, "You didn't provide an API key"},
		{"bearer at OpenAI", "/v1/chat/completions", []string{"Authorization", "Bearer sk-proj-0123456789abcdef"}, 200, ""},
		{"no version", "/v1/messages", []string{"Anthropic-Version", ""}, 400, "anthropic-version: header is required"},
		{"newer version", "/v1/messages", []string{"Anthropic-Version", "2026-10-21"}, 200, ""},
		{"wrong version", "/v1/messages", []string{"Anthropic-Version", "2"}, 400, "is not a valid version"},
		{"unknown path", "/v1/nothing", []string{"Authorization", "Bearer sk-proj-0123456789abcdef"}, 404, "Invalid URL (POST /v1/nothing)"},
	}
	for _, test := range tests {
		body := messages
		if test.path != "/v1/messages" {
			body = chat
		}
		resp := s.post(t, test.path, body, test.header...)
		if got := text(t, resp.Body); resp.StatusCode != test.status || !strings.Contains(got, test.body) {
			t.Errorf("%s: %s %s, want %d %s", test.name, resp.Status, got, test.status, test.body)
		}
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	tests := []struct{ path, body, want string }{
		{"/v1/messages", `{`, "not valid JSON"},
		{"/v1/messages", `{"model":"m","messages":["a"]}`, "max_tokens: Field required"},
		{"/v1/messages", `{"max_tokens":1,"messages":["a"]}`, "model: Field required"},
		{"/v1/chat/completions", `{"model":"m"}`, "Missing required parameter: 'messages'."},
		{"/v1/responses", `{"model":"m"}`, "'input'"},
		{"/v1/completions", `{"model":"m"}`, "'prompt'"},
		{"/v1/embeddings", `[]`, "could not parse the JSON body"},
	}
	for _, test := range tests {
		resp := s.post(t, test.path, test.body)
		if got := text(t, resp.Body); resp.StatusCode != 400 || !strings.Contains(got, test.want) {
			t.Errorf("%s %s: %s %s, want %s", test.path, test.body, resp.Status, got, test.want)
		}
	}
	if l := s.Ledger(); len(l) != 0 {
		t.Errorf("bad requests were billed: %+v", l)
	}
}

func TestEncryptedContentStaysWithItsOrganisation(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	var first struct{ Output []json.RawMessage }
	resp := s.post(t, "/v1/responses", with(responses, `"reasoning":{"effort":"low"},"include":["reasoning.encrypted_content"]`))
	if err := json.NewDecoder(resp.Body).Decode(&first); err != nil {
		t.Fatal(err)
	}
	next := fmt.Sprintf(`{"model":"gpt-5.1","input":[%s,{"role":"user","content":"go on"}]}`, first.Output[0])
	if resp := s.post(t, "/v1/responses", next); resp.StatusCode != 200 {
		t.Errorf("the same key: %s", resp.Status)
	}
	resp = s.post(t, "/v1/responses", next, "Authorization", "Bearer k2")
	if body := text(t, resp.Body); resp.StatusCode != 400 || !strings.Contains(body, `"invalid_encrypted_content"`) {
		t.Errorf("another key: %s %s", resp.Status, body)
	}
}

func TestCallsThatCostNothing(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	if got := text(t, s.post(t, "/v1/messages/count_tokens", messages).Body); got != `{"input_tokens":12}` {
		t.Errorf("count_tokens: %s", got)
	}
	for header, want := range map[string]string{"X-Api-Key": `"claude-opus-4-8"`, "Authorization": `"gpt-5.1"`} {
		req := request(t, s.url+"/v1/models", "", "Authorization", "", header, map[string]string{"X-Api-Key": "k1", "Authorization": "Bearer k1"}[header])
		req.Method = http.MethodGet
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := text(t, resp.Body); !strings.Contains(got, want) {
			t.Errorf("models with %s: %s", header, got)
		}
		_ = resp.Body.Close()
	}
	if l := s.Ledger(); len(l) != 0 {
		t.Errorf("billed: %+v", l)
	}
}

func TestArrivals(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{Watch: []string{"agent-token", "canary"}})
	s.post(t, "/v1/messages", messages)
	s.post(t, "/v1/messages?key=agent-token", with(messages, `"metadata":{"user_id":"canary"}`), "Authorization", "Bearer agent-token", "Cookie", "a=b")
	got := s.Arrivals()
	if len(got) != 2 {
		t.Fatalf("%d arrivals", len(got))
	}
	if a := got[0]; len(a.Foreign)+len(a.Watched)+len(a.Query) != 0 || a.Key != "k1" || a.Path != "/v1/messages" || a.BodyBytes != len(messages) || a.Header.Get("X-Api-Key") != "k1" {
		t.Errorf("clean request: %+v", a)
	}
	if diff := cmp.Diff([]string{"header Authorization", "header Cookie", "query key"}, got[1].Foreign); diff != "" {
		t.Errorf("foreign credentials (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"0 in header Authorization", "0 in target", "1 in body"}, got[1].Watched); diff != "" {
		t.Errorf("watched strings (-want +got):\n%s", diff)
	}
	resp, err := s.client.Get(s.url + "/requests")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body := text(t, resp.Body); strings.Contains(body, "agent-token") || !strings.Contains(body, `"query":["key"]`) {
		t.Errorf("GET /requests: %s", body)
	}
}

func TestFaultsAtTheHead(t *testing.T) {
	t.Parallel()
	const an, oa = "/v1/messages", "/v1/chat/completions"
	tests := []struct {
		path   string
		fault  simulator.Fault
		status int
		header map[string]string
		body   string
	}{
		{an, simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 7}, 429, map[string]string{"Retry-After": "7"}, "rate_limit_error"},
		{an, simulator.Fault{Kind: simulator.RateLimit}, 429, map[string]string{"Retry-After": ""}, "rate_limit_error"},
		{oa, simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 0.25}, 429, map[string]string{"Retry-After": "1", "Retry-After-Ms": "250"}, "rate_limit_exceeded"},
		{an, simulator.Fault{Kind: simulator.Window, RetryAfter: 60}, 429, map[string]string{"Anthropic-Ratelimit-Unified-Status": "rejected"}, "rate_limit_error"},
		{oa, simulator.Fault{Kind: simulator.Window, RetryAfter: 60}, 429, map[string]string{"X-Codex-Primary-Window-Minutes": "300"}, `"resets_at": `},
		{an, simulator.Fault{Kind: simulator.Quota}, 400, nil, "credit balance is too low"},
		{oa, simulator.Fault{Kind: simulator.Quota}, 429, map[string]string{"Retry-After": ""}, "insufficient_quota"},
		{an, simulator.Fault{Kind: simulator.Overloaded}, 529, nil, "overloaded_error"},
		{oa, simulator.Fault{Kind: simulator.Overloaded}, 503, nil, "server_is_overloaded"},
		{an, simulator.Fault{Kind: simulator.ErrorEvent}, 529, nil, "overloaded_error"},
		{an, simulator.Fault{Status: 500}, 500, nil, "api_error"},
		{an, simulator.Fault{Kind: simulator.Status, Status: 503}, 503, nil, "api_error"},
		{an, simulator.Fault{Status: 401}, 401, map[string]string{"X-Should-Retry": "false"}, "authentication_error"},
		{oa, simulator.Fault{Status: 418}, 418, nil, "invalid_request_error"},
		{oa, simulator.Fault{Status: 520}, 520, nil, "server_error"},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.path, test.fault.Kind, test.status), func(t *testing.T) {
			t.Parallel()
			s := run(t, simulator.Options{})
			if err := s.Inject(simulator.Injection{Key: "k1", Fault: test.fault}); err != nil {
				t.Fatal(err)
			}
			body := messages
			if test.path == oa {
				body = chat
			}
			resp := s.post(t, test.path, body)
			got := text(t, resp.Body)
			if resp.StatusCode != test.status || !strings.Contains(got, test.body) || !json.Valid([]byte(got)) {
				t.Errorf("%s %s, want %d %s", resp.Status, got, test.status, test.body)
			}
			for name, value := range test.header {
				if resp.Header.Get(name) != value {
					t.Errorf("%s: %q, want %q", name, resp.Header.Get(name), value)
				}
			}
			if l := s.Ledger(); len(l) != 0 {
				t.Errorf("billed: %+v", l)
			}
			if resp := s.post(t, test.path, body); resp.StatusCode != 200 {
				t.Errorf("the next request: %s", resp.Status)
			}
		})
	}
}

func TestFaultsInTheMiddle(t *testing.T) {
	t.Parallel()
	tests := []struct {
		kind      simulator.Kind
		has, not  string
		broken    bool
		finished  bool
		outputMax int64
	}{
		{simulator.Cut, "text_delta", "message_stop", true, false, 3},
		{simulator.EarlyCut, "message_start", "content_block_start", true, false, 0},
		{simulator.ErrorEvent, "event: error\ndata: {\"type\":\"error\"", "content_block_start", false, false, 0},
		{simulator.LateErrorEvent, "text_delta", "message_stop", false, false, 3},
	}
	for _, test := range tests {
		t.Run(string(test.kind), func(t *testing.T) {
			t.Parallel()
			s := run(t, simulator.Options{})
			if err := s.Inject(simulator.Injection{Fault: simulator.Fault{Kind: test.kind}}); err != nil {
				t.Fatal(err)
			}
			resp := s.post(t, "/v1/messages", with(messages, `"stream":true`))
			b, err := io.ReadAll(resp.Body)
			if (err != nil) != test.broken {
				t.Errorf("the body ended with %v", err)
			}
			if !strings.Contains(string(b), test.has) || strings.Contains(string(b), test.not) {
				t.Errorf("want %q and no %q in %s", test.has, test.not, b)
			}
			if l := s.Ledger()[0]; l.Finished != test.finished || l.Output > test.outputMax || l.Input == 0 {
				t.Errorf("entry %+v", l)
			}
		})
	}
}

func TestErrorEventsOfOpenAI(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	if err := s.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.LateErrorEvent, Count: -1}}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/v1/chat/completions": "\n\ndata: {\"error\":{", "/v1/responses": "event: error\ndata: {\"type\":\"error\",\"sequence_number\""} {
		body := map[string]string{"/v1/chat/completions": chat, "/v1/responses": responses}[path]
		if got := text(t, s.post(t, path, with(body, `"stream":true`)).Body); !strings.Contains(got, want) || strings.HasSuffix(got, "data: [DONE]\n\n") {
			t.Errorf("%s: %s", path, got)
		}
	}
}

func TestFaultsThatWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := simulator.New(simulator.Options{Pace: 10 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		h := s.Handler()
		took := func(header string, f ...simulator.Injection) time.Duration {
			if err := s.Inject(f...); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			h.ServeHTTP(httptest.NewRecorder(), request(t, "/v1/messages", with(messages, `"stream":true`), "X-Simulate", header))
			return time.Since(begin)
		}
		// tokens-4 makes ten events, so nine pauses.
		if d := took("tokens-4"); d != 90*time.Millisecond {
			t.Errorf("Pace: %s", d)
		}
		if d := took("tokens-4-slow-20"); d != 180*time.Millisecond {
			t.Errorf("slow knob: %s", d)
		}
		if d := took("tokens-4", simulator.Injection{Fault: simulator.Fault{Kind: simulator.Slow, DelayMS: 100}}); d != 900*time.Millisecond {
			t.Errorf("slow fault: %s", d)
		}
		if d := took("tokens-4", simulator.Injection{Fault: simulator.Fault{Kind: simulator.SlowFirstByte, DelayMS: 5000}}); d != 5090*time.Millisecond {
			t.Errorf("slow first byte: %s", d)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseEndsSilentAnswers(t *testing.T) {
	t.Parallel()
	for kind, want := range map[simulator.Kind]string{simulator.Silent: "content_block_start", simulator.SilentHead: ""} {
		synctest.Test(t, func(t *testing.T) {
			s, err := simulator.New(simulator.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Inject(simulator.Injection{Fault: simulator.Fault{Kind: kind}}); err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			ended := make(chan any, 1)
			go func() {
				defer func() { ended <- recover() }()
				s.Handler().ServeHTTP(w, request(t, "/v1/messages", with(messages, `"stream":true`)))
			}()
			synctest.Wait()
			if n := s.InFlight(); n != 1 {
				t.Fatalf("%s: %d requests in flight, want the silent one", kind, n)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if got, _ := (<-ended).(error); !errors.Is(got, http.ErrAbortHandler) {
				t.Errorf("%s: the handler ended with %v, want the connection to be cut", kind, got)
			}
			if n := s.InFlight(); n != 0 {
				t.Errorf("%s: %d requests in flight after Close", kind, n)
			}
			if body := w.Body.String(); !strings.Contains(body, want) || strings.Contains(body, "message_stop") {
				t.Errorf("%s: %s", kind, body)
			}
		})
	}
}

func TestEchoedCredential(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	if err := s.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.EchoCredential}}); err != nil {
		t.Fatal(err)
	}
	resp := s.post(t, "/v1/messages", messages, "X-Api-Key", "sk-ant-secret")
	if body := text(t, resp.Body); resp.Header.Get("X-Echo-Credential") != "sk-ant-secret" || !strings.Contains(body, "Your key is sk-ant-secret.") {
		t.Errorf("headers %v, %s", resp.Header, body)
	}
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	if err := s.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.Garbage}}); err != nil {
		t.Fatal(err)
	}
	resp := s.post(t, "/v1/messages", messages)
	if body := text(t, resp.Body); resp.StatusCode != 200 || json.Valid([]byte(body)) {
		t.Errorf("%s %s", resp.Status, body)
	}
	if s.Ledger()[0].Finished {
		t.Error("garbage counts as finished")
	}
}

func TestFaultsHappenInTurn(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{Keys: []simulator.Key{
		{Key: "k1", Provider: simulator.OpenAI, Faults: []simulator.Fault{{After: 1, Count: 2, Status: 500}, {After: 2, Status: 401}}},
		{Key: "k2", Provider: simulator.OpenAI},
	}})
	statuses := func(key string, n int) (got []int) {
		for range n {
			got = append(got, s.post(t, "/v1/chat/completions", chat, "Authorization", "Bearer "+key).StatusCode)
		}
		return got
	}
	if got := statuses("k2", 2); !slices.Equal(got, []int{200, 200}) {
		t.Errorf("a key without faults: %v", got)
	}
	if got := statuses("k1", 5); !slices.Equal(got, []int{200, 500, 500, 401, 200}) {
		t.Errorf("k1: %v", got)
	}
	post := func(body string) int { return s.post(t, "/faults", body).StatusCode }
	if got := post(`[{"key":"k2","after":1,"count":-1,"kind":"overloaded"},{"status":404}]`); got != http.StatusNoContent {
		t.Fatal(got)
	}
	if got := statuses("k2", 3); !slices.Equal(got, []int{404, 503, 503}) {
		t.Errorf("k2 with faults posted: %v", got)
	}
	req := request(t, s.url+"/faults", "")
	req.Method = http.MethodDelete
	if resp, err := s.client.Do(req); err != nil || resp.StatusCode != http.StatusNoContent {
		t.Error(resp, err)
	}
	if got := statuses("k2", 1); !slices.Equal(got, []int{200}) {
		t.Errorf("k2 after DELETE /faults: %v", got)
	}
	for _, bad := range []string{`{}`, `{"kind":"flood"}`, `{"kind":"cut","status":500}`, `{"status":200}`, `{"kind":"status"}`, `{"kind":"cut","extra":1}`, `[`} {
		if got := post(bad); got != http.StatusBadRequest {
			t.Errorf("POST /faults %s: %d", bad, got)
		}
	}
}

func TestLedgerEndpoint(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	get := func() []map[string]any {
		resp, err := s.client.Get(s.url + "/ledger")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var l []map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := get(); l == nil || len(l) != 0 {
		t.Errorf("an empty ledger is %v, want []", l)
	}
	text(t, s.post(t, "/v1/messages", messages).Body)
	fields := []string{"at", "cache_read", "cache_write_1h", "cache_write_5m", "finished", "input", "key", "model", "output", "request_id"}
	l := get()
	if len(l) != 1 {
		t.Fatal(l)
	}
	var got []string
	for name := range l[0] {
		got = append(got, name)
	}
	slices.Sort(got)
	if diff := cmp.Diff(fields, got); diff != "" {
		t.Errorf("fields of an entry (-want +got):\n%s", diff)
	}
}

func TestReadKeys(t *testing.T) {
	t.Parallel()
	keys, err := simulator.ReadKeys(strings.NewReader(`
- {key: a, provider: anthropic, rpm: 5, itpm: 1000, otpm: 500, faults: [{after: 1, count: 2, kind: rate_limit, retry_after: 1.5}]}
- {key: b, provider: openai, faults: [{status: 500}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []simulator.Key{
		{Key: "a", Provider: "anthropic", RPM: 5, ITPM: 1000, OTPM: 500, Faults: []simulator.Fault{{After: 1, Count: 2, Kind: simulator.RateLimit, RetryAfter: 1.5}}},
		{Key: "b", Provider: "openai", Faults: []simulator.Fault{{Status: 500}}},
	}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	bad := map[string][]string{
		`- {key: a, provider: anthropic, rps: 1}`:                                       {"rps"},
		`- {key: "", provider: Az ure, rpm: -1}`:                                        {"keys[0]: key", "provider", "negative"},
		"- {key: a, provider: openai}\n- {key: a, provider: openai}":                    {"keys[1]: key: listed twice"},
		`- {key: a, provider: openai, faults: [{kind: flood}, {kind: cut, count: -2}]}`: {"faults[0]: kind", "faults[1]: after, count"},
		`{`: {"cannot decode"},
	}
	for file, parts := range bad {
		_, err := simulator.ReadKeys(strings.NewReader(file))
		for _, part := range parts {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: error %v, want %q in it", file, err, part)
			}
		}
	}
}
