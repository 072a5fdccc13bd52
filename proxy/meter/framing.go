package meter

import (
	"bytes"

	"github.com/authpool/authpool/proxy/tap"
)

// framing is how an answer's body is put together.
type framing uint8

const (
	unknownFraming framing = iota
	jsonFraming            // one JSON text
	sseFraming             // server-sent events
	linesFraming           // one JSON text a line
	arrayFraming           // a JSON array that grows: each element is an event
	frameFraming           // AWS' event stream
	messageFraming         // one JSON text in each message of a WebSocket
	opaqueFraming          // nothing in it can be read
)

// contentTypes are the media types that name a framing. Those of JSON texts in
// lines were never registered: x-ndjson is Ollama's, stream+json Cohere's, the
// others are in use for batch results.
var contentTypes = []struct {
	name    string
	framing framing
}{
	{"text/event-stream", sseFraming},
	{"application/x-ndjson", linesFraming},
	{"application/ndjson", linesFraming},
	{"application/stream+json", linesFraming},
	{"application/jsonl", linesFraming},
	{"application/x-jsonl", linesFraming},
	{"application/json-lines", linesFraming},
	{"application/jsonlines", linesFraming},
	{"application/vnd.amazon.eventstream", frameFraming},
}

// declared returns the framing that a Content-Type names, or unknownFraming.
func declared(contentType []byte) framing {
	name, _, _ := bytes.Cut(contentType, []byte{';'})
	name = bytes.TrimSpace(name)
	for i := range contentTypes {
		if c := &contentTypes[i]; foldedEqual(name, c.name) {
			return c.framing
		}
	}
	return unknownFraming
}

// foldedEqual compares ASCII text with lower, without regard to case.
func foldedEqual(text []byte, lower string) bool {
	if len(text) != len(lower) {
		return false
	}
	for i, c := range text {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// Streams tells whether an answer of this dialect and Content-Type is delivered
// piece by piece while it is made: its head must go on at once, its first
// events may say no more than that the provider is at work, and it may end in an
// error although its status was good.
func Streams(api API, contentType []byte) bool {
	switch declared(contentType) {
	case sseFraming, frameFraming:
		return true
	case linesFraming:
		return !api.Items() // their lines were all there before the first was sent
	default:
		return api == GeminiStream
	}
}

// sniff finds the framing by the first byte that is not white space, and
// returns the rest of p. What the Content-Type says counts only where the byte
// leaves it open: some servers send a stream, or an error, under another name.
func (m *Meter) sniff(p []byte) []byte {
	for i, c := range p {
		if c == ' ' || c == '\t' || c == '\r' || c == '\n' {
			continue // DeepSeek keeps waiting agents busy with blank lines
		}
		d := m.dialect
		switch {
		case c == '{' && (d.lines || m.declared == linesFraming):
			m.framing = linesFraming
		case c == '[' && d.array != nil:
			m.framing = arrayFraming
			m.begin(d.array)
		case c == '{' || c == '[':
			m.framing = jsonFraming
			m.begin(d.json)
		case d.frames && c <= 1: // of a message's length, which is below 32 MiB
			m.framing = frameFraming
			if m.frames == nil {
				m.frames = new(frames)
			}
			m.frames.reset()
		case m.declared == sseFraming || !d.media:
			m.framing = sseFraming
		default:
			m.framing = opaqueFraming
		}
		return p[i:]
	}
	return nil
}

// readText reads on in a single JSON text, whether it is the answer or an array
// of events.
func (m *Meter) readText(p []byte) {
	if m.terminal {
		return
	}
	m.scanner.Write(p)
}

func (m *Meter) readEvents(p []byte) {
	for len(p) > 0 {
		what, data, n := m.events.Next(p)
		p = p[n:]
		switch what {
		case tap.Data:
			m.readData(data)
		case tap.End:
			m.event.reset()
			m.seen = 0
		default:
		}
	}
}

// endMark is the data of the event that ends an OpenAI stream.
const endMark = "[DONE]"

// readData reads a part of an event's data. An event counts as soon as its JSON
// is complete, before the blank line that lets the agent act on it.
func (m *Meter) readData(data []byte) {
	if m.seen == 0 {
		m.begin(m.dialect.events)
	}
	if m.seen < len(endMark) {
		n := min(len(data), len(endMark)-m.seen)
		if string(data[:n]) != endMark[m.seen:m.seen+n] {
			m.seen = len(endMark) // no end mark
		} else if m.seen += n; m.seen == len(endMark) && m.dialect.endMark {
			m.terminal, m.final = true, true
		}
	}
	m.scanner.Write(data)
}

// readLines reads events of one line each. As in a stream of server-sent events
// each counts as soon as its JSON is complete; a line that is none is passed
// over.
func (m *Meter) readLines(p []byte) {
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte{'\n'})
		if m.seen == 0 {
			m.begin(m.dialect.events)
			m.seen = 1
		}
		m.scanner.Write(line)
		if ended {
			m.event.reset()
			m.seen = 0
		}
		p = rest
	}
}

// begin makes m ready for a JSON text.
func (m *Meter) begin(t *table) {
	m.table = t
	m.scanner.Reset(t.paths, m)
}

// complete is called where the JSON text of an event, or of the answer, ends.
func (m *Meter) complete() {
	switch m.framing {
	case jsonFraming:
		m.dialect.answer(m, &m.event)
		m.terminal = true
		m.content = m.content || !m.failed
	case frameFraming, messageFraming:
		m.event.whole = true // and counts once the checksum is known, or the message has ended
	default:
		m.dialect.event(m, &m.event)
	}
}
