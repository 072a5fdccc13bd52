package admin

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTimeout bounds one reading of the status for /metrics: a scrape must
// not pile up behind a Redis that hangs.
const scrapeTimeout = 5 * time.Second

// Collector turns the status into metrics at the moment of a scrape, so that
// nothing has to be kept in step with it. Its labels are the operator's own
// ids, the provider names, the closed lists of the contract and the window
// names of the providers: bounded sets, no agent and no session among them.
type Collector struct {
	source StatusSource
	now    func() time.Time
}

// NewCollector returns a prometheus.Collector over source. now is the clock
// that the time left of a cooldown is measured with; nil means time.Now.
func NewCollector(source StatusSource, now func() time.Time) *Collector {
	if now == nil {
		now = time.Now
	}
	return &Collector{source: source, now: now}
}

var subscriptionLabels = []string{"subscription", "provider"}

var (
	stateDesc = prometheus.NewDesc("authpool_subscription_state",
		"1 for the state that the subscription is in.", append(subscriptionLabels[:2:2], "state"), nil)
	healthDesc = prometheus.NewDesc("authpool_subscription_health",
		"Health of the subscription, 0 to 100.", subscriptionLabels, nil)
	cooldownDesc = prometheus.NewDesc("authpool_subscription_cooldown_seconds",
		"Seconds until the whole subscription is offered again, 0 when it is.", subscriptionLabels, nil)
	cooldownModelsDesc = prometheus.NewDesc("authpool_subscription_cooldown_models",
		"Models that are closed on the subscription.", subscriptionLabels, nil)
	breakerDesc = prometheus.NewDesc("authpool_subscription_breaker",
		"1 for the state that the breaker of the subscription is in: closed, half-open or open.", append(subscriptionLabels[:2:2], "state"), nil)
	sessionsDesc = prometheus.NewDesc("authpool_subscription_sessions",
		"Sessions that hold a place on the subscription.", subscriptionLabels, nil)
	inFlightDesc = prometheus.NewDesc("authpool_subscription_in_flight",
		"Requests under way on the subscription in this process.", subscriptionLabels, nil)
	blockTokensDesc = prometheus.NewDesc("authpool_block_tokens",
		"Tokens of the active block by kind.", append(subscriptionLabels[:2:2], "kind"), nil)
	blockRequestsDesc = prometheus.NewDesc("authpool_block_requests",
		"Requests of the active block.", subscriptionLabels, nil)
	blockCostDesc = prometheus.NewDesc("authpool_block_cost_usd",
		"Cost of the active block in dollars.", subscriptionLabels, nil)
	blockInexactDesc = prometheus.NewDesc("authpool_block_inexact_requests",
		"Requests of the active block that are estimated, unpriced or of unknown usage.", append(subscriptionLabels[:2:2], "mark"), nil)
	windowDesc = prometheus.NewDesc("authpool_window_utilization",
		"Spent fraction of a window as the provider last told it.", append(subscriptionLabels[:2:2], "window"), nil)
	windowDriftDesc = prometheus.NewDesc("authpool_window_drift_ratio",
		"Utilization as the provider last told it, less our own share: 0 when all usage of the window went through authpool.",
		append(subscriptionLabels[:2:2], "window"), nil)
	windowCapacityDesc = prometheus.NewDesc("authpool_window_capacity_usd",
		"What a whole window holds in dollars, as learned from its utilization and our own cost.",
		append(subscriptionLabels[:2:2], "window"), nil)
	budgetDesc = prometheus.NewDesc("authpool_budget_spent_ratio",
		"Spent fraction of a configured budget.", append(subscriptionLabels[:2:2], "window"), nil)
	redisDesc = prometheus.NewDesc("authpool_redis_up",
		"1 while Redis answers.", []string{"mode"}, nil)
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		stateDesc, healthDesc, cooldownDesc, cooldownModelsDesc, breakerDesc, sessionsDesc, inFlightDesc,
		blockTokensDesc, blockRequestsDesc, blockCostDesc, blockInexactDesc, windowDesc,
		windowDriftDesc, windowCapacityDesc, budgetDesc, redisDesc,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	status, err := c.source.Status(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(redisDesc, err)
		return
	}
	status.normalise()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range status.Subscriptions {
		gauge(stateDesc, 1, s.ID, s.Provider, s.State)
		gauge(healthDesc, float64(s.Health), s.ID, s.Provider)
		gauge(cooldownDesc, c.left(s.CooldownUntil), s.ID, s.Provider)
		gauge(cooldownModelsDesc, float64(len(s.CooldownModels)), s.ID, s.Provider)
		gauge(breakerDesc, 1, s.ID, s.Provider, s.Breaker)
		gauge(sessionsDesc, float64(s.Sessions), s.ID, s.Provider)
		gauge(inFlightDesc, float64(s.InFlight), s.ID, s.Provider)
		if b := s.Block; b != nil {
			gauge(blockRequestsDesc, float64(b.Requests), s.ID, s.Provider)
			gauge(blockCostDesc, float64(b.CostUSD)/nanosPerDollar, s.ID, s.Provider)
			gauge(blockInexactDesc, float64(b.Estimated), s.ID, s.Provider, "estimated")
			gauge(blockInexactDesc, float64(b.Unpriced), s.ID, s.Provider, "unpriced")
			gauge(blockInexactDesc, float64(b.Unknown), s.ID, s.Provider, "unknown")
			gauge(blockTokensDesc, float64(b.Input), s.ID, s.Provider, "input")
			gauge(blockTokensDesc, float64(b.Output), s.ID, s.Provider, "output")
			gauge(blockTokensDesc, float64(b.CacheRead), s.ID, s.Provider, "cache_read")
			gauge(blockTokensDesc, float64(b.CacheWrite5m), s.ID, s.Provider, "cache_write_5m")
			gauge(blockTokensDesc, float64(b.CacheWrite1h), s.ID, s.Provider, "cache_write_1h")
		}
		for _, w := range s.Windows {
			gauge(windowDesc, w.Utilization, s.ID, s.Provider, w.Name)
			if w.Drift != nil {
				gauge(windowDriftDesc, *w.Drift, s.ID, s.Provider, w.Name)
			}
			if w.CapacityUSD != nil {
				gauge(windowCapacityDesc, float64(*w.CapacityUSD)/nanosPerDollar, s.ID, s.Provider, w.Name)
			}
		}
		for _, b := range s.Budgets {
			gauge(budgetDesc, b.Used, s.ID, s.Provider, b.Window)
		}
	}
	up := 0.0
	if status.Redis.OK {
		up = 1
	}
	gauge(redisDesc, up, status.Redis.Mode)
}

// left returns the seconds until t, 0 when it is past or absent.
func (c *Collector) left(t *time.Time) float64 {
	if t == nil {
		return 0
	}
	return max(0, t.Sub(c.now()).Seconds())
}
