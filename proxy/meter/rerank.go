package meter

import "github.com/authpool/authpool/ratelimit/usage"

// rerank serves the /rerank of Cohere, which charges by search units, of Voyage,
// which tells the total of tokens alone, and of Together.
var rerank = dialect{
	json: newTable([]place{
		{"model", model},
		{"meta", usageBegin},
		{"meta.billed_units.search_units", searchUnits},
		{"meta.billed_units.input_tokens", input},
		{"usage", usageBegin},
		{"usage.prompt_tokens", input},
		{"usage.completion_tokens", output},
		{"usage.total_tokens", total},
	}, failureAt("error")),
	events: newTable(failureAt("error")),
	event:  takeAnswer,
	answer: embeddingsAnswer,
	normal: func(c *counts) usage.Tokens {
		return usage.Tokens{Input: c.at(input), Output: c.at(output)}
	},
}
