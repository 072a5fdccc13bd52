package usage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Applier counts batches; *Store is one. Apply may be repeated after an error.
type Applier interface {
	Apply(ctx context.Context, b Batch) (Result, error)
}

// Alarms that a Recorder raises: usage that was or may be counted wrongly, which a
// person should look into. All of them are also counted in
// authpool_usage_alarms_total.
var (
	// ErrFenced: another process has claimed this folder's writer, so one of the
	// two folders is a copy. Both go on, this one under a new writer.
	ErrFenced = errors.New("the journal folder was copied: another process writes under its id")
	// ErrRestored: when it starts, this folder finds that Redis has counted events
	// under its id that it does not have, so it is an older state of itself that was
	// put back, or one of two copies. It goes on under a new writer. Answers that were
	// under way when the state was taken are estimated as after a crash, though they
	// may have been counted later.
	ErrRestored = errors.New("the journal folder lacks what Redis has counted under its id: it was restored from a copy, or copied")
	// ErrLost: Redis has lost counted events that the journal does not hold any
	// more, or the journal itself was damaged.
	ErrLost = errors.New("usage is lost: Redis does not have it, and the journal does not have it any more")
)

// RecorderOptions tune a Recorder.
type RecorderOptions struct {
	// Hold is how long an event waits for others, so that batches are large and
	// in the order of time over all sidecars. Zero sends at once.
	Hold time.Duration
	// Save is for a Redis that does not keep by itself what it has counted, as
	// the embedded one: it returns when everything counted before the call
	// survives the process. Only then the journal lets go of it. Nil for any
	// other Redis.
	Save func(context.Context) error
	// Alarm is told what a person should look into, see ErrFenced, ErrNearlyFull
	// and their neighbours, and failures of the disk. It must not block. It may be
	// nil.
	Alarm func(error)
}

// The Recorder's bounds.
const (
	maxWindow   = 8192 // events in memory
	senders     = 4    // subscriptions that are sent at a time
	callTimeout = 5 * time.Second
	saveEvery   = time.Second
	// minVerify bounds how often an idle subscription is asked for: a Redis
	// that lost its last writes has to be found out while the journal still
	// has them.
	minVerify = 15 * time.Second
	// prunedAfter is when Redis has forgotten an idle writer: apply.lua's 35
	// days, less a day for clocks that differ.
	prunedAfter = 34 * 24 * time.Hour
)

// Recorder brings the events of a Journal to Redis, each exactly once: in batches
// per subscription, in order, again when an answer was lost, and from further back
// when Redis has lost its last writes. The journal is its queue; it keeps a bounded
// window of it in memory, however long Redis is away.
//
// Add and Open are for the request path and wait for nothing but the page cache.
// All methods are safe for concurrent use.
type Recorder struct {
	journal *Journal
	store   Applier
	opts    RecorderOptions
	acked   atomic.Int64 // sum over the feeds
	oldest  atomic.Pointer[Waiting]
	refused atomic.Int64 // events that could not be recorded
	refusal atomic.Pointer[error]
	flushes chan *flush
	back    chan struct{} // Verify was called
	cancel  context.CancelFunc
	done    chan struct{}

	// The loop's own.
	feeds    map[string]*feed
	order    []*feed // all feeds, in a fixed order
	turn     int     // of the feed that is tried first while Redis is away
	reader   reader
	windowed int // events in all windows
	away     backoff
	awayErr  error // while Redis is away, what it or the network says
	unsaved  bool  // acked moved since progress was saved
	saved    time.Time
	press    bool             // the journal needs room now
	applied  map[string]int64 // by subscription, as progress on disk says
	waiting  []*flush
	room     room
	unkept   bool // the disk refuses progress, or to let go of segments
}

// flush is a call of Flush that waits.
type flush struct {
	until map[string]int64
	done  chan struct{}
}

// NewRecorder returns a Recorder of journal, which from now on is the Recorder's to
// close. Events may be added at once; nothing is sent before Start.
func NewRecorder(journal *Journal, store Applier, opts RecorderOptions) *Recorder {
	r := &Recorder{
		journal: journal, store: store, opts: opts,
		flushes: make(chan *flush), back: make(chan struct{}, 1), done: make(chan struct{}),
		feeds: map[string]*feed{}, applied: map[string]int64{},
	}
	for name, p := range journal.progress.Subscriptions {
		r.applied[name] = p.Applied
	}
	journalMax.Set(float64(journal.opts.Max))
	r.reader.journal = journal
	for name := range journal.progress.Subscriptions {
		r.feed(name)
	}
	return r
}

