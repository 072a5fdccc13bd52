package proxy

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/proxy/agentconn"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tunnel"
)

// What is told where a host that is no provider's cannot be connected to, and where it
// may not be. The audit log has the second from the tunnels, with the host.
const (
	codeUnreachable = "unreachable"
	codeNoTunnel    = "no_tunnel"
)

// statusLoop says that a request has been here before (RFC 5842, section 7.2).
const statusLoop = 508

// tunnel opens a tunnel to a host that is no provider's, or says why not.
func (ex *exchange) tunnel(to provider.Authority) (*tunnel.Tunnel, *refusal) {
	if ex.s.deps.Tunnels == nil {
		return nil, &refusal{status: fasthttp.StatusForbidden, code: codeForbidden, message: to.String() + " is no provider's, and no other host is reached through authpool"}
	}
	t, err := ex.s.deps.Tunnels.Open(ex.leave, ex.agent, to.Host, to.Port)
	if err == nil {
		return t, nil
	}
	no := &refusal{status: fasthttp.StatusBadGateway, code: codeUnreachable, message: strings.TrimPrefix(err.Error(), "authpool: ")}
	if refused, ok := errors.AsType[*tunnel.RefusedError](err); ok {
		switch refused.Reason {
		case tunnel.TooMany:
			no.status, no.code = fasthttp.StatusTooManyRequests, codeLimited
		case tunnel.Stopping:
			no.status, no.code = fasthttp.StatusServiceUnavailable, codeUnavailable
		default:
			no.status, no.code = fasthttp.StatusForbidden, codeNoTunnel
		}
	}
	return nil, no
}

// relay carries what an agent says to a tunnel's host, and back, until one ends it, or
// the agent's token is no longer good.
func (s *Server) relay(t *tunnel.Tunnel, outer *agentconn.Conn, r io.Reader, may func() bool) {
	outer.HandOver()
	t.Relay(s.relays, &handed{outer, r}, may)
}

// still tells whether the token in headers is still the agent's; nil when there is
// none.
func (ex *exchange) still(headers provider.Headers) func() bool {
	return ex.stillOf(ex.s.deps.Agents.token(headers, nil))
}

// stillAgent tells whether the token that has shown whose the request is, or the
// connection that it came on, is still the agent's; nil when there was none.
func (ex *exchange) stillAgent() func() bool {
	head := &ex.request.head
	token := ex.s.deps.Agents.token(head.Headers, head.Query)
	if token == nil && ex.via != nil {
		token = ex.via.token
	}
	return ex.stillOf(token)
}

func (ex *exchange) stillOf(token []byte) func() bool {
	if token == nil {
		return nil
	}
	agents, agent := ex.s.deps.Agents, ex.agent
	return func() bool {
		who, err := agents.identify(nil, nil, token, "")
		return err == nil && who.agent == agent || errors.Is(err, errUnknowing)
	}
}

// handed is an agent's connection whose deadlines are set by whoever has it.
type handed struct {
	*agentconn.Conn
	r io.Reader // what the agent says
}

// Read implements net.Conn.
func (h *handed) Read(p []byte) (int, error) { return h.r.Read(p) }

// forwards tells whether a request in absolute form is for a host that is neither a
// provider's nor authpool itself, and goes there as it is.
func (ex *exchange) forwards() bool { return ex.other.Host != "" }

// locate reads where a request in absolute form is for: a provider's host, as if
// CONNECT had opened a connection to it; another one; or authpool itself.
func (ex *exchange) locate(h *fasthttp.RequestHeader, headers provider.Headers, local net.Addr) {
	uri := h.RequestURI()
	if ex.via != nil || len(uri) == 0 || uri[0] == '/' {
		return
	}
	scheme, rest, _ := bytes.Cut(uri, []byte("://"))
	standard := uint16(80)
	if bytes.EqualFold(scheme, []byte("https")) {
		standard = 443
	}
	if i := bytes.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	to, ok := provider.ParseAuthority(string(rest), standard)
	if !ok {
		return // the front refuses it
	}
	providers := ex.settings.providers
	secure := provider.Authority{Host: to.Host, Port: 443}
	switch {
	case providers.Serves(to):
		ex.via = &via{Authority: to}
	case to.Port == 80 && providers.Serves(secure):
		// An agent that says http:// to its proxy means the same place, and what goes out
		// is TLS: nobody on the way sees more of it.
		ex.via = &via{Authority: secure}
	case !isOwn(to, local):
		ex.other = to
	}
	if ex.via != nil {
		ex.via.user = provider.ProxyUser(headers.Get("proxy-authorization"))
	}
}

