package redisdb

import "github.com/prometheus/client_golang/prometheus"

var (
	failuresDesc = prometheus.NewDesc("authpool_redis_failures_total",
		"Times Redis, or a node of a cluster, went from answering to away.", nil, nil)
	awayDesc = prometheus.NewDesc("authpool_redis_nodes_away",
		"Servers that hold data of ours and do not answer: of a cluster's masters, or the one.", nil, nil)
	refusedDesc = prometheus.NewDesc("authpool_redis_refused_commands_total",
		"Commands not sent because Redis was known to be away.", nil, nil)
	offsetDesc = prometheus.NewDesc("authpool_redis_clock_offset_seconds",
		"Redis' clock minus this process' clock.", nil, nil)
)

// Describe implements prometheus.Collector. Whether Redis is up is told by the
// admin address' own collector, out of Healthy.
func (db *DB) Describe(out chan<- *prometheus.Desc) {
	out <- failuresDesc
	out <- awayDesc
	out <- refusedDesc
	out <- offsetDesc
	if db.embedded != nil {
		db.embedded.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (db *DB) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(db.gates.failures.Load()))
	out <- prometheus.MustNewConstMetric(awayDesc, prometheus.GaugeValue, float64(db.gates.away()))
	out <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(db.gates.refused.Load()))
	out <- prometheus.MustNewConstMetric(offsetDesc, prometheus.GaugeValue, db.Offset().Seconds())
	if db.embedded != nil {
		db.embedded.Collect(out)
	}
}