// Add records an answer that has ended. When it returns nil, the event outlives the
// process: it is in the journal, and its Open record, if there was one with the same
// ID, is closed. With an error (the disk refuses, or the journal is full) the usage
// is not recorded: a metric counts it, and traffic may go on.
func (r *Recorder) Add(e Event) error {
	if err := r.journal.append(recordEvent, &e); err != nil {
		r.refuse(err)
		return err
	}
	if r.refusal.Load() != nil {
		r.refusal.Store(nil)
	}
	added.Inc()
	return nil
}

// Open records what an answer under way has used so far, once its input is known.
// Should the process die before Add with the same ID, the next one counts e as an
// event marked Estimated. Another Open with the same ID replaces the former.
func (r *Recorder) Open(e Event) error {
	return r.journal.append(recordOpen, &e)
}

// Void says that an answer that was opened has come to nothing: the provider
// refused the request, or it was never sent. Nothing is counted for it.
func (r *Recorder) Void(id string) error {
	return r.journal.append(recordVoid, &Event{ID: id})
}

// Pending returns how many added events are not known to be in Redis.
func (r *Recorder) Pending() int64 { return r.journal.appended.Load() - r.acked.Load() }

// Verify has every subscription asked at once where Redis stands. Call it when
// Redis comes back from being away: it may be another server than before, one that
// lacks the last writes, and subscriptions without new events would find that out
// late.
func (r *Recorder) Verify() { notify(r.back) }

// Start begins to send. It goes on until Close, or until ctx ends.
func (r *Recorder) Start(ctx context.Context) {
	ctx, r.cancel = context.WithCancel(ctx)
	go r.run(ctx)
}

// Flush sends without waiting for more events and returns when everything that was
// added before the call is counted, or with ctx's error.
func (r *Recorder) Flush(ctx context.Context) error {
	r.journal.sync()
	f := &flush{until: r.journal.subscriptions(), done: make(chan struct{})}
	select {
	case r.flushes <- f:
	case <-r.done:
		return errors.New("cannot flush usage: the recorder has stopped")
	case <-ctx.Done():
		return fmt.Errorf("cannot flush usage: %w", ctx.Err())
	}
	select {
	case <-f.done:
		return nil
	case <-r.done:
		return errors.New("cannot flush usage: the recorder has stopped")
	case <-ctx.Done():
		return fmt.Errorf("cannot flush usage: %w", ctx.Err())
	}
}

// PendingError says that Redis has not counted all yet, and that the next start will:
// nothing is lost.
type PendingError struct {
	Events int64 // that wait
	Folder string
	Err    error // why
}

// Error implements error.
func (e *PendingError) Error() string {
	return fmt.Sprintf("%v; %d events stay in %s for the next start", e.Err, e.Events, e.Folder)
}

// Unwrap implements errors' convention.
func (e *PendingError) Unwrap() error { return e.Err }

// Close sends what it can until ctx ends, stops, and closes the journal. What could
// not be sent stays there for the next start, and the error tells how much it is.
func (r *Recorder) Close(ctx context.Context) error {
	var errs []error
	if r.cancel != nil {
		if err := r.Flush(ctx); err != nil {
			errs = append(errs, &PendingError{Events: r.Pending(), Folder: r.journal.dir, Err: err})
		}
		r.cancel()
		<-r.done
		errs = append(errs, r.save())
	}
	errs = append(errs, r.journal.Close())
	r.reader.drop()
	return errors.Join(errs...)
}

