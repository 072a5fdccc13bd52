package meter

import (
	"strconv"

	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/ratelimit/usage"
)

// event is what one event, or a whole JSON answer, has told. It is taken over
// only when it is complete, because its type may stand at its end.
type event struct {
	kind     name
	status   name
	model    string
	counts   counts
	told     bool // it has a usage object
	content  bool
	finished bool
	failed   bool
	whole    bool // of a frame: its JSON text is complete
	behind   bool // of a response: it is made in the background
	failure  Failure
	shown    generation
	service  service
	images   int64
	item     outputItem
	searches int64 // made by the provider
	customID string
	answered int64
	iter     iteration
	write    cacheWriting
	extra    usage.Tokens // iterations of the same model
	others   []ModelTokens
	turns    []ModelTokens // of models that may have declined
	served   string        // the model that did instead
	response responseName  // which response it shows
	socket   *socketEvent  // nil: it came on no socket
}

// name is a short text that is compared, not kept: an event's type.
type name struct {
	text [40]byte
	n    int
}

func (n *name) set(text []byte) {
	n.n = 0
	if len(text) <= len(n.text) {
		n.n = copy(n.text[:], text)
	}
}

func (n *name) bytes() []byte { return n.text[:n.n] }

func (e *event) reset() {
	e.kind.n, e.status.n, e.response.n = 0, 0, 0
	e.behind = false
	e.model = ""
	e.counts.reset()
	e.told, e.content, e.finished, e.failed = false, false, false, false
	e.whole = false
	e.failure = Failure{}
	e.shown = generation{}
	e.service = service{}
	e.images, e.searches = 0, 0
	e.customID, e.answered = "", 0
	e.iter.open = false
	if e.socket != nil {
		*e.socket = socketEvent{}
	}
	e.forgetIterations()
}

// Found implements jsonscan.Handler.
func (m *Meter) Found(v *jsonscan.Value) {
	e := &m.event
	s := m.table.slots[v.Path]
	if s < numCounts {
		if v.Kind == jsonscan.Number {
			if n, ok := number(v.Raw); ok {
				if e.iter.open {
					e.iter.counts[s] = n
				} else {
					e.counts[s] = n
				}
			}
		}
		return
	}
	switch s {
	case root:
		if v.Kind == jsonscan.ObjectEnd || v.Kind == jsonscan.ArrayEnd {
			m.complete()
		}
	case element:
		switch v.Kind {
		case jsonscan.ObjectBegin:
			e.reset()
		case jsonscan.ObjectEnd:
			m.complete()
		default:
		}
	case list:
		m.terminal = m.terminal || v.Kind == jsonscan.ArrayEnd
	case usageBegin:
		e.told = e.told || v.Kind == jsonscan.ObjectBegin
	case kind:
		e.kind.set(v.Raw)
	case status:
		e.status.set(v.Raw)
	case responseID:
		e.response.set(v)
	case background:
		e.behind = v.Kind == jsonscan.True
	case model:
		if v.Kind == jsonscan.String && v.End-v.Start > 2 {
			e.model = m.keepModel(v)
		}
	case generated, thought, arguments, called, sealed:
		whole := v.Kind == jsonscan.String || v.Kind == jsonscan.ObjectEnd // some arguments are an object
		if whole && v.End-v.Start > 2 {
			e.content = true
			m.readShown(s, v)
		}
	case block:
		if v.Kind == jsonscan.ObjectBegin {
			e.shown.blocks++
		}
	case something:
		switch v.Kind {
		case jsonscan.String:
			e.content = e.content || v.End-v.Start > 2
		case jsonscan.Number, jsonscan.True, jsonscan.ObjectBegin:
			e.content = true
		default:
		}
	case finish:
		e.finished = e.finished || v.Kind == jsonscan.String
	case ended:
		e.finished = v.Kind == jsonscan.True
	case tier, speed, geo:
		e.service.read(s, v)
	case item, itemKind, itemAction:
		e.readItem(s, v)
	case customID:
		e.customID = ""
		if v.Kind == jsonscan.String {
			e.customID = text(v)
		}
	case answered:
		e.answered = 0
		if v.Kind == jsonscan.Number {
			e.answered, _ = number(v.Raw)
		}
	case image:
		if v.Kind == jsonscan.ObjectBegin || v.Kind == jsonscan.String {
			e.images++
		}
	case moreInput:
		e.counts.add(input, v)
	case moreOutput:
		e.counts.add(output, v)
	case writeBegin, writeLife, writeCount:
		e.readWrite(s, v)
	case iterBegin, iterKind, iterModel:
		e.readIteration(m, s, v)
	case turnBegun, turnEnded, sessionModel, spokenModel, spoken, modality, limitBegin, limitName, limitSize, limitLeft, limitReset:
		e.socket.read(s, v)
	case failBegin, failKind, failCode, failDetail, failMessage, failStatus, failResets,
		failResetsIn, failReason, failDelay, failQuota, failSource, failUpstream, failModerated:
		e.readFailure(s, v)
	default:
	}
}

