package meter

import "github.com/authpool/authpool/ratelimit/usage"

// ollamaUsage stands in the last line. Ollama leaves a count of zero out, and
// counts the tokens of the prompt that it evaluated: when the whole prompt was
// still in its cache there is no prompt_eval_count, and how long the prompt was
// is not known. Source: github.com/ollama/ollama, api/types.go, Metrics.
var ollamaUsage = []place{
	{"prompt_eval_count", input},
	{"eval_count", output},
}

// ollamaChat serves /api/chat and /api/generate. An answer in one piece looks
// like the last line of a stream, so that both are read as lines.
var ollamaChat = dialect{
	json: newTable(),
	events: newTable([]place{
		{"model", model},
		{"done", ended},
		{"message.content", generated},
		{"message.thinking", thought},
		{"message.tool_calls[].function.name", called},
		{"message.tool_calls[].function.arguments", arguments},
		{"response", generated},
		{"thinking", thought},
	}, ollamaUsage, failureAt("error")),
	event:  ollamaEvent,
	answer: takeAnswer,
	normal: normalOpenAI,
	lines:  true,
	rates:  rates{fine: true, call: 10},
}

func ollamaEvent(m *Meter, e *event) {
	m.takeModel(e)
	if e.failed {
		m.fail(e)
		return
	}
	m.shown.plus(&e.shown)
	m.content = m.content || e.content || e.finished
	if e.finished {
		e.told = true
		m.replaceUsage(e)
		m.terminal = true
		if m.inputless = e.counts[input] < 0 && e.counts[output] >= 0; m.inputless {
			m.shown = generation{} // there is nothing to estimate
		}
	}
}

// ollamaEmbed serves /api/embed, and /api/embeddings, which tells no usage.
var ollamaEmbed = dialect{
	json:   newTable([]place{{"model", model}}, ollamaUsage, failureAt("error")),
	events: newTable(failureAt("error")),
	event:  takeAnswer,
	answer: ollamaEmbedded,
	normal: func(c *counts) usage.Tokens { return usage.Tokens{Input: c.at(input)} },
}

func ollamaEmbedded(m *Meter, e *event) {
	e.told = true
	takeAnswer(m, e)
}