// run is the loop: read the journal, send what is due, wait.
func (r *Recorder) run(ctx context.Context) {
	defer close(r.done)
	for ctx.Err() == nil {
		r.fill(time.Now())
		for r.send(ctx, time.Now()) && ctx.Err() == nil {
			// A long way to go must not keep what is done from being safe.
			if r.overdue(time.Now()) {
				r.tidy(ctx, time.Now())
			}
			r.fill(time.Now())
		}
		r.tidy(ctx, time.Now())
		r.answer()
		timer := time.NewTimer(r.pause(time.Now()))
		select {
		case <-timer.C:
		case <-r.journal.grown:
		case <-r.journal.crowded:
			r.press = true
		case <-r.back:
			r.away.reset()
			r.verify()
		case f := <-r.flushes:
			r.waiting = append(r.waiting, f)
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// feed returns the feed of a subscription, a new one when need be.
func (r *Recorder) feed(name string) *feed {
	f := r.feeds[name]
	if f != nil {
		return f
	}
	p := r.journal.progress.Subscriptions[name]
	f = &feed{
		subscription: name, writer: p.Writer, base: p.Base, acked: p.Applied, ackedTime: p.Time,
		lives: p.lives(r.journal.progress.Life), senders: p.Senders, senderSince: p.Since,
	}
	if f.writer == "" {
		f.writer = r.journal.progress.Writer
	}
	r.feeds[name] = f
	r.order = append(r.order, f)
	r.acked.Add(f.acked)
	return f
}

// fill reads the journal into the windows, as far as there is something to read and
// room for it.
func (r *Recorder) fill(now time.Time) {
	for _, f := range r.order {
		if f.behind && len(f.window) == 0 && f.retry.wait == 0 {
			f.behind = false
			if f.resume.before(r.reader.at) {
				r.reader.seek(f.resume)
			}
		}
	}
	for r.windowed < maxWindow {
		rec, at, ok, err := r.reader.next()
		if err != nil {
			r.alarm("disk", err)
			return // and on with the next turn of the loop
		}
		if !ok {
			return
		}
		if rec.kind == recordEvent {
			r.dispatch(rec, at, now)
		}
	}
}

// dispatch puts a record into its feed's window, unless it is there already or
// counted already.
func (r *Recorder) dispatch(rec record, at position, now time.Time) {
	f := r.feeds[string(rec.subscription)]
	if f == nil {
		f = r.feed(string(rec.subscription))
	}
	switch {
	case rec.number < f.expected():
		return
	case f.behind:
		return // read again later, from resume
	case f.retry.wait > 0 && f.oldest != 0:
		f.passOver(at)
		return
	}
	e, err := rec.event()
	if err != nil {
		r.alarm("disk", fmt.Errorf("cannot read event %d of %s: %w", rec.number, f.subscription, err))
		return // the next one sees the hole
	}
	if f.retry.wait > 0 {
		f.oldest = e.Time
		f.passOver(at)
		return
	}
	if rec.number > f.expected() {
		if len(f.window) > 0 {
			// First those before the hole.
			f.passOver(at)
			return
		}
		r.alarm("lost", fmt.Errorf("%d events of %s: %w", rec.number-f.expected(), f.subscription, ErrLost))
		r.setAcked(f, rec.number-1)
		f.renumber(f.acked)
	}
	f.take(e, at, now)
	r.windowed++
}

// setAcked moves a feed's acked by other means than counting.
func (r *Recorder) setAcked(f *feed, number int64) {
	r.acked.Add(number - f.acked)
	f.acked = number
	r.unsaved = true
}

// send sends every feed that is due, some at a time, and waits for all of them. It
// tells whether something was counted, so that there may be more to do.
func (r *Recorder) send(ctx context.Context, now time.Time) (progress bool) {
	due := r.due(now)
	if len(due) == 0 {
		return false
	}
	before := r.acked.Load()
	slots := make(chan struct{}, senders)
	var wg sync.WaitGroup
	for _, f := range due {
		slots <- struct{}{}
		wg.Go(func() {
			r.work(ctx, f)
			<-slots
		})
	}
	wg.Wait()
	r.settle(due, time.Now())
	return r.acked.Load() != before
}

// due returns the feeds that have something to send now. While Redis is away it is
// one of them, each in its turn.
func (r *Recorder) due(now time.Time) []*feed {
	if !r.away.due(now) {
		return nil
	}
	var due []*feed
	for _, f := range r.order {
		if r.wants(f, now) {
			due = append(due, f)
		}
	}
	if r.away.wait > 0 && len(due) > 1 {
		r.turn++
		return due[r.turn%len(due):][:1]
	}
	return due
}

// wants tells whether a feed has something to send now.
func (r *Recorder) wants(f *feed, now time.Time) bool {
	switch {
	case !f.retry.due(now) || f.moved:
		return false
	case len(f.window) > 0:
		return len(f.window) >= MaxBatch || now.Sub(f.since) >= r.opts.Hold || len(r.waiting) > 0 || r.windowed >= maxWindow
	case f.retry.wait > 0:
		return true
	}
	if now.Sub(f.verified) < max(r.journal.opts.Keep/4, minVerify) {
		return false
	}
	if _, _, ok := r.journal.find(f.subscription, f.base+1); !ok {
		// The journal could not send anything again: no need to ask whether
		// Redis still has it.
		f.verified = now
		return false
	}
	return true
}

// work sends one feed's window, or asks where Redis stands when it is empty. It
// touches nothing but the feed.
func (r *Recorder) work(ctx context.Context, f *feed) {
	f.err = nil
	for first := true; first || len(f.window) > 0; first = false {
		if !r.apply(ctx, f) {
			return
		}
	}
}

// compare takes note of the last number that Redis has counted.
func (r *Recorder) compare(f *feed, counted int64, now time.Time) {
	if counted >= f.acked {
		f.advance(counted)
		return
	}
	// Redis has lost something, or has forgotten an idle writer.
	first := r.goBack(f, counted)
	if first > counted+1 {
		if forgotten := counted == f.base && now.Sub(time.UnixMilli(f.ackedTime)) > prunedAfter; !forgotten {
			f.alarms = append(f.alarms, fmt.Errorf("%d events of %s: %w", first-1-counted, f.subscription, ErrLost))
		}
		f.renumber(first - 1)
	}
}

// goBack takes note that nothing after number counted is counted, and returns the first
// one that the journal can send again.
func (r *Recorder) goBack(f *feed, counted int64) (first int64) {
	_, first, ok := r.journal.find(f.subscription, counted+1)
	if !ok || first > f.acked {
		first = f.acked + 1
	}
	if first <= f.acked {
		f.acked, f.lost = first-1, true
		f.window, f.places = nil, nil
	}
	return first
}

// leave gives the feed a writer of its own, as another folder holds the one it had:
// one of the two is a copy, or an older state, of the other. Up to fork both have the
// same events, which the other one counts, or has counted. Those after it are this
// folder's own; if it knows some as counted, Redis has lost them since, and says so
// when it is asked under the new writer.
//
// Where both parted cannot be told any more by who missed maxLives lives of the other
// one in which it counted something. Then this folder goes on after what it knows as
// counted. What it had not counted yet when it was copied, a second's worth in most
// cases, is then counted by both; to leave out what may be the other's would lose all
// that this folder has counted for since, however long that is.
func (r *Recorder) leave(f *feed, fork int64, why error) {
	f.alarms = append(f.alarms, why)
	last := f.acked
	if fork >= 0 {
		last = min(f.base+fork, r.journal.last(f.subscription))
		f.advance(last)
	}
	f.renumber(last)
}

// apply sends one batch, which may be empty. It tells whether to go on.
func (r *Recorder) apply(ctx context.Context, f *feed) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b := Batch{Subscription: f.subscription, Writer: f.writer, Lives: f.lives.since(f.base), First: f.acked - f.base + 1}
	if !f.verified.IsZero() {
		b.Events = f.window[:min(len(f.window), MaxBatch)]
	} // else first an empty one, after which all is there again that events rely on
	start := time.Now()
	res, err := r.store.Apply(ctx, b)
	if err != nil {
		f.err = err
		batches.WithLabelValues("error").Inc()
		return false
	}
	applySeconds.Observe(time.Since(start).Seconds())
	batches.WithLabelValues(res.Outcome.String()).Inc()
	met := f.met
	f.verified = start
	if !met {
		f.meet(f.base + res.Last)
	}
	switch res.Outcome {
	case Applied, Duplicate:
		applied.Add(float64(res.Applied))
		repeated.Add(float64(res.Repeated))
		late.Add(float64(res.Late))
		f.advance(f.base + res.Last)
		return !f.moved
	case Gap:
		r.compare(f, f.base+res.Last, start)
	case Fenced:
		why := ErrRestored
		if met {
			why = ErrFenced
		}
		r.leave(f, res.Fork, fmt.Errorf("%s: Redis is at %d: %w", f.subscription, res.Last, why))
	}
	return false
}

// settle does what the sends left to do.
func (r *Recorder) settle(sent []*feed, now time.Time) {
	good, lossy := false, r.away.wait > 0
	for _, f := range sent {
		good = good || f.err == nil
	}
	for _, f := range sent {
		switch {
		case f.err == nil:
			f.retry.reset()
		case good:
			// Only this one fails: it must not take the room of the others.
			f.retry.fail(now)
			f.drop()
		}
		if f.lost {
			f.lost = false
			f.passOver(r.placeAfter(f))
			lossy = true
		}
		for _, err := range f.alarms {
			r.alarm(alarmKind(err), err)
		}
		f.alarms = nil
	}
	if good {
		if lossy {
			// This is another server, or the same one without its last writes:
			// ask for all that may be gone.
			r.verify()
		}
		r.away.reset()
		r.awayErr = nil
	} else {
		r.away.fail(now)
		r.awayErr = sent[0].err
	}
	var acked int64
	r.windowed = 0
	for _, f := range r.order {
		acked += f.acked
		r.windowed += len(f.window)
	}
	if r.acked.Swap(acked) != acked {
		r.unsaved = true
	}
}

// verify makes every feed ask where Redis stands.
func (r *Recorder) verify() {
	for _, f := range r.order {
		f.verified = time.Time{}
	}
}

// placeAfter returns from where the event after acked can be read.
func (r *Recorder) placeAfter(f *feed) position {
	at, _, _ := r.journal.find(f.subscription, f.acked+1)
	return at
}

// tidy saves progress and lets go of old segments. What it cannot do now, since the
// disk refuses, it tries again: a full disk may have room once segments have gone.
func (r *Recorder) tidy(ctx context.Context, now time.Time) {
	moved := slices.ContainsFunc(r.order, func(f *feed) bool { return f.moved })
	if moved || len(r.waiting) > 0 || r.overdue(now) {
		r.saved, r.press = now, false
		var errs []error
		if r.unsaved || moved {
			errs = append(errs, r.save())
		}
		total, err := r.journal.trim(ctx, func(name string) int64 { return r.applied[name] }, r.opts.Save, now)
		if err != nil && ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("cannot remove counted usage: %w", err))
		}
		err = errors.Join(errs...)
		if err != nil && !r.unkept {
			r.alarm("disk", err)
		}
		r.unkept = err != nil
		journalBytes.Set(float64(total))
		journalHeld.Set(float64(r.journal.held.Load()))
		r.watchRoom(now)
	}
	pending.Set(float64(r.Pending()))
	r.watchWaiting(now)
}

