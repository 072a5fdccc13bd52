package proxy

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tap"
	"github.com/authpool/authpool/ratelimit/usage"
)

// finish ends an answer, whole or cut: it records what was used, settles the
// lease, frees the upstream connection and says in one line what happened.
func (ex *exchange) finish() {
	left := ex.agentGone || ex.leave.Err() != nil
	if !ex.ended && left && ex.settings.DrainOnLeave {
		ex.drain()
	}
	whole := ex.ended || ex.call.Ended()
	ex.endTap()
	ex.learnMade() // a stream that was cut may have told what it made
	ex.settle(!whole)
	if !ex.judged {
		switch f, failed := ex.meter.Failure(); {
		case failed:
			ex.judge(ex.classifyEvent(f))
		case whole || ex.meter.HasContent():
			ex.judge(ex.headVerdict)
		case !left && !errors.Is(ex.cut, tap.ErrEcho):
			ex.judge(classifyFailure(ex.cut))
		}
	} else {
		ex.judgeContent()
	}
	if left && !whole {
		agentsLeft.Inc()
	}
	ex.tellEcho(ex.cut)
	if ex.calling {
		ex.calling = false
		ex.call.Close()
	}
	ex.lease.Done(ex.tokens)
	switch {
	case whole:
		ex.log(ex.status, "whole", "", "")
	case left:
		ex.log(ex.status, "agent left", "", "")
	default:
		ex.log(ex.status, "cut", "", errorText(ex.cut))
	}
	ex.end()
}

// tellEcho makes it loud that an answer could not be shown for its secret.
func (ex *exchange) tellEcho(err error) {
	if !errors.Is(err, tap.ErrEcho) {
		return
	}
	echoesMasked.Inc()
	ex.auditEcho()
	ex.s.log.Error("answer cut: the provider repeated the credential in a compressed answer",
		"request", ex.id, "provider", ex.provider.Name, "subscription", ex.lease.Subscription().ID)
}

// errPanicked ends an answer in the middle of which authpool failed.
var errPanicked = errors.New("internal error")

// panicked notes a panic, so that nothing of the exchange is trusted any more.
func (ex *exchange) panicked(p any) error {
	ex.broken, ex.cut = true, errPanicked
	ex.s.log.Error("BUG: a request failed", "request", ex.id, "panic", p, "stack", string(debug.Stack()))
	return errPanicked
}

// abandon ends an exchange in which something panicked: it frees what others
// wait for, and touches nothing that may panic again.
func (ex *exchange) abandon() {
	if ex.lease != nil {
		ex.giveUp()
		ex.lease.Done(usage.Tokens{})
	}
	ex.tapping, ex.calling = false, false
	ex.call.Close()
	ex.story.reset() // perhaps in the middle of a note
	ex.remember(ex.status, "failed", codeUnavailable, errPanicked.Error())
	ex.end()
}

// giveUp records that an attempt used something, and that nobody knows what.
func (ex *exchange) giveUp() {
	if !ex.opened {
		return
	}
	ex.opened = false
	e := ex.event()
	e.Estimated, e.Unknown, e.Unpriced = true, true, true
	ex.add(e)
}

// refuse answers with r instead of a provider's answer, and ends the exchange.
func (ex *exchange) refuse(ctx *fasthttp.RequestCtx, r *refusal) {
	resp := &ctx.Response
	if ex.provider != nil {
		ex.sign(resp)
	} else {
		resp.Header.Set("X-Authpool-Request-Id", ex.id)
	}
	if k := r.kept; k != nil {
		resp.SetStatusCode(k.status)
		resp.Header.SetStatusMessage(k.head.StatusMessage())
		copyHead(resp, k.head.All())
		resp.SetBodyRaw(k.body)
		r.nextTry(resp)
	} else {
		writeRefusal(ctx, ex.family, ex.id, r)
	}
	ex.endRefused(r)
}

// endRefused ends an exchange whose agent gets r.
func (ex *exchange) endRefused(r *refusal) {
	if ex.lease != nil {
		ex.tellEcho(ex.failure)
		ex.release()
	}
	ex.auditRefusal(r)
	how := "refused"
	if r.code == provider.CodeLocal {
		how = "answered locally"
	}
	ex.log(r.status, how, r.code, r.message)
	ex.end()
}

// log writes the one line that each request leaves, and counts it. code is of an
// error of authpool's own; cause says what went wrong.
func (ex *exchange) log(status int, how, code, cause string) {
	ex.remember(status, how, code, cause)
	name, sub := "", ""
	if ex.provider != nil {
		name = ex.provider.Name
	}
	if ex.lease != nil {
		sub = ex.lease.Subscription().ID
		requestSeconds.WithLabelValues(name).Observe(sinceSeconds(ex.start))
	}
	requestsTotal.WithLabelValues(name, sub, statusClass(status)).Inc()
	level := slog.LevelInfo
	if status >= 500 || how == "cut" {
		level = slog.LevelWarn
	}
	ctx := context.Background()
	if !ex.s.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 16)
	attrs = append(attrs,
		slog.String("request", ex.id),
		slog.Int("status", status),
		slog.String("end", how),
		slog.Duration("took", time.Since(ex.start).Round(time.Microsecond)),
	)
	if code != "" {
		attrs = append(attrs, slog.String("error", code))
	}
	if ex.agent != "" {
		attrs = append(attrs, slog.String("agent", ex.agent))
	}
	if name != "" {
		attrs = append(attrs, slog.String("provider", name), slog.String("session", ex.info.Session.ID), slog.String("model", ex.info.Model))
	}
	if sub != "" {
		attrs = append(attrs, slog.String("subscription", sub))
	}
	if ex.attempts > 0 {
		attrs = append(attrs, slog.Int("attempts", ex.attempts))
	}
	if t := ex.tokens; t.Total() > 0 {
		attrs = append(attrs, slog.Int64("input", t.Input), slog.Int64("output", t.Output),
			slog.Int64("cache_read", t.CacheRead), slog.Int64("cache_write", t.CacheWrite5m+t.CacheWrite1h), slog.Bool("estimated", ex.estimated))
	}
	attrs = append(attrs, ex.socketAttrs()...)
	if cause != "" {
		attrs = append(attrs, slog.String("cause", cause))
	}
	ex.s.log.LogAttrs(ctx, level, "request", attrs...)
}

// statusClass bounds the values of a metric's label.
func statusClass(status int) string {
	switch {
	case status == 429 || status == 529 || status == 499:
		return strconv.Itoa(status)
	case status < 200 || status > 599:
		return "other"
	}
	return [...]string{"2xx", "3xx", "4xx", "5xx"}[status/100-2]
}

func sinceSeconds(t time.Time) float64 { return time.Since(t).Seconds() }
