package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/agentconn"
	"github.com/authpool/authpool/proxy/provider"
)

// handle serves one request: the page to read first. Each step either goes on
// or refuses; the answer of the last attempt is carried back by WriteTo, after
// handle has returned.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	if !s.enter() {
		ctx.SetStatusCode(fasthttp.StatusServiceUnavailable)
		ctx.SetConnectionClose()
		return
	}
	requestsInFlight.Inc()
	ex := s.exchanges.Get().(*exchange)
	ex.begin(agentconn.From(ctx.Conn()))
	if s.draining.Load() {
		ctx.SetConnectionClose()
	}
	defer func() {
		if p := recover(); p != nil {
			_ = ex.panicked(p)
			ctx.SetConnectionClose()
			ctx.Response.Header.SetContentEncoding("")
			writeRefusal(ctx, ex.family, ex.id, internalError)
			ex.abandon()
		}
	}()
	var no *refusal
	switch {
	case ctx.IsConnect():
		if no = ex.connect(ctx); no != nil {
			connectsTotal.WithLabelValues(refusedConnect(no)).Inc()
		}
	case speaksHTTP2(&ctx.Request.Header):
		s.hijack(ctx, s.serveHTTP2, func() {})
	default:
		no = ex.admit(ctx)
	}
	begun := false
	switch {
	case no != nil:
	case ctx.Hijacked(): // what follows is no request of this connection's
		ex.end()
		return
	case ex.pings(ctx):
		no, begun = ex.obtainPinging(ctx)
	default:
		no = ex.obtain()
	}
	if begun {
		return
	}
	if no != nil {
		ex.refuse(ctx, no)
		return
	}
	if ex.isSocket() && ex.status == fasthttp.StatusSwitchingProtocols {
		ex.relaySocket(ctx)
		return
	}
	ex.answer(ctx)
}

// upstreamRequest is what every attempt of a request sends, but for the
// credential.
type upstreamRequest struct {
	head provider.Head
	body [3][]byte
	n    int // parts of body used
	size int
}

// admit checks the head, and finds agent, provider and session: everything that
// is known without a subscription.
func (ex *exchange) admit(ctx *fasthttp.RequestCtx) *refusal {
	h := &ctx.Request.Header
	ex.id = newID()
	headers := provider.Headers(h.RawHeaders())
	ex.locate(h, headers, ctx.LocalAddr())
	target, direct := splitTarget(h.RequestURI(), h.Host())
	path, query, _ := bytes.Cut(target, []byte{'?'})
	route, rerr := ex.route(path, headers)
	ex.family = familyOf(route, rerr)
	if no := ex.front(ctx, headers, target, direct); no != nil {
		ctx.SetConnectionClose()
		return no
	}
	ex.provider = route.Provider // nil where it is not known
	var shown, user []byte
	if ex.via != nil {
		shown, user = ex.via.token, ex.via.user
	}
	place := asKey
	if ex.forwards() {
		query, place = nil, asProxyUser // it is for somebody else
	}
	who, no := ex.s.identify(headers, query, shown, ctx, place)
	if no != nil {
		if no.code == codeGuessing {
			ctx.SetConnectionClose() // the next guess costs a connection
		}
		return no
	}
	if no := ex.greet(ctx, who); no != nil {
		return no
	}
	if ex.forwards() {
		return ex.forward(ctx, headers, target)
	}
	if ex.via != nil && !ex.settings.Intercept { // in absolute form: of CONNECT none is left
		return notIntercepted(ex.via.Authority)
	}
	if string(user) == ex.agent {
		user = nil
	}
	if rerr != nil {
		no := ex.unsent(rerr)
		if no.status == fasthttp.StatusBadRequest {
			ctx.SetConnectionClose() // a path that two servers could read differently
		}
		return no
	}
	upgrade, no := ex.upgrades(h, headers)
	if no != nil {
		return no
	}

	body := ctx.Request.Body()
	req := &ex.request
	asked := provider.Request{
		Provider: ex.provider, Agent: ex.agent, Method: h.Method(), Rest: route.Rest, Query: query, Headers: headers, Body: body,
		ProxyUser: user, TokenSession: who.session, Upgrade: upgrade,
	}
	var err error
	ex.info, err = provider.Inspect(&asked)
	if err != nil {
		return ex.unsent(err)
	}
	ex.family = ex.info.Shape
	if upgrade && ex.info.Session.ID == "" {
		ex.info.Session = provider.Session{ID: ex.id, Source: "socket"} // it is a conversation of its own
	}
	*req = upstreamRequest{
		head: provider.Head{Method: h.Method(), Rest: route.Rest, Query: query, Headers: headers, Length: -1, Upgrade: upgrade},
		size: len(body),
	}
	if no := ex.permit(); no != nil {
		return no
	}
	if no := ex.bind(&asked); no != nil {
		return no
	}
	if hasBody(h, body) {
		req.head.Length = int64(len(body))
	}
	if p := ex.info.Patch; !p.Empty() {
		before, after := p.Split(body)
		req.body, req.n = [3][]byte{before, []byte(p.Insert), after}, 3
		req.head.Length = int64(p.Length(len(body)))
		req.head.Identity = true
	} else if len(body) > 0 {
		req.body[0], req.n = body, 1
	}
	return nil
}

