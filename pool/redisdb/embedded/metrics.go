package embedded

import "github.com/prometheus/client_golang/prometheus"

var (
	keysDesc = prometheus.NewDesc("authpool_embedded_redis_keys",
		"Keys in the last snapshot of the embedded Redis; it is made for 20,000.", nil, nil)
	bytesDesc = prometheus.NewDesc("authpool_embedded_redis_snapshot_bytes",
		"Size of the last snapshot.", nil, nil)
	savedDesc = prometheus.NewDesc("authpool_embedded_redis_saved_timestamp_seconds",
		"Moment up to which every write is on disk, 0 for never.", nil, nil)
	failuresDesc = prometheus.NewDesc("authpool_embedded_redis_snapshot_failures_total",
		"Snapshots that could not be written.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Store) Describe(out chan<- *prometheus.Desc) {
	out <- keysDesc
	out <- bytesDesc
	out <- savedDesc
	out <- failuresDesc
}

// Collect implements prometheus.Collector.
func (s *Store) Collect(out chan<- prometheus.Metric) {
	saved := float64(s.stats.savedAt.Load()) / 1e9
	out <- prometheus.MustNewConstMetric(keysDesc, prometheus.GaugeValue, float64(s.stats.keys.Load()))
	out <- prometheus.MustNewConstMetric(bytesDesc, prometheus.GaugeValue, float64(s.stats.bytes.Load()))
	out <- prometheus.MustNewConstMetric(savedDesc, prometheus.GaugeValue, saved)
	out <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(s.stats.failures.Load()))
}
