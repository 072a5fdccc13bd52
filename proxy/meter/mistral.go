package meter

import "slices"

// mistralUsage is the usage object of Mistral's conversations. What the
// connectors put in is counted beside the prompt: the total has both. Source:
// @mistralai/mistralai 2.7.0, ConversationUsageInfo, and Mistral's guides of its
// connectors.
var mistralUsage = slices.Concat(chatUsage, []place{
	{"connector_tokens", toolInput},
	{"connectors.web_search", webSearches},
	{"connectors.web_search_premium", webSearches},
})

// mistralConversation serves /v1/conversations and what is below: each such POST
// runs a model. OpenAI's conversations have the same paths, and run none. Source:
// @mistralai/mistralai 2.7.0, ConversationResponse and ConversationEvents.
var mistralConversation = dialect{
	json: newTable([]place{
		{"object", status},
		{"outputs[].model", model},
		{"usage", usageBegin},
	}, under("usage", mistralUsage), failureAt("error")),
	events: newTable([]place{
		{"type", kind},
		{"model", model},
		{"usage", usageBegin},
		{"content", generated},
		{"content.text", generated},
		{"content.thinking[].text", thought},
		{"arguments", arguments},
		{"code", failCode},
		{"message", failMessage},
	}, under("usage", mistralUsage)),
	event:  conversationEvent,
	answer: conversationAnswer,
	normal: normalOpenAI,
	rates:  chatRates,
}

func conversationEvent(m *Meter, e *event) {
	m.takeModel(e)
	switch string(e.kind.bytes()) {
	case "conversation.response.started":
	case "conversation.response.done":
		m.replaceUsage(e)
		m.content, m.terminal = true, true
	case "conversation.response.error":
		m.fail(e)
	default:
		m.content = true
		m.shown.plus(&e.shown)
	}
}

func conversationAnswer(m *Meter, e *event) {
	takeAnswer(m, e)
	m.accepted = !m.told && string(e.status.bytes()) != "conversation.response"
}
