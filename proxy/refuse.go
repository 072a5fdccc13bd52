package proxy

import (
	"math"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/proxy/provider"
)

// Codes of authpool's own errors beside those of package provider, told in
// X-Authpool-Error.
const (
	codeBadRequest      = "bad_request"
	codeUnauthorized    = "unauthorized"
	codeForbidden       = "forbidden"
	codeIsolated        = "isolated" // it names what another agent has made
	codeNoSubscription  = provider.CodeNoSubscription
	codeTooLarge        = "payload_too_large"
	codeHeadTooLarge    = "head_too_large"
	codeUpgrade         = provider.CodeUpgrade
	codeLimited         = "limited"
	codeBrake           = "brake"
	codeAgentBudget     = "agent_budget"
	codeAgentLimit      = "agent_limit"     // it does too much at a time
	codeNotAllowed      = "not_allowed"     // what the agent may not use
	codeGuessing        = "too_many_tokens" // wrong ones
	codeUpstream        = "upstream_failed"
	codeUpstreamTimeout = "upstream_timeout"
	codeUnavailable     = "unavailable"
)

// refusal is an answer of authpool's own on its way to an agent.
type refusal struct {
	status  int
	code    string
	message string        // without the leading "authpool:"
	wait    time.Duration // for Retry-After; 0: none
	resets  time.Time     // when the first subscription opens; zero: not told
	final   bool          // trying again will not help
	codex   bool          // the agent is Codex, which reads `resets`
	kept    *kept         // a provider's own error, shown instead
}

// seconds is the wait for Retry-After, which knows no fractions.
func (r *refusal) seconds() int64 { return int64(math.Ceil(r.wait.Seconds())) }

// writeRefusal writes r in the shape that the family's SDKs read.
func writeRefusal(ctx *fasthttp.RequestCtx, family provider.Family, id string, r *refusal) {
	resp := &ctx.Response
	resp.SetStatusCode(r.status)
	resp.Header.SetContentType("application/json")
	resp.Header.Set("X-Authpool-Error", r.code)
	if name, value := provider.ErrorHeader(family, r.status); name != "" {
		resp.Header.Set(name, value)
	}
	final := r.final
	switch r.status {
	case fasthttp.StatusUnauthorized, fasthttp.StatusForbidden:
		// Claude Code repeats a bare 401 for three minutes.
		final = true
	case fasthttp.StatusProxyAuthRequired:
		resp.Header.Set("Proxy-Authenticate", `Basic realm="authpool"`)
	case fasthttp.StatusUpgradeRequired:
		resp.Header.Set("Upgrade", "HTTP/1.1")
		resp.Header.Set("Sec-WebSocket-Version", "13") // RFC 6455, section 4.4
	}
	if r.wait > 0 {
		resp.Header.Set("Retry-After", strconv.FormatInt(r.seconds(), 10))
		resp.Header.Set("retry-after-ms", strconv.FormatInt(max(1, r.wait.Milliseconds()), 10))
		// An SDK would sleep that long inside one call.
		final = final || r.wait > time.Minute
	}
	if final {
		resp.Header.Set("x-should-retry", "false")
	}
	if r.codex && final && !r.resets.IsZero() {
		// It does not look at x-should-retry.
		resp.SetBodyRaw(provider.UsageLimitBody(nil, r.message, r.resets))
		return
	}
	resp.SetBodyRaw(provider.ErrorBody(nil, family, r.status, r.code, r.message, id))
}
