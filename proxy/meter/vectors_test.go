package meter_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/authpool/authpool/proxy/eventstream/eventstreamtest"
	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/tap"
	"github.com/authpool/authpool/ratelimit/usage"
)

var update = flag.Bool("update", false, "rewrite the want parts of testdata")

// vector is one file of testdata: an answer, written by hand for one trap, and
// what the meter must tell of it. Its comment says what it is for, and holds
// settings as "name: value".
type vector struct {
	file string
	api  meter.API
	head
	filter bool
	answer []byte
	want   string
}

var apis = map[string]meter.API{
	"none":                  meter.None,
	"anthropic-messages":    meter.AnthropicMessages,
	"anthropic-complete":    meter.AnthropicComplete,
	"openai-chat":           meter.OpenAIChat,
	"openai-completions":    meter.OpenAICompletions,
	"openai-responses":      meter.OpenAIResponses,
	"openai-embeddings":     meter.OpenAIEmbeddings,
	"openai-images":         meter.OpenAIImages,
	"openai-transcriptions": meter.OpenAITranscriptions,
	"openai-speech":         meter.OpenAISpeech,
	"other":                 meter.OpenAIOther,
	"gemini-generate":       meter.GeminiGenerate,
	"gemini-stream":         meter.GeminiStream,
	"gemini-embed":          meter.GeminiEmbed,
	"vertex-predict":        meter.VertexPredict,
	"bedrock-invoke":        meter.BedrockInvoke,
	"bedrock-converse":      meter.BedrockConverse,
	"cohere-chat":           meter.CohereChat,
	"cohere-generate":       meter.CohereGenerate,
	"cohere-embed":          meter.CohereEmbed,
	"rerank":                meter.Rerank,
	"ollama-chat":           meter.OllamaChat,
	"ollama-embed":          meter.OllamaEmbed,
	"mistral-conversation":  meter.MistralConversation,
	"anthropic-batch":       meter.AnthropicBatchResults,
	"openai-batch":          meter.OpenAIBatchOutput,
	"openai-stored":         meter.OpenAIStoredResponse,
}

func vectors(t testing.TB) []vector {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors (%v)", err)
	}
	var all []vector
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		v := vector{file: file, head: head{headers: http.Header{}}}
		crlf, framed, cut := false, false, 0
		for line := range strings.Lines(string(archive.Comment)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch name {
			case "api":
				api, ok := apis[value]
				if !ok {
					t.Fatalf("%s: unknown api %q", file, value)
				}
				v.api = api
			case "type":
				v.contentType = value
			case "filter":
				v.filter = value == "true"
			case "crlf":
				crlf = value == "true"
			case "header":
				name, value, _ := strings.Cut(value, "=")
				v.headers.Add(name, value)
			case "frames":
				framed = value == "true"
			case "cut":
				cut, err = strconv.Atoi(value)
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, part := range archive.Files {
			switch part.Name {
			case "answer":
				v.answer = part.Data
			case "want":
				v.want = string(part.Data)
			}
		}
		if crlf {
			v.answer = bytes.ReplaceAll(v.answer, []byte("\n"), []byte("\r\n"))
		}
		if framed {
			if v.contentType == "" {
				v.contentType = "application/vnd.amazon.eventstream"
			}
			v.answer = frames(t, string(v.answer), v.api == meter.BedrockInvoke)
		}
		v.answer = v.answer[:len(v.answer)-cut]
		all = append(all, v)
	}
	return all
}

// frames makes an event stream of text with one frame a line: its kind and its
// payload. A "!" before the kind makes it an exception, a "~" breaks its
// checksum. Events are wrapped as InvokeModel's stream has them if so told.
func frames(t testing.TB, text string, wrapped bool) []byte {
	t.Helper()
	var stream []byte
	for line := range strings.Lines(text) {
		kind, payload, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok {
			t.Fatalf("no frame: %q", line)
		}
		broken := strings.HasPrefix(kind, "~")
		kind = strings.TrimPrefix(kind, "~")
		var frame []byte
		switch {
		case strings.HasPrefix(kind, "!"):
			frame = eventstreamtest.Exception(kind[1:], payload)
		case wrapped && kind == "chunk":
			frame = eventstreamtest.Chunk(payload)
		default:
			frame = eventstreamtest.Event(kind, payload)
		}
		if broken {
			frame[len(frame)-1] ^= 1
		}
		stream = append(stream, frame...)
	}
	return stream
}

