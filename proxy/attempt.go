package proxy

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tap"
	"github.com/authpool/authpool/proxy/upstream"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// obtain gets an answer worth showing: it sends the request to one subscription
// after another until one serves it, or it fails in a way that another try
// would not mend, or the budget is spent. It is the only loop of a request.
//
// Attempts count what a provider may have begun to execute. Refusals (a rate
// limit, an exhausted quota, a rejected credential) cost nothing and close the
// subscription for the next request, so that they are bounded by the number of
// subscriptions and by the deadline instead: an agent must not see a limit
// while somebody else can serve. With one attempt there is no failover at all.
func (ex *exchange) obtain() *refusal {
	preq := ex.poolRequest()
	if no := ex.repeated(&preq); no != nil {
		return no
	}
	if no := ex.budget(); no != nil {
		return no
	}
	if no := ex.brake(); no != nil {
		return no
	}
	preq.Trace = traces.Get().(*pool.Trace)
	defer traces.Put(preq.Trace)
	var former *pool.Subscription // whose verdict the request could not be answered with
	var why ratelimit.Reason
	for {
		lease, err := ex.acquire(&preq)
		ex.noteChoice(&preq, lease, err)
		if err != nil {
			return ex.noLease(err)
		}
		if former != nil && former.ID != lease.Subscription().ID {
			failoversTotal.WithLabelValues(ex.provider.Name, string(why)).Inc()
		}
		ex.lease, ex.judged = lease, false
		v := ex.try()
		ex.noteAttempt(v)
		attemptsTotal.WithLabelValues(ex.provider.Name, lease.Subscription().ID, v.Signal.String()).Inc()
		if ex.gone() {
			return agentLeft
		}
		if out := ex.keptOut(v); out || v.Signal == ratelimit.OK || !ex.mayRepeat(v) {
			ex.noteFinal(v, out)
			ex.learn(v)
			return ex.show(v)
		}
		ex.judge(v)
		ex.keep(v)
		if executed(v) || slices.Contains(preq.Tried, lease.Subscription().ID) {
			ex.executed++
			preq.Tried = append(preq.Tried, lease.Subscription().ID)
		} else if ex.refused++; closesNothing(v) || ex.refused > maxRefusals {
			preq.Tried = append(preq.Tried, lease.Subscription().ID)
		}
		former, why = lease.Subscription(), v.Reason
		ex.release()
	}
}

// maxRefusals is after how many refusals of one request a subscription that
// refused is not offered again, should the pool not have closed it. What closes
// nothing would be asked again at once.
const maxRefusals = 3

// agentLeft is the refusal that nobody reads.
var agentLeft = &refusal{status: 499, code: codeUnavailable, message: "the agent left"}

// gone tells whether the agent left and the upstream call was cancelled for it.
func (ex *exchange) gone() bool { return ex.leave.Err() != nil && !ex.settings.DrainOnLeave }

// executed tells whether the provider may have begun to work on the request.
func executed(v ratelimit.Verdict) bool {
	return v.Signal == ratelimit.ServerError || v.Signal == ratelimit.Overloaded || v.Signal == ratelimit.Network
}

// mayRepeat tells whether the request may go to another subscription.
func (ex *exchange) mayRepeat(v ratelimit.Verdict) bool { return ex.final(v) == "" }

// final tells people why the request must not go to another subscription; empty: it
// may.
func (ex *exchange) final(v ratelimit.Verdict) string {
	o := &ex.settings.Options
	spent := ex.executed
	if executed(v) {
		spent++
	}
	switch {
	case o.Attempts <= 1 || spent >= o.Attempts:
		return "failover.attempts allows no more"
	case ex.request.size > o.ReplayLimit:
		return "its body is larger than failover.replay_body"
	case time.Since(ex.start) >= o.Deadline:
		return "failover.deadline has passed"
	case provider.Repeatable(v, &ex.info, provider.Attempt{Failures: ex.executed}):
		return ""
	case !executed(v):
		return "the answer is about this request, whoever serves it"
	case ex.executed > 0:
		return "it was sent again once, which is enough for a provider that fails"
	case ex.info.RetryCount > 0:
		return "the agent tries again itself, and both would multiply"
	case ex.info.Unsafe:
		return "the provider may have done it, and would do it twice"
	default:
		return "another subscription would not change that, or the provider is still at it"
	}
}

// errMoved is of a request whose credential may not go where the request would.
var errMoved = errors.New("the provider's address has changed while the request was waiting; send it again")

