package meter_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/ratelimit/usage"
)

// recordingsVar names the folder of recorded provider traffic. The recordings
// are not part of this repository; testdata has vectors of its own for the
// same traps.
const recordingsVar = "AUTHPOOL_RECORDINGS"

// recording is one recorded exchange, as far as the meter is concerned.
type recording struct {
	ID       string   `json:"id"`
	Provider string   `json:"provider"`
	API      string   `json:"api"`
	Kind     string   `json:"kind"`
	Flags    []string `json:"flags"`
	Response struct {
		Status  int               `json:"status"`
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
		Binary  []byte            `json:"body_base64"`
		Stream  bool              `json:"stream"`
		Framing string            `json:"framing"`
	} `json:"response"`
	Expect struct {
		Model             *string `json:"model"`
		InputTokens       *int64  `json:"input_tokens"`
		OutputTokens      *int64  `json:"output_tokens"`
		TotalTokens       *int64  `json:"total_tokens"`
		CacheReadTokens   *int64  `json:"cache_read_tokens"`
		CacheWriteTokens  *int64  `json:"cache_creation_tokens"`
		CacheWrite5m      *int64  `json:"cache_creation_5m_tokens"`
		CacheWrite1h      *int64  `json:"cache_creation_1h_tokens"`
		ReasoningTokens   *int64  `json:"reasoning_tokens"`
		AllInputTokens    *int64  `json:"all_input_tokens"`
		AllOutputTokens   *int64  `json:"all_output_tokens"`
		IterationsInput   *int64  `json:"iterations_input_tokens"`
		IterationsOutput  *int64  `json:"iterations_output_tokens"`
		WebSearchRequests *int64  `json:"web_search_requests"`
		SearchUnits       *int64  `json:"search_units"`
		UsageReported     bool    `json:"usage_reported"`
		Billable          *bool   `json:"billable"`
		SumOfLines        int     `json:"sum_of_lines"`
		Status            string  `json:"status"`
		InputFrom         string  `json:"input_from"`
		RawUsage          struct {
			Seconds      *int64 `json:"seconds"`
			AudioSeconds *int64 `json:"prompt_audio_seconds"`
		} `json:"raw_usage"`
	} `json:"expect"`
}

var recordedAPIs = map[string]meter.API{
	"anthropic-messages":          meter.AnthropicMessages,
	"openai-chat":                 meter.OpenAIChat,
	"openai-completions":          meter.OpenAICompletions,
	"openai-responses":            meter.OpenAIResponses,
	"openai-responses-compact":    meter.OpenAIResponses,
	"openai-embeddings":           meter.OpenAIEmbeddings,
	"openai-images-edits":         meter.OpenAIImages,
	"openai-images-generations":   meter.OpenAIImages,
	"openai-audio-transcriptions": meter.OpenAITranscriptions,
	"cohere-chat-v1":              meter.CohereChat,
	"cohere-chat-v2":              meter.CohereChat,
	"cohere-generate-v1":          meter.CohereGenerate,
	"cohere-embed-v2":             meter.CohereEmbed,
	"cohere-rerank-v1":            meter.Rerank,
	"cohere-rerank-v2":            meter.Rerank,
	"ollama-chat":                 meter.OllamaChat,
	"ollama-generate":             meter.OllamaChat,
	"ollama-embed":                meter.OllamaEmbed,
	"ollama-embeddings":           meter.OllamaEmbed,
	"anthropic-batches":           meter.AnthropicBatchResults,
	"gemini-generate":             meter.GeminiStream,
	"gemini-embed":                meter.GeminiEmbed,
	"vertex-predict":              meter.VertexPredict,
	"bedrock-invoke":              meter.BedrockInvoke,
	"bedrock-converse":            meter.BedrockConverse,
}

