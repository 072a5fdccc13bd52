package meter

import (
	"iter"

	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/proxy/tap"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Options say what is known of an answer before its body.
type Options struct {
	// ContentType is the answer's, read during Reset only. The body decides all
	// the same where it can be told from its first byte. May be nil.
	ContentType []byte
	// Model is the model asked for, told when the answer names none.
	Model string
	// Headers are those of the answer, for dialects that tell usage there; they
	// are read during Reset only. May be nil.
	Headers Headers
	// Item is called with each finished request that an answer of API.Items shows,
	// while Write runs: those of a batch's results, and a stored response if it was
	// made in the background. It is needed for those dialects and unused for others.
	Item func(Item)
}

// Headers are the headers of an answer: a *fasthttp.ResponseHeader is such, and
// costs nothing where nobody reads it.
type Headers interface {
	// All goes through names and values.
	All() iter.Seq2[[]byte, []byte]
}

// Meter reads one answer at a time. It is a tap.Sink: it is given the decoded
// bytes of the answer's body in pieces of any size, and keeps none of the text.
// It uses a few KiB, whatever the size of an event, and allocates only for what
// it tells (a model's name, an error) and, once, for AWS' event stream. The zero
// value is ready for Reset. It is not safe for concurrent use.
type Meter struct {
	dialect  *dialect
	asked    string // the model
	item     func(Item)
	listing  bool // the answer costs nothing, it tells of requests that did
	declared framing
	framing  framing
	events   tap.Events
	frames   *frames // nil until an answer is in frames, as few are
	scanner  jsonscan.Scanner

	table *table
	event event // what the event being read has told
	seen  int   // data bytes of the event being read

	// What the answer has told, from whole events (or the whole JSON text).
	counts   counts
	told     bool // some usage was told
	final    bool // no further usage is expected
	finished bool // a reason for the end was told
	content  bool
	terminal bool
	// The output is known and the input will not be, as Ollama leaves out the
	// count of a prompt that it had in its cache.
	inputless  bool
	accepted   bool   // the answer says that it costs nothing, as far as it goes
	background string // the response of the background that it shows
	blind      bool
	failed     bool
	spoken     bool // some of the tokens are no text
	begun      bool // of a socket's turn: the response has, or Gemini's end has come
	failure    Failure
	shown      generation
	service    service
	images     int64
	searches   int64
	model      string
	others     []ModelTokens
	extra      usage.Tokens // of iterations that the counts leave out
}

var _ tap.Sink = (*Meter)(nil)

// New returns a Meter for an answer.
func New(api API, o Options) *Meter {
	m := new(Meter)
	m.Reset(api, o)
	return m
}

// Reset makes m ready for another answer.
func (m *Meter) Reset(api API, o Options) {
	m.dialect = dialects[api]
	m.asked, m.item = o.Model, o.Item
	m.listing = api.Items()
	m.declared = declared(o.ContentType)
	m.framing = unknownFraming
	if m.dialect == nil {
		m.framing = opaqueFraming
	}
	m.events.Reset()
	m.table = nil
	m.event.reset()
	m.seen = 0
	m.content, m.terminal = false, false
	m.accepted, m.blind, m.failed = false, false, false
	m.background = ""
	m.failure = Failure{}
	m.shown = generation{}
	m.forgetUsage()
	if m.dialect != nil && m.dialect.headers != nil && o.Headers != nil {
		m.readHeaders(o.Headers)
	}
}

// forgetUsage makes m ready for another answer's usage.
func (m *Meter) forgetUsage() {
	m.counts.reset()
	m.told, m.final, m.finished, m.inputless = false, false, false, false
	m.service = service{}
	m.images, m.searches = 0, 0
	m.model = ""
	m.others, m.extra = nil, usage.Tokens{}
	m.spoken, m.begun = false, false
}

// readHeaders takes over usage told in the answer's headers. It is final, but a
// usage object in the body tells more and replaces it.
func (m *Meter) readHeaders(headers Headers) {
	for name, value := range headers.All() {
		for _, h := range m.dialect.headers {
			if !foldedEqual(name, h.path) {
				continue
			}
			if n, ok := number(value); ok {
				m.counts[h.slot] = n
				m.told, m.final = true, true
			}
		}
	}
}

// Write reads the next piece of the body. It implements tap.Sink.
func (m *Meter) Write(p []byte) {
	if m.blind || len(p) == 0 {
		return
	}
	if m.framing == unknownFraming {
		p = m.sniff(p)
	}
	switch m.framing {
	case jsonFraming, arrayFraming:
		m.readText(p)
	case sseFraming:
		m.readEvents(p)
	case linesFraming:
		m.readLines(p)
	case frameFraming:
		m.readFrames(p)
	case messageFraming:
		m.scanner.Write(p)
	case opaqueFraming:
		m.content = true
	default: // nothing but white space yet
	}
}

// Blind says that the rest of the body cannot be read. It implements tap.Sink.
func (m *Meter) Blind() {
	m.blind = true
	m.content = true // it goes on, whatever it is
}

// Close says that the body has ended. It implements tap.Sink. What was told
// stays readable until Reset.
func (m *Meter) Close() { m.blind = true }

// HasContent reports whether the answer's first content has been read, or what
// decides it otherwise. Events that say only that the provider is at work do
// not count: Anthropic's message_start and ping, the Responses API's created,
// queued and in_progress, Converse's messageStart, chat chunks with a role and no
// text, comments. A JSON answer has content when it is complete.
func (m *Meter) HasContent() bool { return m.content }

// Terminal reports whether the event that ends the answer has been read: what
// follows tells nothing more. A stream of a dialect that has no such event, and
// a body that cannot be read, never become terminal.
func (m *Meter) Terminal() bool { return m.terminal }

// Failure returns the error that the answer ended in, if it did. An error is
// not content.
func (m *Meter) Failure() (Failure, bool) { return m.failure, m.failed }

// Accepted reports whether the answer says that it costs nothing, as far as it has
// been read: see Result.Billable.
func (m *Meter) Accepted() bool { return m.accepted }

// Final reports whether the usage told so far may be all: the answer has said why
// it ends, or that it is whole. Some say so more than once, and tell more with
// each.
func (m *Meter) Final() bool { return m.told && m.final }

// InputKnown reports whether the input usage has been told.
func (m *Meter) InputKnown() bool { return m.told && m.counts[input] >= 0 }

// EstimateOutput returns about how many tokens the model has generated, by what
// its stream has shown so far. It is for streams that were cut, whose provider
// bills what it generated but can no longer say so.
//
// Text counts a token for each 4 bytes, the arguments of tool calls for each 2.5.
// Where a dialect sends a delta for each token, deltas are counted instead, as
// long as they are short. To that come the tokens of the frames that the model
// writes around a content block (Anthropic: 4) and a tool call (Anthropic: 36
// more; others: 10). Reasoning counts by its text where that is shown, and by
// the length of its sealed form where that is longer. Reasoning that is neither
// shown nor passed on sealed cannot be seen, and is missing. (Gemini, where it is
// not read, and others that send running totals tell what they miss themselves.)
//
// How good it is on the recorded streams of 10 tokens and more, as estimate
// divided by what the provider told:
//
//	                                   streams   10 %   median   90 %
//	no reasoning                            83   0.72     1.00   1.24
//	reasoning that is shown or sealed       30   0.37     0.92   1.10
//	reasoning that is neither               20   0.01     0.16   0.66
//	Messages API, no reasoning              25   0.75     1.00   1.13
//	Messages API, reasoning                  4   0.96     1.09   1.11
//	chat completions, no reasoning          23   0.64     0.94   1.14
//	chat completions, shown or sealed       12   0.37     0.92   1.10
//	Responses API, no reasoning              5   0.82     1.00   1.21
//	Responses API, shown or sealed          14   0.34     0.73   1.00
//	Bedrock, Converse                       11   0.72     1.08   1.29
//	Bedrock, InvokeModel                     9   1.00     1.19   1.50
//	cut after 25 % of its events            34   0.55     0.96   1.26
//	cut after 50 %                          34   0.76     1.00   1.13
//	cut after 75 %                          34   0.77     1.03   1.28
//
// The cut ones are those without reasoning and with at least 20 events, against
// the same part of the whole. TestEstimateOfRecordings measures it again. The
// numbers above were fitted to the same recordings, which are mostly English.
func (m *Meter) EstimateOutput() int64 {
	if m.dialect == nil {
		return 0
	}
	return m.shown.tokens(&m.dialect.rates)
}

// Result returns what the answer has told so far. Its slices are valid until
// the next call of Write, Result or Reset.
func (m *Meter) Result() Result {
	r := Result{
		Model:    m.model,
		Billable: !m.listing && !m.accepted && (!m.failed || m.content || m.final),
		Raw:      m.counts.raw(),
	}
	if !m.accepted {
		r.Background = m.background
	}
	if r.Model == "" {
		r.Model = m.asked
	}
	if m.told {
		r.State = Partial
		if m.final || m.terminal && !m.failed {
			r.State = Reported
		}
		if m.inputless {
			r.State = Partial
		}
		r.Tokens = m.dialect.normal(&m.counts).Add(m.extra)
		r.Others = m.others
	}
	r.Units, r.Spoken = m.unitsTold(), m.spoken
	r.Service = m.service.Service
	return r
}

// unitsTold returns what was told of usage that is not tokens.
func (m *Meter) unitsTold() usage.Units {
	return usage.Units{
		WebSearches: m.counts.at(webSearches) + m.searches,
		WebFetches:  m.counts.at(webFetches),
		Seconds:     m.counts.at(seconds),
		SearchUnits: m.counts.at(searchUnits),
		Images:      m.images,
	}
}
