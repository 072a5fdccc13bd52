package proxy

import (
	"fmt"
	"io"
	"runtime/debug"
	"time"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/provider"
)

// A request waits for a subscription without a byte being sent, so that its
// answer can still be an honest error. An operator who lets requests wait for
// longer than any client or proxy on the way sits in silence (Options.Ping) gives
// that up for streams: after pingAfter the answer begins, pings follow, and what
// would have been an error's status becomes an error event.
const (
	pingAfter = 45 * time.Second // below the minute after which proxies hang up
	pingEvery = 15 * time.Second
	// pingLook is how soon to look again at a request that is not waiting for a
	// subscription just now, but for the provider.
	pingLook = time.Second
)

// pings tells whether the request's wait may be bridged by pings: its dialect
// has events that every client takes for nothing, and the connection can carry an
// answer of unknown length.
func (ex *exchange) pings(ctx *fasthttp.RequestCtx) bool {
	if !ex.settings.Ping || !ex.info.Stream || !ctx.Request.Header.IsHTTP11() {
		return false
	}
	switch ex.info.Endpoint.API {
	case meter.AnthropicMessages, meter.OpenAIChat, meter.OpenAIResponses:
		// The answer's head goes out before it is known how a provider codes it.
		ex.request.head.Identity = true
		return true
	default:
		return false
	}
}

// acquire asks for a subscription, which may take as long as a request may wait.
func (ex *exchange) acquire(req *pool.Request) (*pool.Lease, error) {
	ex.waiting.Store(time.Now().UnixNano())
	defer ex.waiting.Store(0)
	return ex.s.deps.Pool.Acquire(ex.leave, req)
}

// obtained is what became of obtain.
type obtained struct {
	no    *refusal
	panic string // not empty: it failed
}

// obtainPinging is obtain for a request that pings. begun tells that the answer
// has begun, and that its body is to bring what comes of it.
func (ex *exchange) obtainPinging(ctx *fasthttp.RequestCtx) (no *refusal, begun bool) {
	done := make(chan obtained, 1)
	go func() { // ends with obtain, which the agent's leaving ends
		var o obtained
		defer func() {
			if p := recover(); p != nil {
				o.panic = fmt.Sprintf("%v\n%s", p, debug.Stack())
			}
			done <- o
		}()
		o.no = ex.obtain()
	}()
	timer := time.NewTimer(ex.s.pingAfter)
	defer timer.Stop()
	for {
		select {
		case o := <-done:
			if o.panic != "" {
				panic(o.panic)
			}
			return o.no, false
		case <-timer.C:
		}
		since := ex.waiting.Load()
		if since == 0 {
			timer.Reset(pingLook)
			continue
		}
		rest := ex.s.pingAfter - time.Since(time.Unix(0, since))
		if rest <= 0 {
			break
		}
		timer.Reset(rest)
	}
	resp := &ctx.Response
	resp.Header.SetContentType("text/event-stream")
	resp.Header.Set("Cache-Control", "no-cache")
	resp.Header.Set("X-Authpool-Request-Id", ex.id)
	if ex.info.Session.ID != "" {
		resp.Header.Set("X-Authpool-Session", ex.info.Session.ID)
	}
	resp.ImmediateHeaderFlush = true
	resp.SetBodyStream(&pinged{ex: ex, done: done}, -1)
	return nil, true
}

// pinged is the body of an answer that began before anybody could serve it. The
// exchange belongs to obtain until done has its outcome.
type pinged struct {
	ex   *exchange
	done chan obtained
	no   *refusal
	have bool // done was read
}

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (p *pinged) SupportsBodyWriteTo() bool { return true }

// Read implements io.Reader, which fasthttp asks of a body stream.
func (p *pinged) Read(b []byte) (int, error) { return p.ex.Read(b) }

