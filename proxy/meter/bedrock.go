package meter

import (
	"slices"

	"github.com/authpool/authpool/ratelimit/usage"
)

// Answers of Bedrock do not tell the model by the name it is sold under: it is
// the one asked for.

// converseUsage is the TokenUsage of Converse. Sources:
// aws-sdk-go-v2/service/bedrockruntime v1.63.11, types.TokenUsage; the names
// with Count were seen beside the others.
var converseUsage = []place{
	{"usage", usageBegin},
	{"usage.inputTokens", input},
	{"usage.outputTokens", output},
	{"usage.totalTokens", total},
	{"usage.cacheReadInputTokens", cacheRead},
	{"usage.cacheReadInputTokenCount", cacheReadElse},
	{"usage.cacheWriteInputTokens", cacheWrite},
	{"usage.cacheDetails[]", writeBegin},
	{"usage.cacheDetails[].ttl", writeLife},
	{"usage.cacheDetails[].inputTokens", writeCount},
	{"serviceTier.type", tier},
}

// bedrockConverse serves Converse and ConverseStream. The type of an event
// stands in its frame's headers.
var bedrockConverse = dialect{
	json: newTable(converseUsage),
	events: newTable([]place{
		{"start.toolUse.name", called},
		{"delta.text", generated},
		{"delta.toolUse.input", arguments},
		{"delta.reasoningContent.text", thought},
		{"delta.reasoningContent.signature", sealed},
	}, converseUsage),
	event: converseEvent,
	answer: func(m *Meter, e *event) {
		m.takeUsage(e)
	},
	normal: converseNormal,
	frames: true,
	rates:  anthropicRates, // most are of its models
}

// converseEvent takes over an event. The last one, metadata, has the usage.
func converseEvent(m *Meter, e *event) {
	switch string(e.kind.bytes()) {
	case "messageStart":
	case "metadata":
		m.takeUsage(e)
		m.content, m.terminal = true, true
	default:
		m.content = true
		m.shown.plus(&e.shown)
	}
}

// converseNormal brings Converse's numbers to the normal form: the input does
// not hold the cache's tokens. For some models it was seen to hold them
// (github.com/maximhq/bifrost issue 6942); the total shows it.
func converseNormal(c *counts) usage.Tokens {
	t := bedrockNormal(c)
	if cached := t.CacheRead + t.CacheWrite5m + t.CacheWrite1h; cached > 0 && c[total] == t.Input+t.Output {
		t.Input = max(t.Input-cached, 0)
	}
	return t
}

// bedrockNormal is the normal form of counts whose cache writes may not be told
// by their life: then it is five minutes, the default.
func bedrockNormal(c *counts) usage.Tokens {
	t := anthropicNormal(c)
	t.CacheRead = max(c.read(), 0)
	if c[cacheWrite5m] < 0 && c[cacheWrite1h] < 0 {
		t.CacheWrite5m = c.at(cacheWrite)
	}
	return t
}

// invokeUsage is how the models behind InvokeModel tell their usage, each in its
// own way. Source: the inference parameters of Bedrock's User Guide. What these
// leave open, the answer's headers or the stream's metrics tell.
var invokeUsage = slices.Concat(
	under("usage", anthropicUsage),
	[]place{
		// Amazon Nova.
		{"usage.inputTokens", input},
		{"usage.outputTokens", output},
		{"usage.cacheReadInputTokenCount", cacheRead},
		{"usage.cacheWriteInputTokenCount", cacheWrite},
		// Mistral, DeepSeek, Qwen, OpenAI's open models, AI21 Jamba.
		{"usage.prompt_tokens", input},
		{"usage.completion_tokens", output},
		{"usage.total_tokens", total},
		// Meta Llama.
		{"prompt_token_count", input},
		{"generation_token_count", output},
		// Amazon Titan.
		{"inputTextTokenCount", input},
		{"results[].tokenCount", moreOutput},
	},
)

