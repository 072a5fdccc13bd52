package meter_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"unsafe"

	"github.com/authpool/authpool/proxy/eventstream/eventstreamtest"
	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/tap"
)

var (
	sse    = []byte("text/event-stream")
	framed = []byte("application/vnd.amazon.eventstream")
	plain  = []byte("application/json")
)

func TestStreams(t *testing.T) {
	for _, tt := range []struct {
		api         meter.API
		contentType string
		want        bool
	}{
		{meter.OpenAIChat, "text/event-stream", true},
		{meter.OpenAIChat, "Text/Event-Stream ;charset=utf-8", true},
		{meter.None, "text/event-stream", true},
		{meter.OpenAIChat, "application/json", false},
		{meter.OpenAIChat, "text/event-streams", false},
		{meter.OpenAIChat, "", false},
		{meter.OllamaChat, "application/x-ndjson", true},
		{meter.CohereChat, "application/stream+json", true},
		{meter.AnthropicBatchResults, "application/x-jsonl", false},
		{meter.BedrockConverse, "application/vnd.amazon.eventstream", true},
		{meter.BedrockConverse, "application/json", false},
		{meter.GeminiStream, "application/json; charset=UTF-8", true},
		{meter.GeminiStream, "text/event-stream", true},
		{meter.GeminiGenerate, "application/json; charset=UTF-8", false},
	} {
		if got := meter.Streams(tt.api, []byte(tt.contentType)); got != tt.want {
			t.Errorf("%v, %q: %v", tt.api, tt.contentType, got)
		}
	}
}

