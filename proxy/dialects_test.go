package proxy

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/eventstream/eventstreamtest"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit/usage"
)

// streamed is a stream of one dialect.
type streamed struct {
	name      string
	family    provider.Family
	path      string
	mediaType string
	// first holds content; last ends the stream, and mostly says that it does.
	first, last string
	// open: nothing in last says that it is the last.
	open bool
	// refused is an answer that begins with an error and a good status: the
	// provider's limit.
	refused string
	// late is the same after content, where that looks different.
	late string
}

const (
	sse         = "text/event-stream"
	streamed429 = `{"error":{"code":429,"message":"Resource has been exhausted","status":"RESOURCE_EXHAUSTED"}}`
)

// chatStream is compatible with OpenAI's.
func chatStream(name string, family provider.Family, path string) streamed {
	return streamed{
		name: name, family: family, path: path, mediaType: sse,
		first:   "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n",
		last:    "data: {\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":7}}\n\ndata: [DONE]\n\n",
		refused: "data: {\"error\":{\"message\":\"slow\",\"type\":\"requests\",\"code\":\"rate_limit_exceeded\"}}\n\n",
	}
}

var streams = []streamed{
	{
		name: "anthropic", family: provider.Anthropic, path: "/v1/messages", mediaType: sse,
		first:   strings.Replace(msgStart, `"cache_read_input_tokens":100`, `"cache_read_input_tokens":0`, 1) + msgBlock + msgHello,
		last:    msgDelta + msgStop,
		refused: msgLimit,
	},
	{
		name: "vertex-claude", family: provider.Gemini, path: "/v1/projects/p/locations/l/publishers/anthropic/models/m:streamRawPredict", mediaType: sse,
		first:   strings.Replace(msgStart, `"cache_read_input_tokens":100`, `"cache_read_input_tokens":0`, 1) + msgBlock + msgHello,
		last:    msgDelta + msgStop,
		refused: msgLimit,
	},
	chatStream("openai", provider.OpenAI, "/v1/chat/completions"),
	chatStream("azure", provider.Azure, "/openai/deployments/d/chat/completions"),
	chatStream("bedrock-openai", provider.Bedrock, "/openai/v1/chat/completions"),
	chatStream("cohere-openai", provider.Cohere, "/compatibility/v1/chat/completions"),
	{
		name: "responses", family: provider.OpenAI, path: "/v1/responses", mediaType: sse,
		first: "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"model\":\"m\",\"status\":\"in_progress\",\"usage\":null}}\n\n" +
			"event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hello\"}\n\n",
		last: "event: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{\"id\":\"resp_1\",\"model\":\"m\",\"status\":\"incomplete\",\"usage\":{\"input_tokens\":12,\"output_tokens\":7,\"total_tokens\":19}}}\n\n",
		refused: "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"usage\":null}}\n\n" +
			"event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"id\":\"resp_1\",\"status\":\"failed\",\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"slow\"},\"usage\":null}}\n\n",
	},
	{
		name: "images", family: provider.OpenAI, path: "/v1/images/generations", mediaType: sse,
		first: "event: image_generation.partial_image\ndata: {\"type\":\"image_generation.partial_image\",\"partial_image_index\":0,\"b64_json\":\"AAAA\"}\n\n",
		last:  "event: image_generation.completed\ndata: {\"type\":\"image_generation.completed\",\"b64_json\":\"AAAA\",\"usage\":{\"input_tokens\":12,\"output_tokens\":7,\"total_tokens\":19}}\n\n",
	},
	{
		name: "transcriptions", family: provider.OpenAI, path: "/v1/audio/transcriptions", mediaType: sse,
		first: "data: {\"type\":\"transcript.text.delta\",\"delta\":\"Hello\"}\n\n",
		last:  "data: {\"type\":\"transcript.text.done\",\"text\":\"Hello\",\"usage\":{\"type\":\"tokens\",\"input_tokens\":12,\"output_tokens\":7,\"total_tokens\":19}}\n\n",
	},
	{
		name: "speech", family: provider.OpenAI, path: "/v1/audio/speech", mediaType: sse,
		first: "data: {\"type\":\"speech.audio.delta\",\"audio\":\"AAAA\"}\n\n",
		last:  "data: {\"type\":\"speech.audio.done\",\"usage\":{\"input_tokens\":12,\"output_tokens\":7,\"total_tokens\":19}}\n\n",
	},
	{
		name: "mistral", family: provider.OpenAI, path: "/v1/conversations", mediaType: sse,
		first: "event: conversation.response.started\ndata: {\"type\":\"conversation.response.started\",\"conversation_id\":\"conv_1\"}\n\n" +
			"event: message.output.delta\ndata: {\"type\":\"message.output.delta\",\"model\":\"m\",\"content\":\"Hello\"}\n\n",
		last:    "event: conversation.response.done\ndata: {\"type\":\"conversation.response.done\",\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":7,\"total_tokens\":19}}\n\n",
		refused: "event: conversation.response.error\ndata: {\"type\":\"conversation.response.error\",\"message\":\"Rate limit exceeded\",\"code\":429}\n\n",
	},
	{
		name: "gemini-sse", family: provider.Gemini, path: "/v1beta/models/m:streamGenerateContent?alt=sse", mediaType: sse,
		first:   "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hel\"}]}}],\"usageMetadata\":{\"promptTokenCount\":12,\"candidatesTokenCount\":2}}\r\n\r\n",
		last:    "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"lo\"}]},\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":12,\"candidatesTokenCount\":7}}\r\n\r\n",
		open:    true,
		refused: "data: " + streamed429 + "\r\n\r\n",
	},
	{
		name: "gemini-array", family: provider.Gemini, path: "/v1beta/models/m:streamGenerateContent", mediaType: "application/json; charset=UTF-8",
		first:   "[{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hel\"}]}}],\"usageMetadata\":{\"promptTokenCount\":12,\"candidatesTokenCount\":2}}\n",
		last:    ",\r\n{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"lo\"}]},\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":12,\"candidatesTokenCount\":7}}\n]\n",
		refused: "[" + streamed429 + "\n]",
		late:    ",\r\n" + streamed429 + "\n]",
	},
	{
		name: "converse", family: provider.Bedrock, path: "/model/m/converse-stream", mediaType: "application/vnd.amazon.eventstream",
		first: string(eventstreamtest.Event("messageStart", `{"role":"assistant"}`)) +
			string(eventstreamtest.Event("contentBlockDelta", `{"contentBlockIndex":0,"delta":{"text":"Hello"}}`)),
		last: string(eventstreamtest.Event("messageStop", `{"stopReason":"end_turn"}`)) +
			string(eventstreamtest.Event("metadata", `{"usage":{"inputTokens":12,"outputTokens":7,"totalTokens":19},"metrics":{"latencyMs":5}}`)),
		refused: string(eventstreamtest.Exception("throttlingException", `{"message":"Too many tokens"}`)),
	},
	{
		name: "invoke", family: provider.Bedrock, path: "/model/m/invoke-with-response-stream", mediaType: "application/vnd.amazon.eventstream",
		first: string(eventstreamtest.Chunk(`{"type":"message_start","message":{"model":"m","usage":{"input_tokens":12,"output_tokens":1}}}`)) +
			string(eventstreamtest.Chunk(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}`)),
		last: string(eventstreamtest.Chunk(`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}`)) +
			string(eventstreamtest.Chunk(`{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":12,"outputTokenCount":7,"firstByteLatency":5}}`)),
		refused: string(eventstreamtest.Exception("throttlingException", `{"message":"Too many tokens"}`)),
	},
	{
		name: "cohere-v1", family: provider.Cohere, path: "/v1/chat", mediaType: "application/stream+json",
		first: "{\"is_finished\":false,\"event_type\":\"text-generation\",\"text\":\"Hello\"}\n",
		last:  "{\"is_finished\":true,\"event_type\":\"stream-end\",\"response\":{\"text\":\"Hello\",\"meta\":{\"tokens\":{\"input_tokens\":12,\"output_tokens\":7}}},\"finish_reason\":\"COMPLETE\"}\n",
	},
	{
		name: "cohere-v2", family: provider.Cohere, path: "/v2/chat", mediaType: sse,
		first: "event: content-delta\ndata: {\"type\":\"content-delta\",\"index\":0,\"delta\":{\"message\":{\"content\":{\"text\":\"Hello\"}}}}\n\n",
		last:  "event: message-end\ndata: {\"type\":\"message-end\",\"delta\":{\"finish_reason\":\"COMPLETE\",\"usage\":{\"tokens\":{\"input_tokens\":12,\"output_tokens\":7}}}}\n\n",
	},
	{
		name: "ollama", family: provider.Ollama, path: "/api/chat", mediaType: "application/x-ndjson",
		first: "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"Hello\"},\"done\":false}\n",
		last:  "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"prompt_eval_count\":12,\"eval_count\":7}\n",
	},
}

// TestStreamsOfEveryDialect: what a provider has sent, the agent has, before
// more comes; and when the agent has the end, the usage is recorded, although
// the provider has not closed yet.
func TestStreamsOfEveryDialect(t *testing.T) {
	for _, s := range streams {
		t.Run(s.name, func(t *testing.T) {
			more, end := make(chan struct{}), make(chan struct{})
			up := newUpstream(t, func(c *upstreamConn) {
				c.write("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n", s.mediaType)
				c.chunk(s.first)
				c.wait(more)
				c.chunk(s.last)
				c.wait(end)
				c.last()
			})
			r := s.rig(t, up, 1)
			resp := r.send("POST", "/"+s.name+s.path, "Content-Type: application/json\r\n", `{"model":"m","stream":true,"messages":[]}`)
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != s.mediaType {
				t.Fatalf("got %d %s", resp.StatusCode, resp.Header)
			}
			expect(t, resp.Body, s.first)
			close(more)
			expect(t, resp.Body, s.last)
			if n := len(r.recorder.all()); n != 1 && !s.open {
				t.Errorf("%d usage events when the agent has the end", n)
			}
			if e := r.recorder.lastOpened(); s.open && e.Tokens != (usage.Tokens{Input: 12, Output: 7}) {
				t.Errorf("should authpool be killed now, %+v would be counted", e)
			}
			close(end)
			if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
				t.Errorf("after the end came %q, %v", rest, err)
			}
			events := r.waitEvents(1)
			if e := events[0]; len(events) != 1 || e.Tokens != (usage.Tokens{Input: 12, Output: 7}) || e.Estimated || e.Unknown || e.Model == "" {
				t.Errorf("recorded %+v", events)
			}
		})
	}
}

