package meter

import "github.com/authpool/authpool/proxy/jsonscan"

// A response that is made in the background goes on at OpenAI whoever reads it.
// The answer that begins it tells only that it was accepted, or is a stream that
// may be left and resumed; from then on each answer that shows the response tells
// the whole of it: its id, that it is made in the background, its status and, when
// that is final, its usage. So any number of answers may tell the same usage, and
// which of them is read first, or ever, is not known. Source: openai 6.49.0,
// responses.d.ts, Response and ResponseRetrieveParams.

// responseAt are the places of a response object at path, which ends with a dot
// or is empty, that tell whether it is made in the background.
func responseAt(path string) []place {
	return []place{{path + "id", responseID}, {path + "background", background}}
}

// responseName is the id of a response.
type responseName struct {
	text [192]byte // OpenAI's have 55 bytes, those that gateways make of them are longer
	n    int
}

// set takes over v. An id that is too long is none: nothing is claimed by a part
// of it.
func (r *responseName) set(v *jsonscan.Value) {
	r.n = 0
	if v.Kind == jsonscan.String && !v.Truncated && len(v.Raw) <= len(r.text) {
		r.n = len(jsonscan.Unquote(r.text[:0], v.Raw))
	}
}

// takeBackground takes over which response of the background an event shows, if
// it is one.
func (m *Meter) takeBackground(e *event) {
	if id := e.response.text[:e.response.n]; e.behind && len(id) > 0 && string(id) != m.background {
		m.background = string(id)
	}
}

// openAIStoredResponse serves a response that was made before: as it is stored, as
// the events that made it, or as it was cancelled. It was counted when it was made,
// unless that was in the background: then it is an item (see Options.Item).
var openAIStoredResponse = dialect{
	json:    openAIResponses.json,
	events:  openAIResponses.events,
	event:   storedEvent,
	answer:  storedAnswer,
	normal:  normalOpenAI,
	endMark: true,
}

// storedEvent takes over an event. An error among them is not this answer's: it
// was told when the response was made, and says nothing of what is available now.
func storedEvent(m *Meter, e *event) {
	m.content = true
	m.takeBackground(e)
	switch string(e.kind.bytes()) {
	case "response.completed", "response.incomplete":
		m.tellStored(e)
		m.terminal = true
	case "response.cancelled", "response.failed":
		m.tellStoppedStored(e)
		m.terminal = true
	}
}

// storedAnswer takes over a whole response.
func storedAnswer(m *Meter, e *event) {
	m.takeBackground(e)
	switch string(e.status.bytes()) {
	case "completed", "incomplete":
		m.tellStored(e)
	case "cancelled", "failed":
		m.tellStoppedStored(e)
	}
}

// tellStoppedStored is tellStored for a response that did not come to its end. If
// it tells no usage it may have used nothing, or what it has used is told later:
// the answer that cancels it comes before all is added up.
func (m *Meter) tellStoppedStored(e *event) {
	if e.told && e.counts.some() {
		m.tellStored(e)
	}
}

// tellStored tells of a response that was made in the background.
func (m *Meter) tellStored(e *event) {
	if m.background != "" {
		m.tell(m.background, e, (*Meter).replaceUsage)
	}
}