// TestFirstContent walks the lifecycle events of each dialect up to the first
// content.
func TestFirstContent(t *testing.T) {
	for _, tt := range []struct {
		name      string
		api       meter.API
		lifecycle []string
		content   string
	}{
		{
			"Anthropic", meter.AnthropicMessages,
			[]string{": hello", `data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":1}}}`, `data: {"type":"ping"}`},
			`data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}`,
		},
		{
			"Anthropic, an event of a type that is not known", meter.AnthropicMessages,
			nil, `data: {"type":"something_new"}`,
		},
		{
			"Responses", meter.OpenAIResponses,
			[]string{`data: {"type":"response.created","response":{}}`, `data: {"type":"response.queued"}`, `data: {"type":"response.in_progress"}`},
			`data: {"type":"response.output_item.added"}`,
		},
		{
			"chat", meter.OpenAIChat,
			[]string{
				": OPENROUTER PROCESSING",
				`data: {"choices":[],"prompt_filter_results":[{}]}`,
				`data: {"choices":[{"delta":{"role":"assistant"},"finish_reason":null}],"usage":null}`,
				`data: {"choices":[{"delta":{"role":"assistant","content":"","reasoning_content":null,"refusal":null,"tool_calls":[]}}]}`,
				`data: {"choices":[{"delta":{}}]}`,
			},
			`data: {"choices":[{"delta":{"content":"H"}}]}`,
		},
		{"chat, reasoning", meter.OpenAIChat, nil, `data: {"choices":[{"delta":{"content":"","reasoning_content":"H"}}]}`},
		{"chat, a tool", meter.OpenAIChat, nil, `data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":""}}]}}]}`},
		{"chat, a legacy function", meter.OpenAIChat, nil, `data: {"choices":[{"delta":{"function_call":{"name":"f"}}}]}`},
		{"chat, something new", meter.OpenAIChat, nil, `data: {"choices":[{"delta":{"hologram":"x"}}]}`},
		{"chat, the end", meter.OpenAIChat, nil, `data: {"choices":[{"delta":{},"finish_reason":"content_filter"}]}`},
		{"completions", meter.OpenAICompletions, []string{`data: {"choices":[{"text":""}]}`}, `data: {"choices":[{"text":"x"}]}`},
		{
			"Gemini", meter.GeminiStream,
			[]string{`data: {"usageMetadata":{"promptTokenCount":5},"modelVersion":"m"}`, `data: {"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},"index":0}]}`},
			`data: {"candidates":[{"content":{"parts":[{"text":"H"}]}}]}`,
		},
		{"Gemini, a tool", meter.GeminiStream, nil, `data: {"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{}}}]}}]}`},
		{"Gemini, something new", meter.GeminiStream, nil, `data: {"candidates":[{"content":{"parts":[{"hologram":{}}]}}]}`},
		{"Gemini, the end", meter.GeminiStream, nil, `data: {"candidates":[{"finishReason":"SAFETY"}]}`},
		{"Gemini, a blocked prompt", meter.GeminiStream, nil, `data: {"promptFeedback":{"blockReason":"OTHER"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := meter.New(tt.api, meter.Options{ContentType: sse})
			for _, event := range tt.lifecycle {
				m.Write([]byte(event + "\n\n"))
				if m.HasContent() {
					t.Fatalf("content after %s", event)
				}
			}
			m.Write([]byte(tt.content + "\n\n"))
			if !m.HasContent() {
				t.Errorf("no content after %s", tt.content)
			}
		})
	}
}

func TestFirstContentInFrames(t *testing.T) {
	for _, tt := range []struct {
		name      string
		api       meter.API
		lifecycle []byte
		content   []byte
	}{
		{
			"Converse", meter.BedrockConverse,
			eventstreamtest.Event("messageStart", `{"role":"assistant"}`),
			eventstreamtest.Event("contentBlockDelta", `{"delta":{"text":"H"}}`),
		},
		{"Converse, something new", meter.BedrockConverse, nil, eventstreamtest.Event("hologram", `{}`)},
		{
			"Anthropic", meter.BedrockInvoke,
			append(eventstreamtest.Chunk(`{"type":"message_start","message":{"usage":{"input_tokens":1}}}`), eventstreamtest.Chunk(`{"type":"ping"}`)...),
			eventstreamtest.Chunk(`{"type":"content_block_start","index":0}`),
		},
		{
			"Nova", meter.BedrockInvoke,
			eventstreamtest.Chunk(`{"messageStart":{"role":"assistant"}}`),
			eventstreamtest.Chunk(`{"contentBlockDelta":{"delta":{"text":""}}}`),
		},
		{"another model", meter.BedrockInvoke, nil, eventstreamtest.Chunk(`{"generation":"H"}`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := meter.New(tt.api, meter.Options{ContentType: framed})
			m.Write(tt.lifecycle)
			m.Write(tt.content[:len(tt.content)-1])
			if m.HasContent() {
				t.Fatal("content before its frame is known to be right")
			}
			m.Write(tt.content[len(tt.content)-1:])
			if !m.HasContent() {
				t.Error("no content")
			}
		})
	}
}

// TestEndIsSeenBeforeTheAgentSeesIt: an answer is terminal as soon as the bytes
// that an agent could act on have been read, even without the blank line.
func TestEndIsSeenBeforeTheAgentSeesIt(t *testing.T) {
	metadata := string(eventstreamtest.Event("metadata", `{"usage":{"inputTokens":1,"outputTokens":1}}`))
	metrics := string(eventstreamtest.Chunk(`{"generation":"x","amazon-bedrock-invocationMetrics":{"inputTokenCount":1,"outputTokenCount":1}}`))
	exception := string(eventstreamtest.Exception("throttlingException", `{"message":"x"}`))
	for _, tt := range []struct {
		name        string
		api         meter.API
		contentType []byte
		start       string
		last        string
	}{
		{"Anthropic", meter.AnthropicMessages, sse, "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":2}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"", "}"},
		{"chat", meter.OpenAIChat, sse, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\ndata: [DONE", "]"},
		{"Responses", meter.OpenAIResponses, sse, "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":1}}", "}"},
		{"JSON", meter.OpenAIChat, sse, "{\"usage\":{\"prompt_tokens\":1}", "}"},
		{"Gemini's array", meter.GeminiStream, plain, "[{\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":1}}\n", "]"},
		{"Converse", meter.BedrockConverse, framed, metadata[:len(metadata)-1], metadata[len(metadata)-1:]},
		{"InvokeModel", meter.BedrockInvoke, framed, metrics[:len(metrics)-1], metrics[len(metrics)-1:]},
		{"an exception", meter.BedrockInvoke, framed, exception[:len(exception)-1], exception[len(exception)-1:]},
		{"an error", meter.OpenAIChat, sse, "data: {\"error\":{\"message\":\"x\"}", "}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := meter.New(tt.api, meter.Options{ContentType: tt.contentType})
			m.Write([]byte(tt.start))
			if m.Terminal() {
				t.Fatal("terminal too early")
			}
			m.Write([]byte(tt.last))
			if !m.Terminal() {
				t.Error("not terminal")
			}
			if _, failed := m.Failure(); !failed && m.Result().State != meter.Reported {
				t.Error("the usage is not known yet")
			}
		})
	}
}

func TestInputIsKnownEarly(t *testing.T) {
	m := meter.New(meter.AnthropicMessages, meter.Options{ContentType: sse})
	if m.InputKnown() {
		t.Error("known before anything was read")
	}
	m.Write([]byte("data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":0,\"cache_read_input_tokens\":70}}}\n\n"))
	if r := m.Result(); !m.InputKnown() || r.State != meter.Partial || r.Tokens.CacheRead != 70 {
		t.Errorf("after message_start: known %v, %+v", m.InputKnown(), r)
	}
}

// TestHeadersAreEnough: what the headers tell is final, even if the body is cut
// or cannot be read.
func TestHeadersAreEnough(t *testing.T) {
	h := head{headers: http.Header{"X-Amzn-Bedrock-Input-Token-Count": {"16"}, "X-Amzn-Bedrock-Output-Token-Count": {"11"}, "Other": {"7"}}}
	m := meter.New(meter.BedrockInvoke, h.options())
	if !m.InputKnown() {
		t.Error("the input is not known")
	}
	m.Write([]byte(`{"completion":"He`))
	m.Close()
	if r := m.Result(); r.State != meter.Reported || r.Tokens.Input != 16 || r.Tokens.Output != 11 {
		t.Errorf("%+v", r)
	}
	m.Reset(meter.BedrockConverse, h.options())
	if r := m.Result(); r.State != meter.Absent {
		t.Errorf("Converse: %+v", r)
	}
}

func TestBlindKeepsWhatWasTold(t *testing.T) {
	m := meter.New(meter.AnthropicMessages, meter.Options{ContentType: sse})
	m.Write([]byte("data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9}}}\n\n"))
	m.Blind()
	m.Write([]byte("data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":9}}\n\n"))
	m.Close()
	if r := m.Result(); r.State != meter.Partial || r.Tokens.Input != 9 || r.Tokens.Output != 0 || !r.Billable || !m.HasContent() {
		t.Errorf("%+v, content %v", r, m.HasContent())
	}
}

func TestResetForgets(t *testing.T) {
	m := meter.New(meter.AnthropicMessages, meter.Options{ContentType: sse})
	for _, v := range vectors(t) {
		m.Reset(v.api, v.options())
		m.Write(v.answer[:len(v.answer)*2/3])
		m.Reset(meter.None, meter.Options{})
		var items []meter.Item
		o := v.options()
		o.Item = func(i meter.Item) { items = append(items, i) }
		m.Reset(v.api, o)
		m.Write(v.answer)
		m.Close()
		r := told(m)
		r.Items = items
		if got := render(r); got != v.want {
			t.Errorf("%s after another answer:\n%s\nwant:\n%s", v.file, got, v.want)
		}
	}
}

// chatStream returns n events of a chat stream and its end.
func chatStream(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"gpt-x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word%d\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n", i)
	}
	b.WriteString("data: {\"id\":\"chatcmpl-1\",\"model\":\"gpt-x\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":200,\"total_tokens\":209}}\n\ndata: [DONE]\n\n")
	return []byte(b.String())
}

// anthropicStream does the same for the Messages API.
func anthropicStream(n int) []byte {
	var b strings.Builder
	b.WriteString("event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"model\":\"claude-a\",\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n")
	for i := range n {
		fmt.Fprintf(&b, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" word%d\"}}\n\n", i)
	}
	b.WriteString("event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":200}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
	return []byte(b.String())
}

// ollamaStream does the same for Ollama.
func ollamaStream(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"model\":\"llama\",\"created_at\":\"2026-01-01T00:00:00Z\",\"message\":{\"role\":\"assistant\",\"content\":\" word%d\"},\"done\":false}\n", i)
	}
	b.WriteString("{\"model\":\"llama\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"prompt_eval_count\":9,\"eval_count\":200}\n")
	return []byte(b.String())
}