// follow sees to it that the credential goes to the host that it is for. A request keeps
// the provider that it began with; when the config has given that another address and
// the subscription another credential meanwhile, the request goes with the credential.
func (ex *exchange) follow() bool {
	origin := ex.lease.Origin()
	if origin == "" || origin == ex.provider.Origin {
		return true
	}
	p := ex.s.settings.Load().providers.Provider(ex.provider.Name)
	if p == nil || p.Origin != origin || p.Family != ex.provider.Family {
		return false
	}
	ex.provider = p
	return true
}

// try sends the request once and reads its answer until it is known what it is
// worth: the head, and for a stream its first content, for an error its text.
func (ex *exchange) try() ratelimit.Verdict {
	ex.attempts++
	cred, err := ex.lease.Credential(ex.leave)
	if err != nil {
		// The pool has closed the subscription; it is as if it had refused.
		ex.failure = err
		return ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonCredential, Scope: ratelimit.ScopeSubscription, Wait: -1, Row: "credential unreadable"}
	}
	if !ex.follow() {
		ex.failure = errMoved
		return ratelimit.Verdict{Signal: ratelimit.ClientError, Scope: ratelimit.ScopeRequest, Wait: -1, Row: "the provider has moved"}
	}
	req := &ex.request
	head, err := ex.provider.AppendHead(ex.headBuf[:0], &req.head, cred)
	ex.headBuf = head
	if err != nil {
		ex.failure = err
		return ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonCredential, Scope: ratelimit.ScopeSubscription, Wait: -1, Row: "credential unusable"}
	}
	isHead := string(req.head.Method) == http.MethodHead
	ex.auditUse()
	ex.sending()
	if ex.isSocket() {
		err = ex.s.deps.Transport.Upgrade(ex.leave, &ex.call, ex.s.origin(ex.provider), head)
	} else {
		err = ex.s.deps.Transport.Do(ex.leave, &ex.call, ex.s.origin(ex.provider), head, req.body[:req.n], isHead)
	}
	// The head holds the credential, and its buffer outlives the request.
	clear(ex.headBuf)
	if err != nil {
		ex.failure = err
		return classifyFailure(err)
	}
	ex.calling = true
	return ex.readAnswer(cred.Secret.Reveal())
}

// readAnswer reads the answer as far as it must be known.
func (ex *exchange) readAnswer(secret string) ratelimit.Verdict {
	h := &ex.call.Header
	ex.status = h.StatusCode()
	good := ex.status >= 200 && ex.status < 300
	ex.stream = meter.Streams(ex.info.Endpoint.API, h.ContentType())
	if ex.stream {
		ex.lease.FirstByte(time.Since(ex.story.asked))
	}
	ex.mask[0] = append(ex.mask[0][:0], secret...)
	maskHead(h, ex.mask[0])
	if ex.isSocket() && (good || ex.status == fasthttp.StatusSwitchingProtocols) {
		return ex.switches()
	}
	ex.meter.Reset(ex.info.Endpoint.API, meter.Options{
		ContentType: h.ContentType(), Model: ex.info.Model, Headers: h, Item: ex.onItem,
	})
	opts := tap.Options{
		Encoding: string(h.ContentEncoding()),
		Mask:     ex.mask[:],
		Filter:   ex.stream && !ex.info.Patch.Empty(),
	}
	ex.errorText.reset()
	switch {
	case !good:
		opts.Sink = &ex.errorText
	case ex.info.Endpoint.Billable():
		opts.Sink = &ex.meter
	}
	ex.disguise.reset(nil)
	if good && !ex.stream && opts.Sink != nil {
		ex.disguise.reset(opts.Sink)
		opts.Sink = &ex.disguise
	}
	if good {
		opts.Sink = ex.watchMade(opts.Sink)
	}
	ex.tap.Reset(opts)
	ex.tapping = true

	answer := ex.answerFacts()
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	if !good {
		if err := ex.readError(*bp); err != nil {
			ex.failure = err
		}
		answer.Body = ex.errorText.bytes()
		return provider.Classify(answer, time.Now())
	}
	ex.headVerdict = provider.Classify(answer, time.Now())
	switch {
	case ex.call.Ended():
		ex.endTap()
	case ex.stream && ex.costs():
		if err := ex.hold(*bp); err != nil {
			if errors.Is(err, tap.ErrEcho) {
				ex.cut = err
				return ex.headVerdict
			}
			ex.failure = err
			return classifyFailure(err)
		}
		if f, failed := ex.meter.Failure(); failed {
			return ex.classifyEvent(f)
		}
		if !ex.meter.HasContent() && !ex.ended {
			return ratelimit.Verdict{Signal: ratelimit.OK, Row: "no content yet"}
		}
	case !ex.disguise.sure:
		switch err := ex.unmask(*bp); {
		case errors.Is(err, tap.ErrEcho):
			ex.cut = err
		case err != nil:
			ex.failure = err
			return classifyFailure(err)
		case ex.disguise.is:
			return ex.classifyDisguised()
		}
	}
	return ex.headVerdict
}

