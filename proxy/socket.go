package proxy

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // RFC 6455 says so; it proves nothing but that a WebSocket is spoken
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tap"
	"github.com/authpool/authpool/proxy/upstream"
	"github.com/authpool/authpool/proxy/websocket"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// A WebSocket is one request until the provider agrees to it: it takes the same steps,
// from admit to obtain, and may be tried on one subscription after another. From then on
// it stays with the one that it has. Its bytes pass unchanged; socket reads along and
// counts each turn, an answer of the model, as a request of its own, before the bytes
// that end it go to the agent.

// keyLength is that of the random bytes in Sec-WebSocket-Key, and acceptGUID what goes
// behind their text in the proof (RFC 6455, section 4).
const (
	keyLength  = 16
	acceptGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
)

// upgrades tells whether a request asks for another protocol, and refuses one that is
// no proper handshake of a WebSocket (RFC 6455, section 4.2.1).
func (ex *exchange) upgrades(h *fasthttp.RequestHeader, headers provider.Headers) (bool, *refusal) {
	if headers.Get("upgrade") == nil {
		return false, nil
	}
	no := func(status int, message string) (bool, *refusal) {
		code := codeBadRequest
		if status == fasthttp.StatusUpgradeRequired {
			code = codeUpgrade
		}
		return true, &refusal{status: status, code: code, message: message}
	}
	var keys, versions [][]byte
	connected := false
	for name, value := range headers.All() {
		switch {
		case equalFold(name, "sec-websocket-key"):
			keys = append(keys, value)
		case equalFold(name, "sec-websocket-version"):
			versions = append(versions, value)
		case equalFold(name, "connection"):
			for token := range strings.SplitSeq(string(value), ",") {
				connected = connected || strings.EqualFold(strings.TrimSpace(token), "upgrade")
			}
		}
	}
	switch {
	case !equalFold(headers.Get("upgrade"), "websocket"):
		return no(fasthttp.StatusUpgradeRequired, "the only other protocol spoken here is WebSocket; use plain HTTP/1.1")
	case !h.IsGet() || !h.IsHTTP11() || !connected:
		return no(fasthttp.StatusBadRequest, "a WebSocket is asked for by GET, HTTP/1.1 and Connection: Upgrade")
	case len(versions) != 1 || string(versions[0]) != "13":
		return no(fasthttp.StatusUpgradeRequired, "the version of WebSocket spoken here is 13")
	case len(keys) != 1 || !isSocketKey(keys[0]):
		return no(fasthttp.StatusBadRequest, "Sec-WebSocket-Key must be there once, and be 16 bytes in Base64")
	}
	return true, nil
}

func isSocketKey(key []byte) bool {
	var decoded [keyLength + 2]byte
	if base64.StdEncoding.DecodedLen(len(key)) > len(decoded) {
		return false
	}
	n, err := base64.StdEncoding.Decode(decoded[:], key)
	return err == nil && n == keyLength
}

// Why an answer to an upgrade is none that can be relayed.
var (
	errNoSwitch  = errors.New("it took the WebSocket's upgrade for a plain request")
	errAccept    = errors.New("its answer to the WebSocket's key is wrong")
	errExtension = errors.New("it wants a WebSocket extension that nobody has offered, and what it says then cannot be counted")
	errProtocol  = errors.New("it wants a WebSocket subprotocol that nobody has offered")
)

// isSocket tells whether the request asks for a WebSocket.
func (ex *exchange) isSocket() bool { return ex.request.head.Upgrade }

// switches looks at a provider's good answer to an upgrade.
func (ex *exchange) switches() ratelimit.Verdict {
	if ex.failure = ex.checkSwitch(); ex.failure != nil {
		ex.failure = &upstream.Error{Op: "open a WebSocket to", Addr: ex.provider.Host, Sent: true, Err: ex.failure}
		return ratelimit.Verdict{Signal: ratelimit.ServerError, Reason: ratelimit.ReasonUpstream, Scope: ratelimit.ScopeSubscription, Wait: -1, Row: "no WebSocket"}
	}
	return ratelimit.Verdict{Signal: ratelimit.OK, Row: "ok"}
}