// forward sends a request in absolute form to a host that is no provider's, and has
// the answer carried back as it is.
func (ex *exchange) forward(ctx *fasthttp.RequestCtx, headers provider.Headers, target []byte) *refusal {
	h := &ctx.Request.Header
	if !bytes.HasPrefix(bytes.ToLower(h.RequestURI()), []byte("http://")) {
		return &refusal{status: fasthttp.StatusBadRequest, code: codeBadRequest, message: "https:// to a host that is no provider's goes through CONNECT"}
	}
	if ex.conn == nil {
		return &refusal{status: fasthttp.StatusBadRequest, code: codeBadRequest, message: "other hosts are not reached from here"}
	}
	if strings.Contains(joined(headers, "via"), ex.s.pseudonym) {
		return &refusal{status: statusLoop, code: codeBadRequest, message: "this request has been here before: a proxy on its way leads back to authpool"}
	}
	if _, query, _ := bytes.Cut(target, []byte{'?'}); ex.s.deps.Agents.holdsToken(nil, query) || provider.HoldsAgentToken(target) {
		return &refusal{status: fasthttp.StatusForbidden, code: codeForbidden, message: "the URL holds an agent token, which goes to no other host"}
	}
	t, no := ex.tunnel(ex.other)
	if no != nil {
		return no
	}
	request := ex.s.appendForwarded(nil, h, headers, target, ctx.Request.Body())
	s, may := ex.s, ex.still(headers)
	s.hijack(ctx, func(outer *agentconn.Conn, r io.Reader) {
		s.relay(t, outer, io.MultiReader(bytes.NewReader(request), silent{r}), may)
	}, t.Close)
	return nil
}

// silent swallows what an agent sends behind a request that was forwarded: the next
// one may be for another host. It is not answered, since the connection ends with the
// answer to the first.
type silent struct{ r io.Reader }

// Read implements io.Reader.
func (s silent) Read(p []byte) (int, error) {
	for {
		if _, err := s.r.Read(p); err != nil {
			return 0, err
		}
	}
}

// appendForwarded writes a request as the host that it is for gets it: without what is
// between the agent and authpool.
func (s *Server) appendForwarded(dst []byte, h *fasthttp.RequestHeader, headers provider.Headers, target, body []byte) []byte {
	dst = fmt.Appendf(dst, "%s %s HTTP/1.1\r\nHost: %s\r\n", h.Method(), target, h.Host())
	named := strings.ToLower(joined(headers, "connection"))
	for name, value := range headers.All() {
		lower := strings.ToLower(string(name))
		if betweenProxies[lower] || strings.HasPrefix(lower, "proxy-") || strings.HasPrefix(lower, "x-authpool-") || namedIn(named, lower) {
			continue
		}
		line := fmt.Appendf(nil, "%s: %s\r\n", name, value)
		if s.deps.Agents.holdsToken(line, nil) || provider.HoldsAgentToken(value) || holdsInBasic(value) {
			continue // also one that is no longer good, or not known at the moment
		}
		dst = append(dst, line...)
	}
	if hasBody(h, body) {
		dst = append(dst, "Content-Length: "+strconv.Itoa(len(body))+"\r\n"...)
	}
	dst = append(dst, "Via: 1.1 "+s.pseudonym+"\r\nConnection: close\r\n\r\n"...)
	return append(dst, body...)
}

// joined is the list of a header that may stand in several lines, its name in lower case.
func joined(headers provider.Headers, name string) string {
	var list []string
	for n, value := range headers.All() {
		if equalFold(n, name) {
			list = append(list, string(value))
		}
	}
	return strings.Join(list, ",")
}

// holdsInBasic tells whether user name or password of Basic (RFC 7617) hold an agent
// token.
func holdsInBasic(value []byte) bool {
	scheme, encoded, _ := bytes.Cut(value, []byte{' '})
	if !equalFold(scheme, "basic") {
		return false
	}
	decoded, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(encoded)))
	return err == nil && provider.HoldsAgentToken(decoded)
}

// betweenProxies are the headers of one connection (RFC 9110, section 7.6.1), and those
// that are written anew.
var betweenProxies = map[string]bool{
	"connection": true, "keep-alive": true, "te": true, "trailer": true, "transfer-encoding": true, "upgrade": true,
	"expect": true, "host": true, "content-length": true, "http2-settings": true,
}

// namedIn tells whether a Connection header, in lower case, names a header.
func namedIn(connection, name string) bool {
	for element := range strings.SplitSeq(connection, ",") {
		if strings.TrimSpace(element) == name {
			return true
		}
	}
	return false
}

// newPseudonym names this process in Via (RFC 9110, section 7.6.3).
func newPseudonym() string {
	id := newID()
	return "authpool-" + hex.EncodeToString([]byte(id[len(id)-6:]))
}
