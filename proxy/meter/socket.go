package meter

import (
	"strconv"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// Socket reads what is said on a WebSocket of a provider: JSON texts, one in each
// message, that are the events of many turns, one behind the other. A turn is one
// answer of the model, and is counted like one. The texts may come in pieces of any
// size, those of both sides in any order; nothing of them is kept, so that memory is as
// constant as a Meter's. Reset comes first. A Socket is not safe for concurrent use.
type Socket struct {
	api   API
	meter Meter // of the turn under way
	told  socketEvent
	open  bool
	asked string // the model that the upgrade, or the agent, has named last
	model string // asked for last, or of the session
	setup bool   // the session's model is known from the agent: it may say so once
	heard string // the model that writes down what is said

	agent  jsonscan.Scanner
	asking asking
}

// Heard is what a message of the provider said.
type Heard struct {
	// Begins and Ends say that it is the first, and the last, of a turn. Of one that
	// ends Result tells the usage until Next.
	Begins, Ends bool
	// Failed says that it tells an error, Failure. The turn, if there is one, ends with
	// it only when Ends says so.
	Failed  bool
	Failure Failure
	// Limits are what is left of the provider's limits; valid until the next message.
	Limits []Limit
	// Beside is what another model has used beside all turns; nil: none has.
	Beside *Result
}

// Limit is a limit that refills, as a Realtime session tells it.
type Limit struct {
	Name       string // "requests", "tokens"
	Size, Left float64
	Reset      float64 // in how many seconds it is full again
}

// Asked is what a message of the agent said.
type Asked struct {
	// Begins says that it asks the model for an answer, and Named that it names a model.
	// Model is the one that is asked, as far as is known.
	Begins, Named bool
	Model         string
	// Twice says that it names its model more than once.
	Twice bool
	// Ends says that the turn under way has told its usage and goes on with another
	// answer, which is counted by itself: the message brings what a tool has said.
	Ends bool
}

// Reset makes s ready for another socket. model is what the upgrade names, or empty.
func (s *Socket) Reset(api API, model string) {
	s.api, s.asked, s.model, s.setup, s.heard = api, model, model, false, ""
	s.Next()
}

// Next says that a turn has been counted: another may begin.
func (s *Socket) Next() {
	s.open = false
	s.meter.Reset(s.api, Options{Model: s.model})
	s.meter.framing = messageFraming
	s.meter.event.socket = &s.told
}

// Open tells whether a turn is under way.
func (s *Socket) Open() bool { return s.open }

// Result is what the turn has told so far; see Meter.Result.
func (s *Socket) Result() Result { return s.meter.Result() }

// EstimateOutput is that of a turn that was cut; see Meter.EstimateOutput. Sound is
// counted by the text that is told of it, where that is.
func (s *Socket) EstimateOutput() int64 { return s.meter.EstimateOutput() }

// Model is the one that was asked for last, or the session's; empty: not told.
func (s *Socket) Model() string { return s.model }

// Asked is Model by the name that the agent knows it by, where it has named one: a
// provider calls the same model otherwise, by its date for instance.
func (s *Socket) Asked() string {
	if s.asked != "" {
		return s.asked
	}
	return s.model
}

// Begin says that a message of the provider begins.
func (s *Socket) Begin() {
	s.meter.event.reset()
	s.meter.begin(s.meter.dialect.events)
}

// Write reads the next piece of the provider's message.
func (s *Socket) Write(p []byte) { s.meter.Write(p) }

// End says that the provider's message has ended, and what it said. One that is no JSON
// object says nothing.
func (s *Socket) End() Heard {
	m := &s.meter
	e := &m.event
	if !e.whole {
		return Heard{}
	}
	if e.socket.model != "" {
		s.model = e.socket.model
		m.asked = s.model
	}
	if e.socket.heard != "" {
		s.heard = e.socket.heard
	}
	h := Heard{Limits: e.socket.limits[:e.socket.count]}
	m.dialect.event(m, e)
	told := e.socket
	h.Begins, h.Ends = told.begins && !s.open, told.ends && (s.open || told.begins)
	h.Failed, h.Failure = told.failed, told.failure
	s.open = s.open || told.begins
	if told.beside {
		h.Beside = &Result{
			Model: s.heard, State: Reported, Billable: true, Spoken: true,
			Tokens: m.dialect.normal(&e.counts),
		}
		h.Beside.Units.Seconds = e.counts.at(seconds)
	}
	return h
}

// AgentBegin says that a message of the agent begins.
func (s *Socket) AgentBegin() {
	s.asking = asking{at: modelPath(s.api)}
	s.agent.Reset(askingPaths, &s.asking)
}

// AgentWrite reads the next piece of the agent's message.
func (s *Socket) AgentWrite(p []byte) { s.agent.Write(p) }

// AgentEnd says that the agent's message has ended, and what it said.
func (s *Socket) AgentEnd() Asked {
	a := &s.asking
	create := s.api != GeminiLive && a.kind.is("response.create")
	if a.model != "" {
		s.asked = a.model
		if create && s.api == OpenAIResponsesSocket || s.api == GeminiLive && !s.setup {
			s.model, s.setup = a.model, true
			if !s.open {
				s.meter.asked = a.model
			}
		}
	}
	asked := Asked{Named: a.model != "", Model: s.model, Twice: a.models > 1}
	if asked.Named {
		asked.Model = a.model
	}
	switch s.api {
	case GeminiLive:
		asked.Begins = a.turn
		if asked.Ends = a.tools && s.open && s.meter.told; asked.Ends {
			s.meter.final = true
		}
	default:
		asked.Begins = create
	}
	return asked
}

// AgentOpens says that the turn which the agent's last message asks for is under way.
func (s *Socket) AgentOpens() { s.open = true }

// asking is what a message of an agent holds.
type asking struct {
	at     int // the place of the model
	kind   name
	model  string
	models int // how often it is named
	turn   bool
	tools  bool
}

// modelPath is where a message of an agent names a model. What stands at the others'
// places is for no provider to see.
func modelPath(api API) int {
	switch api {
	case OpenAIRealtime:
		return atSessionModel
	case GeminiLive:
		return atSetupModel
	default:
		return atModel
	}
}

// The places in the messages of agents. Google's fields may be written either way
// (protobuf's JSON).
const (
	atKind = iota
	atModel
	atSessionModel
	atSetupModel
	atTurn
	atTurnElse
	atTools
	atToolsElse
)

var askingPaths = jsonscan.MustCompile([]string{
	atKind: "type", atModel: "model", atSessionModel: "session.model", atSetupModel: "setup.model",
	atTurn: "clientContent.turnComplete", atTurnElse: "client_content.turn_complete",
	atTools: "toolResponse", atToolsElse: "tool_response",
}...)

// Found implements jsonscan.Handler.
func (a *asking) Found(v *jsonscan.Value) {
	switch v.Path {
	case atKind:
		a.kind.set(v.Raw)
	case atTurn, atTurnElse:
		a.turn = v.Kind == jsonscan.True
	case atTools, atToolsElse:
		a.tools = a.tools || v.Kind == jsonscan.ObjectBegin
	case a.at:
		if v.Kind == jsonscan.ObjectEnd || v.Kind == jsonscan.ArrayEnd {
			return
		}
		a.models++
		if v.Kind == jsonscan.String {
			a.model = text(v)
		}
	default:
	}
}

func (n *name) is(text string) bool { return string(n.bytes()) == text }

// maxLimits bounds the limits of one message; a session has two.
const maxLimits = 8

// socketEvent is what an event of a socket tells beside its usage, and what its
// dialect makes of that.
type socketEvent struct {
	model, heard string
	working      bool // the model is
	ended        bool
	spoken       bool
	limits       [maxLimits]Limit
	count        int

	begins, ends, failed, beside bool
	failure                      Failure
}

func (e *socketEvent) read(s slot, v *jsonscan.Value) {
	l := &e.limits[max(e.count-1, 0)]
	switch s {
	case turnBegun:
		e.working = e.working || v.Kind == jsonscan.ObjectBegin
	case turnEnded:
		e.ended = e.ended || v.Kind == jsonscan.True
	case sessionModel:
		if v.Kind == jsonscan.String {
			e.model = text(v)
		}
	case spokenModel:
		if v.Kind == jsonscan.String {
			e.heard = text(v)
		}
	case spoken:
		e.spoken = e.spoken || v.Kind == jsonscan.Number && string(v.Raw) != "0"
	case modality:
		e.spoken = e.spoken || v.Kind == jsonscan.String && string(v.Raw) != "TEXT"
	case limitBegin:
		if v.Kind == jsonscan.ObjectBegin && e.count < maxLimits {
			e.count++
			e.limits[e.count-1] = Limit{Left: -1}
		}
	case limitName:
		if v.Kind == jsonscan.String {
			l.Name = text(v)
		}
	case limitSize:
		l.Size = float(v, l.Size)
	case limitLeft:
		l.Left = float(v, l.Left)
	case limitReset:
		l.Reset = float(v, l.Reset)
	default:
	}
}

// float is the number v, else old.
func float(v *jsonscan.Value, old float64) float64 {
	if v.Kind != jsonscan.Number {
		return old
	}
	if f, err := strconv.ParseFloat(string(v.Raw), 64); err == nil && f >= 0 && f < maxSum {
		return f
	}
	return old
}

// fails says that the event tells an error.
func (e *event) fails() {
	e.socket.failed, e.socket.failure = true, e.failure
}