// TestStreamsThatBeginWithALimit: a limit that comes inside an answer with a
// good status is one all the same, and another subscription serves.
func TestStreamsThatBeginWithALimit(t *testing.T) {
	for _, s := range streams {
		if s.refused == "" {
			continue
		}
		for _, encoding := range []string{"", "gzip"} {
			t.Run(strings.TrimSuffix(s.name+"/"+encoding, "/"), func(t *testing.T) { beginsWithALimit(t, s, encoding) })
		}
	}
}

func beginsWithALimit(t *testing.T, s streamed, encoding string) {
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.head, key(s.name, 1)) {
			c.stream(s.mediaType, encoding, nil, s.refused)
		} else {
			c.stream(s.mediaType, "", nil, s.first, s.last)
		}
	})
	r := s.rig(t, up, 2)
	status, headers, body := r.post("/"+s.name+s.path, `{"model":"m","stream":true,"messages":[]}`)
	if status != http.StatusOK || body != s.first+s.last || headers.Get("X-Authpool-Subscription") != s.name+"-2" {
		t.Errorf("%s answered %d %q", headers.Get("X-Authpool-Subscription"), status, body)
	}
	if events := r.waitEvents(1); len(events) != 1 || events[0].Subscription != s.name+"-2" {
		t.Errorf("recorded %+v", events)
	}
}