// WriteTo implements io.WriterTo: pings, and then the answer or an error event.
func (p *pinged) WriteTo(w io.Writer) (total int64, err error) {
	tick := time.NewTicker(p.ex.s.pingEvery)
	defer tick.Stop()
	for !p.have {
		n, err := writeFlushed(w, p.ex.ping())
		total += n
		if err != nil {
			p.ex.left(false)
			p.wait()
			return total, err
		}
		select {
		case o := <-p.done:
			p.took(o)
		case <-tick.C:
		}
	}
	if p.no == nil {
		p.no = p.ex.unfit()
	}
	if p.no != nil {
		n, err := writeFlushed(w, p.ex.errorEvent(p.no))
		return total + n, err
	}
	n, err := p.ex.WriteTo(w)
	return total + n, err
}

// CloseWithError implements fasthttp's closing of a body stream.
func (p *pinged) CloseWithError(err error) error {
	if !p.have { // not even the head could be written
		p.ex.left(false)
		p.wait()
	}
	if p.no == nil || p.ex.broken {
		return p.ex.CloseWithError(err)
	}
	p.ex.endRefused(p.no)
	return nil
}

func (p *pinged) wait() { p.took(<-p.done) }

func (p *pinged) took(o obtained) {
	p.have, p.no = true, o.no
	if o.panic != "" {
		_ = p.ex.panicked(o.panic)
		p.no = internalError
	}
}

// unfit tells why an answer cannot follow the head that was sent; nil when it
// can.
func (ex *exchange) unfit() *refusal {
	switch {
	case ex.status != fasthttp.StatusOK:
		// An error of the provider that no other subscription would mend.
		k := &kept{status: ex.status}
		if len(ex.call.Header.ContentEncoding()) == 0 {
			k.body = ex.held
		}
		return &refusal{status: ex.status, kept: k}
	case !ex.stream || len(ex.call.Header.ContentEncoding()) > 0:
		return &refusal{status: fasthttp.StatusBadGateway, code: codeUpstream, message: "provider " + ex.provider.Name + ": the answer is no plain event stream"}
	}
	return nil
}

// writeFlushed writes p and lets nothing keep it.
func writeFlushed(w io.Writer, p []byte) (int64, error) {
	n, err := w.Write(p)
	if f, ok := w.(flusher); ok && err == nil {
		err = f.Flush()
	}
	return int64(n), err
}

// ping is an event that says nothing: Anthropic's own, and for OpenAI's dialects a
// comment (WHATWG HTML, "server-sent events").
func (ex *exchange) ping() []byte {
	if ex.info.Endpoint.API == meter.AnthropicMessages {
		return []byte("event: ping\ndata: {\"type\": \"ping\"}\n\n")
	}
	return []byte(": waiting for a subscription\n\n")
}

// errorEvent words r as the last event of a stream (anthropic-sdk-typescript
// core/streaming.ts; openai-node core/streaming.ts; openai/codex
// codex-api/src/sse/responses.rs, which knows an error by response.failed alone).
func (ex *exchange) errorEvent(r *refusal) []byte {
	if k := r.kept; k != nil {
		r = &refusal{status: k.status, code: codeUpstream, message: fmt.Sprintf("provider %s answered %d", ex.provider.Name, k.status)}
		if len(k.body) > 0 && utf8.Valid(k.body) {
			r.message += ": " + string(k.body)
		}
	}
	var b []byte
	switch api := ex.info.Endpoint.API; {
	case api == meter.OpenAIResponses && ex.isCodex():
		b = provider.FailedResponse([]byte("event: response.failed\ndata: "), "resp_"+ex.id, r.status, r.code, r.message)
	case api == meter.OpenAIResponses:
		b = provider.ErrorEvent([]byte("event: error\ndata: "), r.status, r.code, r.message)
	case api == meter.OpenAIChat:
		b = provider.ErrorBody([]byte("data: "), provider.OpenAI, r.status, r.code, r.message, ex.id)
	default:
		b = provider.ErrorBody([]byte("event: error\ndata: "), provider.Anthropic, r.status, r.code, r.message, ex.id)
	}
	return append(b, "\n\n"...)
}

// internalError is the answer where authpool itself failed.
var internalError = &refusal{status: fasthttp.StatusInternalServerError, code: codeUnavailable, message: "internal error; authpool's log says more"}