// render writes a reading as the want parts have it.
func render(r reading) string {
	var b strings.Builder
	for _, i := range r.Items {
		fmt.Fprintf(&b, "item %q billable=%v\n%s", i.CustomID, i.Result.Billable, renderResult(i.Result))
	}
	b.WriteString(renderResult(r.Result))
	fmt.Fprintf(&b, "billable=%v content=%v terminal=%v input_known=%v estimate=%d\n", r.Result.Billable, r.Content, r.Terminal, r.Input, r.Estimate)
	if f, failed := r.failed(); failed {
		fmt.Fprintf(&b, "failure: type=%q code=%q status=%d resets_at=%d message=%q\n", f.Type, f.Code, f.Status, f.ResetsAt, f.Message)
		if f.Details != nil {
			fmt.Fprintf(&b, "details: %+v\n", *f.Details)
		}
	}
	return b.String()
}

func renderResult(x meter.Result) string {
	states := map[meter.State]string{meter.Absent: "absent", meter.Partial: "partial", meter.Reported: "reported"}
	tiers := map[usage.Tier]string{usage.TierStandard: "standard", usage.TierBatch: "batch", usage.TierFlex: "flex", usage.TierPriority: "priority", usage.TierOther: "other"}
	var b strings.Builder
	tokens := func(m meter.ModelTokens) string {
		t := m.Tokens
		return fmt.Sprintf("model=%s input=%d output=%d cache_read=%d cache_write_5m=%d cache_write_1h=%d reasoning=%d",
			m.Model, t.Input, t.Output, t.CacheRead, t.CacheWrite5m, t.CacheWrite1h, t.Reasoning)
	}
	if x.Background != "" {
		fmt.Fprintf(&b, "background: %s\n", x.Background)
	}
	fmt.Fprintf(&b, "usage: %s %s\n", states[x.State], tokens(meter.ModelTokens{Model: x.Model, Tokens: x.Tokens}))
	for _, o := range x.Others {
		fmt.Fprintf(&b, "other: %s\n", tokens(o))
	}
	for name, n := range x.Units.All() {
		fmt.Fprintf(&b, "unit: %s=%d\n", name, n)
	}
	if x.Service != (usage.Service{}) {
		fmt.Fprintf(&b, "service: tier=%s fast=%v us=%v\n", tiers[x.Service.Tier], x.Service.Fast, x.Service.US)
	}
	fmt.Fprintf(&b, "raw: input=%d output=%d total=%d cache_read=%d cache_write=%d cache_write_5m=%d cache_write_1h=%d reasoning=%d\n",
		x.Raw.Input, x.Raw.Output, x.Raw.Total, x.Raw.CacheRead, x.Raw.CacheWrite, x.Raw.CacheWrite5m, x.Raw.CacheWrite1h, x.Raw.Reasoning)
	return b.String()
}

func TestVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(strings.TrimSuffix(filepath.Base(v.file), ".txtar"), func(t *testing.T) {
			whole := readHead(t, v.api, v.head, "", v.answer)
			if *update {
				writeWant(t, v.file, render(whole))
				return
			}
			if diff := cmp.Diff(v.want, render(whole)); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			for i := range v.answer {
				if diff := cmp.Diff(whole, readHead(t, v.api, v.head, "", v.answer[:i], v.answer[i:])); diff != "" {
					t.Fatalf("cut at %d (-whole +cut):\n%s", i, diff)
				}
			}
			for coding, encode := range codings {
				encoded := encode(t, v.answer)
				if diff := cmp.Diff(whole, readHead(t, v.api, v.head, coding, cutBytes(encoded)...)); diff != "" {
					t.Fatalf("%s (-plain +coded):\n%s", coding, diff)
				}
			}
			checkFiltered(t, v.api, v.contentType, v.filter, v.answer)
		})
	}
}

