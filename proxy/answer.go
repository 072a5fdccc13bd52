package proxy

import (
	"bufio"
	"bytes"
	"net"
	"strconv"

	"github.com/valyala/fasthttp"
)

// answer begins the agent's answer with the head of the upstream's. The body
// follows by WriteTo, after the handler has returned.
func (ex *exchange) answer(ctx *fasthttp.RequestCtx) {
	resp, up := &ctx.Response, &ex.call.Header
	resp.SetStatusCode(ex.status)
	resp.Header.SetStatusMessage(up.StatusMessage())
	copyHead(resp, up.All())
	ex.sign(resp)
	firstByteSeconds.WithLabelValues(ex.provider.Name).Observe(sinceSeconds(ex.start))

	if ctx.IsHead() || ex.status == fasthttp.StatusNoContent || ex.status == fasthttp.StatusNotModified {
		// No body follows, and fasthttp would end a body stream of unknown length
		// by an empty line all the same, in front of the next answer.
		if n := up.ContentLength(); n >= 0 && ctx.IsHead() {
			resp.Header.SetContentLength(n)
			resp.SkipBody = true
		}
		ex.finish()
		return
	}

	size := -1
	switch n := up.ContentLength(); {
	case n >= 0 && ex.info.Patch.Empty():
		size = n
	case ex.ended:
		size = len(ex.held)
	}
	if size < 0 && !ctx.Request.Header.IsHTTP11() {
		ex.answerUntilClose(ctx)
		return
	}
	resp.ImmediateHeaderFlush = ex.stream && len(ex.held) == 0
	resp.SetBodyStream(ex, size)
}

// answerUntilClose answers an agent of HTTP/1.0, which knows no chunks: a body
// of unknown length ends with the connection (RFC 9112, section 6.1). fasthttp
// knows only chunks, so that the connection is taken from it.
func (ex *exchange) answerUntilClose(ctx *fasthttp.RequestCtx) {
	ctx.SetConnectionClose()
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(c net.Conn) {
		w := bufio.NewWriter(c)
		err := ctx.Response.Header.Write(w)
		if err == nil {
			err = w.Flush()
		}
		if err == nil {
			_, err = ex.WriteTo(w)
		}
		_ = ex.CloseWithError(err)
	})
}

// copyHead copies an answer's headers, but for those of its own connection,
// those that would lead the agent past authpool or bind it to an account, and
// those that are authpool's. Date is lost: fasthttp lets nobody set it.
func copyHead(resp *fasthttp.Response, headers func(func(name, value []byte) bool)) {
	for name, value := range headers {
		if withheld(name) {
			continue
		}
		resp.Header.AddBytesKV(name, value)
	}
}

// sign adds authpool's own headers.
func (ex *exchange) sign(resp *fasthttp.Response) {
	resp.Header.Set("X-Authpool-Request-Id", ex.id)
	if ex.lease != nil {
		resp.Header.Set("X-Authpool-Subscription", ex.lease.Subscription().ID)
	}
	if ex.info.Session.ID != "" {
		resp.Header.Set("X-Authpool-Session", ex.info.Session.ID)
	}
	resp.Header.Set("X-Authpool-Attempts", strconv.Itoa(ex.attempts))
}

// withheld tells whether a header of an upstream's answer stays behind.
func withheld(name []byte) bool {
	switch len(name) {
	case 2, 7, 10, 14, 17, 18, 16:
		for _, hop := range hopByHop {
			if equalFold(name, hop) {
				return true
			}
		}
	}
	const own = "x-authpool-"
	return len(name) >= len(own) && equalFold(name[:len(own)], own)
}

// hopByHop are the headers of one connection (RFC 9110, section 7.6.1), the
// length, which the server sets itself, and two more: cookies would bind the
// agent to the account that served it this time, and Alt-Svc would send it past
// authpool.
var hopByHop = []string{
	"te", "trailer", "upgrade", "alt-svc", "connection", "keep-alive", "set-cookie", "content-length",
	"proxy-connection", "transfer-encoding", "proxy-authenticate",
}

// maskHead overwrites a credential that an answer's head repeats.
func maskHead(h *fasthttp.ResponseHeader, secret []byte) {
	maskText(h.StatusMessage(), secret)
	for _, value := range h.All() {
		maskText(value, secret)
	}
}

// minSecret is the shortest text masked in a head, as in a body: the key of a
// server of one's own may be `x`, and stands in every head.
const minSecret = 8

func maskText(text, secret []byte) {
	if len(secret) < minSecret {
		return
	}
	for {
		i := bytes.Index(text, secret)
		if i < 0 {
			return
		}
		echoesMasked.Inc()
		for j := range secret {
			text[i+j] = '*'
		}
		text = text[i+len(secret):]
	}
}
