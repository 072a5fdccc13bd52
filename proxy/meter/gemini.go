package meter

import (
	"slices"

	"github.com/authpool/authpool/ratelimit/usage"
)

// geminiUsage is the usageMetadata of Gemini and Vertex. The cached part is
// inside promptTokenCount; thoughts and the prompts of tools stand beside the
// others. A count of zero is left out. responseTokenCount is the Live API's name
// of candidatesTokenCount. Source: @google/genai 2.32.0, genai.d.ts.
var geminiUsage = []place{
	{"usageMetadata", usageBegin},
	{"usageMetadata.promptTokenCount", input},
	{"usageMetadata.toolUsePromptTokenCount", toolInput},
	{"usageMetadata.cachedContentTokenCount", cacheRead},
	{"usageMetadata.candidatesTokenCount", output},
	{"usageMetadata.responseTokenCount", output},
	{"usageMetadata.thoughtsTokenCount", reasoning},
	{"usageMetadata.totalTokenCount", total},
	{"usageMetadata.serviceTier", tier}, // Gemini
	{"usageMetadata.trafficType", tier}, // Vertex
}

// geminiResponse is a GenerateContentResponse, whole or a piece of a stream.
var geminiResponse = append([]place{
	{"modelVersion", model},
	{"candidates[].finishReason", finish},
	{"promptFeedback.blockReason", finish}, // then there are no candidates
	{"candidates[].content.parts[].text", generated},
	{"candidates[].content.parts[].functionCall.name", called},
	{"candidates[].content.parts[].functionCall.args", arguments},
	{"candidates[].content.parts[].*", something},
}, geminiUsage...)

// geminiPlaces are those of an answer or event. Code Assist, which Gemini CLI
// uses after a login, wraps the response.
var geminiPlaces = slices.Concat(geminiResponse, under("response", geminiResponse), failureAt("error"))

// gemini serves generateContent and streamGenerateContent.
var gemini = dialect{
	json:   newTable(geminiPlaces),
	events: newTable(geminiPlaces),
	array:  newArrayTable(geminiPlaces),
	event:  geminiEvent,
	answer: geminiEvent,
	normal: geminiNormal,
}

// geminiEvent takes over a piece of a stream, or a whole answer. Nearly every
// piece has a usage, whose counts are running totals.
//
// A stream of server-sent events has no event that ends it, and a finish reason
// does not tell either: some models give one in every piece. Its end is that of
// the body, which is read before the agent is told of it; that of an array is
// its bracket.
func geminiEvent(m *Meter, e *event) {
	m.takeModel(e)
	m.takeUsage(e)
	if e.failed {
		m.fail(e)
		return
	}
	m.shown.plus(&e.shown)
	m.content = m.content || e.content || e.finished
	m.final = m.final || e.finished
}

func geminiNormal(c *counts) usage.Tokens {
	prompt := c.at(input)
	read := min(c.at(cacheRead), prompt)
	return usage.Tokens{
		Input:     prompt - read + c.at(toolInput),
		Output:    c.at(output) + c.at(reasoning),
		CacheRead: read,
		Reasoning: c.at(reasoning),
	}
}

// geminiEmbed serves embedContent and batchEmbedContents. Models before
// gemini-embedding-2 tell no usage.
var geminiEmbed = dialect{
	json:   newTable(geminiUsage, failureAt("error")),
	events: newTable(failureAt("error")),
	event:  takeAnswer,
	answer: takeAnswer,
	normal: geminiNormal,
}

// vertexPredict serves Vertex' predict: text embeddings tell the tokens of each
// text, Imagen's pictures count as they are. Sources: Vertex AI's references of
// text embeddings and of Imagen.
var vertexPredict = dialect{
	json: newTable([]place{
		{"predictions[].embeddings.statistics.token_count", moreInput},
		{"predictions[].bytesBase64Encoded", image},
	}, failureAt("error")),
	events: newTable(failureAt("error")),
	event:  takeAnswer,
	answer: func(m *Meter, e *event) {
		e.told = e.counts.some()
		takeAnswer(m, e)
	},
	normal: geminiNormal,
}
