package meter

import (
	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/ratelimit/usage"
)

// anthropicUsage is the usage object of the Messages API. input_tokens does not
// hold the cache's tokens, thinking_tokens is a part of output_tokens. Source:
// @anthropic-ai/sdk 1.12.0, messages.d.ts.
var anthropicUsage = append([]place{
	{"server_tool_use.web_search_requests", webSearches},
	{"server_tool_use.web_fetch_requests", webFetches},
	{"service_tier", tier},
	{"speed", speed},
	{"inference_geo", geo},
	{"iterations[]", iterBegin},
	{"iterations[].type", iterKind},
	{"iterations[].model", iterModel},
}, append(anthropicCounts, under("iterations[]", anthropicCounts)...)...)

var anthropicCounts = []place{
	{"input_tokens", input},
	{"output_tokens", output},
	{"output_tokens_details.thinking_tokens", reasoning},
	{"cache_read_input_tokens", cacheRead},
	{"cache_creation_input_tokens", cacheWrite},
	{"cache_creation.ephemeral_5m_input_tokens", cacheWrite5m},
	{"cache_creation.ephemeral_1h_input_tokens", cacheWrite1h},
}

var anthropicMessages = dialect{
	json: newTable([]place{{"type", kind}, {"model", model}, {"usage", usageBegin}},
		under("usage", anthropicUsage), failureAt("error")),
	events: newTable([]place{
		{"type", kind},
		{"message.model", model},
		{"message.usage", usageBegin},
		{"usage", usageBegin},
		{"content_block", block},
		{"content_block.name", called},
		{"content_block.data", sealed}, // redacted thinking
		{"delta.text", generated},
		{"delta.thinking", thought},
		{"delta.signature", sealed}, // holds the thinking, whether shown or not
		{"delta.partial_json", arguments},
		{"delta.stop_reason", finish},
	}, under("message.usage", anthropicUsage), under("usage", anthropicUsage), failureAt("error")),
	event:  anthropicEvent,
	answer: anthropicAnswer,
	normal: anthropicNormal,
	rates:  anthropicRates,
}

var anthropicRates = rates{block: 4, call: 36, sealedBase: 260, sealedRate: 188}

// anthropicEvent takes over an event. Usage stands in message_start, whole, and
// in message_delta, where every field that is not null replaces the one before:
// they are running totals, the last of which comes with the reason for the end.
func anthropicEvent(m *Meter, e *event) {
	switch string(e.kind.bytes()) {
	case "message_start":
		m.takeModel(e)
		m.takeUsage(e)
	case "message_delta":
		m.takeUsage(e)
		m.final = m.final || e.told && e.finished
		m.content = true
	case "ping":
	case "message_stop":
		m.terminal, m.content = true, true
	default:
		if e.failed {
			m.fail(e)
			return
		}
		m.content = true
		m.shown.plus(&e.shown)
	}
}

func anthropicAnswer(m *Meter, e *event) {
	m.takeModel(e)
	m.takeUsage(e)
	m.final = m.final || e.told
	if e.failed {
		m.fail(e)
	}
}

// splitWrites completes the cache writes of c, a usage object that follows one
// with the numbers of before. Where the object tells the writes by their life,
// that split counts, and its sum is the number of writes. Where it tells only
// the number, what goes beyond the writes split before has a life of five
// minutes, the default.
func (c *counts) splitWrites(before *counts) {
	all := c[cacheWrite]
	if c[cacheWrite5m] >= 0 || c[cacheWrite1h] >= 0 {
		if sum := c.at(cacheWrite5m) + c.at(cacheWrite1h); sum > 0 || all <= 0 {
			c[cacheWrite5m], c[cacheWrite1h] = c.at(cacheWrite5m), c.at(cacheWrite1h)
			return
		}
	}
	if all < 0 {
		return
	}
	long := min(before.at(cacheWrite1h), all)
	c[cacheWrite1h] = long
	c[cacheWrite5m] = all - long
}

