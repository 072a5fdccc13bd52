package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/proxy/agentconn"
	"github.com/authpool/authpool/proxy/h2"
	"github.com/authpool/authpool/proxy/provider"
)

// Authorities sign for the hosts whose TLS authpool opens; *ca.Authorities is one.
type Authorities interface {
	// Leaf returns a certificate for host, made before or now.
	Leaf(host string) (*tls.Certificate, error)
}

// via is the way of requests that were sent to another host than authpool's own, as
// HTTP(S)_PROXY has agents do: what is said inside a connection that CONNECT opened, or
// a request whose target is in absolute form (RFC 9112, sections 3.2.2 and 3.2.3).
type via struct {
	provider.Authority
	token []byte      // that CONNECT showed; looked at again with each request, since it may be revoked
	user  []byte      // its user name, which names the session, or the agent
	agent string      // that CONNECT showed
	asked atomic.Bool // a request came
}

// statusMisdirected says that a request inside a connection was meant for another
// host (RFC 9110, section 15.5.20).
const statusMisdirected = 421

// handshakeTimeout is how long an agent may take for its TLS handshake.
const handshakeTimeout = 10 * time.Second

// connect serves CONNECT: it says that the connection is open, and has what follows
// served as requests to the host that was named.
func (ex *exchange) connect(ctx *fasthttp.RequestCtx) *refusal {
	h := &ctx.Request.Header
	ex.id, ex.family = newID(), provider.OpenAI
	headers := provider.Headers(h.RawHeaders())
	to, ok := provider.ParseAuthority(string(h.RequestURI()), 0)
	if no := ex.checkConnect(ctx, headers, to, ok); no != nil {
		ctx.SetConnectionClose()
		return no
	}
	who, no := ex.s.identify(headers, nil, nil, ctx, asProxyUser)
	if no != nil {
		if no.status != fasthttp.StatusProxyAuthRequired { // git repeats on the same connection
			ctx.SetConnectionClose()
		}
		return no
	}
	if no := ex.greet(ctx, who); no != nil {
		return no
	}
	v := &via{
		Authority: to, agent: who.agent, token: ex.s.deps.Agents.token(headers, nil),
		user: bytes.Clone(provider.ProxyUser(headers.Get("proxy-authorization"))),
	}
	switch {
	case ex.settings.providers.Serves(to):
		if !ex.settings.Intercept {
			return notIntercepted(to)
		}
		connectsTotal.WithLabelValues("intercepted").Inc()
	case isOwn(to, ctx.LocalAddr()):
		connectsTotal.WithLabelValues("direct").Inc()
		v = nil
	default:
		t, no := ex.tunnel(to)
		if no != nil {
			return no
		}
		connectsTotal.WithLabelValues("tunnelled").Inc()
		s, may := ex.s, ex.still(headers)
		s.hijack(ctx, func(outer *agentconn.Conn, r io.Reader) {
			if _, err := outer.Write(established); err == nil {
				s.relay(t, outer, r, may)
			}
		}, t.Close)
		return nil
	}
	s := ex.s
	s.hijack(ctx, func(outer *agentconn.Conn, r io.Reader) {
		if _, err := outer.Write(established); err == nil {
			s.intercept(outer, r, v)
		}
	}, func() {})
	return nil
}

// notIntercepted refuses the way to a provider's host through authpool as a proxy.
func notIntercepted(to provider.Authority) *refusal {
	return &refusal{
		status: fasthttp.StatusForbidden, code: codeForbidden,
		message: "intercept.enabled is false, and authpool no proxy to " + to.Host + "; use its address as base URL",
	}
}