// overdue tells whether it is time to tidy.
func (r *Recorder) overdue(now time.Time) bool {
	select {
	case <-r.journal.crowded:
		r.press = true
	default:
	}
	return r.press || now.Sub(r.saved) >= saveEvery
}

// save writes progress to the disk. After that new writers may be used.
func (r *Recorder) save() error {
	p := r.journal.progress
	for _, f := range r.order {
		s := subProgress{
			Writer: f.writer, Base: f.base, Lives: f.lives, Applied: f.acked, Time: f.ackedTime,
			Senders: f.senders, Since: f.senderSince,
		}
		if f.writer == p.Writer {
			s.Writer = ""
		}
		p.Subscriptions[f.subscription] = s
	}
	if err := r.journal.withReserve(func() error { return p.save(r.journal.dir) }); err != nil {
		return fmt.Errorf("cannot save how far usage is counted: %w", err)
	}
	r.unsaved = false
	for _, f := range r.order {
		f.moved = false
		r.applied[f.subscription] = f.acked
	}
	return nil
}

// answer ends the flushes that have what they wait for.
func (r *Recorder) answer() {
	r.waiting = slices.DeleteFunc(r.waiting, func(w *flush) bool {
		for name, last := range w.until {
			if f := r.feeds[name]; last > 0 && (f == nil || f.acked < last) {
				return false
			}
		}
		close(w.done)
		return true
	})
}