func anthropicNormal(c *counts) usage.Tokens {
	return usage.Tokens{
		Input:        c.at(input),
		Output:       c.at(output),
		CacheRead:    c.at(cacheRead),
		CacheWrite5m: c.at(cacheWrite5m),
		CacheWrite1h: c.at(cacheWrite1h),
		Reasoning:    min(c.at(reasoning), c.at(output)),
	}
}

// iteration is one entry of usage.iterations: a turn that the provider made by
// itself within this answer. Those of type message are what the top level adds
// up; a compaction or an advisor's turn is not in there.
//
// With server-side fallback the top level is only of the model that served,
// whose last turn is the one fallback_message. Then turns of type message that
// have another model are of models that declined, and paid for at their own
// price if they had begun to answer. (Source: Anthropic's guide of refusals and
// fallback. That some declined prompts cost although nothing was answered
// depends on the reason, and is not counted.)
type iteration struct {
	open   bool
	kind   name
	model  string
	counts counts
}

// maxOthers bounds the further models of one answer; their usage beyond it is
// added to the last.
const maxOthers = 8

func (e *event) readIteration(m *Meter, s slot, v *jsonscan.Value) {
	it := &e.iter
	switch {
	case s == iterKind:
		it.kind.set(v.Raw)
	case s == iterModel && v.Kind == jsonscan.String:
		it.model = m.keepModel(v)
	case s == iterBegin && v.Kind == jsonscan.ObjectBegin:
		if v.Index == 0 {
			e.forgetIterations()
		}
		*it = iteration{open: true}
		it.counts.reset()
	case s == iterBegin && v.Kind == jsonscan.ObjectEnd:
		it.open = false
		e.addIteration()
	}
}

func (e *event) forgetIterations() {
	e.others, e.turns, e.served, e.extra = nil, nil, "", usage.Tokens{}
}

// addIteration takes over a finished iteration.
func (e *event) addIteration() {
	var none counts
	none.reset()
	it := &e.iter
	it.counts.splitWrites(&none)
	t := anthropicNormal(&it.counts)
	switch kind := string(it.kind.bytes()); {
	case kind == "fallback_message":
		e.served = it.model
	case kind == "message" && (it.model == "" || t.Output == 0):
		// In the top level, or declined without a beginning.
	case kind == "message":
		e.turns = addModel(e.turns, it.model, t)
	case it.model == "":
		e.extra = addUp(e.extra, t)
	default:
		e.others = addModel(e.others, it.model, t)
	}
}

// addDeclined adds the turns of models that declined, which are known as such
// when it is known that another model served.
func (e *event) addDeclined() {
	for _, turn := range e.turns {
		if e.served != "" && turn.Model != e.served {
			e.others = addModel(e.others, turn.Model, turn.Tokens)
		}
	}
}

// addModel adds a model's usage to a list with one entry for each.
func addModel(list []ModelTokens, model string, t usage.Tokens) []ModelTokens {
	for i := range list {
		if list[i].Model == model || i == maxOthers-1 {
			list[i].Tokens = addUp(list[i].Tokens, t)
			return list
		}
	}
	return append(list, ModelTokens{model, t})
}

// addUp adds t to a sum, up to maxSum.
func addUp(sum, t usage.Tokens) usage.Tokens {
	sum = sum.Add(t)
	for _, n := range [...]*int64{&sum.Input, &sum.Output, &sum.CacheRead, &sum.CacheWrite5m, &sum.CacheWrite1h, &sum.Reasoning} {
		*n = min(*n, maxSum)
	}
	return sum
}

// anthropicComplete is the legacy Text Completions API. It tells no usage.
var anthropicComplete = dialect{
	json: newTable([]place{{"model", model}, {"completion", generated}}, failureAt("error")),
	events: newTable([]place{
		{"type", kind},
		{"model", model},
		{"completion", generated},
		{"stop_reason", finish},
	}, failureAt("error")),
	event: func(m *Meter, e *event) {
		m.takeModel(e)
		m.shown.plus(&e.shown)
		m.content = m.content || e.content || e.finished
		m.terminal = m.terminal || e.finished
		if e.failed {
			m.fail(e)
		}
	},
	answer: func(m *Meter, e *event) {
		m.takeModel(e)
		if e.failed {
			m.fail(e)
		}
	},
	normal: anthropicNormal,
}
