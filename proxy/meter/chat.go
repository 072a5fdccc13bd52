package meter

// chatUsage is the usage object of the chat and text completions APIs, and of
// the many that are compatible. Sources: openai 6.49.0, completions.d.ts;
// prompt_cache_hit_tokens is DeepSeek's, a bare cached_tokens was seen from
// Hugging Face's router, a bare reasoning_tokens is of Perplexity's deep research
// and SGLang.
var chatUsage = []place{
	{"prompt_tokens", input},
	{"completion_tokens", output},
	{"total_tokens", total},
	{"prompt_tokens_details.cached_tokens", cacheRead},
	{"prompt_tokens_details.cache_write_tokens", cacheWrite},
	{"prompt_cache_hit_tokens", cacheReadElse},
	{"cached_tokens", cacheReadElse},
	{"completion_tokens_details.reasoning_tokens", reasoning},
	{"service_tier", tier},              // Mistral's
	{"prompt_audio_seconds", seconds},   // Mistral's
	{"num_search_queries", webSearches}, // Perplexity's
	{"citation_tokens", toolInput},      // Perplexity's
	{"reasoning_tokens", reasoningElse},
}

// openAIChat serves chat completions.
var openAIChat = dialect{
	json: newTable([]place{{"model", model}, {"service_tier", tier}, {"usage", usageBegin}},
		under("usage", chatUsage), failureAt("error"), failureAt("choices[].error")),
	events: newTable([]place{
		{"model", model},
		{"service_tier", tier},
		{"usage", usageBegin},
		{"x_groq.usage", usageBegin}, // Groq's, also for those who did not ask
		{"choices[].finish_reason", finish},
		{"choices[].text", something},            // Together repeats the delta
		{"choices[].message.content", something}, // Perplexity repeats the whole text
		{"choices[].delta.role", ignored},
		{"choices[].delta.content", generated},
		{"choices[].delta.content[]", something}, // Mistral's parts
		{"choices[].delta.content[].text", generated},
		{"choices[].delta.content[].thinking[].text", thought},
		{"choices[].delta.reasoning_content", thought}, // DeepSeek, xAI, Z.ai
		{"choices[].delta.reasoning", thought},         // Groq, OpenRouter
		{"choices[].delta.refusal", generated},
		{"choices[].delta.tool_calls[]", something},
		{"choices[].delta.tool_calls[].function.name", called},
		{"choices[].delta.tool_calls[].function.arguments", arguments},
		{"choices[].delta.*", something},
		{"choices[].delta.*[]", something},
	}, under("usage", chatUsage), under("x_groq.usage", chatUsage), failureAt("error"), failureAt("choices[].error")),
	event:   chatEvent,
	answer:  takeAnswer,
	normal:  normalOpenAI,
	endMark: true,
	rates:   chatRates,
}

var chatRates = rates{fine: true, call: 10}

// openAICompletions serves text completions: they differ only in where the text
// stands. Together repeats it as a delta of a chat.
var openAICompletions = dialect{
	json: openAIChat.json,
	events: newTable([]place{
		{"model", model},
		{"service_tier", tier},
		{"usage", usageBegin},
		{"choices[].finish_reason", finish},
		{"choices[].text", generated},
	}, under("usage", chatUsage), failureAt("error"), failureAt("choices[].error")),
	event:   chatEvent,
	answer:  takeAnswer,
	normal:  normalOpenAI,
	endMark: true,
	rates:   chatRates,
}

// chatEvent takes over a chunk. The last chunk with a usage counts: it may be
// one of its own, the one with the finish reason, or every one (running
// totals). What was told before the finish reason is not the last, unless
// nothing follows.
func chatEvent(m *Meter, e *event) {
	m.takeModel(e)
	m.replaceUsage(e)
	if e.failed {
		m.failWith(e)
		return
	}
	m.shown.plus(&e.shown)
	m.content = m.content || e.content || e.finished
	m.finished = m.finished || e.finished
	m.final = m.final || m.finished && e.told
}
