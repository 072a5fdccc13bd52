package simulator

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
)

func chatUsage(u usage) string {
	return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}`,
		u.prompt(), u.output, u.prompt()+u.output, u.cacheRead, u.thinking)
}

func (x *exchange) finishReason() string {
	switch {
	case x.answer.tool:
		return "tool_calls"
	case x.answer.cut:
		return "length"
	}
	return "stop"
}

// openaiID makes an id of this answer: "chatcmpl-…".
func (x *exchange) openaiID(prefix string) string {
	return prefix + strings.TrimPrefix(x.request.id, "req_")
}

func chatDocument(x *exchange) (before, after string) {
	before = fmt.Sprintf(`{"id":%s,"object":"chat.completion","created":%d,"model":%s,"choices":[{"index":0,"message":{"role":"assistant",`,
		quote(x.openaiID("chatcmpl-")), x.request.now.Unix(), quote(x.call.model))
	end := `","refusal":null,"annotations":[]}`
	if x.answer.tool {
		before += fmt.Sprintf(`"content":null,"refusal":null,"tool_calls":[{"id":%s,"type":"function","function":{"name":%s,"arguments":"`,
			quote(x.openaiID("call_")), quote(x.call.tool))
		end = `"}}]}`
	} else {
		before += `"content":"`
	}
	after = fmt.Sprintf(`%s,"logprobs":null,"finish_reason":%s}],"usage":%s,"service_tier":"default","system_fingerprint":"fp_simulator"}`,
		end, quote(x.finishReason()), chatUsage(x.usage))
	return before, after
}

func chatStream(x *exchange) iter.Seq[event] {
	return x.chunks("chat.completion.chunk", "chatcmpl-", func(send func(choice string, content bool, tokens int64) bool) bool {
		choice := func(delta, finish string) string {
			return fmt.Sprintf(`{"index":0,"delta":{%s},"logprobs":null,"finish_reason":%s}`, delta, quoteOrNull(finish))
		}
		first := `"role":"assistant","content":"","refusal":null`
		if x.answer.tool {
			first = fmt.Sprintf(`"role":"assistant","content":null,"tool_calls":[{"index":0,"id":%s,"type":"function","function":{"name":%s,"arguments":""}}],"refusal":null`,
				quote(x.openaiID("call_")), quote(x.call.tool))
		}
		if !send(choice(first, ""), x.answer.tool, x.usage.thinking) {
			return false
		}
		for p := range x.answer.pieces() {
			delta := `"content":` + quote(p.text)
			if x.answer.tool {
				delta = `"tool_calls":[{"index":0,"function":{"arguments":` + quote(p.text) + `}}]`
			}
			if !send(choice(delta, ""), true, p.tokens) {
				return false
			}
		}
		return send(choice("", x.finishReason()), true, 0)
	})
}

// chunks yields a stream of chunks, with the usage as stream_options.include_usage asks: null on every chunk and
// the sum on a last one without choices, or nowhere.
func (x *exchange) chunks(object, prefix string, choices func(send func(choice string, content bool, tokens int64) bool) bool) iter.Seq[event] {
	return func(yield func(event) bool) {
		random := rand.New(rand.NewPCG(x.answer.seed, 3)) //nolint:gosec // answers must repeat, nobody guesses at them
		head := fmt.Sprintf(`{"id":%s,"object":%q,"created":%d,"model":%s,"service_tier":"default","system_fingerprint":"fp_simulator"`,
			quote(x.openaiID(prefix)), object, x.request.now.Unix(), quote(x.call.model))
		null := ""
		if x.call.includeUsage {
			null = `,"usage":null`
		}
		send := func(choice string, content bool, tokens int64) bool {
			// The real stream hides the length of its text behind a field of random length.
			data := fmt.Sprintf(`%s,"choices":[%s]%s,"obfuscation":%q}`, head, choice, null, strings.Repeat("x", 1+random.IntN(12)))
			return yield(event{data: data, content: content, tokens: tokens})
		}
		if !choices(send) {
			return
		}
		if x.call.includeUsage && !yield(event{data: fmt.Sprintf(`%s,"choices":[],"usage":%s,"obfuscation":""}`, head, chatUsage(x.usage))}) {
			return
		}
		yield(event{data: "[DONE]", terminal: true})
	}
}

func completionsDocument(x *exchange) (before, after string) {
	before = fmt.Sprintf(`{"id":%s,"object":"text_completion","created":%d,"model":%s,"choices":[{"text":"`,
		quote(x.openaiID("cmpl-")), x.request.now.Unix(), quote(x.call.model))
	after = fmt.Sprintf(`","index":0,"logprobs":null,"finish_reason":%s}],"usage":%s}`, quote(x.finishReason()), chatUsage(x.usage))
	return before, after
}

func completionsStream(x *exchange) iter.Seq[event] {
	return x.chunks("text_completion", "cmpl-", func(send func(choice string, content bool, tokens int64) bool) bool {
		choice := func(text, finish string) string {
			return fmt.Sprintf(`{"text":%s,"index":0,"logprobs":null,"finish_reason":%s}`, quote(text), quoteOrNull(finish))
		}
		for p := range x.answer.pieces() {
			if !send(choice(p.text, ""), true, p.tokens) {
				return false
			}
		}
		return send(choice("", x.finishReason()), true, 0)
	})
}

func openaiError(*exchange) event {
	return event{data: `{"error":{"message":"The server had an error while processing your request. Sorry about that!","type":"server_error","param":null,"code":null}}`}
}

// embeddingsDocument has no text; the vector is constant.
func embeddingsDocument(x *exchange) (before, after string) {
	before = fmt.Sprintf(`{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.25,-0.5,0.125,0.0625]}],"model":%s`, quote(x.call.model))
	n := x.usage.prompt()
	return before, fmt.Sprintf(`,"usage":{"prompt_tokens":%d,"total_tokens":%d}}`, n, n)
}

// encryptedPrefix marks the encrypted content that the simulator made; the organisation follows.
const encryptedPrefix = "gAAAAsim."

var errForeignState = errors.New("the encrypted content could not be verified")

// foreignState refuses encrypted content of another organisation, as the provider does.
func foreignState(q *request) error {
	rest := string(q.body)
	for {
		_, after, found := strings.Cut(rest, encryptedPrefix)
		if !found {
			return nil
		}
		if !strings.HasPrefix(after, q.account.org+".") {
			return errForeignState
		}
		rest = after
	}
}