// checkSwitch looks at a provider's 101.
func (ex *exchange) checkSwitch() error {
	if ex.status != fasthttp.StatusSwitchingProtocols {
		return errNoSwitch
	}
	headers := ex.request.head.Headers
	sum := sha1.Sum([]byte(string(headers.Get("sec-websocket-key")) + acceptGUID)) //nolint:gosec // see the import
	accept := base64.StdEncoding.EncodeToString(sum[:])
	accepts := 0
	for name, value := range ex.call.Header.All() {
		switch {
		case equalFold(name, "sec-websocket-accept"):
			if accepts++; string(value) != accept {
				return errAccept
			}
		case equalFold(name, "sec-websocket-extensions"):
			return errExtension
		case equalFold(name, "sec-websocket-protocol"):
			if !provider.OffersProtocol(headers, value) {
				return errProtocol
			}
		}
	}
	if accepts != 1 {
		return errAccept
	}
	return nil
}

// socket is a WebSocket that a provider has agreed to. What the agent says is relayed by
// one goroutine, what the provider says by another, which alone writes to the agent and
// owns the socket's end.
type socket struct {
	ex    *exchange
	agent net.Conn
	from  io.Reader // what the agent says
	up    net.Conn
	said  io.Reader     // what the provider says
	gone  atomic.Bool   // the agent is
	over  chan struct{} // closed when nothing more goes to the agent
	leave func()        // closes over, once
	may   func() bool   // tells whether the agent's token is still good; nil: it has none
	last  atomic.Int64  // when a byte came from either side (ns of the epoch)

	onward sync.Mutex // held while the agent's bytes are looked at and sent on; before mu

	mu       sync.Mutex // guards what follows, and the exchange while both goroutines run
	provider websocket.Reader
	client   *websocket.Reader
	turns    meter.Socket
	mask     tap.Mask // of messages
	aside    tap.Mask // of control frames, which may stand between a message's frames
	made     provider.Made
	named    provider.Named
	out      []byte    // what goes on of a piece
	plain    []byte    // what the agent said, in the clear
	begun    int       // turns
	number   int       // of the event begun last, from 1
	turn     int       // that of the turn under way
	began    time.Time // of the turn under way
	opened   bool
	budget   *agents.Entry // the agent that the turn was counted for; nil: nobody
	farewell *farewell     // authpool closes the socket
	ended    bool          // what comes is not looked at any more
	closing  bool          // the agent was sent a Close, by whomever
	retired  bool          // it ends with the turn under way
	count    int           // turns counted
	tokens   usage.Tokens
	windows  []ratelimit.Window
}

// farewell is a Close of authpool's own.
type farewell struct {
	code   uint16
	reason string
	until  time.Time // when it no longer waits for the end of a frame that is under way
}

// relaySocket has the connection relayed that obtain has got.
func (ex *exchange) relaySocket(ctx *fasthttp.RequestCtx) {
	resp := &ctx.Response
	resp.Header.SetNoDefaultContentType(true)
	resp.SetStatusCode(ex.status)
	copyHead(resp, ex.call.Header.All())
	ex.sign(resp)
	resp.Header.Set("Connection", "Upgrade")
	resp.Header.Set("Upgrade", "websocket")
	firstByteSeconds.WithLabelValues(ex.provider.Name).Observe(sinceSeconds(ex.start))
	if ex.budgeted != nil { // that was for asking; each turn counts by itself
		ex.budgeted.End()
		ex.budgeted = nil
	}
	head, may := bytes.Clone(resp.Header.Header()), ex.stillAgent()
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(c net.Conn) {
		from := &lent{r: c}
		defer from.giveBack(unwrap(c))
		sk := &socket{ex: ex, agent: c, from: from, client: websocket.NewClientReader(), over: make(chan struct{}), may: may}
		sk.leave = sync.OnceFunc(func() {
			ex.s.leaveSocket(sk)
			close(sk.over)
		})
		sk.serve(head)
	})
}

