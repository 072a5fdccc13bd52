package proxy

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
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
	triesDamped = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_tries_damped_total",
		Help: "Requests answered with the provider's last error, because the same had failed several times a moment ago.",
	})
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