// FuzzCuts cuts a vector anywhere: what is told, and what goes on, stays the
// same.
func FuzzCuts(f *testing.F) {
	all := vectors(f)
	for i := range all {
		f.Add(uint(i), uint64(i))
	}
	f.Fuzz(func(t *testing.T, i uint, seed uint64) {
		v := all[i%uint(len(all))]
		whole := readHead(t, v.api, v.head, "", v.answer)
		if diff := cmp.Diff(whole, readHead(t, v.api, v.head, "", cutRandomly(v.answer, seed)...)); diff != "" {
			t.Fatalf("%s cut by %d (-whole +cut):\n%s", v.file, seed, diff)
		}
		if got, want := filtered(t, cutRandomly(v.answer, seed)...), filtered(t, v.answer); !bytes.Equal(got, want) {
			t.Fatalf("%s cut by %d: %q goes on, whole %q", v.file, seed, got, want)
		}
	})
}

// FuzzAnswer gives any bytes to every dialect: nothing may panic, no number may
// be negative, and a cut changes nothing.
func FuzzAnswer(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(uint8(v.api), v.contentType, v.answer, uint64(1))
	}
	f.Fuzz(func(t *testing.T, api uint8, contentType string, answer []byte, seed uint64) {
		a := meter.API(api) % (meter.OpenAIStoredResponse + 1)
		whole := read(t, a, contentType, "", answer)
		if diff := cmp.Diff(whole, read(t, a, contentType, "", cutRandomly(answer, seed)...)); diff != "" {
			t.Fatalf("(-whole +cut):\n%s", diff)
		}
		u := whole.Result.Tokens
		for _, n := range []int64{u.Input, u.Output, u.CacheRead, u.CacheWrite5m, u.CacheWrite1h, u.Reasoning} {
			if n < 0 {
				t.Fatalf("negative tokens: %+v", u)
			}
		}
	})
}

// checkFiltered compares what the filter lets through with a reading of the
// whole stream by encoding/json.
func checkFiltered(t *testing.T, api meter.API, contentType string, must bool, answer []byte) {
	t.Helper()
	if api != meter.OpenAIChat && api != meter.OpenAICompletions || contentType != "text/event-stream" {
		return
	}
	end := []byte("\n\n")
	if bytes.Contains(answer, []byte("\r\n\r\n")) {
		end = []byte("\r\n\r\n")
	}
	var want []byte
	for event := range bytes.SplitAfterSeq(answer, end) {
		var chunk struct {
			Choices             []any
			Usage               *struct{}
			PromptFilterResults any `json:"prompt_filter_results"`
			Error               any
		}
		data, _ := bytes.CutPrefix(event, []byte("data: "))
		isUsage := json.Unmarshal(data, &chunk) == nil && chunk.Choices != nil && len(chunk.Choices) == 0 &&
			chunk.Usage != nil && chunk.PromptFilterResults == nil && chunk.Error == nil
		if !isUsage {
			want = append(want, event...)
		}
	}
	got := filtered(t, answer)
	if !bytes.Equal(want, got) {
		t.Errorf("passed by the filter (-want +got):\n%s", cmp.Diff(string(want), string(got)))
	}
	if must && len(got) == len(answer) && bytes.Contains(answer, []byte(`"choices":[],"usage":{"`)) {
		t.Error("the usage chunk was not left out")
	}
}

func filtered(t *testing.T, pieces ...[]byte) []byte {
	t.Helper()
	tp := tap.New(tap.Options{Filter: true})
	defer tp.Close()
	var got []byte
	for _, p := range pieces {
		out, err := tp.Pass(bytes.Clone(p))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, out...)
	}
	out, err := tp.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return append(got, out...)
}

func writeWant(t *testing.T, file, want string) {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	archive.Files = slices.DeleteFunc(archive.Files, func(part txtar.File) bool { return part.Name == "want" })
	archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(want)})
	if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}
