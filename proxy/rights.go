package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/proxy/agentconn"
	"github.com/authpool/authpool/proxy/provider"
)

// tokenPlace is where a request has its token, and so how one without is refused.
type tokenPlace struct {
	status int
	help   string // how to get past that
}

// The places.
var (
	asKey = tokenPlace{
		fasthttp.StatusUnauthorized,
		"; send the agent token (`authpool env` prints it, the state folder's agent.token holds it) as API key or bearer token",
	}
	asProxyUser = tokenPlace{
		fasthttp.StatusProxyAuthRequired,
		"; put the agent token into the proxy's URL as its password, as `authpool env --mode proxy` does: http://SESSION:TOKEN@HOST:PORT",
	}
)

// identify finds whose request it is, or refuses it. shown is the token that opened the
// connection, if any.
func (s *Server) identify(headers provider.Headers, query, shown []byte, ctx *fasthttp.RequestCtx, place tokenPlace) (identity, *refusal) {
	who, err := s.deps.Agents.identify(headers, query, shown, s.deps.Agents.at(agentconn.From(ctx.Conn())))
	switch {
	case err == nil:
		return who, nil
	case errors.Is(err, errUnknowing):
		return identity{}, &refusal{status: fasthttp.StatusServiceUnavailable, code: codeUnavailable, message: err.Error(), wait: time.Second}
	case errors.Is(err, errBadToken):
		if wait := s.deps.Agents.guesses.wrong(time.Now(), ctx.RemoteAddr()); wait > 0 {
			return identity{}, &refusal{
				status: fasthttp.StatusTooManyRequests, code: codeGuessing, wait: wait, final: true,
				message: "too many wrong agent tokens from this address; " + err.Error() + place.help,
			}
		}
	}
	no := &refusal{status: place.status, code: codeUnauthorized, message: err.Error() + place.help}
	if errors.Is(err, errTwoAgents) { // who is asked again would send both again
		no.status = fasthttp.StatusUnauthorized
	}
	return identity{}, no
}

// greet notes whose request it is, which makes the connection that agent's, and refuses
// what is more than the agent may do at a time.
func (ex *exchange) greet(ctx *fasthttp.RequestCtx, who identity) *refusal {
	ex.agent, ex.limits = who.agent, who.entry
	first := ex.conn != nil && ex.conn.Known()
	e := ex.limits
	if e == nil {
		return nil
	}
	e.Seen(ex.start)
	if first {
		if err := e.Connect(); err != nil {
			ctx.SetConnectionClose()
			return tooMuch(err)
		}
		ex.conn.OnClose(e.Disconnect)
	}
	if err := e.Enter(ex.start); err != nil {
		return tooMuch(err)
	}
	ex.entered = e
	return nil
}

// tooMuch refuses what an agent may not do at a time.
func tooMuch(err error) *refusal {
	no := &refusal{status: fasthttp.StatusTooManyRequests, code: codeAgentLimit, message: err.Error()}
	if b, ok := errors.AsType[*agents.BusyError](err); ok {
		no.wait = b.Wait
	}
	return no
}

// permit refuses what the agent may not use; ex.info is known.
func (ex *exchange) permit() *refusal {
	e := ex.limits
	if e == nil {
		return nil
	}
	switch {
	case e.Unreadable:
		return ex.forbid("what agent %s may use cannot be read", ex.agent)
	case !e.MayProvider(ex.provider.Name):
		return ex.forbid("agent %s may not use provider %q", ex.agent, ex.provider.Name)
	case ex.info.Model == "" && (!ex.spends() || ex.isSocket()): // where each turn may name one
		return nil
	case !e.MayModel(ex.info.Model) && ex.info.Model == "":
		return ex.forbid("agent %s may use some models only, and this request names none that can be read", ex.agent)
	case !e.MayModel(ex.info.Model):
		return ex.forbid("agent %s may not use model %q", ex.agent, ex.info.Model)
	}
	return nil
}

// forbid refuses what the agent may not use.
func (ex *exchange) forbid(format string, args ...any) *refusal {
	return &refusal{
		status: fasthttp.StatusForbidden, code: codeNotAllowed,
		message: fmt.Sprintf(format, args...) + "; an operator may allow it by `authpool agents limit`",
	}
}

// spends tells whether a request costs something, now or, as a batch, later.
func (ex *exchange) spends() bool {
	if ex.costs() {
		return true
	}
	path := ex.request.head.Rest
	return ex.info.Endpoint.Creates && string(ex.request.head.Method) == fasthttp.MethodPost &&
		strings.Contains(strings.ToLower(ex.info.Endpoint.Name), "batch") &&
		!bytes.HasSuffix(path, []byte("/cancel")) && !bytes.HasSuffix(path, []byte(":cancel"))
}

// budget refuses a request that costs something when its agent has used up a budget.
func (ex *exchange) budget() *refusal {
	e := ex.limits
	if e == nil || !ex.spends() {
		return nil
	}
	over, ok := errors.AsType[*agents.OverError](e.Begin(time.Now()))
	if !ok {
		ex.budgeted = e
		return nil
	}
	return &refusal{
		status: fasthttp.StatusTooManyRequests, code: codeAgentBudget, message: over.Error(),
		wait: over.Wait, resets: over.Until, codex: ex.isCodex(),
	}
}
