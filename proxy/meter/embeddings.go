package meter

import "github.com/authpool/authpool/ratelimit/usage"

// openAIEmbeddings has input only. Voyage tells nothing but the total.
var openAIEmbeddings = dialect{
	json: newTable([]place{
		{"model", model},
		{"usage", usageBegin},
		{"usage.prompt_tokens", input},
		{"usage.total_tokens", total},
	}, failureAt("error")),
	events: newTable(failureAt("error")),
	event:  takeAnswer,
	answer: embeddingsAnswer,
	normal: func(c *counts) usage.Tokens { return usage.Tokens{Input: c.at(input)} },
}

func embeddingsAnswer(m *Meter, e *event) {
	if e.counts[input] < 0 {
		e.counts[input] = e.counts[total]
	}
	takeAnswer(m, e)
}