// hasBody tells whether the upstream request announces a body: when there is
// one, or when the method usually has one.
func hasBody(h *fasthttp.RequestHeader, body []byte) bool {
	return len(body) > 0 || h.IsPost() || h.IsPut() || string(h.Method()) == fasthttp.MethodPatch
}

// front refuses what must not be routed at all. direct tells that target is
// this server's own.
func (ex *exchange) front(ctx *fasthttp.RequestCtx, headers provider.Headers, target []byte, direct bool) *refusal {
	h := &ctx.Request.Header
	bad := func(message string) *refusal {
		return &refusal{status: fasthttp.StatusBadRequest, code: codeBadRequest, message: message}
	}
	if no := ex.checkLine(h); no != nil {
		return no
	}
	if !isMethod(h.Method()) {
		return &refusal{status: fasthttp.StatusMethodNotAllowed, code: codeBadRequest, message: "this method is not served"}
	}
	closes, fault := checkHead(headers, h.Method())
	if closes {
		ctx.SetConnectionClose()
	}
	if fault != "" {
		return bad(string(fault))
	}
	if !direct {
		return bad("the request target names another host than the Host header; use authpool's address as base URL")
	}
	if !isTarget(target) {
		return bad("the request target holds a fragment, a space or a control character")
	}
	if headers.Get("origin") != nil {
		return &refusal{status: fasthttp.StatusForbidden, code: codeForbidden, message: "requests of web pages are refused (this one has an Origin header)"}
	}
	if site := headers.Get("sec-fetch-site"); equalFold(site, "cross-site") || equalFold(site, "same-site") {
		// What a page embeds or links to (an image, a form that gets) has no Origin.
		return &refusal{status: fasthttp.StatusForbidden, code: codeForbidden, message: "requests of web pages are refused (this one has Sec-Fetch-Site: " + string(site) + ")"}
	}
	if ex.forwards() {
		return nil
	}
	if ex.via != nil {
		standard := uint16(443) // of what is not said
		if ex.via.Port == 80 {
			standard = 80
		}
		if host, ok := provider.ParseAuthority(string(h.Host()), standard); !ok || host != ex.via.Authority {
			return misdirected(ex.via)
		}
		return nil
	}
	if a, ok := ctx.LocalAddr().(*net.TCPAddr); ok && a.IP.IsLoopback() && !isLocalHost(string(h.Host())) {
		return &refusal{status: fasthttp.StatusForbidden, code: codeForbidden, message: "the Host header does not name this machine; use the address that authpool listens on"}
	}
	return nil
}

// checkLine refuses a request line that is not HTTP/1.1's.
func (ex *exchange) checkLine(h *fasthttp.RequestHeader) *refusal {
	if ex.conn != nil {
		switch fault := ex.conn.Fault(); fault {
		case "":
		case agentconn.TooManyFields:
			return &refusal{status: fasthttp.StatusRequestHeaderFieldsTooLarge, code: codeHeadTooLarge, message: string(fault)}
		default:
			return &refusal{status: fasthttp.StatusBadRequest, code: codeBadRequest, message: string(fault)}
		}
	}
	if v := string(h.Protocol()); v != "HTTP/1.1" && v != "HTTP/1.0" {
		return &refusal{status: fasthttp.StatusHTTPVersionNotSupported, code: codeBadRequest, message: "only HTTP/1.1 is spoken here"}
	}
	return nil
}

// route finds the provider: by the host that the request was sent to, or by the path
// where that is authpool's own.
func (ex *exchange) route(path []byte, headers provider.Headers) (provider.Target, error) {
	if ex.via != nil {
		return ex.settings.providers.RouteAt(ex.via.Authority, path)
	}
	return ex.settings.providers.Route(path, headers)
}

// familyOf is the family in whose shape errors are told, by what Route said.
func familyOf(route provider.Target, err error) provider.Family {
	if err == nil {
		return route.Provider.Family
	}
	if r, ok := errors.AsType[*provider.Refusal](err); ok {
		return r.Family
	}
	return provider.OpenAI
}

func refusalOf(err error) *refusal {
	if r, ok := errors.AsType[*provider.Refusal](err); ok {
		return &refusal{status: r.Status, code: r.Code, message: r.Message}
	}
	return &refusal{status: fasthttp.StatusInternalServerError, code: codeUnavailable, message: err.Error()}
}

// unsent is refusalOf for a request of an agent's, whose row in the path manifest is
// kept for people.
func (ex *exchange) unsent(err error) *refusal {
	if r, ok := errors.AsType[*provider.Refusal](err); ok && r.Endpoint != nil {
		ex.info.Endpoint, ex.family = r.Endpoint, r.Family
		name := ""
		if ex.provider != nil {
			name = ex.provider.Name
		}
		pathsWithheld.WithLabelValues(name, r.Endpoint.Action.String()).Inc()
	}
	return refusalOf(err)
}