// checkConnect refuses a CONNECT that two readers could take for two things.
func (ex *exchange) checkConnect(ctx *fasthttp.RequestCtx, headers provider.Headers, to provider.Authority, ok bool) *refusal {
	h := &ctx.Request.Header
	bad := func(message string) *refusal {
		return &refusal{status: fasthttp.StatusBadRequest, code: codeBadRequest, message: message}
	}
	if no := ex.checkLine(h); no != nil {
		return no
	}
	host, named := to, true
	if name := h.Host(); len(name) == 0 && string(h.Protocol()) == "HTTP/1.0" {
		// As Python's http.client sends it, and with it pip and all else over urllib3.
		headers = append([]byte("Host: "+to.String()+"\r\n"), headers...)
	} else {
		host, named = provider.ParseAuthority(string(name), to.Port)
	}
	_, fault := checkHead(headers, h.Method())
	switch {
	case fault != "":
		return bad(string(fault))
	case !ok:
		return bad("CONNECT names no host and port")
	case !named || host != to:
		return bad("CONNECT names another host than the Host header")
	case headers.Get("content-length") != nil || headers.Get("transfer-encoding") != nil:
		return bad("CONNECT has no body")
	case headers.Get("origin") != nil:
		return &refusal{status: fasthttp.StatusForbidden, code: codeForbidden, message: "requests of web pages are refused (this one has an Origin header)"}
	case ex.conn == nil || ex.conn.Nested():
		return bad("CONNECT inside of what CONNECT has opened is not served")
	}
	return nil
}

// refusedConnect is the kind of a refused CONNECT, for the metric.
func refusedConnect(no *refusal) string {
	if no.status == fasthttp.StatusProxyAuthRequired {
		return "asked"
	}
	return "refused"
}

// isOwn tells whether a is the address at which a request arrived: an agent that sends
// everything through its proxy does so with what is for the proxy itself.
func isOwn(a provider.Authority, local net.Addr) bool {
	tcp, ok := local.(*net.TCPAddr)
	if !ok || tcp.Port != int(a.Port) {
		return false
	}
	ip := net.ParseIP(a.Host)
	return ip != nil && ip.Equal(tcp.IP) || tcp.IP.IsLoopback() && isLocalHost(a.Host)
}

// established says that a connection is open. A length in it, as fasthttp would write
// one, is forbidden (RFC 9110, section 9.3.6).
var established = []byte("HTTP/1.1 200 Connection established\r\n\r\n")

// hijack takes a connection from fasthttp and has serve use it until its end. r holds
// what the agent has sent already, and goes on with the rest. after is called at last,
// whether it was served or not.
func (s *Server) hijack(ctx *fasthttp.RequestCtx, serve func(outer *agentconn.Conn, r io.Reader), after func()) {
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(c net.Conn) {
		defer after()
		outer := agentconn.From(unwrap(c))
		if outer == nil || !s.enterConn() {
			return
		}
		defer s.conns.Done()
		outer.Opaque()
		r := &lent{r: c}
		defer r.giveBack(outer)
		serve(outer, r)
	})
}

// lent reads a connection that was taken from fasthttp, which gives the reader below to
// its next connection as soon as it has this one back. Who was told late that this one
// is over, as net/http's reader of HTTP/2 is, must not read what another agent says.
type lent struct {
	mu sync.Mutex
	r  io.Reader // nil: it was given back
}

// Read implements io.Reader.
func (l *lent) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.r == nil {
		return 0, net.ErrClosed
	}
	return l.r.Read(p)
}

// giveBack closes the connection, which ends a Read that is under way, and waits for it.
func (l *lent) giveBack(c net.Conn) {
	_ = c.Close() // fasthttp would, and has nobody to tell of it either
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r = nil
}

// unwrap returns the connection that fasthttp has taken apart into a reader, which may
// hold what the agent has sent already, and itself.
func unwrap(c net.Conn) net.Conn {
	if u, ok := c.(interface{ UnsafeConn() net.Conn }); ok {
		return u.UnsafeConn()
	}
	return c
}

// recordHandshake is the first byte of every TLS connection (RFC 8446, section 5.1).
const recordHandshake = 22

// intercept serves the requests inside a connection: those of TLS, if that is what the
// agent speaks there, else those of plain HTTP.
func (s *Server) intercept(outer *agentconn.Conn, r io.Reader, v *via) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(r, first); err != nil {
		return
	}
	var nc net.Conn = &behind{Conn: outer, r: io.MultiReader(bytes.NewReader(first), r), via: v}
	if first[0] == recordHandshake && v != nil {
		secured := tls.Server(nc, s.insideTLS)
		begin := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		err := secured.HandshakeContext(ctx)
		cancel()
		if err != nil {
			handshakesTotal.WithLabelValues("failed").Inc()
			s.handshakeFailed(v, err)
			return
		}
		handshakesTotal.WithLabelValues("ok").Inc()
		handshakeSeconds.Observe(sinceSeconds(begin))
		nc = secured
	}
	in := outer.Within(nc, v)
	_ = s.inside.ServeConn(in) // says how the connection ended, which is no error of ours
	<-in.Done()                // it may have been taken from fasthttp
	switch {
	case v == nil || first[0] != recordHandshake:
	case v.asked.Load():
		s.distrust.trusts(v.agent)
	case !s.distrust.trusting(v.agent):
		// Node looks at a certificate when the handshake is over, and leaves.
		s.distrusted(v, errLeftAtOnce)
	}
}

