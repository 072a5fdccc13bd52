package usage

import (
	"slices"
	"time"
)

// feed is one subscription on its way from the journal to Redis. Its numbers are
// the journal's; those that Redis sees are less by base. It belongs to the
// Recorder's loop, and while the loop waits for it, to the send that works on it.
type feed struct {
	subscription string
	writer       string
	base         int64
	lives        Lives     // after the journal's numbers
	acked        int64     // the last number known to be counted
	ackedTime    int64     // time of that event, epoch ms
	oldest       int64     // time of the first event after it, epoch ms; 0: none is known
	stalled      time.Time // since when nothing is counted, though something waits
	stalledAt    int64     // acked then
	waiting      bool      // and that was told
	met          bool      // Redis has answered since the process started
	senders      []string  // as in subProgress
	senderSince  int64     // likewise Since

	// window holds the events after acked that are in memory, and places where
	// they stand in the journal.
	window []Event
	places []position
	since  time.Time // when the first of the window was read
	// behind tells that events after the window were passed over; they are read
	// again from resume.
	behind bool
	resume position

	retry    backoff
	verified time.Time // when Redis was last seen to stand where acked says

	// What a send leaves for the loop to do.
	err    error
	alarms []error
	moved  bool // the writer or the senders changed: they must be on disk before anything is sent
	lost   bool // acked went back: the journal must be read again from there
}

// expected is the number that the window lacks next.
func (f *feed) expected() int64 { return f.acked + int64(len(f.window)) + 1 }

// take appends an event to the window.
func (f *feed) take(e Event, at position, now time.Time) {
	if len(f.window) == 0 {
		f.since, f.oldest = now, e.Time
	}
	f.window = append(f.window, e)
	f.places = append(f.places, at)
}

// passOver notes that the event at p was not taken.
func (f *feed) passOver(p position) {
	if !f.behind || p.before(f.resume) {
		f.behind, f.resume = true, p
	}
}

// drop forgets the window; its events are read again later.
func (f *feed) drop() {
	if len(f.places) > 0 {
		f.passOver(f.places[0])
	}
	f.window, f.places = nil, nil
}

// advance takes note that everything up to number has been counted.
func (f *feed) advance(number int64) {
	n := min(max(number-f.acked, 0), int64(len(f.window)))
	if n > 0 {
		f.ackedTime = f.window[n-1].Time
		clear(f.window[:n])
		f.window, f.places = f.window[n:], f.places[n:]
	}
	if len(f.window) == 0 {
		f.window, f.places, f.oldest = nil, nil, 0
	} else {
		f.oldest = f.window[0].Time
	}
	f.acked = max(f.acked, number)
}

// renumber gives the feed a writer of its own whose first number is the one after
// last.
func (f *feed) renumber(last int64) {
	f.writer, f.base = branchWriter(f.writer, last, f.lives.of(last+1)), last
	f.verified, f.moved = time.Time{}, true
}

// meet takes note that this life has reached Redis, which has counted up to number, and
// will now send. Whether the life before it that could send has had something counted
// shows in that number.
func (f *feed) meet(number int64) {
	if n := len(f.senders); n > 0 && number <= f.senderSince {
		f.senders = f.senders[:n-1]
	}
	now := f.lives[len(f.lives)-1].ID
	f.senders = slices.Compact(slices.DeleteFunc(append(f.senders, now), func(id string) bool { return !f.lives.has(id) }))
	f.senderSince = number
	f.met, f.moved = true, true
}
