package meter

import "github.com/authpool/authpool/ratelimit/usage"

// cohereUsage is the usage object of the chat API, which v1 calls meta. tokens
// is what the model read and wrote, its own instructions included; billed_units
// is the part that is charged, and all there is where tokens is missing. What
// was cached is a part of the input. Source: cohere-ai 7.20.0, Usage and
// ApiMeta.
var cohereUsage = []place{
	{"tokens.input_tokens", input},
	{"tokens.output_tokens", output},
	{"tokens.reasoning_tokens", reasoning},
	{"cached_tokens", cacheRead},
	{"billed_units.input_tokens", billedInput},
	{"billed_units.output_tokens", billedOutput},
	{"billed_units.search_units", searchUnits},
}

// cohereChat serves /v2/chat and /v1/chat. The stream of v2 is one of events
// with a type, that of v1 one of JSON lines (or events) with an event_type.
// Neither names the model.
var cohereChat = dialect{
	json: newTable([]place{{"usage", usageBegin}, {"meta", usageBegin}},
		under("usage", cohereUsage), under("meta", cohereUsage)),
	events: newTable([]place{
		{"type", kind},
		{"event_type", kind},
		{"delta.usage", usageBegin},
		{"response.meta", usageBegin},
		{"delta.message.content.text", generated},
		{"delta.message.content.thinking", thought},
		{"delta.message.tool_plan", thought},
		{"delta.message.tool_calls.function.name", called},
		{"delta.message.tool_calls.function.arguments", arguments},
		{"text", generated},
		{"tool_call_delta.text", generated},
		{"tool_call_delta.name", called},
		{"tool_call_delta.parameters", arguments},
	}, under("delta.usage", cohereUsage), under("response.meta", cohereUsage), failureAt("delta.error")),
	event:  cohereEvent,
	answer: cohereAnswer,
	normal: normalOpenAI,
	rates:  rates{fine: true, call: 10},
}

func cohereEvent(m *Meter, e *event) {
	switch string(e.kind.bytes()) {
	case "message-start", "stream-start":
	case "message-end", "stream-end":
		cohereTake(m, e)
		if e.failed {
			m.fail(e)
			return
		}
		m.content, m.terminal = true, true
	default:
		m.content = true
		m.shown.plus(&e.shown)
	}
}

func cohereAnswer(m *Meter, e *event) { cohereTake(m, e) }

// cohereTake merges a usage object.
func cohereTake(m *Meter, e *event) {
	if e.counts[input] < 0 && e.counts[output] < 0 {
		e.counts[input], e.counts[output] = e.counts[billedInput], e.counts[billedOutput]
	}
	m.replaceUsage(e)
}

// cohereGenerate serves /v1/generate. It tells billed units only.
var cohereGenerate = dialect{
	json: newTable([]place{{"meta", usageBegin}}, under("meta", cohereUsage)),
	events: newTable([]place{
		{"event_type", kind},
		{"text", generated},
		{"is_finished", ended},
		{"response.meta", usageBegin},
	}, under("response.meta", cohereUsage), failureAt("error")),
	event: func(m *Meter, e *event) {
		m.content = true
		m.shown.plus(&e.shown)
		cohereTake(m, e)
		m.terminal = m.terminal || e.finished
	},
	answer: cohereAnswer,
	normal: normalOpenAI,
	rates:  rates{fine: true},
}

// cohereEmbed serves /v1/embed and /v2/embed. Images are input of their own.
var cohereEmbed = dialect{
	json: newTable([]place{
		{"meta", usageBegin},
		{"meta.billed_units.input_tokens", input},
		{"meta.billed_units.image_tokens", billedInput},
	}),
	events: newTable(),
	event:  takeAnswer,
	answer: takeAnswer,
	normal: func(c *counts) usage.Tokens {
		return usage.Tokens{Input: c.at(input) + c.at(billedInput)}
	},
}