// answerFacts is what the classifier reads of the answer's head.
func (ex *exchange) answerFacts() provider.Answer {
	return provider.Answer{
		Provider: ex.provider.Name, Family: ex.provider.Family, Endpoint: ex.info.Endpoint, Status: ex.status,
		Headers: ex.call.Header.All(), Windows: ex.windows[:0], Organisation: ex.organisation[:0],
	}
}

// classifyEvent says what an error event inside a good answer means.
func (ex *exchange) classifyEvent(f meter.Failure) ratelimit.Verdict {
	answer := ex.answerFacts()
	answer.Failure = &f
	return provider.Classify(answer, time.Now())
}

// readError reads the text of an error answer: the status alone is enough to go on.
func (ex *exchange) readError(buf []byte) error {
	return ex.keepBack(buf, func() bool { return true })
}

// classifyFailure says what a call without an answer means.
func classifyFailure(err error) ratelimit.Verdict {
	v := provider.ClassifyError(err)
	var ue *upstream.Error
	if errors.As(err, &ue) && !ue.Sent && v.Reason != ratelimit.ReasonTLS {
		v.Reason = ratelimit.ReasonConnect // nothing was executed
	}
	return v
}

// judge tells the lease what its answer was worth, once.
func (ex *exchange) judge(v ratelimit.Verdict) {
	if !ex.judged {
		ex.judged = true
		ex.story.Verdict(v)
		ex.lease.Verdict(v)
	}
}

// release ends an attempt whose answer is not shown, and makes ex ready for
// another. The provider may bill it all the same.
func (ex *exchange) release() {
	ex.endTap()
	ex.settle(true)
	if ex.calling {
		ex.calling = false
		ex.call.Close()
	}
	ex.lease.Done(usage.Tokens{})
	ex.lease = nil
	ex.held, ex.ended, ex.settled, ex.opened, ex.informed = ex.held[:0], false, false, false, false
	ex.status, ex.failure, ex.cut, ex.making = 0, nil, nil, false
}

// endTap closes the tap, and with it the meter, once.
func (ex *exchange) endTap() {
	if ex.tapping {
		ex.tapping = false
		_, _ = ex.tap.Finish()
		clear(ex.mask[0])
	}
}

// kept is the last failed answer that another subscription might still have
// mended. It is shown when none can.
type kept struct {
	verdict ratelimit.Verdict
	status  int
	head    *fasthttp.ResponseHeader // nil when no answer came
	body    []byte
	err     error
}

// keep remembers a failed attempt.
func (ex *exchange) keep(v ratelimit.Verdict) {
	k := &kept{verdict: v, status: ex.status, err: ex.failure}
	if ex.calling && ex.ended && ex.failure == nil && (ex.status < 200 || ex.status > 299 || ex.disguise.is) {
		k.head = &fasthttp.ResponseHeader{}
		ex.call.Header.CopyTo(k.head)
		k.body = append([]byte(nil), ex.held...)
	}
	ex.kept = k
}