// TestRecordings replays every recording of the dialects that the meter knows:
// what is counted equals what the recording says, and the bytes are unchanged,
// whole, cut, and through every coding.
func TestRecordings(t *testing.T) {
	dir := os.Getenv(recordingsVar)
	if dir == "" {
		t.Skipf("%s is not set: no recordings to replay", recordingsVar)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings in %s (%v)", dir, err)
	}
	played := map[string]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var rec recording
		if err := json.Unmarshal(text, &rec); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		api, known := recordedAPIs[rec.API]
		if !known || rec.Response.Status/100 != 2 {
			continue
		}
		played[rec.API+" "+rec.Kind]++
		t.Run(rec.ID, func(t *testing.T) { replay(t, api, &rec) })
	}
	t.Logf("replayed: %v", played)
}

func replay(t *testing.T, api meter.API, rec *recording) {
	body := append([]byte(rec.Response.Body), rec.Response.Binary...) // it is one of them
	h := head{contentType: rec.Response.Headers["content-type"], headers: http.Header{}}
	for name, value := range rec.Response.Headers {
		h.headers.Set(name, value)
	}
	whole := readHead(t, api, h, "", body)
	if rec.Kind == "error" {
		if _, failed := whole.failed(); !failed {
			t.Error("the error was not seen")
		}
	} else {
		checkRecorded(t, rec, whole.Result)
		checkItems(t, rec, whole.Items)
	}
	checkFiltered(t, api, h.contentType, false, body)
	for _, pieces := range [][][]byte{cutBytes(body), cutRandomly(body, 1), cutRandomly(body, 2)} {
		if diff := cmp.Diff(whole, readHead(t, api, h, "", pieces...)); diff != "" {
			t.Fatalf("cut (-whole +cut):\n%s", diff)
		}
	}
	checkBeginnings(t, api, h, body, whole.Result)
	for coding, encode := range codings {
		encoded := encode(t, body)
		for _, pieces := range [][][]byte{{encoded}, cutBytes(encoded), cutRandomly(encoded, 3)} {
			if diff := cmp.Diff(whole, readHead(t, api, h, coding, pieces...)); diff != "" {
				t.Fatalf("%s (-plain +coded):\n%s", coding, diff)
			}
		}
	}
}

// checkRecorded holds a result against what the recording says. The numbers as
// reported are Raw, with null for -1. The numbers "on one footing" are those of
// the normal form: the whole prompt, cached or not, and the whole output.
func checkRecorded(t *testing.T, rec *recording, r meter.Result) {
	e := &rec.Expect
	if e.Billable != nil && !*e.Billable {
		if background := e.Status == "queued" || e.Status == "in_progress"; background && r.Billable {
			t.Error("a response that is only queued is billable")
		}
		return // a stored answer that was fetched: the request says so, not the answer
	}
	if !r.Billable {
		t.Error("not billable")
	}
	if !e.UsageReported {
		if r.State != meter.Absent {
			t.Errorf("state %v, want Absent", r.State)
		}
		return
	}
	want := meter.Reported
	if e.InputTokens == nil && e.OutputTokens != nil && *e.OutputTokens > 0 {
		want = meter.Partial
	}
	if r.State != want {
		t.Errorf("state %v, want %v", r.State, want)
	}
	// Where the answer names no model, that of the request is expected.
	nameless := r.Model == "asked-for" && !strings.Contains(rec.Response.Body, `"modelVersion"`) &&
		slices.Contains([]string{"cohere", "bedrock", "gemini", "vertex"}, rec.Provider)
	if e.Model != nil && r.Model != *e.Model && !nameless {
		t.Errorf("model %q, want %q", r.Model, *e.Model)
	}
	same := func(what string, got int64, want *int64) {
		t.Helper()
		if want != nil && got != *want || want == nil && got > 0 {
			t.Errorf("%s is %d, want %v", what, got, deref(want))
		}
	}
	if e.InputFrom == "" {
		same("raw input", r.Raw.Input, e.InputTokens)
	}
	if e.OutputTokens != nil && *e.OutputTokens > 0 || r.Raw.Output > 0 {
		same("raw output", r.Raw.Output, e.OutputTokens)
		same("raw cache write", r.Raw.CacheWrite, e.CacheWriteTokens)
		if rec.API != "cohere-chat-v2" { // there the recordings have it only as it was told
			same("raw reasoning", r.Raw.Reasoning, e.ReasoningTokens)
		}
		same("raw cache read", r.Raw.CacheRead, e.CacheReadTokens)
	}
	if e.CacheWrite5m != nil {
		same("cache write 5m", r.Tokens.CacheWrite5m, e.CacheWrite5m)
		same("cache write 1h", r.Tokens.CacheWrite1h, e.CacheWrite1h)
	}
	same("all input", r.Tokens.Prompt(), e.AllInputTokens)
	same("all output", r.Tokens.Output, e.AllOutputTokens)
	if e.IterationsInput != nil {
		all := r.Tokens
		for _, o := range r.Others {
			all = all.Add(o.Tokens)
		}
		same("input with iterations", all.Input, e.IterationsInput)
		same("output with iterations", all.Output, e.IterationsOutput)
	}
	searches := e.WebSearchRequests
	if rec.API == "openai-responses" {
		searches = searchItems(t, rec)
	}
	same("web searches", r.Units.WebSearches, searches)
	seconds := e.RawUsage.Seconds
	if seconds == nil {
		seconds = e.RawUsage.AudioSeconds
	}
	same("seconds", r.Units.Seconds, seconds)
	same("search units", r.Units.SearchUnits, e.SearchUnits)
}