// serve relays until either side ends.
func (sk *socket) serve(head []byte) {
	ex := sk.ex
	defer func() {
		if p := recover(); p != nil {
			sk.leave()
			_ = ex.panicked(p)
			sk.abandon()
			ex.abandon()
		}
	}()
	sk.up, sk.said = ex.call.Switched()
	sk.turns.Reset(ex.info.Endpoint.API, ex.info.Model)
	sk.mask.Reset(ex.mask[:])
	sk.aside.Reset(ex.mask[:])
	sk.made.Reset(ex.provider.Family)
	sk.progress()
	if ex.conn != nil {
		ex.conn.HandOver()
		ex.conn.OnLeave(sk.left)
	}
	socketsOpen.WithLabelValues(ex.provider.Name).Inc()
	defer socketsOpen.WithLabelValues(ex.provider.Name).Dec()
	switch {
	case !ex.s.enterSocket(sk):
		sk.bye(websocket.GoingAway, stopping)
	case ex.s.draining.Load():
		sk.retire()
	}
	err := sk.write(head)
	done := make(chan struct{})
	if err == nil {
		go func() {
			defer close(done)
			sk.relayAgent()
		}()
		err = sk.relayProvider()
	} else {
		close(done)
	}
	left := sk.gone.Load() || ex.agentGone
	sk.mu.Lock()
	sk.ended = true // what the agent still says goes nowhere, and is no turn
	sk.mu.Unlock()
	sk.leave()
	sk.cut()
	if ex.conn != nil {
		if sk.closing {
			ex.conn.Linger() // else what the agent is still sending could overtake the Close
		}
		_ = ex.conn.Close()
	}
	<-done
	sk.finish(err, left)
}

// abandon ends what the socket has begun beside its exchange, when something panicked: a
// turn has used something, and nobody knows what.
func (sk *socket) abandon() {
	sk.mu.Lock()
	defer sk.mu.Unlock()
	sk.ended = true
	if sk.budget != nil {
		sk.budget.End()
		sk.budget = nil
	}
	if sk.opened {
		sk.opened = false
		e := sk.event(meter.Result{}, sk.turn)
		e.Estimated, e.Unknown, e.Unpriced = true, true, true
		sk.ex.add(e)
	}
}

// left is called as soon as the agent is gone.
func (sk *socket) left(bool) {
	sk.gone.Store(true)
	sk.ex.call.Cancel()
}

// progress notes that a byte has passed.
func (sk *socket) progress() { sk.last.Store(time.Now().UnixNano()) }

// idle is how long the socket may still be silent.
func (sk *socket) idle() time.Duration {
	return sk.ex.settings.Idle - time.Since(time.Unix(0, sk.last.Load()))
}

// bye has the socket closed as soon as no frame is under way. sk.mu need not be held.
func (sk *socket) bye(code uint16, reason string) {
	sk.mu.Lock()
	defer sk.mu.Unlock()
	sk.say(code, reason)
}

// say is bye with sk.mu held.
func (sk *socket) say(code uint16, reason string) {
	if sk.farewell == nil && !sk.ended {
		sk.farewell = &farewell{code, reason, time.Now().Add(sk.ex.s.farewellWait)}
		_ = sk.up.SetReadDeadline(time.Unix(1, 0)) // wakes relayProvider
	}
}

// stopping is said to agents at a stop.
const stopping = "authpool is stopping"

// retire has the socket closed when no turn is under way.
func (sk *socket) retire() {
	sk.mu.Lock()
	defer sk.mu.Unlock()
	if sk.retired = true; !sk.turns.Open() {
		sk.say(websocket.GoingAway, stopping)
	}
}

// recheck is how often it is looked whether the agent's token is still good, also in the
// middle of a turn.
const recheck = 5 * time.Second

// errClosed ends a socket that authpool closes.
var errClosed = errors.New("closed by authpool")

