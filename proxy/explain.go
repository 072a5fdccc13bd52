package proxy

import (
	"sync"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/ratelimit"
)

// Explained are the last requests, for people.
func (s *Server) Explained() *explain.Ring { return &s.explained }

// story is what is noted of an exchange for Explained.
type story struct {
	explain.Story
	asked  time.Time // when the attempt under way began
	damped bool      // the last error is shown again
}

func (o *story) reset() {
	o.Reset()
	o.asked, o.damped = time.Time{}, false
}

// traces are lent for as long as a subscription is looked for.
var traces = sync.Pool{New: func() any { return new(pool.Trace) }}

// noteChoice notes what the pool has answered.
func (ex *exchange) noteChoice(req *pool.Request, lease *pool.Lease, err error) {
	ex.story.Choice(req, lease, err)
	ex.story.asked = time.Now()
}

// noteAttempt notes what the attempt under way is worth.
func (ex *exchange) noteAttempt(v ratelimit.Verdict) {
	asked := ex.story.asked
	ex.story.Attempt(asked.Sub(ex.start), time.Since(asked), ex.status, v, ex.failure)
}

// noteFinal notes why the attempt that ended with v is the last one, if that is no
// matter of course; out as keptOut tells it.
func (ex *exchange) noteFinal(v ratelimit.Verdict, out bool) {
	switch {
	case v.Signal == ratelimit.OK:
	case out:
		ex.story.Final("the provider seems to refuse the address that requests come from")
	default:
		ex.story.Final(ex.final(v))
	}
}

// remember keeps the exchange, which has ended, for people. The arguments are those
// of log.
func (ex *exchange) remember(status int, how, code, cause string) {
	if ex.agent == "" {
		return // a stranger must not push out what is remembered of agents
	}
	t := ex.tokens
	r := explain.Request{
		ID: ex.id, Start: ex.start, Agent: ex.agent,
		Model: ex.info.Model, Session: ex.info.Session.ID, SessionSource: ex.info.Session.Source, Parent: ex.info.Session.Parent,
		Stream: ex.info.Stream, Bytes: int64(ex.request.size), Tries: int64(ex.info.RetryCount), Damped: ex.story.damped,
		Status: int64(status), End: how, Error: code, Message: cause,
		Tokens:    explain.Tokens{Input: t.Input, Output: t.Output, CacheRead: t.CacheRead, CacheWrite5m: t.CacheWrite5m, CacheWrite1h: t.CacheWrite1h},
		Estimated: ex.estimated, Turns: int64(ex.turns), Took: explain.Seconds(time.Since(ex.start)),
	}
	if ex.provider != nil {
		r.Provider = ex.provider.Name
	}
	if e := ex.info.Endpoint; e != nil {
		r.Endpoint, r.Action = e.Name, e.Action.String()
	}
	if ex.lease != nil {
		r.Subscription = ex.lease.Subscription().ID
	}
	ex.s.explained.Add(&r, &ex.story.Story)
}