// maxSum bounds what is added up: more than any number has, and far from an
// overflow.
const maxSum = 1e18

// add adds the number v to that in s.
func (c *counts) add(s slot, v *jsonscan.Value) {
	if n, ok := number(v.Raw); ok && v.Kind == jsonscan.Number {
		c[s] = min(c.at(s)+n, maxSum)
	}
}

// cacheWriting is one entry of a list of cache writes by their life.
type cacheWriting struct {
	n    int64
	hour bool
}

func (e *event) readWrite(s slot, v *jsonscan.Value) {
	w := &e.write
	switch {
	case s == writeLife:
		w.hour = string(v.Raw) == "1h"
	case s == writeCount && v.Kind == jsonscan.Number:
		if n, ok := number(v.Raw); ok {
			w.n = n
		}
	case s == writeBegin && v.Kind == jsonscan.ObjectBegin:
		*w = cacheWriting{}
	case s == writeBegin && v.Kind == jsonscan.ObjectEnd:
		life := cacheWrite5m
		if w.hour {
			life = cacheWrite1h
		}
		e.counts[life] = min(e.counts.at(life)+w.n, maxSum)
	}
}

// keepModel returns v's text, without allocating when it is known already.
func (m *Meter) keepModel(v *jsonscan.Value) string {
	raw := v.Raw
	var decoded [256]byte
	if v.Escaped {
		raw = jsonscan.Unquote(decoded[:0], raw)
	}
	if string(raw) == m.model {
		return m.model
	}
	if string(raw) == m.asked {
		return m.asked
	}
	return string(raw)
}

// takeModel takes over the model that served, and how it did.
func (m *Meter) takeModel(e *event) {
	m.service.take(&e.service)
	if e.model != "" {
		m.model = e.model
	}
}

// readShown counts a piece of what the model generated.
func (m *Meter) readShown(s slot, v *jsonscan.Value) {
	g := &m.event.shown
	switch s {
	case generated:
		g.prose.add(size(v))
	case thought:
		g.thought.add(size(v))
	case arguments:
		g.args.add(size(v))
	case called:
		g.names += size(v)
		g.calls++
	case sealed:
		g.sealed += m.dialect.rates.seal(v.End - v.Start - 2)
	default:
	}
}

// replaceUsage takes over a whole usage object, as OpenAI's dialects tell it:
// the last one counts, alone.
func (m *Meter) replaceUsage(e *event) {
	if e.told = e.told && e.counts.some(); e.told {
		m.counts = e.counts
		m.told = true
	}
}

// takeUsage merges a usage object into those before: every number that it has
// replaces the one told last. One without any, such as those of Vertex that name
// nothing but the tier, tells no usage.
func (m *Meter) takeUsage(e *event) {
	m.service.take(&e.service)
	if e.told = e.told && e.counts.some(); !e.told {
		return
	}
	m.told = true
	e.counts.splitWrites(&m.counts)
	m.counts.take(&e.counts)
	if e.served != "" {
		m.model = e.served // a stream begins with the name of the one that declined
	}
	e.addDeclined()
	if e.others != nil || e.extra != (usage.Tokens{}) {
		m.others, m.extra = e.others, e.extra
	}
}

// number reads a count. Fractions (seconds) are rounded up; a negative number
// is none.
func number(raw []byte) (int64, bool) {
	if len(raw) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range raw {
		if c < '0' || c > '9' {
			return decimal(raw)
		}
		n = n*10 + int64(c-'0')
	}
	return n, len(raw) > 0
}

func decimal(raw []byte) (int64, bool) {
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || !(f >= 0 && f < 1e15) {
		return 0, false
	}
	n := int64(f)
	if float64(n) < f {
		n++
	}
	return n, true
}
