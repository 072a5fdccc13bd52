package meter

// chatUsage is the usage object of the chat and text completions APIs, and of
// the many that are compatible. Sources: openai 6.49.0, completions.d.ts;
// prompt_cache_hit_tokens is DeepSeek's, a bare cached_tokens was seen from
// Hugging Face's router.
var chatUsage = []place{
	{"prompt_tokens", input},
	{"completion_tokens", output},
	{"total_tokens", total},
	{"prompt_tokens_details.cached_tokens", cacheRead},
	{"prompt_tokens_details.cache_write_tokens", cacheWrite},
	{"prompt_cache_hit_tokens", cacheReadElse},
	{"cached_tokens", cacheReadElse},
	{"completion_tokens_details.reasoning_tokens", reasoning},
}

// openAIChat serves chat completions and text completions: they differ only in
// where the text stands.
var openAIChat = dialect{
	json: newTable([]place{{"model", model}, {"usage", usageBegin}},
		under("usage", chatUsage), failureAt("error"), failureAt("choices[].error")),
	events: newTable([]place{
		{"model", model},
		{"usage", usageBegin},
		{"x_groq.usage", usageBegin}, // Groq's, also for those who did not ask
		{"choices[].finish_reason", finish},
		{"choices[].text", generated},
		{"choices[].message.content", something}, // Perplexity repeats the whole text
		{"choices[].delta.role", ignored},
		{"choices[].delta.content", generated},
		{"choices[].delta.content[]", something}, // Mistral's parts
		{"choices[].delta.content[].text", generated},
		{"choices[].delta.content[].thinking[].text", generated},
		{"choices[].delta.reasoning_content", generated}, // DeepSeek, xAI, Z.ai
		{"choices[].delta.reasoning", generated},         // Groq, OpenRouter
		{"choices[].delta.refusal", generated},
		{"choices[].delta.tool_calls[]", something},
		{"choices[].delta.tool_calls[].function.arguments", generated},
		{"choices[].delta.*", something},
		{"choices[].delta.*[]", something},
	}, under("usage", chatUsage), under("x_groq.usage", chatUsage), failureAt("error"), failureAt("choices[].error")),
	event:   chatEvent,
	answer:  takeAnswer,
	normal:  normalOpenAI,
	endMark: true,
}

// chatEvent takes over a chunk. The last chunk with a usage counts: it may be
// one of its own, the one with the finish reason, or every one (running
// totals).
func chatEvent(m *Meter, e *event) {
	m.takeModel(e)
	m.replaceUsage(e)
	if e.failed {
		m.fail(e)
		return
	}
	m.text += e.text
	m.content = m.content || e.content || e.finished
	m.final = m.final || e.finished
}
