package simulator

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"strings"
)

// messageUsage is the usage object of a message; the split of the cache writes is not in message_delta.
func messageUsage(u usage, output int64, whole bool) string {
	split := ""
	if whole {
		split = fmt.Sprintf(`"cache_creation":{"ephemeral_5m_input_tokens":%d,"ephemeral_1h_input_tokens":%d},`, u.write5m, u.write1h)
	}
	tail := ""
	if whole {
		tail = `,"service_tier":"standard"`
	}
	return fmt.Sprintf(`{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,%s"output_tokens":%d%s}`,
		u.input, u.write5m+u.write1h, u.cacheRead, split, output, tail)
}

func (x *exchange) messageID() string { return "msg_" + strings.TrimPrefix(x.request.id, "req_") }

// thinkingSignature stands for the opaque signature of a thinking block.
func (x *exchange) thinkingSignature() string {
	return "c2ltdWxhdGVk" + strings.ReplaceAll(x.request.account.org, "-", "")
}

func (x *exchange) stopReason() string {
	switch {
	case x.answer.tool:
		return "tool_use"
	case x.answer.cut:
		return "max_tokens"
	}
	return "end_turn"
}

func messagesDocument(x *exchange) (before, after string) {
	before = fmt.Sprintf(`{"model":%s,"id":%s,"type":"message","role":"assistant","content":[`, quote(x.call.model), quote(x.messageID()))
	if x.call.thinking {
		before += fmt.Sprintf(`{"type":"thinking","thinking":%s,"signature":%s},`, quote(strings.Join(thoughts, "")), quote(x.thinkingSignature()))
	}
	end := `"}]`
	if x.answer.tool {
		before += fmt.Sprintf(`{"type":"tool_use","id":%s,"name":%s,"input":`, quote("toolu_"+x.messageID()[4:]), quote(x.call.tool))
		end = `}]`
	} else {
		before += `{"type":"text","text":"`
	}
	after = fmt.Sprintf(`%s,"stop_reason":%s,"stop_sequence":null,"usage":%s}`, end, quote(x.stopReason()), messageUsage(x.usage, x.usage.output, true))
	return before, after
}

func messagesStream(x *exchange) iter.Seq[event] {
	return func(yield func(event) bool) {
		padding := rand.New(rand.NewPCG(x.answer.seed, 2)) //nolint:gosec // answers must repeat, nobody guesses at them
		send := func(name, fields string, content bool, tokens int64) bool {
			// The real stream ends events in spaces of random number; a parser must not mind.
			data := fmt.Sprintf(`{"type":%q,%s%s}`, name, fields, strings.Repeat(" ", padding.IntN(16)))
			return yield(event{name: name, data: data, content: content, tokens: tokens})
		}
		delta := func(index int, kind, field, text string, tokens int64) bool {
			return send("content_block_delta", fmt.Sprintf(`"index":%d,"delta":{"type":%q,%q:%s}`, index, kind, field, quote(text)), true, tokens)
		}
		ping := func() bool { return yield(event{name: "ping", data: `{"type": "ping"}`}) }
		if !send("message_start", fmt.Sprintf(`"message":{"model":%s,"id":%s,"type":"message","role":"assistant","content":[],"stop_reason":null,"stop_sequence":null,"usage":%s}`,
			quote(x.call.model), quote(x.messageID()), messageUsage(x.usage, 1, true)), false, 0) {
			return
		}
		index := 0
		if x.call.thinking {
			if !send("content_block_start", `"index":0,"content_block":{"type":"thinking","thinking":"","signature":""}`, true, 0) || !ping() {
				return
			}
			for _, t := range thoughts {
				if !delta(0, "thinking_delta", "thinking", t, 1) {
					return
				}
			}
			if !delta(0, "signature_delta", "signature", x.thinkingSignature(), 0) || !send("content_block_stop", `"index":0`, true, 0) {
				return
			}
			index = 1
		}
		start, kind, field := `{"type":"text","text":""}`, "text_delta", "text"
		if x.answer.tool {
			start = fmt.Sprintf(`{"type":"tool_use","id":%s,"name":%s,"input":{}}`, quote("toolu_"+x.messageID()[4:]), quote(x.call.tool))
			kind, field = "input_json_delta", "partial_json"
		}
		if !send("content_block_start", fmt.Sprintf(`"index":%d,"content_block":%s`, index, start), true, 0) {
			return
		}
		if index == 0 && !ping() {
			return
		}
		for p := range x.answer.pieces() {
			if !delta(index, kind, field, p.text, p.tokens) {
				return
			}
		}
		_ = send("content_block_stop", fmt.Sprintf(`"index":%d`, index), true, 0) &&
			send("message_delta", fmt.Sprintf(`"delta":{"stop_reason":%q,"stop_sequence":null},"usage":%s`, x.stopReason(), messageUsage(x.usage, x.usage.output, false)), false, 0) &&
			yield(event{name: "message_stop", data: `{"type":"message_stop"}`, terminal: true})
	}
}

func messagesError(x *exchange) event {
	return event{name: "error", data: fmt.Sprintf(`{"type":"error","error":{"details":null,"type":"overloaded_error","message":"Overloaded"},"request_id":%s}`, quote(x.request.id))}
}

// countTokens costs nothing and is not in the ledger; it counts against the key's requests.
func (s *Simulator) countTokens(w http.ResponseWriter, r *http.Request, q *request, c *call) {
	refused := q.account.count(q.now)
	q.account.limitHeaders(w.Header(), q.now)
	if refused != nil {
		s.fail(w, r, q.provider, q.id, limited(q.provider, q.account.org, c.model, *refused, q.now))
		return
	}
	if q.provider == Gemini {
		s.free(w, r, geminiCountDocument(c))
		return
	}
	s.free(w, r, fmt.Sprintf(`{"input_tokens":%d}`, c.total()))
}

// free writes a JSON answer that costs nothing.
func (s *Simulator) free(w http.ResponseWriter, r *http.Request, body string) {
	w.Header().Set("Content-Type", "application/json")
	out := start(w, r, http.StatusOK)
	if _, err := out.Write([]byte(body)); err == nil {
		_ = out.close() // the client has gone if this fails, and nothing is owed to it
	}
}

func (s *Simulator) models(w http.ResponseWriter, r *http.Request, q *request) {
	if q.provider == Anthropic {
		s.free(w, r, `{"data":[{"type":"model","id":"claude-opus-4-8","display_name":"Claude Opus 4.8","created_at":"2026-05-01T00:00:00Z"},`+
			`{"type":"model","id":"claude-haiku-4-5","display_name":"Claude Haiku 4.5","created_at":"2025-10-01T00:00:00Z"}],`+
			`"has_more":false,"first_id":"claude-opus-4-8","last_id":"claude-haiku-4-5"}`)
		return
	}
	s.free(w, r, `{"object":"list","data":[{"id":"gpt-5.1","object":"model","created":1763000000,"owned_by":"system"},`+
		`{"id":"text-embedding-3-small","object":"model","created":1705948997,"owned_by":"system"}]}`)
}
