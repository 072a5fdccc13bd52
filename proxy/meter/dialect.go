package meter

import (
	"strconv"

	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/ratelimit/usage"
)

// dialect is how an API tells its usage: tables of the places where things
// stand, and functions of what they mean. There is one file for each.
type dialect struct {
	json *table // of a whole answer
	sse  *table // of one event
	// event takes over what a complete event has told.
	event func(*Meter, *event)
	// answer does the same for a complete JSON answer.
	answer func(*Meter, *event)
	// normal brings the numbers to the normal form.
	normal func(*counts) usage.Tokens
	// endMark: a stream ends with the data [DONE].
	endMark bool
	// media: an answer may also be sound or plain text.
	media bool
}

var dialects = [...]*dialect{
	AnthropicMessages:    &anthropicMessages,
	AnthropicComplete:    &anthropicComplete,
	OpenAIChat:           &openAIChat,
	OpenAICompletions:    &openAIChat,
	OpenAIResponses:      &openAIResponses,
	OpenAIEmbeddings:     &openAIEmbeddings,
	OpenAIImages:         &openAIImages,
	OpenAITranscriptions: &openAITranscriptions,
	OpenAISpeech:         &openAISpeech,
	OpenAIOther:          nil,
}

// slot is what a value at a place means.
type slot uint8

// Numbers. Their slots are indexes of counts.
const (
	input slot = iota
	output
	total
	cacheRead
	cacheReadElse // a second name for cacheRead, used when that is absent
	cacheWrite
	cacheWrite5m
	cacheWrite1h
	reasoning
	webSearches
	webFetches
	seconds
	numCounts
)

// Everything else.
const (
	root slot = iota + numCounts // the JSON text itself
	ignored
	usageBegin // the usage object
	kind       // the event's type
	status     // of a response
	model
	generated // text from the model: content, and counted for the estimate
	something // content when it is anything but null, empty or false
	finish    // the reason for the end
	image     // one image made
	iterBegin // one of Anthropic's iterations
	iterKind
	iterModel
	failBegin // an error, as an object or as its text
	failKind
	failCode
	failDetail // a more precise code
	failMessage
	failStatus
	failResets
)

const (
	firstUnit = webSearches
	numUnits  = len(unitNames) + 1 // and images
)

var unitNames = [...]string{"web_search_requests", "web_fetch_requests", "seconds"}

// counts are numbers as told, by slot; -1 where none was.
type counts [numCounts]int64

func (c *counts) reset() {
	for i := range c {
		c[i] = -1
	}
}

// take overwrites every number that d has: the last one told counts.
func (c *counts) take(d *counts) {
	for i, n := range d {
		if n >= 0 {
			c[i] = n
		}
	}
}

// some reports whether any number was told.
func (c *counts) some() bool {
	for _, n := range c {
		if n >= 0 {
			return true
		}
	}
	return false
}

// read returns the tokens read from the cache, by whichever name.
func (c *counts) read() int64 {
	if c[cacheRead] < 0 {
		return c[cacheReadElse]
	}
	return c[cacheRead]
}

func (c *counts) raw() Raw {
	return Raw{
		Input: c[input], Output: c[output], Total: c[total],
		CacheRead:  c.read(),
		CacheWrite: c[cacheWrite], CacheWrite5m: c[cacheWrite5m], CacheWrite1h: c[cacheWrite1h],
		Reasoning: c[reasoning],
	}
}

// at returns the number in s, or 0 when none was told.
func (c *counts) at(s slot) int64 { return max(c[s], 0) }

// place says what stands at a path.
type place struct {
	path string
	slot slot
}

// table is a compiled list of places.
type table struct {
	paths *jsonscan.Paths
	slots []slot
}

const messageLimit = 1 << 10

func newTable(lists ...[]place) *table {
	paths := []string{""}
	t := &table{slots: []slot{root}}
	for _, list := range lists {
		for _, p := range list {
			paths = append(paths, p.path)
			t.slots = append(t.slots, p.slot)
		}
	}
	t.paths = jsonscan.MustCompile(paths...)
	for i, s := range t.slots {
		if s == failMessage {
			t.paths.Limit(i, messageLimit)
		}
	}
	return t
}

// under returns the places below prefix.
func under(prefix string, places []place) []place {
	moved := make([]place, len(places))
	for i, p := range places {
		moved[i] = place{prefix + "." + p.path, p.slot}
	}
	return moved
}

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
	failure  Failure
	text     int64
	images   int64
	iter     iteration
	extra    usage.Tokens // iterations of the same model
	others   []ModelTokens
}

// name is a short text that is compared, not kept: an event's type.
type name struct {
	text [40]byte
	n    int
}

func (n *name) set(v *jsonscan.Value) {
	n.n = 0
	if len(v.Raw) <= len(n.text) {
		n.n = copy(n.text[:], v.Raw)
	}
}

func (n *name) bytes() []byte { return n.text[:n.n] }

func (e *event) reset() {
	e.kind.n, e.status.n = 0, 0
	e.model = ""
	e.counts.reset()
	e.told, e.content, e.finished, e.failed = false, false, false, false
	e.failure = Failure{}
	e.text, e.images = 0, 0
	e.iter.open = false
	e.extra = usage.Tokens{}
	e.others = nil
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
	case usageBegin:
		e.told = e.told || v.Kind == jsonscan.ObjectBegin
	case kind:
		e.kind.set(v)
	case status:
		e.status.set(v)
	case model:
		if v.Kind == jsonscan.String && v.End-v.Start > 2 {
			e.model = m.keepModel(v)
		}
	case generated:
		if v.Kind == jsonscan.String {
			if n := v.End - v.Start - 2; n > 0 {
				e.text += n
				e.content = true
			}
		}
	case something:
		switch v.Kind {
		case jsonscan.String:
			e.content = e.content || v.End-v.Start > 2
		case jsonscan.Number, jsonscan.True, jsonscan.ObjectBegin:
			e.content = true
		}
	case finish:
		e.finished = e.finished || v.Kind == jsonscan.String
	case image:
		if v.Kind == jsonscan.ObjectBegin {
			e.images++
		}
	case iterBegin, iterKind, iterModel:
		e.readIteration(m, s, v)
	case failBegin, failKind, failCode, failDetail, failMessage, failStatus, failResets:
		e.readFailure(s, v)
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
	if string(raw) == m.options.Model {
		return m.options.Model
	}
	return string(raw)
}

// takeModel makes the event's model the answer's.
func (m *Meter) takeModel(e *event) {
	if e.model != "" {
		m.model = e.model
	}
}

// replaceUsage takes over a whole usage object, as OpenAI's dialects tell it:
// the last one counts, alone.
func (m *Meter) replaceUsage(e *event) {
	if e.told && e.counts.some() {
		m.counts = e.counts
		m.told = true
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
