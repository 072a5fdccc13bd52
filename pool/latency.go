package pool

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// latencyLeast is the number of answers from which on a latency is known.
	latencyLeast = 5
	// latencyOwn and latencyUsual are after how many answers an answer counts for
	// a third: a subscription's latency shows soon, and its provider's is that of
	// all.
	latencyOwn, latencyUsual = 8, 64
	// latencyLife is how long a latency is known without another answer: who is
	// avoided for being slow would never be found to be fast again.
	latencyLife = 10 * time.Minute
)

// latency is the time to the first byte of recent answers, as an exponentially
// weighted mean of its logarithm: one answer that takes a minute does not hide
// what a hundred took. It is safe for concurrent use, and the zero latency is
// not known.
type latency struct {
	mean  atomic.Uint64 // the bits of a float64, of nanoseconds; 0: none
	count atomic.Int64
	last  atomic.Int64 // when it was learned last, in ns of the epoch
}

// learn takes one answer in; among the last over it counts for a third.
func (l *latency) learn(now time.Time, took time.Duration, over int64) {
	if l.stale(now) {
		l.count.Store(0)
	}
	x, n := math.Log(float64(max(took, 2))), l.count.Add(1)
	for {
		old := l.mean.Load()
		mean := x
		if n > 1 && old != 0 {
			mean = math.Float64frombits(old)
			mean += (x - mean) / float64(min(n, over))
		}
		if l.mean.CompareAndSwap(old, math.Float64bits(mean)) {
			break
		}
	}
	l.last.Store(now.UnixNano())
}

// inherit has l, which nobody uses yet, go on from another.
func (l *latency) inherit(from *latency) {
	l.count.Store(from.count.Load())
	l.mean.Store(from.mean.Load())
	l.last.Store(from.last.Load())
}

func (l *latency) stale(now time.Time) bool {
	return now.UnixNano()-l.last.Load() > int64(latencyLife)
}

// log is the mean's logarithm; ok is false when it is not known.
func (l *latency) log(now time.Time) (mean float64, ok bool) {
	if l.count.Load() < latencyLeast || l.stale(now) {
		return 0, false
	}
	return math.Float64frombits(l.mean.Load()), true
}

// typical is the mean; 0: not known.
func (l *latency) typical(now time.Time) time.Duration {
	mean, ok := l.log(now)
	if !ok {
		return 0
	}
	return time.Duration(math.Exp(mean))
}

// FirstByte tells how long the attempt took to the first byte of its answer. It
// counts once the Verdict says that the answer is good, so it is told before.
// Only streamed answers are to be told: others begin when they are complete,
// which is as long as they are.
func (l *Lease) FirstByte(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.firstByte = took
}

// began learns from a good answer.
func (m *member) began(now time.Time, firstByte time.Duration) {
	if !m.answered.Load() {
		m.answered.Store(true)
	}
	if firstByte <= 0 {
		return
	}
	m.latency.learn(now, firstByte, latencyOwn)
	m.usual.learn(now, firstByte, latencyUsual)
}

// slowness is m's time to the first byte as a multiple of its provider's usual; 0:
// not known.
func (m *member) slowness(now time.Time) float64 {
	own, ok := m.latency.log(now)
	usual, known := m.usual.log(now)
	if !ok || !known {
		return 0
	}
	return math.Exp(own - usual)
}
