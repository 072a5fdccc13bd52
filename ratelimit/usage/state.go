package usage

import (
	"errors"
	"fmt"
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
	// Refusing is true from such an answer to the next one that was recorded.
	Refusing bool
	// Pending is how many events are not known to be in Redis.
	Pending int64
	// OldestPending is the time of the oldest of them, a second old at most;
	// zero when there is none.
	OldestPending time.Time
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
	if oldest := r.oldest.Load(); oldest != 0 && s.Pending > 0 {
		s.OldestPending = time.UnixMilli(oldest)
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
	journalMax = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_usage_journal_max_bytes",
		Help: "Size that the journal may have (journal.max). When all of it is held, new usage is refused.",
	})
)