// noLease says why nobody serves.
func (ex *exchange) noLease(err error) *refusal {
	var none *pool.NoSubscriptionError
	var away *pool.UnavailableError
	switch {
	case ex.leave.Err() != nil: // nothing was lent, so that nothing is to be drained
		return agentLeft
	case errors.As(err, &none) && ex.limits != nil && len(ex.limits.Subscriptions) > 0 && (none.Model != "" || ex.info.Model == ""):
		return ex.forbid("no subscription of provider %q that agent %s may use can serve this", ex.provider.Name, ex.agent)
	case errors.As(err, &none):
		return &refusal{status: fasthttp.StatusNotFound, code: codeNoSubscription, message: none.Error()}
	case !errors.As(err, &away):
		return &refusal{status: fasthttp.StatusServiceUnavailable, code: codeUnavailable, message: err.Error(), wait: time.Second}
	}
	// A provider that fails says so itself; and it knows best why it refused what
	// closes nobody.
	if k := ex.kept; k != nil && (executed(k.verdict) || closesNothing(k.verdict) || notPermitted(k.verdict)) {
		if executed(k.verdict) && ex.attempts > 0 {
			ex.s.tries.failed(ex.tryKey(), k, time.Now())
		}
		r := ex.failing(k)
		if away.Whole() {
			r.wait = away.Wait
		}
		return r
	}
	r := &refusal{status: fasthttp.StatusTooManyRequests, code: codeLimited, message: away.Error(), wait: away.Wait, resets: away.Until, codex: ex.isCodex()}
	if away.Until.IsZero() {
		r.status, r.code, r.wait, r.final = fasthttp.StatusServiceUnavailable, codeUnavailable, 0, true
	} else {
		r.closed(ex.family, away.Reason)
	}
	return r
}

// notPermitted tells that the provider has refused the model to a subscription,
// and will each time.
func notPermitted(v ratelimit.Verdict) bool {
	return v.Signal == ratelimit.Auth && v.Scope == ratelimit.ScopeModel
}

// isCodex tells whether the agent is Codex, by what it says of itself
// (`originator: codex_exec`, `codex_cli_rs`, …), and speaks to OpenAI's API.
func (ex *exchange) isCodex() bool {
	const name = "codex"
	o := ex.request.head.Headers.Get("originator")
	return ex.family == provider.OpenAI && len(o) >= len(name) && equalFold(o[:len(name)], name)
}

// unreached says that the provider gave no answer.
func (ex *exchange) unreached(v ratelimit.Verdict, err error) *refusal {
	r := &refusal{status: fasthttp.StatusBadGateway, code: codeUpstream, message: "provider " + ex.provider.Name + ": " + errorText(err)}
	if v.Reason == ratelimit.ReasonTimeout {
		r.status, r.code = fasthttp.StatusGatewayTimeout, codeUpstreamTimeout
	}
	return r
}

// errorText words a failed call for an agent.
func errorText(err error) string {
	if err == nil {
		return "the answer ended, or told an error, before its content"
	}
	return err.Error()
}

// show makes the last attempt's answer the request's answer.
func (ex *exchange) show(v ratelimit.Verdict) *refusal {
	if !ex.calling {
		ex.judge(v)
		if errors.Is(ex.failure, errMoved) {
			return &refusal{status: fasthttp.StatusServiceUnavailable, code: codeUnavailable, message: errMoved.Error(), wait: time.Second}
		}
		if v.Signal == ratelimit.Auth {
			return &refusal{status: fasthttp.StatusServiceUnavailable, code: codeUnavailable, message: "subscription " + ex.lease.Subscription().ID + ": " + errorText(ex.failure), final: true}
		}
		return ex.unreached(v, ex.failure)
	}
	if ex.failure != nil {
		// The answer broke before its content: an error is clearer than a head
		// without a body.
		ex.judge(v)
		return ex.unreached(v, ex.failure)
	}
	if ex.stream && ex.status < 300 && !ex.meter.HasContent() && !ex.ended {
		return nil // judged when content comes
	}
	ex.judge(v)
	return nil
}

// origin returns where a provider's connections go.
func (s *Server) origin(p *provider.Provider) upstream.Origin {
	if o, ok := s.origins.Load(p); ok {
		return o.(upstream.Origin)
	}
	host, port, err := net.SplitHostPort(p.Host)
	if err != nil {
		host, port = p.Host, "80"
		if p.TLS {
			port = "443"
		}
	}
	if n := len(host); n > 2 && host[0] == '[' && host[n-1] == ']' {
		host = host[1 : n-1]
	}
	o := upstream.Origin{TLS: p.TLS, Host: host, Addr: net.JoinHostPort(host, port)}
	s.origins.Store(p, o)
	return o
}

// errorText collects the decoded text of an error answer, up to holdLimit.
type errorBody struct{ text []byte }

func (e *errorBody) reset()        { e.text = e.text[:0] }
func (e *errorBody) bytes() []byte { return e.text }

// Write implements tap.Sink.
func (e *errorBody) Write(p []byte) {
	e.text = append(e.text, p[:min(len(p), holdLimit-len(e.text))]...)
}

// Blind implements tap.Sink.
func (e *errorBody) Blind() {}

// Close implements tap.Sink.
func (e *errorBody) Close() {}