// newID returns a request id: a UUIDv7, so that ids sort by time.
func newID() string {
	id, err := uuid.NewV7()
	if err != nil {
		panic("BUG: no randomness: " + err.Error())
	}
	return id.String()
}

// poolRequest asks for a subscription.
func (ex *exchange) poolRequest() pool.Request {
	var allowed []string
	if ex.limits != nil {
		allowed = ex.limits.Subscriptions
	}
	return pool.Request{
		Allowed:  allowed,
		ID:       ex.id,
		Provider: ex.provider.Name,
		Agent:    ex.agent,
		Session:  ex.info.Session.ID,
		Parent:   ex.info.Session.Parent,
		Model:    ex.info.Model,
		Bytes:    ex.estimable(),
		Pinned:   ex.info.Pins.Organisation || len(ex.info.Pins.IDs) > 0,
		Seals:    ex.info.Seals,
		Aside:    !ex.costs(),
		Owner:    ex.owner,
	}
}

// estimable is the size of a body by which the request's tokens can be estimated;
// 0 where it says nothing about them, as with a recording or a count for free.
func (ex *exchange) estimable() int64 {
	if body := ex.request.body[0]; !ex.costs() || len(body) == 0 || body[0] != '{' {
		return 0
	}
	return int64(ex.request.size)
}

// handleBroken answers a request that fasthttp could not read.
func (s *Server) handleBroken(ctx *fasthttp.RequestCtx, err error) {
	r := &refusal{status: fasthttp.StatusBadRequest, code: codeBadRequest, message: "the request is not valid HTTP/1.1"}
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		r = &refusal{status: fasthttp.StatusRequestEntityTooLarge, code: codeTooLarge, message: fmt.Sprintf("the request body is larger than limits_http.body allows (%d bytes)", s.opts.BodyLimit)}
	case errors.As(err, &small):
		r = &refusal{status: fasthttp.StatusRequestHeaderFieldsTooLarge, code: codeHeadTooLarge, message: "the request head is larger than limits_http.header allows"}
	case errors.As(err, &netErr) && netErr.Timeout():
		r = &refusal{status: fasthttp.StatusRequestTimeout, code: codeBadRequest, message: "the request did not arrive in time"}
	}
	family := provider.OpenAI
	headers := provider.Headers(ctx.Request.Header.RawHeaders())
	path, query, _ := bytes.Cut(ctx.Request.Header.RequestURI(), []byte{'?'})
	var v *via
	c := agentconn.From(ctx.Conn())
	if c != nil {
		if len(headers) == 0 { // fasthttp has forgotten the head, or has not read it whole
			path = targetPath(c.RequestLine())
		}
		v, _ = c.Said().(*via)
		c.Linger()
	}
	switch providers := s.settings.Load().providers; {
	case v != nil:
		family = familyOf(providers.RouteAt(v.Authority, path))
	case len(path) > 0 && path[0] == '/':
		family = familyOf(providers.Route(path, headers))
	}
	// Of a body sent in chunks the head is forgotten by now, and with it whether
	// it was an agent's. Inside of a connection CONNECT has shown that.
	if r.code == codeTooLarge && len(headers) > 0 && (c == nil || !c.Nested()) {
		if _, no := s.identify(headers, query, nil, ctx, asKey); no != nil {
			r = no
		}
	}
	id := newID()
	ctx.Response.Header.Set("X-Authpool-Request-Id", id)
	s.auditBroken(ctx, id, r)
	writeRefusal(ctx, family, id, r)
	requestsTotal.WithLabelValues("", "", statusClass(r.status)).Inc()
	s.log.Info("request", "request", id, "status", r.status, "end", "refused", "error", r.code)
}

// targetPath is the path of a request line, or what has come of it.
func targetPath(line []byte) []byte {
	_, target, _ := bytes.Cut(line, []byte{' '})
	target, _, _ = bytes.Cut(target, []byte{' '})
	path, _, _ := bytes.Cut(target, []byte{'?'})
	return path
}

// strangerBody is how much of a body is read from somebody who has no token.
const strangerBody = 1 << 20

// knowExpect has fasthttp see an Expect header, which it knows in one case only.
func knowExpect(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	if equalFold(provider.Headers(h.RawHeaders()).Get("expect"), "100-continue") {
		h.Set(fasthttp.HeaderExpect, "100-continue")
	}
	return fasthttp.RequestConfig{}
}

// headReceived lets only agents send bodies of full size.
func (s *Server) headReceived(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	knowExpect(h)
	if n := h.ContentLength(); n >= 0 && n <= strangerBody {
		return fasthttp.RequestConfig{}
	}
	_, query, _ := bytes.Cut(h.RequestURI(), []byte{'?'})
	if _, err := s.deps.Agents.identify(h.RawHeaders(), query, nil, ""); err != nil {
		return fasthttp.RequestConfig{MaxRequestBodySize: strangerBody}
	}
	return fasthttp.RequestConfig{}
}
