package pool

import "time"

// The constants of a burn rate: what was spent over the last burnSpan, from
// samples burnEvery apart. Less than burnLeast of it says too little.
const (
	burnEvery = time.Minute
	burnSpan  = 15
	burnLeast = 5 * time.Minute
	// burnFrom is the spent part from which on it is made known that a budget or a
	// window will not last: before that the rate changes too often.
	burnFrom = 0.5
	// burnFall is how far the spent part falls only because a new period begins:
	// what falls less was counted twice for a moment.
	burnFall = 0.05
)

// burn follows how fast a budget or a window is being spent within one period. It
// is not safe for concurrent use.
type burn struct {
	samples [burnSpan]burnSample // the newest at n-1, and round
	n       int
	told    bool // in this period
}

type burnSample struct {
	at    time.Time
	spent float64
}

// note takes the spent part as of now.
func (b *burn) note(now time.Time, spent float64) {
	if b.n > 0 {
		switch last := b.samples[(b.n-1)%burnSpan]; {
		case spent < last.spent-burnFall:
			*b = burn{}
		case spent < last.spent || now.Sub(last.at) < burnEvery:
			return
		}
	}
	b.samples[b.n%burnSpan] = burnSample{now, spent}
	b.n++
}

// empties tells when all is spent at the present rate; ok is false when that is
// not before end, or not known.
func (b *burn) empties(now time.Time, spent float64, end time.Time) (at time.Time, ok bool) {
	if b.n == 0 || spent >= 1 {
		return time.Time{}, false
	}
	first := b.samples[max(0, b.n-burnSpan)%burnSpan]
	took, used := now.Sub(first.at), spent-first.spent
	if took < burnLeast || used <= 0 {
		return time.Time{}, false
	}
	left := (1 - spent) / used * float64(took)
	if left >= float64(end.Sub(now)) {
		return time.Time{}, false
	}
	return now.Add(time.Duration(left)), true
}

// alarm is empties, once in a period and only when half is spent.
func (b *burn) alarm(now time.Time, spent float64, end time.Time) (at time.Time, ok bool) {
	if b.told || spent < burnFrom {
		return time.Time{}, false
	}
	at, b.told = b.empties(now, spent, end)
	return at, b.told
}
