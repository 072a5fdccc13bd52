package simulator

import (
	"fmt"
	"iter"
	"strings"
)

func responsesUsage(u usage) string {
	return fmt.Sprintf(`{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d},"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":%d},"total_tokens":%d}`,
		u.prompt(), u.cacheRead, u.output, u.thinking, u.prompt()+u.output)
}

// responseEnds returns a response object in two halves; output goes between.
func (x *exchange) responseEnds(status, usage string) (before, after string) {
	incomplete := "null"
	if status == "incomplete" {
		incomplete = `{"reason":"max_output_tokens"}`
	}
	before = fmt.Sprintf(`{"id":%s,"object":"response","created_at":%d,"status":%q,"background":false,"error":null,"incomplete_details":%s,"instructions":null,"max_output_tokens":null,"model":%s,"output":[`,
		quote(x.openaiID("resp_")), x.request.now.Unix(), status, incomplete, quote(x.call.model))
	after = fmt.Sprintf(`],"parallel_tool_calls":true,"previous_response_id":null,"reasoning":{"effort":null,"summary":null},"service_tier":"default","store":true,"temperature":1.0,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":%s,"user":null,"metadata":{}}`, usage)
	return before, after
}

func (x *exchange) responseStatus() string {
	if x.answer.cut {
		return "incomplete"
	}
	return "completed"
}

// reasoningItem has the encrypted content if it was asked for; it belongs to the key's organisation.
func (x *exchange) reasoningItem() string {
	encrypted := ""
	if x.call.encrypted {
		encrypted = `,"encrypted_content":` + quote(encryptedPrefix+x.request.account.org+"."+x.openaiID(""))
	}
	return fmt.Sprintf(`{"id":%s,"type":"reasoning","summary":[]%s}`, quote(x.openaiID("rs_")), encrypted)
}

// itemEnds returns the output item in two halves; the text, escaped as a JSON string, goes between.
func (x *exchange) itemEnds() (before, after string) {
	if x.answer.tool {
		return fmt.Sprintf(`{"id":%s,"type":"function_call","status":"completed","arguments":"`, quote(x.openaiID("fc_"))),
			fmt.Sprintf(`","call_id":%s,"name":%s}`, quote(x.openaiID("call_")), quote(x.call.tool))
	}
	return fmt.Sprintf(`{"id":%s,"type":"message","status":"completed","content":[{"type":"output_text","annotations":[],"logprobs":[],"text":"`, quote(x.openaiID("msg_"))),
		`"}],"role":"assistant"}`
}

func responsesDocument(x *exchange) (before, after string) {
	before, after = x.responseEnds(x.responseStatus(), responsesUsage(x.usage))
	if x.call.thinking {
		before += x.reasoningItem() + ","
	}
	b, a := x.itemEnds()
	return before + b, a + after
}

func responsesStream(x *exchange) iter.Seq[event] {
	return func(yield func(event) bool) {
		sequence := 0
		send := func(e event, fields string) bool {
			e.data = fmt.Sprintf(`{"type":%q,"sequence_number":%d,%s}`, e.name, sequence, fields)
			sequence++
			return yield(e)
		}
		before, after := x.responseEnds("in_progress", "null")
		if !send(event{name: "response.created"}, `"response":`+before+after) || !send(event{name: "response.in_progress"}, `"response":`+before+after) {
			return
		}
		index := 0
		if x.call.thinking {
			item := fmt.Sprintf(`"output_index":0,"item":%s`, x.reasoningItem())
			if !send(event{name: "response.output_item.added", content: true, tokens: x.usage.thinking}, item) ||
				!send(event{name: "response.output_item.done", content: true}, item) {
				return
			}
			index = 1
		}
		output := x.messageEvents
		if x.answer.tool {
			output = x.callEvents
		}
		if output(send, index) {
			x.lastEvent(send)
		}
	}
}

// messageEvents sends the events of a text, and tells whether the reader wants more.
func (x *exchange) messageEvents(send func(event, string) bool, index int) bool {
	id := quote(x.openaiID("msg_"))
	where := fmt.Sprintf(`"item_id":%s,"output_index":%d,"content_index":0`, id, index)
	if !send(event{name: "response.output_item.added", content: true}, fmt.Sprintf(`"output_index":%d,"item":{"id":%s,"type":"message","status":"in_progress","content":[],"role":"assistant"}`, index, id)) ||
		!send(event{name: "response.content_part.added", content: true}, where+`,"part":{"type":"output_text","annotations":[],"logprobs":[],"text":""}`) {
		return false
	}
	for p := range x.answer.pieces() {
		if !send(event{name: "response.output_text.delta", content: true, tokens: p.tokens}, where+`,"delta":`+quote(p.text)+`,"logprobs":[]`) {
			return false
		}
	}
	text := x.wholeText()
	return send(event{name: "response.output_text.done", content: true}, where+`,"text":`+quote(text)+`,"logprobs":[]`) &&
		send(event{name: "response.content_part.done", content: true}, where+`,"part":{"type":"output_text","annotations":[],"logprobs":[],"text":`+quote(text)+`}`) &&
		send(event{name: "response.output_item.done", content: true}, fmt.Sprintf(`"output_index":%d,"item":%s`, index, x.item()))
}

// callEvents sends the events of a tool call, as messageEvents does.
func (x *exchange) callEvents(send func(event, string) bool, index int) bool {
	id := quote(x.openaiID("fc_"))
	where := fmt.Sprintf(`"item_id":%s,"output_index":%d`, id, index)
	if !send(event{name: "response.output_item.added", content: true}, fmt.Sprintf(`"output_index":%d,"item":{"id":%s,"type":"function_call","status":"in_progress","arguments":"","call_id":%s,"name":%s}`,
		index, id, quote(x.openaiID("call_")), quote(x.call.tool))) {
		return false
	}
	for p := range x.answer.pieces() {
		if !send(event{name: "response.function_call_arguments.delta", content: true, tokens: p.tokens}, where+`,"delta":`+quote(p.text)) {
			return false
		}
	}
	return send(event{name: "response.function_call_arguments.done", content: true}, where+`,"arguments":`+quote(x.wholeText())) &&
		send(event{name: "response.output_item.done", content: true}, fmt.Sprintf(`"output_index":%d,"item":%s`, index, x.item()))
}

// lastEvent repeats the entire output with the usage.
func (x *exchange) lastEvent(send func(event, string) bool) {
	before, after := x.responseEnds(x.responseStatus(), responsesUsage(x.usage))
	items := x.item()
	if x.call.thinking {
		items = x.reasoningItem() + "," + items
	}
	send(event{name: "response." + x.responseStatus(), terminal: true}, `"response":`+before+items+after)
}

func (x *exchange) item() string {
	before, after := x.itemEnds()
	return before + inner(x.wholeText()) + after
}

// wholeText is the answer in one piece. The events of Responses repeat it, so a streamed one is not constant in
// memory, nor is it at the provider's.
func (x *exchange) wholeText() string {
	var b strings.Builder
	for p := range x.answer.pieces() {
		b.WriteString(p.text)
	}
	return b.String()
}

func responsesError(*exchange) event {
	return event{name: "error", data: `{"type":"error","sequence_number":99,"code":"server_error","message":"The server had an error while processing your request. Sorry about that!","param":null}`}
}
