package meter

import "github.com/authpool/authpool/ratelimit/usage"

// The results of a batch are lines, one JSON text for each of its requests, in
// any order. Each is billed by itself, at the batch's price.

// anthropicBatchResults are the lines of Message Batches: beside succeeded there
// are errored, canceled and expired ones, which are not billed. Source:
// @anthropic-ai/sdk 1.12.0, batches.d.ts.
var anthropicBatchResults = dialect{
	json: newTable(),
	events: newTable([]place{
		{"custom_id", customID},
		{"result.type", kind},
		{"result.message.model", model},
		{"result.message.usage", usageBegin},
	}, under("result.message.usage", anthropicUsage)),
	event: func(m *Meter, e *event) {
		if string(e.kind.bytes()) == "succeeded" && e.customID != "" {
			m.tellItem(e, (*Meter).takeUsage)
		}
	},
	answer: func(*Meter, *event) {},
	normal: anthropicNormal,
	lines:  true,
	media:  true,
}

// openAIBatchOutput are the lines of a batch's output file. The bodies are those
// of the chat, completions, Responses or embeddings API, whose usage objects
// have no name in common but total_tokens, and of no other meaning. Any file has
// the same URL: what has not all of custom_id, a good status and a usage at their
// places is not a batch's and is passed over. Source: openai 6.49.0,
// batches.d.ts, and openapi.yaml, BatchRequestOutput.
var openAIBatchOutput = dialect{
	json: newTable(),
	events: newTable([]place{
		{"custom_id", customID},
		{"response.status_code", answered},
		{"response.body.model", model},
		{"response.body.service_tier", tier},
		{"response.body.usage", usageBegin},
	}, under("response.body.usage", chatUsage), under("response.body.usage", responsesCounts), responsesItems("response.body.output[]")),
	event: func(m *Meter, e *event) {
		if e.answered/100 == 2 && e.customID != "" && e.told && e.counts.some() {
			m.tellItem(e, (*Meter).replaceUsage)
		}
	},
	answer: func(*Meter, *event) {},
	normal: normalOpenAI,
	lines:  true,
	media:  true,
}

// tellItem tells of one finished request of a batch, whose usage take takes over.
func (m *Meter) tellItem(e *event, take func(*Meter, *event)) {
	e.service.Tier, e.service.tiered = usage.TierBatch, true
	m.tell(e.customID, e, take)
}

// tell tells of one finished request, which has this id.
func (m *Meter) tell(id string, e *event, take func(*Meter, *event)) {
	m.forgetUsage()
	m.takeModel(e)
	take(m, e)
	m.final, m.content = m.told, true
	m.searches = e.searches
	r := m.Result()
	r.Billable = true
	if m.item != nil {
		m.item(Item{CustomID: id, Result: r})
	}
	m.forgetUsage()
}
