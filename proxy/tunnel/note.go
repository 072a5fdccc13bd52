package tunnel

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/pool/audit"
)

// note tells of the end of a tunnel.
func (t *Tunnel) note(s Stats) {
	tunnelsOpen.WithLabelValues(t.way).Dec()
	tunnelsEnded.WithLabelValues(t.way, string(s.End)).Inc()
	tunnelSeconds.WithLabelValues(t.way).Observe(s.Took.Seconds())
	target, address := t.host.Join(t.port), ""
	if peer, ok := remote(t.upper); ok && t.way != wayProxied {
		address = peer.String()
	}
	t.of.opts.Log.Debug("tunnel ended", "agent", t.agent, "target", target, "address", address, "kind", t.way,
		"up", s.Up, "down", s.Down, "took", s.Took, "end", string(s.End))
	t.of.opts.Audit.Add(audit.Entry{Kind: audit.TunnelEnded, Actor: t.agent, Fields: map[string]string{
		"target": target, "address": address, "kind": t.way, "end": string(s.End),
		"up": strconv.FormatInt(s.Up, 10), "down": strconv.FormatInt(s.Down, 10), "took": s.Took.Round(time.Millisecond).String(),
	}})
}

// noteRefusal tells of a tunnel that was not opened.
func (t *Tunnels) noteRefusal(agent string, err error) {
	r, ok := errors.AsType[*RefusedError](err)
	if !ok {
		tunnelsFailed.Inc()
		t.opts.Log.Debug("tunnel failed", "agent", agent, "error", errors.Unwrap(err))
		return
	}
	t.refused(agent, r.Reason, net.JoinHostPort(strings.Trim(r.Host[:min(len(r.Host), maxShown)], "[]"), strconv.Itoa(int(r.Port))))
}

// noteHello tells of a tunnel in which another name was said than was let.
func (t *Tunnels) noteHello(one *Tunnel, name string) {
	t.refused(one.agent, BadHello, one.host.Join(one.port)+" "+name[:min(len(name), maxShown)])
}

func (t *Tunnels) refused(agent string, why Reason, target string) {
	tunnelsRefused.WithLabelValues(string(why)).Inc()
	t.opts.Log.Debug("tunnel refused", "agent", agent, "reason", string(why), "target", target)
	t.opts.Audit.Refused(audit.Refusal{Code: "tunnel_" + string(why), Agent: agent, Target: target})
}

var (
	tunnelsOpen = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "authpool_tunnels",
		Help: "Open tunnels to hosts that are no provider's; kind: public, private (let by intercept.allow_private) or proxied (by egress.proxy).",
	}, []string{"kind"})
	tunnelsEnded = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_tunnels_ended_total",
		Help: "Tunnels that have ended, by why: done, broken, idle, total, stopped, forbidden, revoked.",
	}, []string{"kind", "reason"})
	tunnelBytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_tunnel_bytes_total",
		Help: "Bytes that went through tunnels: up from agents, down to them.",
	}, []string{"kind", "direction"})
	tunnelSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "authpool_tunnel_seconds",
		Help:    "How long tunnels were open.",
		Buckets: []float64{.1, 1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600},
	}, []string{"kind"})
	tunnelsRefused = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_tunnels_refused_total",
		Help: "Tunnels that were not opened, or were ended for the server name in their TLS, by why.",
	}, []string{"reason"})
	tunnelsFailed = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_tunnels_failed_total",
		Help: "Tunnels that were permitted, but nobody was reached.",
	})
)
