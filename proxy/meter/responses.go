package meter

import (
	"bytes"
	"slices"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// responsesUsage is the usage object of the Responses API. xAI's has a
// num_sources_used beside: pages that searches returned, which are not charged.
// Its searches are items of the output as OpenAI's. Source: openai 6.49.0,
// responses.d.ts.
var responsesUsage = append([]place{{"total_tokens", total}}, responsesCounts...)

var responsesCounts = []place{
	{"input_tokens", input},
	{"output_tokens", output},
	{"input_tokens_details.cached_tokens", cacheRead},
	{"input_tokens_details.cache_write_tokens", cacheWrite},
	{"output_tokens_details.reasoning_tokens", reasoning},
}

// openAIResponses serves /responses and /responses/compact.
var openAIResponses = dialect{
	json: newTable([]place{{"model", model}, {"status", status}, {"service_tier", tier}, {"usage", usageBegin}}, responseAt(""),
		under("usage", responsesUsage), responsesItems("output[]"), failureAt("error")),
	events:  newTable(responsesPlaces),
	event:   responsesEvent,
	answer:  responsesAnswer,
	normal:  normalOpenAI,
	endMark: true, // from OpenRouter
	rates:   rates{fine: true, call: 10, sealedBase: 750, sealedRate: 143},
}

// responsesPlaces are those of an event.
var responsesPlaces = slices.Concat([]place{
	{"type", kind},
	{"response.model", model},
	{"response.service_tier", tier},
	{"response.usage", usageBegin},
	{"delta", generated},
	{"item.name", called},
	{"item.encrypted_content", sealed},
	// An error event is flat by the API's description; Codex' backend wraps
	// the error and gives a status beside it.
	{"code", failCode},
	{"message", failMessage},
	{"status", failStatus},
}, responseAt("response."), under("response.usage", responsesUsage), responsesItems("item"), responsesItems("response.output[]"), failureAt("response.error"), failureAt("error"))

// responsesItems are the places that tell of a web search, where path is an item
// of the output. A search is charged, opening a page that it found is not.
func responsesItems(path string) []place {
	return append([]place{{path, item}}, under(path, []place{
		{"type", itemKind},
		{"action.type", itemAction},
	})...)
}

// outputItem is an item that is being read.
type outputItem struct {
	search bool // a web_search_call
	other  bool // that does something else than to search
}

func (e *event) readItem(s slot, v *jsonscan.Value) {
	switch {
	case s == itemKind:
		e.item.search = string(v.Raw) == "web_search_call"
	case s == itemAction:
		e.item.other = string(v.Raw) != "search"
	case v.Kind == jsonscan.ObjectBegin:
		e.item = outputItem{}
	case v.Kind == jsonscan.ObjectEnd:
		if e.item.search && !e.item.other {
			e.searches++
		}
	}
}

// responsesEvent takes over an event. Usage counts in the events that end the
// answer; those before carry null there. A background response goes on when its
// stream is cut, or breaks off with an error: what it uses is told when it is
// fetched, and nothing is told here until it has ended.
func responsesEvent(m *Meter, e *event) {
	switch kind := e.kind.bytes(); string(kind) {
	case "response.created", "response.queued", "response.in_progress", "codex.rate_limits":
		m.takeModel(e)
		m.takeBackground(e)
		m.accepted = m.background != ""
	// response.done has ended the responses of a socket (openai/codex).
	case "response.completed", "response.done", "response.incomplete", "response.cancelled":
		m.takeModel(e)
		m.takeBackground(e)
		m.accepted = false
		m.replaceUsage(e)
		m.searches = max(m.searches, e.searches)
		m.content, m.terminal = true, true
	case "response.failed":
		m.takeModel(e)
		m.takeBackground(e)
		m.accepted = false
		m.replaceUsage(e)
		m.final = m.told
		m.fail(e)
	case "error":
		m.fail(e)
	default:
		if e.failed {
			m.fail(e)
			return
		}
		m.content = true
		if string(kind) == "response.output_item.done" {
			m.searches += e.searches
		}
		m.shown.plus(responsesShown(kind, &e.shown))
	}
}

// responsesShown sorts what an event has shown by the event's type. An item
// begins with its name, and ends with its name again and its seal.
func responsesShown(kind []byte, g *generation) *generation {
	switch text := g.prose; {
	case bytes.HasSuffix(kind, []byte(".added")):
		g.sealed = 0
	case bytes.HasSuffix(kind, []byte(".done")):
		g.names, g.calls = 0, 0
	case bytes.Contains(kind, []byte("audio")): // its deltas are sound
		g.prose = deltas{}
	case bytes.Contains(kind, []byte("reasoning")):
		g.prose, g.thought = deltas{}, text
	case bytes.Contains(kind, []byte("_call_")): // arguments, input, code
		g.prose, g.args = deltas{}, text
	}
	return g
}

// responsesAnswer takes over a whole response. A background response that has
// not run yet is only accepted: what it will use is told when it is fetched.
func responsesAnswer(m *Meter, e *event) {
	takeAnswer(m, e)
	m.takeBackground(e)
	m.searches = e.searches
	switch string(e.status.bytes()) {
	case "queued", "in_progress":
		m.accepted = true
	}
}