// checkBeginnings cuts a stream after each of its lines: usage that is said to be
// the final one is what the whole stream tells.
func checkBeginnings(t *testing.T, api meter.API, h head, body []byte, whole meter.Result) {
	t.Helper()
	m := meter.New(api, h.options())
	for line := range bytes.Lines(body) {
		m.Write(line)
		r := m.Result()
		if r.State == meter.Reported && r.Tokens != whole.Tokens {
			t.Fatalf("after %q the usage is %+v, in the end %+v", line, r.Tokens, whole.Tokens)
		}
	}
}

// checkItems holds the requests that a batch's results tell of against their
// sum.
func checkItems(t *testing.T, rec *recording, items []meter.Item) {
	if len(items) != rec.Expect.SumOfLines {
		t.Fatalf("%d items, want %d", len(items), rec.Expect.SumOfLines)
	}
	if len(items) == 0 {
		return
	}
	var sum usage.Tokens
	for _, i := range items {
		if i.CustomID == "" || i.Result.Model != *rec.Expect.Model || i.Result.State != meter.Reported || !i.Result.Billable {
			t.Errorf("item %+v", i)
		}
		if i.Result.Service.Tier != usage.TierBatch {
			t.Errorf("tier %v", i.Result.Service.Tier)
		}
		sum = sum.Add(i.Result.Tokens)
	}
	if sum.Prompt() != *rec.Expect.AllInputTokens || sum.Output != *rec.Expect.AllOutputTokens {
		t.Errorf("the sum is %+v", sum)
	}
}

// searchItems counts the searches of a response in its output, which no field
// sums up.
func searchItems(t *testing.T, rec *recording) *int64 {
	t.Helper()
	type response struct {
		Output []struct {
			Type   string
			Action struct{ Type string }
		}
	}
	var last struct {
		response
		Response response
	}
	text := rec.Response.Body
	if i := strings.LastIndex(text, "data: {"); i >= 0 {
		text, _, _ = strings.Cut(text[i+len("data: "):], "\n")
	}
	if err := json.Unmarshal([]byte(text), &last); err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	for _, item := range append(last.Output, last.Response.Output...) {
		if item.Type == "web_search_call" && item.Action.Type == "search" {
			n++
		}
	}
	return &n
}

func deref(n *int64) any {
	if n == nil {
		return nil
	}
	return *n
}

func cutBytes(text []byte) [][]byte {
	var pieces [][]byte
	for i := range text {
		pieces = append(pieces, text[i:i+1])
	}
	return pieces
}

func cutRandomly(text []byte, seed uint64) [][]byte {
	random := rand.New(rand.NewPCG(seed, 1))
	var pieces [][]byte
	for len(text) > 0 {
		n := 1 + random.IntN(min(len(text), 200))
		pieces = append(pieces, bytes.Clone(text[:n]))
		text = text[n:]
	}
	return pieces
}
