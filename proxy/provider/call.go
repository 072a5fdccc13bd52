package provider

import "slices"

// Request is what Inspect reads. Nothing of it is kept: every string of a Call
// is a copy.
type Request struct {
	Provider *Provider
	Agent    string // the agent's id, which scopes hashed session ids
	Method   []byte
	Rest     []byte // Target.Rest
	Query    []byte // without its `?`
	Headers  Headers
	Body     []byte // as sent, perhaps compressed
	// Upgrade says that the request asks for a WebSocket.
	Upgrade bool
	// ProxyUser names the session of requests that came through HTTP(S)_PROXY, where
	// nothing in them does; empty: it does not.
	ProxyUser []byte
	// TokenSession is the session that stands behind the agent token, which counts after
	// all others; empty: none does.
	TokenSession string
}

// Call is what a request says about itself, as far as authpool acts on it.
type Call struct {
	// Endpoint is the manifest's row of the path; never nil.
	Endpoint *Endpoint
	// Shape is the family in whose shape errors are told to this agent. It can
	// differ from the provider's (OpenRouter serves /v1/messages).
	Shape Family
	// Model is the model asked for, cleaned by CleanModel; empty when the
	// request names none that can be read.
	Model string
	// Stream says that the answer is to be an event stream.
	Stream bool
	// Session is the conversation that the call belongs to.
	Session Session
	// Batch names what the answer shows requests of (meter.API.Items), within its
	// subscription: the id of a batch, of its output file, or of a response that was
	// made before. Empty for every other call.
	Batch string
	// Pins are the account-bound things that the request needs.
	Pins Pins
	// Makes says that the answer may name account-bound things that it has made:
	// see Made.
	Makes bool
	// Seals says that the answer may hold state that only the organisation which
	// serves can read, and that the conversation will send back (see
	// Pins.Organisation): the request asks for encrypted reasoning, compaction or
	// Anthropic's web search.
	Seals bool
	// Unsafe says that the call must not be sent again after a failure of the
	// provider, because the first one may have had its effect.
	Unsafe bool
	// RetryCount is how often the agent's SDK has already repeated this call.
	RetryCount int
	// MaxTokens is the limit that the request sets for its output; 0 is none.
	MaxTokens int64
	// Patch makes the stream tell its usage; empty when the request is to be
	// sent as it is.
	Patch Patch
}

// Session is one conversation of an agent.
type Session struct {
	// ID is cleaned by CleanSession and scoped by the agent. It is empty for
	// calls that belong to no conversation, such as listing models.
	ID string
	// Source is where the id was found: a header's or field's name, or `hash`.
	Source string
	// Parent is the id of the conversation that started this one, or empty.
	Parent string
}

// Pins are the things of a request that only one account, or one organisation,
// can serve.
type Pins struct {
	// IDs are the resources that the request names, at most 8, in the path's
	// and the body's order.
	IDs []string
	// Organisation says that the body holds state that only the organisation
	// which made it can read: encrypted reasoning, compaction items.
	Organisation bool
}

// maxPins bounds Pins.IDs: the owner of a few of them is the owner of all.
const maxPins = 8

// add adds an id that can stand in a Redis key, once.
func (p *Pins) add(id []byte) {
	if len(id) > 0 && len(id) <= maxWord && isWord(id) {
		p.addID(id)
	}
}

func (p *Pins) addID(id []byte) {
	id = plainID(id)
	if len(p.IDs) < maxPins && !slices.Contains(p.IDs, string(id)) {
		p.IDs = append(p.IDs, string(id))
	}
}

// Patch is one change of a request's body: Insert in place of Delete bytes at
// At. The bytes around it stay the agent's.
type Patch struct {
	At, Delete int
	Insert     string
}

// Empty tells whether the body stays as it is.
func (p Patch) Empty() bool { return p.Insert == "" }

// Length is that of the patched body, when the agent's has n bytes.
func (p Patch) Length(n int) int { return n - p.Delete + len(p.Insert) }

// Split cuts body where the patch goes: the patched body is before, Insert,
// after.
func (p Patch) Split(body []byte) (before, after []byte) {
	return body[:p.At], body[p.At+p.Delete:]
}