// responsesStream does the same for the Responses API, with a tool's arguments.
func responsesStream(n int) []byte {
	var b strings.Builder
	b.WriteString("data: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"reasoning\",\"encrypted_content\":\"" + strings.Repeat("e", 4096) + "\"}}\n\n")
	for i := range n {
		fmt.Fprintf(&b, "data: {\"type\":\"response.function_call_arguments.delta\",\"item_id\":\"fc_1\",\"output_index\":1,\"sequence_number\":%d,\"delta\":\"\\\"key\\\":\"}\n\n", i)
	}
	b.WriteString("data: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\",\"background\":false,\"model\":\"gpt-r\",\"service_tier\":\"flex\",\"output\":[{\"type\":\"function_call\"}],\"usage\":{\"input_tokens\":9,\"output_tokens\":200,\"total_tokens\":209}}}\n\n")
	return []byte(b.String())
}

// geminiStream does the same for Gemini: every chunk has a usage.
func geminiStream(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "data: {\"candidates\": [{\"content\": {\"parts\": [{\"text\": \" word%d\"}],\"role\": \"model\"},\"index\": 0}],\"usageMetadata\": {\"promptTokenCount\": 9,\"candidatesTokenCount\": %d,\"totalTokenCount\": %d,\"promptTokensDetails\": [{\"modality\": \"TEXT\",\"tokenCount\": 9}]},\"modelVersion\": \"gemini-x\",\"responseId\": \"r\"}\r\n\r\n", i, i, 9+i)
	}
	b.WriteString("data: {\"candidates\": [{\"finishReason\": \"STOP\"}],\"usageMetadata\": {\"promptTokenCount\": 9,\"candidatesTokenCount\": 200,\"totalTokenCount\": 209}}\r\n\r\n")
	return []byte(b.String())
}