// behind is what follows the head of a CONNECT.
type behind struct {
	*agentconn.Conn
	r   io.Reader
	via *via
}

// Read implements net.Conn.
func (b *behind) Read(p []byte) (int, error) { return b.r.Read(p) }

// errOtherName ends a handshake for another host than CONNECT named.
var errOtherName = errors.New("the TLS handshake names another host than CONNECT")

// newInsideTLS is the TLS of the connections that CONNECT opens. One config serves all,
// so that agents can resume their sessions.
func (s *Server) newInsideTLS() *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			b, ok := hello.Conn.(*behind)
			if !ok {
				return nil, errors.New("BUG: a handshake on a connection that CONNECT has not opened")
			}
			if name := strings.TrimSuffix(hello.ServerName, "."); name != "" && !strings.EqualFold(name, b.via.Host) {
				return nil, errOtherName
			}
			return s.deps.Authorities.Leaf(b.via.Host)
		},
	}
	config.GetConfigForClient = h2.Alone(config)
	return config
}

// errLeftAtOnce is told of an agent that made a handshake and sent nothing.
var errLeftAtOnce = errors.New("it left without a request")

// handshakeFailed says why an agent's handshake came to nothing.
func (s *Server) handshakeFailed(v *via, err error) {
	switch _, isTold := errors.AsType[*net.OpError](err); {
	case isTold: // by the agent, or by its network
		s.distrusted(v, err)
	case errors.Is(err, io.EOF):
		// An agent that only goes away may have opened the connection in advance.
	case s.distrust.first("refused "+v.agent, time.Now()):
		s.log.Warn("the TLS of an agent is refused", "agent", v.agent, "host", v.Host, "error", err)
	}
}

// distrusted says what nearly always is behind an agent that ends its handshake, since
// its own message says little. It is said once a minute for each agent: they try again
// and again.
func (s *Server) distrusted(v *via, err error) {
	if !s.distrust.first("distrusted "+v.agent, time.Now()) {
		return
	}
	s.log.Warn("an agent closes its TLS: most likely it does not trust authpool's authority, which \"authpool run\" and \"authpool env --mode proxy\" have it do and \"authpool doctor\" looks into",
		"agent", v.agent, "host", v.Host, "error", err)
}

// sayEvery is how often the same is said of one agent.
const sayEvery = time.Minute

// said is what was last said of agents, and when, and which have made requests. It
// is safe for concurrent use.
type said struct {
	mu   sync.Mutex
	last map[string]time.Time
	well map[string]bool
}

// maxWell bounds the agents that are remembered for having made requests.
const maxWell = 4096

// trusts notes an agent that has made a request.
func (s *said) trusts(agent string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.well) >= maxWell {
		s.well = nil
	}
	if s.well == nil {
		s.well = make(map[string]bool)
	}
	s.well[agent] = true
}

// trusting tells whether an agent has.
func (s *said) trusting(agent string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.well[agent]
}

// first tells whether this was not said for a minute.
func (s *said) first(what string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.last, func(_ string, at time.Time) bool { return now.Sub(at) >= sayEvery })
	if _, is := s.last[what]; is {
		return false
	}
	if s.last == nil {
		s.last = make(map[string]time.Time)
	}
	s.last[what] = now
	return true
}

// enterConn counts a connection in that fasthttp no longer knows; false when the
// server has stopped.
func (s *Server) enterConn() bool {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.stopped {
		return false
	}
	s.conns.Add(1)
	return true
}

// misdirected refuses a request inside a connection to another host.
func misdirected(v *via) *refusal {
	return &refusal{
		status: statusMisdirected, code: codeBadRequest,
		message: fmt.Sprintf("this connection is for %s, and the request names another host", v.Authority),
	}
}
