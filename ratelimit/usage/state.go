package usage

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// What happens when the journal has no room is a choice: the usage of new answers
// is refused, and traffic goes on. A proxy that stopped would do more harm than a
// gap in the books, and dropping the oldest usage instead would lose what was
// already promised to be counted. The gap is made loud: alarms before and when it
// begins, one with its size when it ends, metrics, and JournalState in `status`.
// A disk without space, which may come before Max, is the same in all of this.
// Both end by themselves as soon as Redis takes what waits, or the disk has room.

// Alarms about the room for usage, beside ErrJournalFull.
var (
	// ErrNearlyFull: four fifths of JournalOptions.Max hold usage that is not
	// counted yet. At Max new usage will be refused.
	ErrNearlyFull = errors.New("the usage journal is nearly full: look why usage does not reach Redis, or allow it more in journal.max")
	// ErrGap ends a time in which usage was refused; it tells how much.
	ErrGap = errors.New("usage is recorded again, but that of some answers was not")
	// ErrWaiting: usage of a subscription waits, and for five minutes nothing of it
	// could be counted. It comes once, with what Redis says, and once for all of them
	// while Redis is away. What waits is not lost, but it keeps what is newer in the
	// journal, of all subscriptions, from making room.
	ErrWaiting = errors.New("usage waits in the journal and does not reach Redis")
)

// JournalState is what there is to say about the room for usage.
type JournalState struct {
	Bytes int64 // size of the journal on disk
	// Held are the bytes of those segments that cannot go, because something in
	// them, or in an older one, is not counted yet. The rest is kept only in case that Redis loses its last writes. It is a
	// second old at most.
	Held int64
	Max  int64 // JournalOptions.Max
	// Refused counts the answers whose usage was not recorded since the process
	// started, because the journal was full or the disk failed.
	Refused int64
	// Refusing is true from such an answer to the next one that was recorded, or until
	// a full journal has room again, which is seen within a second.
	Refusing bool
	// Pending is how many events are not known to be in Redis.
	Pending int64
	// Oldest is the oldest of them, a second old at most; nil when there is none.
	Oldest *Waiting
}

// Waiting is an event that is not known to be in Redis.
type Waiting struct {
	Subscription string
	Time         time.Time // the event's
	Err          error     // why it was not counted when that was last tried; nil when it was not
}

// Journal tells how the journal stands. It is safe for concurrent use and waits
// for no disk.
func (r *Recorder) Journal() JournalState {
	s := JournalState{
		Max: r.journal.opts.Max, Held: r.journal.held.Load(),
		Refused: r.refused.Load(), Refusing: r.refusal.Load() != nil,
		Pending: r.Pending(),
	}
	s.Bytes = r.journal.size()
	if s.Pending > 0 {
		s.Oldest = r.oldest.Load()
	}
	return s
}

// refuse notes that an answer's usage was not recorded, and why.
func (r *Recorder) refuse(cause error) {
	r.refused.Add(1)
	r.refusal.Store(&cause)
	refused.Inc()
}

// room is what the loop remembers of the alarms that it has raised about room, so
// that each is raised once.
type room struct {
	nearly   bool
	refusing bool
	refused  int64     // Recorder.refused at the last look
	before   int64     // Recorder.refused when the gap began
	since    time.Time // when it was seen to begin
}

// The levels between which ErrNearlyFull is not raised again, in tenths of Max.
const (
	nearlyFull = 8
	farFromIt  = 6
)

// watchRoom raises the alarms about room. It is called about once a second.
func (r *Recorder) watchRoom(now time.Time) {
	held, most := r.journal.held.Load(), r.journal.opts.Max
	w := &r.room
	switch {
	case !w.nearly && held >= most/10*nearlyFull:
		w.nearly = true
		r.alarm("full", fmt.Errorf("%d of %d bytes wait: %w", held, most, ErrNearlyFull))
	case held <= most/10*farFromIt:
		w.nearly = false
	}
	n, cause := r.refused.Load(), r.refusal.Load()
	if cause != nil && n == w.refused && errors.Is(*cause, ErrJournalFull) && r.journal.hasRoom() {
		// Nobody may ask for a long time, and until then status would say that usage is
		// lost. Of a disk only the next answer can tell.
		if r.refusal.CompareAndSwap(cause, nil) {
			cause = nil
		}
	}
	switch {
	case !w.refusing && n > w.refused:
		w.refusing, w.before, w.since = true, w.refused, now
		if cause != nil {
			r.alarm("full", fmt.Errorf("the usage of new answers is not recorded: %w", *cause))
		}
	case w.refusing && n == w.refused && cause == nil:
		w.refusing = false
		r.alarm("full", fmt.Errorf("%d answers since %s: %w", n-w.before, w.since.UTC().Format(time.RFC3339), ErrGap))
	}
	w.refused = n
}

// longWait is when ErrWaiting is raised: later than a Redis that is restarted, or
// fails over, or moves a slot, needs to take usage again.
const longWait = 5 * time.Minute

// watchWaiting takes note of the oldest event, and raises the alarm about those that
// wait for long. It is called about once a second.
func (r *Recorder) watchWaiting(now time.Time) {
	told := slices.ContainsFunc(r.order, func(f *feed) bool { return f.waiting })
	var oldest *feed
	for _, f := range r.order {
		if f.oldest == 0 || f.acked != f.stalledAt || f.stalled.IsZero() {
			f.stalledAt, f.stalled, f.waiting = f.acked, now, false
		}
		if f.oldest == 0 {
			continue
		}
		if oldest == nil || f.oldest < oldest.oldest {
			oldest = f
		}
		if f.waiting || now.Sub(f.stalled) < longWait {
			continue
		}
		if told && r.awayErr != nil {
			f.stalled = now // one alarm is enough for a Redis that is away
			continue
		}
		f.waiting, told = true, true
		w := r.waitingOf(f)
		err := fmt.Errorf("%s since %s: %w", w.Subscription, w.Time.UTC().Format(time.RFC3339), ErrWaiting)
		if w.Err != nil {
			err = fmt.Errorf("%w: %w", err, w.Err)
		}
		r.alarm("waiting", err)
	}
	if oldest == nil {
		r.oldest.Store(nil)
		journalOldest.Set(0)
		return
	}
	w := r.waitingOf(oldest)
	r.oldest.Store(w)
	journalOldest.Set(max(now.Sub(w.Time), 0).Seconds())
}

func (r *Recorder) waitingOf(f *feed) *Waiting {
	w := &Waiting{Subscription: f.subscription, Time: time.UnixMilli(f.oldest), Err: f.err}
	if w.Err == nil {
		w.Err = r.awayErr // f waits for its turn
	}
	return w
}

var (
	refused = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_usage_refused_total",
		Help: "Answers whose usage could not be recorded, because the disk failed or the journal was full.",
	})
	journalBytes = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_usage_journal_bytes",
		Help: "Size of the journal on disk.",
	})
	journalHeld = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_usage_journal_held_bytes",
		Help: "Size of what the journal cannot let go, because it is not counted in Redis yet.",
	})
	journalOldest = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_usage_journal_oldest_seconds",
		Help: "Age of the oldest event in the journal that is not known to be in Redis; 0 when there is none.",
	})
	journalMax = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_usage_journal_max_bytes",
		Help: "Size that the journal may have (journal.max). When all of it is held, new usage is refused.",
	})
)