// converseStream does the same for Bedrock's ConverseStream.
func converseStream(n int) [][]byte {
	frames := [][]byte{eventstreamtest.Event("messageStart", `{"p":"abcdefghij","role":"assistant"}`)}
	for i := range n {
		frames = append(frames, eventstreamtest.Event("contentBlockDelta", fmt.Sprintf(`{"contentBlockIndex":0,"delta":{"text":" word%d"},"p":"abcdefghijklmnop"}`, i)))
	}
	return append(frames, eventstreamtest.Event("metadata", `{"metrics":{"latencyMs":1},"p":"abc","usage":{"inputTokens":9,"outputTokens":200,"totalTokens":209}}`))
}

// invokeStream does the same for Claude behind InvokeModelWithResponseStream.
func invokeStream(n int) [][]byte {
	frames := [][]byte{eventstreamtest.Chunk(`{"type":"message_start","message":{"id":"msg_1","model":"claude-a","usage":{"input_tokens":9,"output_tokens":1}}}`)}
	for i := range n {
		frames = append(frames, eventstreamtest.Chunk(fmt.Sprintf(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" word%d"}}`, i)))
	}
	return append(frames,
		eventstreamtest.Chunk(`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":200}}`),
		eventstreamtest.Chunk(`{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":9,"outputTokenCount":200}}`))
}

func TestReadingDoesNotAllocate(t *testing.T) {
	for _, tt := range []struct {
		api         meter.API
		contentType []byte
		model       string
		stream      []byte
	}{
		{meter.OpenAIChat, sse, "gpt-x", chatStream(200)},
		{meter.AnthropicMessages, sse, "claude-a", anthropicStream(200)},
		{meter.GeminiStream, sse, "gemini-x", geminiStream(200)},
		{meter.BedrockConverse, framed, "converse", bytes.Join(converseStream(200), nil)},
		{meter.BedrockInvoke, framed, "invoke", bytes.Join(invokeStream(200), nil)},
		{meter.OllamaChat, []byte("application/x-ndjson"), "llama", ollamaStream(200)},
		{meter.OpenAIResponses, sse, "gpt-r", responsesStream(200)},
		// An event far larger than any buffer.
		{meter.OpenAIResponses, sse, "m", []byte("data: {\"type\":\"response.completed\",\"response\":{\"output\":\"" + strings.Repeat("x", 1<<20) + "\",\"usage\":{\"input_tokens\":1}}}\n\n")},
	} {
		m := meter.New(tt.api, meter.Options{})
		tp := tap.New(tap.Options{})
		piece := make([]byte, 0, 1<<12)
		masks := [][]byte{[]byte("sk-test-0123456789abcdef")}
		n := testing.AllocsPerRun(10, func() {
			m.Reset(tt.api, meter.Options{ContentType: tt.contentType, Model: tt.model})
			tp.Reset(tap.Options{Sink: m, Mask: masks, Filter: true})
			for rest := tt.stream; len(rest) > 0; rest = rest[len(piece):] {
				piece = append(piece[:0], rest[:min(len(rest), 1<<12-1)]...)
				if _, err := tp.Pass(piece); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := tp.Finish(); err != nil {
				t.Fatal(err)
			}
			if m.Result().State != meter.Reported {
				t.Fatal("no usage")
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations an answer, want 0", tt.model, n)
		}
	}
	if size := unsafe.Sizeof(meter.Meter{}); size > 4<<10 {
		t.Errorf("a meter has %d bytes", size)
	}
}

// BenchmarkStream passes a stream of 200 events, one piece an event, through
// tap and meter. /bare is the tap alone: what passing costs when nobody reads.
func BenchmarkStream(b *testing.B) {
	masks := [][]byte{[]byte("sk-test-0123456789abcdefghijklmnopqrstuvwxyz")}
	for _, bb := range []struct {
		name        string
		api         meter.API
		contentType []byte
		pieces      [][]byte
		meter       bool
		filter      bool
	}{
		{"bare", meter.OpenAIChat, sse, events(chatStream(200)), false, false},
		{"chat", meter.OpenAIChat, sse, events(chatStream(200)), true, false},
		{"chat filtered", meter.OpenAIChat, sse, events(chatStream(200)), true, true},
		{"anthropic", meter.AnthropicMessages, sse, events(anthropicStream(200)), true, false},
		{"responses", meter.OpenAIResponses, sse, events(responsesStream(200)), true, false},
		{"gemini", meter.GeminiStream, sse, events(geminiStream(200)), true, false},
		{"converse", meter.BedrockConverse, framed, converseStream(200), true, false},
		{"invoke", meter.BedrockInvoke, framed, invokeStream(200), true, false},
	} {
		b.Run(bb.name, func(b *testing.B) {
			m := meter.New(bb.api, meter.Options{})
			tp := tap.New(tap.Options{})
			piece := make([]byte, 0, 1<<12)
			b.SetBytes(int64(len(bytes.Join(bb.pieces, nil))))
			b.ReportAllocs()
			for b.Loop() {
				o := tap.Options{Mask: masks, Filter: bb.filter}
				if bb.meter {
					m.Reset(bb.api, meter.Options{ContentType: bb.contentType})
					o.Sink = m
				}
				tp.Reset(o)
				for _, p := range bb.pieces {
					piece = append(piece[:0], p...)
					if _, err := tp.Pass(piece); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := tp.Finish(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// events cuts a stream of server-sent events.
func events(stream []byte) [][]byte {
	end := []byte("\n\n")
	if bytes.Contains(stream, []byte("\r\n")) {
		end = []byte("\r\n\r\n")
	}
	return bytes.SplitAfter(stream, end)
}