// bedrockInvoke serves InvokeModel and InvokeModelWithResponseStream.
var bedrockInvoke = dialect{
	json: newTable([]place{{"type", kind}}, invokeUsage, failureAt("error")),
	events: newTable([]place{
		{"type", kind},
		{"message.usage", usageBegin},
		{"content_block", block},
		{"content_block.name", called},
		{"content_block.data", sealed},
		{"delta.text", generated},
		{"delta.signature", sealed},
		{"delta.thinking", thought},
		{"delta.partial_json", arguments},
		{"delta.stop_reason", finish},
		// Amazon Nova. Its first event holds nothing but the role.
		{"messageStart.role", status},
		{"metadata.usage.inputTokens", input},
		{"metadata.usage.outputTokens", output},
		{"metadata.usage.cacheReadInputTokenCount", cacheRead},
		{"metadata.usage.cacheWriteInputTokenCount", cacheWrite},
		{"contentBlockDelta.delta.text", generated},
		{"contentBlockDelta.delta.toolUse.input", arguments},
		{"contentBlockDelta.delta.reasoningContent.text", thought},
		// Amazon Titan, Meta Llama, Cohere, Mistral, Anthropic's text completions,
		// and those like OpenAI.
		{"outputText", generated},
		{"totalOutputTextTokenCount", output},
		{"generation", generated},
		{"text", generated},
		{"generations[].text", generated},
		{"outputs[].text", generated},
		{"completion", generated},
		{"choices[].delta.content", generated},
		{"choices[].delta.reasoning_content", thought},
		{"choices[].delta.tool_calls[].function.arguments", arguments},
		// AWS adds these to the last event of every model.
		{"amazon-bedrock-invocationMetrics.inputTokenCount", metricInput},
		{"amazon-bedrock-invocationMetrics.outputTokenCount", metricOutput},
		{"amazon-bedrock-invocationMetrics.cacheReadInputTokenCount", metricRead},
		{"amazon-bedrock-invocationMetrics.cacheWriteInputTokenCount", metricWrite},
	}, invokeUsage, under("message.usage", anthropicUsage), failureAt("error")),
	headers: []place{
		{"x-amzn-bedrock-input-token-count", input},
		{"x-amzn-bedrock-output-token-count", output},
		{"x-amzn-bedrock-cache-read-input-token-count", cacheRead},
		{"x-amzn-bedrock-cache-write-input-token-count", cacheWrite},
	},
	event: invokeEvent,
	answer: func(m *Meter, e *event) {
		if e.told = e.counts.some(); e.told {
			m.counts.reset() // the headers may count what the cache held twice
		}
		m.takeUsage(e)
		if e.failed {
			m.fail(e)
		}
	},
	normal:  bedrockNormal,
	frames:  true,
	rates:   anthropicRates, // most are of its models
	wrapped: true,
}

// invokeEvent takes over an event of whatever model.
func invokeEvent(m *Meter, e *event) {
	last := e.counts.takeMetrics(&m.counts)
	e.told = e.counts.some()
	m.takeUsage(e)
	if e.failed {
		m.fail(e)
		return
	}
	m.shown.plus(&e.shown)
	m.final = m.final || last
	m.terminal = m.terminal || last
	switch string(e.kind.bytes()) {
	case "message_start", "ping":
	case "message_delta":
		m.final = m.final || e.told && e.finished
		m.content = true
	default:
		m.content = m.content || e.status.n == 0
	}
}

// takeMetrics puts the metrics of an event in the place of usage that neither it
// nor those before, whose numbers are before, have told: they are the same
// tokens, told once more. It reports whether there are metrics. What the input
// leaves to the cache goes with the input.
func (c *counts) takeMetrics(before *counts) bool {
	if c[metricInput] < 0 && c[metricOutput] < 0 {
		return false
	}
	if c[input] < 0 && before[input] < 0 {
		c[input], c[cacheRead], c[cacheWrite] = c[metricInput], c[metricRead], c[metricWrite]
	}
	if c[output] < 0 && before[output] < 0 {
		c[output] = c[metricOutput]
	}
	for s := metricInput; s <= metricWrite; s++ {
		c[s] = -1
	}
	return true
}