// TestStreamsThatEndWithALimit: what comes after content passes to the agent as
// it is, and the next request goes elsewhere all the same.
func TestStreamsThatEndWithALimit(t *testing.T) {
	for _, s := range streams {
		if s.refused == "" {
			continue
		}
		for _, encoding := range []string{"", "gzip"} {
			t.Run(strings.TrimSuffix(s.name+"/"+encoding, "/"), func(t *testing.T) {
				late := s.refused
				if s.late != "" {
					late = s.late
				}
				read := make(chan struct{}, 2)
				up := newUpstream(t, func(c *upstreamConn) {
					last := s.last
					if strings.Contains(c.head, key(s.name, 1)) {
						last = late
					}
					c.stream(s.mediaType, encoding, read, s.first, last)
				})
				r := s.rig(t, up, 2)
				send := func(want string) {
					t.Helper()
					resp := r.send("POST", "/"+s.name+s.path, "Content-Type: application/json\r\nAccept-Encoding: gzip\r\n", `{"model":"m","stream":true,"messages":[]}`)
					body := io.Reader(resp.Body)
					if resp.Header.Get("Content-Encoding") == "gzip" {
						var err error
						if body, err = gzip.NewReader(body); err != nil {
							t.Fatal(err)
						}
					}
					expect(t, body, s.first)
					read <- struct{}{}
					expect(t, body, want)
				}
				send(late)
				if events := r.waitEvents(1); events[0].Subscription != s.name+"-1" {
					t.Errorf("recorded %+v", events)
				}
				send(s.last)
				if events := r.waitEvents(2); events[1].Subscription != s.name+"-2" || len(up.requests()) != 2 {
					t.Errorf("after %d requests recorded %+v", len(up.requests()), events)
				}
			})
		}
	}
}

// stream answers with a stream of these parts. Each but the first waits for a
// value of next, if that is not nil.
func (c *upstreamConn) stream(mediaType, encoding string, next <-chan struct{}, parts ...string) {
	extra := ""
	if encoding != "" {
		extra = "Content-Encoding: " + encoding + "\r\n"
	}
	c.write("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nConnection: close\r\n%sTransfer-Encoding: chunked\r\n\r\n", mediaType, extra)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	for i, part := range parts {
		if i > 0 && next != nil {
			c.wait(next)
		}
		if encoding == "" {
			c.chunk(part)
			continue
		}
		_, _ = io.WriteString(w, part)
		_ = w.Flush()
		c.chunk(packed.String())
		packed.Reset()
	}
	if encoding != "" {
		_ = w.Close()
		c.chunk(packed.String())
	}
	c.last()
}

// rig serves the stream's provider alone, with n subscriptions.
func (s *streamed) rig(t *testing.T, up *fakeUpstream, n int) *rig {
	return newRig(t, up.url(), 0, func(o *rigOptions) {
		o.providers = []provider.Options{{Name: s.name, Family: s.family, BaseURL: up.url(), AllowPlaintext: true}}
		for i := range n {
			o.subs = append(o.subs, pool.Subscription{
				ID: fmt.Sprintf("%s-%d", s.name, i+1), Provider: s.name, Priority: i + 1, Credential: fixedKey(key(s.name, i+1)),
			})
		}
	})
}

// expect reads what must come now.
func expect(t *testing.T, body io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(body, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got[:n], err, want)
	}
}
