package meter_test

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/tap"
)

var sse = []byte("text/event-stream")

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

// TestEndIsSeenBeforeTheAgentSeesIt: an answer is terminal as soon as the bytes
// that an agent could act on have been read, even without the blank line.
func TestEndIsSeenBeforeTheAgentSeesIt(t *testing.T) {
	for _, tt := range []struct {
		name  string
		api   meter.API
		start string
		last  string
	}{
		{"Anthropic", meter.AnthropicMessages, "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":2}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"", "}"},
		{"chat", meter.OpenAIChat, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\ndata: [DONE", "]"},
		{"Responses", meter.OpenAIResponses, "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":1}}", "}"},
		{"JSON", meter.OpenAIChat, "{\"usage\":{\"prompt_tokens\":1}", "}"},
		{"an error", meter.OpenAIChat, "data: {\"error\":{\"message\":\"x\"}", "}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := meter.New(tt.api, meter.Options{ContentType: sse})
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

func TestReadingDoesNotAllocate(t *testing.T) {
	for _, tt := range []struct {
		api    meter.API
		model  string
		stream []byte
	}{
		{meter.OpenAIChat, "gpt-x", chatStream(200)},
		{meter.AnthropicMessages, "claude-a", anthropicStream(200)},
		// An event far larger than any buffer.
		{meter.OpenAIResponses, "m", []byte("data: {\"type\":\"response.completed\",\"response\":{\"output\":\"" + strings.Repeat("x", 1<<20) + "\",\"usage\":{\"input_tokens\":1}}}\n\n")},
	} {
		m := meter.New(tt.api, meter.Options{})
		tp := tap.New(tap.Options{})
		piece := make([]byte, 0, 1<<12)
		masks := [][]byte{[]byte("sk-test-0123456789abcdef")}
		n := testing.AllocsPerRun(10, func() {
			m.Reset(tt.api, meter.Options{ContentType: sse, Model: tt.model})
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
	if size := unsafe.Sizeof(meter.Meter{}); size > 8<<10 {
		t.Errorf("a meter has %d bytes", size)
	}
}

// BenchmarkStream passes a stream of 200 events, one piece an event, through
// tap and meter. /bare is the tap alone: what passing costs when nobody reads.
func BenchmarkStream(b *testing.B) {
	masks := [][]byte{[]byte("sk-test-0123456789abcdefghijklmnopqrstuvwxyz")}
	for _, bb := range []struct {
		name   string
		api    meter.API
		stream []byte
		meter  bool
		filter bool
	}{
		{"bare", meter.OpenAIChat, chatStream(200), false, false},
		{"chat", meter.OpenAIChat, chatStream(200), true, false},
		{"chat filtered", meter.OpenAIChat, chatStream(200), true, true},
		{"anthropic", meter.AnthropicMessages, anthropicStream(200), true, false},
	} {
		b.Run(bb.name, func(b *testing.B) {
			m := meter.New(bb.api, meter.Options{})
			tp := tap.New(tap.Options{})
			pieces := strings.SplitAfter(string(bb.stream), "\n\n")
			piece := make([]byte, 0, 1<<12)
			b.SetBytes(int64(len(bb.stream)))
			b.ReportAllocs()
			for b.Loop() {
				o := tap.Options{Mask: masks, Filter: bb.filter}
				if bb.meter {
					m.Reset(bb.api, meter.Options{ContentType: sse})
					o.Sink = m
				}
				tp.Reset(o)
				for _, p := range pieces {
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
