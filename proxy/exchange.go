package proxy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/proxy/agentconn"
	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tap"
	"github.com/authpool/authpool/proxy/upstream"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// exchange is one agent's request and its answer: all that the steps of the
// handler share. It is used by the connection's goroutine alone, except for
// left, and goes back to its pool when the answer has ended.
type exchange struct {
	s        *Server
	settings *settings // that it began with

	// The request.
	id       string
	start    time.Time
	conn     *agentconn.Conn
	via      *via               // nil: it came to authpool's own address
	other    provider.Authority // of a request in absolute form that is for a host which is no provider's
	agent    string
	limits   *agents.Entry // of the agent; nil: it has none
	entered  *agents.Entry // the same, once the request was counted as under way
	budgeted *agents.Entry // the agent that the request was counted for, until it ends
	provider *provider.Provider
	family   provider.Family // in whose shape errors are told
	info     provider.Call
	request  upstreamRequest
	leave    *leaveContext
	onLeave  func(closed bool) // ex.left, made once
	onItem   func(meter.Item)  // ex.countItem, made once

	// The attempts.
	waiting  atomic.Int64 // for a subscription since then (ns of the epoch), 0: not; the only thing here that another goroutine may read
	attempts int          // sent
	executed int          // of those, how many a provider may have worked on
	refused  int
	kept     *kept
	foreign  string // the subscription that was refused last for where the request comes from

	// The attempt.
	lease        *pool.Lease
	call         upstream.Call
	calling      bool // call holds an answer
	failure      error
	judged       bool // the lease has its verdict
	judgedLate   bool // and knows of an error behind the content
	status       int
	stream       bool // the answer is an event stream
	headVerdict  ratelimit.Verdict
	headBuf      []byte
	windows      []ratelimit.Window // memory for the classifier's
	organisation []byte             // the same
	errorText    errorBody
	disguise     disguised

	// The answer on its way back.
	meter     meter.Meter
	tap       tap.Tap
	tapping   bool
	mask      [1][]byte
	held      []byte // bytes read before the answer was begun
	tail      []byte
	opened    bool         // the journal waits for what the attempt comes to
	informed  bool         // and knows its input
	told      usage.Tokens // what it knows
	settled   bool
	ended     bool
	agentGone bool
	broken    bool  // something panicked
	cut       error // why the answer ended early
	items     int   // requests of a batch that were counted
	tokens    usage.Tokens
	estimated bool
	turns     int // of a WebSocket, that were counted

	story  story
	bound  *bound // made when it is needed first
	making bool   // the answer may make account-bound things, and bound reads it
	owner  string // the one subscription that has what the request names; empty: any
}

func newExchange(s *Server) *exchange {
	ex := &exchange{s: s, leave: new(leaveContext)}
	ex.onLeave, ex.onItem = ex.left, ex.countItem
	return ex
}

// left is called by the agent's connection as soon as the agent is gone. closed
// tells that authpool has closed it, to stop: then nothing is read on either.
func (ex *exchange) left(closed bool) {
	ex.leave.cancel()
	if closed || !ex.settings.DrainOnLeave {
		ex.call.Cancel()
	}
}

// buffers are what answers are read into: as large as what a socket usually
// holds at once, since every stream has one while it waits.
var buffers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}

// begin makes ex ready for a request.
func (ex *exchange) begin(conn *agentconn.Conn) {
	ex.conn = conn
	if conn != nil {
		if ex.via, _ = conn.Said().(*via); ex.via != nil {
			ex.via.asked.Store(true)
		}
	}
	ex.settings = ex.s.settings.Load()
	ex.start = time.Now()
	ex.leave = ex.leave.next()
	ex.call.Reset()
	if conn != nil {
		conn.OnLeave(ex.onLeave)
	}
}

// end gives ex back. Nothing of the request may be used afterwards.
func (ex *exchange) end() {
	if ex.conn != nil {
		ex.conn.OnLeave(nil)
		ex.conn.HeadEnded()
	}
	if ex.budgeted != nil {
		ex.budgeted.End()
	}
	if ex.entered != nil {
		ex.entered.Leave()
	}
	s := ex.s
	if cap(ex.held) > 2*holdLimit {
		ex.held = nil
	}
	clear(ex.mask[0])
	// What is reused is kept by name; everything else begins anew.
	ex.id, ex.conn, ex.via, ex.agent, ex.provider, ex.family = "", nil, nil, "", nil, 0
	ex.limits, ex.entered, ex.budgeted = nil, nil, nil
	ex.other = provider.Authority{}
	ex.info, ex.request = provider.Call{}, upstreamRequest{}
	ex.attempts, ex.executed, ex.refused, ex.kept, ex.foreign = 0, 0, 0, nil, ""
	ex.lease, ex.failure, ex.judged, ex.status, ex.stream = nil, nil, false, 0, false
	ex.windows, ex.organisation = ex.headVerdict.Windows[:0], ex.headVerdict.Organisation[:0]
	ex.headVerdict = ratelimit.Verdict{}
	ex.held, ex.tail = ex.held[:0], ex.tail[:0]
	ex.judgedLate, ex.opened, ex.informed, ex.settled, ex.ended, ex.agentGone, ex.cut = false, false, false, false, false, false, nil
	ex.items, ex.turns, ex.tokens, ex.estimated, ex.making = 0, 0, usage.Tokens{}, false, false
	ex.disguise.reset(nil)
	ex.story.reset()
	if !ex.broken {
		s.exchanges.Put(ex)
	}
	s.inFlight.Done()
	requestsInFlight.Dec()
}