// relayProvider carries what the provider says, and the farewell.
func (sk *socket) relayProvider() error {
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	checked := time.Now()
	for {
		wait := sk.idle()
		if wait <= 0 {
			sk.bye(websocket.GoingAway, "authpool: nothing was said for as long as timeouts.idle allows")
		}
		if sk.may != nil {
			if time.Since(checked) >= recheck {
				checked = time.Now()
				if !sk.may() {
					sk.bye(websocket.Policy, "authpool: the agent token is no longer valid")
				}
			}
			wait = min(wait, recheck)
		}
		if err := sk.await(wait); err != nil {
			return err
		}
		n, err := sk.said.Read(*bp)
		var out []byte
		var rerr error
		if n > 0 {
			sk.progress()
			out, rerr = sk.hear((*bp)[:n])
		} else if err != nil {
			out, rerr = sk.hear(nil) // perhaps authpool closes the socket
		}
		if len(out) > 0 {
			if werr := sk.write(out); werr != nil {
				return werr
			}
		}
		switch {
		case rerr != nil:
			return rerr
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
	}
}

// await sets how long the provider may be silent, unless it is not waited for any more.
func (sk *socket) await(wait time.Duration) error {
	sk.mu.Lock()
	defer sk.mu.Unlock()
	if sk.farewell != nil {
		wait = 0
		if !sk.provider.Whole() {
			wait = time.Until(sk.farewell.until)
		}
	}
	return sk.up.SetReadDeadline(time.Now().Add(wait))
}

// farewellWait is how long a frame that is under way may take to its end when authpool
// closes the socket.
const farewellWait = time.Second

// write writes to the agent.
func (sk *socket) write(p []byte) error {
	err := sk.agent.SetWriteDeadline(time.Now().Add(sk.ex.settings.WriteStall))
	if err == nil {
		_, err = sk.agent.Write(p)
	}
	sk.ex.agentGone = err != nil
	return err
}

// relayAgent carries what the agent says, until the agent leaves or must not go on.
func (sk *socket) relayAgent() {
	defer func() {
		if p := recover(); p != nil {
			sk.ex.s.log.Error("BUG: a WebSocket failed", "request", sk.ex.id, "panic", p, "stack", string(debug.Stack()))
			sk.ex.call.Cancel()
		}
	}()
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	for sk.listens() {
		n, err := sk.from.Read(*bp)
		if n > 0 {
			sk.progress()
			on, werr := sk.passOn((*bp)[:n])
			if on < n {
				return
			}
			if werr != nil {
				sk.ex.call.Cancel()
				return
			}
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	sk.left(false)
}

// passOn sends on what may go of what the agent has said, and tells how much that is.
func (sk *socket) passOn(p []byte) (on int, err error) {
	sk.onward.Lock()
	defer sk.onward.Unlock()
	// Before listen, which is the last to look whether the socket has ended: then the
	// deadline of cut is the later one.
	err = sk.up.SetWriteDeadline(time.Now().Add(sk.ex.settings.Idle))
	on = sk.listen(p)
	if err == nil && on > 0 {
		_, err = sk.up.Write(p[:on])
	}
	return on, err
}

// cut ends the provider's side, once the agent's bytes that may go on have reached it, for
// which there is a moment: they can be what came before the message that ended the socket.
func (sk *socket) cut() {
	_ = sk.up.SetWriteDeadline(time.Now().Add(sk.ex.s.farewellWait))
	sk.onward.Lock()
	defer sk.onward.Unlock()
	sk.ex.call.Cancel()
}

// listens sets how long the agent may be silent; false when nobody listens to it any
// more: how long it then has is the connection's to say.
func (sk *socket) listens() bool {
	sk.mu.Lock()
	defer sk.mu.Unlock()
	return !sk.ended && sk.agent.SetReadDeadline(time.Now().Add(sk.ex.settings.Idle)) == nil
}

// listen reads along what the agent says, and returns how much of it goes on: all, or
// what stands before the message, or the fault, with which the agent must not go on.
func (sk *socket) listen(p []byte) int {
	sk.mu.Lock()
	defer sk.mu.Unlock()
	good := 0 // what goes on of p, whatever follows
	for at := 0; at < len(p); {
		if sk.farewell != nil || sk.ended {
			return good
		}
		piece, n, err := sk.client.Next(p[at:])
		if err != nil {
			sk.say(websocket.ProtocolError, "authpool: "+err.Error())
			return good
		}
		payload := p[at : at+n]
		message := !piece.Opcode.IsControl() && piece.Opcode != websocket.Continuation
		if message && piece.Begins {
			good = at
			sk.turns.AgentBegin()
			sk.named.Begin(sk.ex.provider.Family)
		}
		at += n
		if message && piece.Payload {
			sk.plain = append(sk.plain[:0], payload...)
			sk.client.Unmask(sk.plain, payload)
			sk.turns.AgentWrite(sk.plain)
			if sk.ex.settings.Isolate {
				sk.named.Write(sk.plain)
			}
		}
		if piece.Ends {
			if message && !sk.asked(sk.turns.AgentEnd()) {
				return good
			}
			good = at
		}
	}
	return len(p)
}

// asked judges a message of the agent, whose last bytes have not gone on yet.
func (sk *socket) asked(a meter.Asked) bool {
	ex := sk.ex
	if a.Ends {
		sk.settle(false)
	}
	if sk.ended || sk.farewell != nil {
		return false
	}
	if a.Twice { // who reads the first and who reads the last would judge two messages
		sk.refuse(provider.CodeDuplicateField, "a message names its model more than once")
		return false
	}
	if model := provider.SocketModel(a.Model); a.Named && ex.limits != nil && !ex.limits.MayModel(model) {
		sk.refuse(codeNotAllowed, "agent "+ex.agent+" may not use model "+strconv.Quote(model))
		return false
	}
	if one, ok := sk.foreign(); ok {
		sk.refuse(codeIsolated, "there is no "+one+" for agent "+ex.agent+" (agents.isolation: strict)")
		return false
	}
	if a.Begins && !sk.turns.Open() {
		if sk.retired {
			sk.say(websocket.GoingAway, stopping)
			return false
		}
		if no := sk.permit(); no != nil {
			sk.refuse(no.code, no.message)
			return false
		}
		sk.open()
		sk.turns.AgentOpens()
	}
	return true
}

// foreign is the first thing that the agent's message names and another agent has made.
func (sk *socket) foreign() (id string, ok bool) {
	ids := sk.named.IDs
	switch {
	case !sk.ex.settings.Isolate || len(ids) == 0:
		return "", false
	case sk.named.Unread:
		return "all that this message names", true
	}
	owned, sure := sk.ex.s.deps.Pool.Owners(context.Background(), sk.ex.provider.Name, ids)
	for _, one := range owned {
		if one.Agent != sk.ex.agent && one.Agent != "" {
			return one.ID, true
		}
	}
	if !sure {
		isolationUnsure.Inc()
	}
	return "", false
}

// refuse closes the socket for what its agent may not do.
func (sk *socket) refuse(code, message string) {
	sk.ex.auditRefusal(&refusal{code: code, message: message})
	sk.say(websocket.Policy, "authpool: "+message)
}

// permit counts a turn in, or says why it may not begin.
func (sk *socket) permit() *refusal {
	ex := sk.ex
	model := provider.SocketModel(sk.turns.Asked())
	if ex.limits != nil && !ex.limits.MayModel(model) {
		return &refusal{code: codeNotAllowed, message: "agent " + ex.agent + " may not use model " + strconv.Quote(model)}
	}
	if sk.begun > 0 { // obtain has counted the first
		if no := ex.brake(); no != nil {
			return no
		}
	}
	if ex.limits != nil {
		if over, ok := errors.AsType[*agents.OverError](ex.limits.Begin(time.Now())); ok {
			return &refusal{code: codeAgentBudget, message: over.Error()}
		}
		sk.budget = ex.limits
	}
	return nil
}

// open tells the journal that a turn is about to begin.
func (sk *socket) open() {
	sk.begun++
	sk.number++
	sk.turn, sk.began = sk.number, time.Now()
	e := sk.event(meter.Result{}, sk.turn)
	e.Unknown = true
	if err := sk.ex.s.deps.Recorder.Open(e); err == nil {
		sk.opened = true
	}
}

// event describes what was used, by its number.
func (sk *socket) event(r meter.Result, number int) usage.Event {
	e := sk.ex.event()
	e.ID += "/" + strconv.Itoa(number)
	e.Model, e.Tokens, e.Units = r.Model, r.Tokens, r.Units
	if e.Model == "" {
		e.Model = sk.turns.Model()
	}
	e.Model = provider.SocketModel(e.Model)
	return e
}

// add prices an event and records it.
func (sk *socket) add(e *usage.Event, r *meter.Result) {
	sk.ex.price(e, r.Service)
	e.Unpriced = e.Unpriced || r.Spoken // the table has no prices for sound
	sk.tokens = sk.tokens.Add(e.Tokens)
	sk.ex.add(*e)
}

// settle records the turn under way: before its last bytes go to the agent, or with cut
// when there will be none.
func (sk *socket) settle(cut bool) {
	r := sk.turns.Result()
	if r.Billable {
		e := sk.event(r, sk.turn)
		e.Unknown = r.State == meter.Absent
		if e.Estimated = cut || r.State == meter.Partial; e.Estimated {
			e.Tokens.Output = max(e.Tokens.Output, sk.turns.EstimateOutput())
		}
		sk.ex.estimated = sk.ex.estimated || e.Estimated
		sk.add(&e, &r)
		sk.opened = false
		sk.ex.lease.Turn(e.Tokens, sk.count == 0)
		sk.count++
		socketTurns.WithLabelValues(sk.ex.provider.Name, sk.ex.lease.Subscription().ID).Inc()
	} else if sk.opened {
		sk.opened = false
		if err := sk.ex.s.deps.Recorder.Void(sk.event(r, sk.turn).ID); err != nil {
			sk.ex.s.log.Debug("a turn that failed may be counted as unknown should authpool be killed", "request", sk.ex.id, "error", err)
		}
	}
	if sk.budget != nil {
		sk.budget.End()
		sk.budget = nil
	}
	sk.learn()
	sk.turns.Next()
}

// learn tells the pool what the turn has made.
func (sk *socket) learn() {
	ids := sk.made.IDs()
	if len(ids) == 0 {
		return
	}
	made := make([]pool.Made, len(ids))
	for i, id := range ids {
		made[i] = pool.Made{
			Resource: pool.Resource{ID: id, Subscription: sk.ex.lease.Subscription().ID, Agent: sk.ex.agent},
			Keep:     provider.KeepResource(id),
		}
	}
	sk.ex.s.deps.Pool.Learn(context.Background(), made)
	sk.made.Reset(sk.ex.provider.Family)
}

// exceeded tells why another turn may not begin, nil when it may.
func (sk *socket) exceeded() *refusal {
	ex := sk.ex
	if ex.limits == nil {
		return nil
	}
	over, ok := errors.AsType[*agents.OverError](ex.limits.Begin(time.Now()))
	if !ok {
		ex.limits.End()
		return nil
	}
	return &refusal{code: codeAgentBudget, message: over.Error()}
}

// hear reads along what the provider says and returns what may go to the agent. The
// error ends the socket behind it.
func (sk *socket) hear(p []byte) ([]byte, error) {
	sk.mu.Lock()
	defer sk.mu.Unlock()
	sk.out = sk.out[:0]
	whole := 0 // of out: what has been counted goes on, whatever follows
	for len(p) > 0 {
		if sk.farewell != nil && sk.provider.Whole() {
			break
		}
		piece, n, err := sk.provider.Next(p)
		if err != nil {
			// What cannot be read cannot be counted.
			sk.ended = true
			return sk.out[:whole], err
		}
		if err := sk.take(piece, p[:n]); err != nil {
			sk.ended = true
			return sk.out[:whole], err
		}
		if piece.Ends {
			whole = len(sk.out)
		}
		p = p[n:]
	}
	if sk.farewell == nil || !sk.provider.Whole() && time.Now().Before(sk.farewell.until) {
		return sk.out, nil
	}
	if sk.provider.Whole() && !sk.closing {
		sk.out = websocket.AppendClose(sk.out, sk.farewell.code, sk.farewell.reason)
		sk.closing = true
	}
	sk.ended = true
	return sk.out, errClosed
}

// take reads one piece of what the provider says, and puts it out.
func (sk *socket) take(piece websocket.Piece, p []byte) error {
	message := piece.Opcode == websocket.Text || piece.Opcode == websocket.Binary // Gemini sends its JSON as Binary
	if message && piece.Begins {
		sk.turns.Begin()
		sk.made.Begin()
	}
	mask := &sk.mask
	if !message {
		mask = &sk.aside
	}
	if !piece.Payload {
		sk.out = append(sk.out, p...)
	} else {
		if message {
			sk.turns.Write(p)
			sk.made.Write(p)
		}
		out, err := mask.Pass(p)
		if err != nil {
			return err
		}
		sk.out = append(sk.out, out...)
	}
	if piece.FrameEnds {
		out, err := mask.EndFrame(piece.Ends)
		if err != nil {
			return err
		}
		sk.out = append(sk.out, out...)
	}
	switch {
	case !piece.Ends:
	case message:
		sk.heard(sk.turns.End())
	case piece.Opcode == websocket.Close:
		sk.closing = true
		if f, ok := provider.CloseFailure(sk.provider.Closing()); ok {
			sk.limited(meter.Failure{Code: f.Code, Message: f.Message, Status: f.Status})
		}
	}
	return nil
}

// heard acts on a message of the provider, whose last bytes have not gone on yet.
func (sk *socket) heard(h meter.Heard) {
	ex := sk.ex
	if h.Begins { // unasked, as when somebody has spoken
		no := sk.permit()
		sk.open()
		if no != nil {
			sk.refuse(no.code, no.message) // what it has used is counted all the same
		}
	}
	if h.Failed {
		sk.limited(h.Failure)
	}
	if len(h.Limits) > 0 {
		sk.windows = provider.Buckets(sk.windows[:0], h.Limits, time.Now())
		ex.lease.Told(sk.windows)
	}
	if h.Beside != nil {
		sk.number++
		e := sk.event(*h.Beside, sk.number)
		e.Further = true
		sk.add(&e, h.Beside)
		ex.lease.Turn(e.Tokens, true)
	}
	if h.Ends {
		sk.settle(false)
	}
	switch {
	case sk.turns.Open() || !h.Ends && h.Beside == nil:
		return
	case sk.retired:
		sk.say(websocket.GoingAway, stopping)
		return
	}
	// Where the model begins turns by itself, or there are none, nothing else would stop it.
	if no := sk.exceeded(); no != nil {
		sk.refuse(no.code, no.message)
	}
}

// limited tells the pool of an error of the provider's, so that the next socket goes to
// another subscription; this one stays.
func (sk *socket) limited(f meter.Failure) {
	ex := sk.ex
	v := ex.classifyEvent(f)
	ex.story.Late(v)
	at := sk.began
	if at.IsZero() {
		at = ex.start
	}
	// The next socket is chosen by what its upgrade names: an alias of the model, or none.
	ex.lease.LateAt(ex.info.Model, at, v)
	if model := sk.event(sk.turns.Result(), sk.turn).Model; model != ex.info.Model {
		ex.lease.LateAt(model, at, v)
	}
}

// finish ends the exchange of a socket.
func (sk *socket) finish(err error, left bool) {
	ex := sk.ex
	sk.mu.Lock()
	defer sk.mu.Unlock()
	cut := sk.turns.Open()
	if cut {
		sk.settle(true)
	}
	if errors.Is(err, tap.ErrEcho) {
		ex.tellEcho(err)
	}
	ex.calling = false
	ex.call.Close()
	ex.lease.Done(usage.Tokens{})
	ex.tokens, ex.turns = sk.tokens, sk.count
	how, cause := "whole", ""
	switch {
	case sk.farewell != nil:
		how, cause = "closed", sk.farewell.reason
	case left && !sk.closing:
		how = "agent left"
		agentsLeft.Inc()
	case !sk.closing && !errors.Is(err, io.EOF) || cut:
		how, cause = "cut", errorText(err)
	}
	socketsClosed.WithLabelValues(ex.provider.Name, how).Inc()
	ex.log(ex.status, how, "", cause)
	ex.end()
}

// socketAttrs are what a log line says of a socket.
func (ex *exchange) socketAttrs() []slog.Attr {
	if ex.status != fasthttp.StatusSwitchingProtocols {
		return nil
	}
	return []slog.Attr{slog.Int("turns", ex.turns)}
}

// enterSocket remembers a socket, so that Shutdown can take leave of its agent; false
// when that is under way.
func (s *Server) enterSocket(sk *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return false
	}
	s.sockets = append(s.sockets, sk)
	return true
}

func (s *Server) leaveSocket(sk *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.sockets, sk); i >= 0 {
		s.sockets = slices.Delete(s.sockets, i, i+1)
	}
}

// retireSockets closes every socket as soon as no turn is under way there.
func (s *Server) retireSockets() {
	s.mu.Lock()
	all := slices.Clone(s.sockets)
	s.mu.Unlock()
	for _, sk := range all {
		sk.retire()
	}
}

// takeLeave closes every socket with a word to its agent, which may take a moment.
func (s *Server) takeLeave() {
	s.mu.Lock()
	s.leaving = true
	all := slices.Clone(s.sockets)
	s.mu.Unlock()
	for _, sk := range all {
		sk.bye(websocket.GoingAway, stopping)
	}
	late := time.NewTimer(2 * s.farewellWait)
	defer late.Stop()
	for _, sk := range all {
		select {
		case <-sk.over:
		case <-late.C:
			return
		}
	}
}

var (
	socketsOpen = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "authpool_sockets_open",
		Help: "WebSockets that are relayed.",
	}, []string{"provider"})
	socketTurns = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_socket_turns_total",
		Help: "Turns on WebSockets that were counted, each of them as a request.",
	}, []string{"provider", "subscription"})
	socketsClosed = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_sockets_closed_total",
		Help: "WebSockets that have ended: whole, cut, closed by authpool, or because the agent left.",
	}, []string{"provider", "reason"})
)