// pause returns how long nothing will be due.
func (r *Recorder) pause(now time.Time) time.Duration {
	next := now.Add(saveEvery)
	earlier := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, f := range r.order {
		switch {
		case f.moved:
			earlier(now.Add(minBackoff))
		case len(f.window) > 0 && len(r.waiting) > 0, f.behind && f.retry.wait == 0:
			earlier(later(now, r.away.until))
		case len(f.window) > 0:
			earlier(later(f.since.Add(r.opts.Hold), r.away.until))
		case f.retry.wait > 0:
			earlier(later(f.retry.until, r.away.until))
		}
	}
	return max(next.Sub(now), 0)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// alarm counts and tells what a person should look into.
func (r *Recorder) alarm(kind string, err error) {
	alarms.WithLabelValues(kind).Inc()
	if r.opts.Alarm != nil {
		r.opts.Alarm(err)
	}
}

func alarmKind(err error) string {
	switch {
	case errors.Is(err, ErrFenced):
		return "fenced"
	case errors.Is(err, ErrRestored):
		return "restored"
	}
	return "lost"
}

var (
	added = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_usage_events_total",
		Help: "Answers whose usage was recorded in the journal.",
	})
	applied = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_usage_applied_total",
		Help: "Events that this process has counted in Redis.",
	})
	repeated = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_usage_repeated_total",
		Help: "Events not counted because the result of their batch item had been read and counted before.",
	})
	late = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_usage_late_total",
		Help: "Events counted that were older than their subscription's current block.",
	})
	batches = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_usage_batches_total",
		Help: "Batches sent to Redis, by what came of them.",
	}, []string{"outcome"})
	applySeconds = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "authpool_usage_apply_seconds",
		Help:    "Time that Redis took for a batch.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
	})
	alarms = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_usage_alarms_total",
		Help: "Findings that usage was or may be counted wrongly, by kind: fenced, restored, lost, disk, full, waiting (it is only late).",
	}, []string{"kind"})
	pending = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_usage_journal_pending",
		Help: "Events in the journal that are not known to be in Redis.",
	})
)
