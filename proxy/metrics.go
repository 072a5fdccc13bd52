package proxy

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/ratelimit/usage"
)

var (
	requestsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_requests_total",
		Help: "Requests answered, by provider, the subscription that served (empty: none did) and the class of the status.",
	}, []string{"provider", "subscription", "code"})
	attemptsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_attempts_total",
		Help: "Attempts sent to providers, by subscription and what the answer said.",
	}, []string{"provider", "subscription", "signal"})
	requestsInFlight = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_requests_in_flight",
		Help: "Requests whose answer has not ended.",
	})
	firstByteSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "authpool_first_byte_seconds",
		Help:    "From a request's arrival to the head of the answer that was used.",
		Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30, 100, 300},
	}, []string{"provider"})
	requestSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "authpool_request_seconds",
		Help:    "From a request's arrival to the last byte of its answer, of requests that were sent to a provider.",
		Buckets: []float64{.03, .1, .3, 1, 3, 10, 30, 100, 300, 1000},
	}, []string{"provider"})
	failoversTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_failovers_total",
		Help: "Requests taken from one subscription to another, by what the first one said.",
	}, []string{"provider", "reason"})
	tokensTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_tokens_total",
		Help: "Tokens of the answers that went through this process, by kind; without results of batches and of background responses, which may be read many times.",
	}, []string{"provider", "subscription", "kind"})
	costTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_cost_usd_total",
		Help: "Cost of the answers whose tokens are in authpool_tokens_total, in dollars.",
	}, []string{"provider", "subscription"})
	triesDamped = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_tries_damped_total",
		Help: "Requests answered with the provider's last error, because the same had failed several times a moment ago.",
	})
	pathsWithheld = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_paths_withheld_total",
		Help: "Requests that the path manifest has not sent to the provider, by provider and what it says of the path: local (answered by authpool), refuse, or unknown (none of the provider's API).",
	}, []string{"provider", "action"})
	connectsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_connects_total",
		Help: "CONNECT requests of agents: intercepted (to a provider's host), direct (to authpool itself), tunnelled, refused, or asked for a token (which git sends at the second try only).",
	}, []string{"kind"})
	handshakesTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_intercepted_handshakes_total",
		Help: "TLS handshakes of agents inside CONNECT, by what came of them: ok or failed, most likely for an authority that the agent does not trust.",
	}, []string{"result"})
	handshakeSeconds = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "authpool_intercepted_handshake_seconds",
		Help:    "Time of those handshakes, with the making of a certificate where there was none.",
		Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3},
	})
	connectionsTurnedAway = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_connections_turned_away_total",
		Help: "Agents' connections closed for want of a place (limits_http.connections): full, crowded (too many without a good token from one network), or evicted (one without a good token, for another).",
	}, []string{"why"})
	agentsLeft = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_agents_left_total",
		Help: "Answers cut because the agent had left.",
	})
	isolationUnsure = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_isolation_unsure_total",
		Help: "Requests served although Redis could not be asked whether an id that they name is another agent's.",
	})
	echoesMasked = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_credential_echoes_total",
		Help: "Answers in which the provider repeated the credential.",
	})
)

// spent counts what one subscription's answers used.
type spent struct {
	input, output, cacheRead, cacheWrite5m, cacheWrite1h, cost prometheus.Counter
}

// spenders are the counters of each subscription at its provider, so that an answer
// looks six of them up by one key. The map is copied when a subscription's first answer
// ends, and never changed: readers take no lock.
var (
	spenders   atomic.Pointer[map[spender]*spent]
	spendersMu sync.Mutex // for who writes
)

type spender struct{ provider, subscription string }

func spentOf(who spender) *spent {
	if known := spenders.Load(); known != nil {
		if s := (*known)[who]; s != nil {
			return s
		}
	}
	spendersMu.Lock()
	defer spendersMu.Unlock()
	all := map[spender]*spent{}
	if known := spenders.Load(); known != nil {
		if s := (*known)[who]; s != nil {
			return s
		}
		all = maps.Clone(*known)
	}
	tokens := func(kind string) prometheus.Counter {
		return tokensTotal.WithLabelValues(who.provider, who.subscription, kind)
	}
	s := &spent{
		input: tokens("input"), output: tokens("output"), cacheRead: tokens("cache_read"),
		cacheWrite5m: tokens("cache_write_5m"), cacheWrite1h: tokens("cache_write_1h"),
		cost: costTotal.WithLabelValues(who.provider, who.subscription),
	}
	all[who] = s
	spenders.Store(&all)
	return s
}

// countSpent adds an event to the metrics.
func countSpent(e *usage.Event) {
	if e.Batch != "" {
		return
	}
	s := spentOf(spender{e.Provider, e.Subscription})
	count := func(c prometheus.Counter, n int64) {
		if n > 0 {
			c.Add(float64(n))
		}
	}
	count(s.input, e.Tokens.Input)
	count(s.output, e.Tokens.Output)
	count(s.cacheRead, e.Tokens.CacheRead)
	count(s.cacheWrite5m, e.Tokens.CacheWrite5m)
	count(s.cacheWrite1h, e.Tokens.CacheWrite1h)
	if e.CostNanoUSD > 0 {
		s.cost.Add(float64(e.CostNanoUSD) / 1e9)
	}
}

// ForgetMetrics drops the series of a subscription that there is no more.
func ForgetMetrics(subscription string) {
	spendersMu.Lock()
	defer spendersMu.Unlock()
	if known := spenders.Load(); known != nil {
		rest := maps.Clone(*known)
		maps.DeleteFunc(rest, func(who spender, _ *spent) bool { return who.subscription == subscription })
		spenders.Store(&rest) // else one that comes back would be counted where nobody looks
	}
	of := prometheus.Labels{"subscription": subscription}
	for _, vec := range []*prometheus.CounterVec{requestsTotal, attemptsTotal, tokensTotal, costTotal, socketTurns} {
		vec.DeletePartialMatch(of)
	}
}
