package meter

import "bytes"

// responsesUsage is the usage object of the Responses API. Source: openai
// 6.49.0, responses.d.ts.
var responsesUsage = []place{
	{"input_tokens", input},
	{"output_tokens", output},
	{"total_tokens", total},
	{"input_tokens_details.cached_tokens", cacheRead},
	{"input_tokens_details.cache_write_tokens", cacheWrite},
	{"output_tokens_details.reasoning_tokens", reasoning},
}

// openAIResponses serves /responses and /responses/compact.
var openAIResponses = dialect{
	json: newTable([]place{{"model", model}, {"status", status}, {"usage", usageBegin}},
		under("usage", responsesUsage), failureAt("error")),
	events: newTable([]place{
		{"type", kind},
		{"response.model", model},
		{"response.usage", usageBegin},
		{"delta", generated},
		// An error event is flat by the API's description; Codex' backend wraps
		// the error and gives a status beside it.
		{"code", failCode},
		{"message", failMessage},
		{"status", failStatus},
	}, under("response.usage", responsesUsage), failureAt("response.error"), failureAt("error")),
	event:   responsesEvent,
	answer:  responsesAnswer,
	normal:  normalOpenAI,
	endMark: true, // from OpenRouter
}

// responsesEvent takes over an event. Usage counts in the events that end the
// answer; those before carry null there.
func responsesEvent(m *Meter, e *event) {
	switch kind := e.kind.bytes(); string(kind) {
	case "response.created", "response.queued", "response.in_progress", "codex.rate_limits":
		m.takeModel(e)
	case "response.completed", "response.incomplete", "response.cancelled":
		m.takeModel(e)
		m.replaceUsage(e)
		m.content, m.terminal = true, true
	case "response.failed":
		m.takeModel(e)
		m.replaceUsage(e)
		m.final = m.told
		m.fail(e)
	case "error":
		m.fail(e)
	default:
		if e.failed {
			m.fail(e)
			return
		}
		m.content = true
		if !bytes.Contains(kind, []byte("audio")) { // its deltas are sound
			m.text += e.text
		}
	}
}

// responsesAnswer takes over a whole response. A background response that has
// not run yet is only accepted: what it will use is told when it is fetched.
func responsesAnswer(m *Meter, e *event) {
	takeAnswer(m, e)
	switch string(e.status.bytes()) {
	case "queued", "in_progress":
		m.accepted = true
	}
}
