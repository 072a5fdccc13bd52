package usage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Errors of the journal.
var (
	// ErrJournalFull is returned when the journal has reached its largest size
	// and holds nothing that has been counted already and could go. The event is
	// not recorded, which Recorder makes loud; traffic may go on.
	ErrJournalFull = errors.New("it is full because its events cannot reach Redis: look there, or allow it more in journal.max")
	// ErrJournalClosed is returned for an event that comes after Close.
	ErrJournalClosed = errors.New("it is closed")
)

// JournalOptions are the limits of a Journal.
type JournalOptions struct {
	// Sync is how long an event may lie in the page cache before it is on the
	// disk. A killed process loses nothing, a machine without power the last
	// Sync. Zero means always: an event is on the disk before it is
	// acknowledged; events that come together share one sync.
	Sync time.Duration
	// Max is the largest size in bytes, at least MinJournal. At Max the oldest
	// counted events go early; those not yet counted are never dropped: new ones
	// are refused with ErrJournalFull. Beside it the folder holds 256 KiB for the
	// case that the disk is full.
	Max int64
	// Keep is how long counted events are kept after they were counted, so that
	// they can be sent again to a Redis that has lost its last writes.
	Keep time.Duration
}

// MinJournal is the smallest JournalOptions.Max: 64 KiB.
const MinJournal = 64 << 10

// maxSegment is the size at which a new segment file begins, unless Max asks for
// smaller ones: eight of them have to fit.
const maxSegment = 16 << 20

// Journal is the usage of this process on disk: append-only segment files in a
// folder, with a checksum for each record. It is the queue between the request
// path and Redis: an event is there before its answer's last bytes go on, and a
// Recorder takes it from there. It numbers the events of each subscription, and
// the folder carries the random id of the writer of those numbers.
//
// Methods are safe for concurrent use. One process at a time may have the folder
// open; the state folder's lock sees to that.
type Journal struct {
	dir         string
	opts        JournalOptions
	segmentSize int64
	recovery    Recovery
	progress    *progress // the Recorder's

	appended atomic.Int64 // sum of the last numbers of all subscriptions
	held     atomic.Int64 // bytes of the segments that trim could not let go
	dirty    chan struct{}
	grown    chan struct{} // for the one reader: there is more to read
	crowded  chan struct{} // for the one who trims: room is needed
	quit     chan struct{}
	stopped  chan struct{}
	syncing  sync.Mutex // held during a sync, before mu

	mu       sync.Mutex
	onDisk   sync.Cond // durable moved; L is mu
	tails    map[string]*tail
	segments []*segment // by age; the last one is written to
	total    int64      // bytes of all segments
	bound    int64      // what total may be: Max, or less while the disk is full
	bounded  time.Time  // when the disk was found full
	why      error      // what it said
	open     map[string]*segment
	// lastWrite is the highest number in the WriteLog.
	lastWrite int64
	buf       []byte
	durable   position // everything before it is on the disk
	failed    position // the last position whose sync failed
	syncErr   error    // why
	newNames  bool     // the folder has files whose names are not on the disk
	exempt    bool     // what is written now may go beyond bound
	closed    bool
}

// tail is where one subscription's numbers stand.
type tail struct {
	last    int64
	segment *segment // of span
	span    *span    // in the newest segment the subscription was written to
}

// position is a place in the journal.
type position struct {
	segment uint64
	offset  int64
}

func (p position) before(q position) bool {
	return p.segment < q.segment || p.segment == q.segment && p.offset < q.offset
}

// Recovery is what OpenJournal found that a crash or the disk had left.
type Recovery struct {
	Torn      int64 // bytes cut from the end: a record that was being written
	Damaged   int64 // bytes inside older segments that cannot be read any more
	Estimated int   // answers that were under way; now events marked Estimated
}

// OpenJournal opens the journal in dir, which is made when it is missing. A torn
// last record is cut off, and each answer that was open without an end becomes an
// event marked Estimated; Recovery tells of it.
func OpenJournal(dir string, opts JournalOptions) (*Journal, error) {
	j, err := openJournal(dir, opts)
	if err != nil {
		return nil, fmt.Errorf("cannot open the usage journal in %s: %w", dir, err)
	}
	return j, nil
}

func openJournal(dir string, opts JournalOptions) (*Journal, error) {
	if opts.Max < MinJournal {
		return nil, fmt.Errorf("a size of %d bytes is too small: at least %d", opts.Max, MinJournal)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	j := &Journal{
		dir: dir, opts: opts, segmentSize: min(maxSegment, opts.Max/8),
		bound: opts.Max,
		dirty: make(chan struct{}, 1), grown: make(chan struct{}, 1), crowded: make(chan struct{}, 1),
		quit: make(chan struct{}), stopped: make(chan struct{}),
		tails: map[string]*tail{}, open: map[string]*segment{},
	}
	j.onDisk.L = &j.mu
	var err error
	if j.progress, err = loadProgress(dir); err != nil {
		return nil, err
	}
	for name, p := range j.progress.Subscriptions {
		j.tails[name] = &tail{last: p.Applied}
	}
	unfinished, err := j.readBack()
	if err != nil {
		return nil, err
	}
	j.progress.begin(j.subscriptions())
	if err := j.withReserve(func() error { return j.progress.save(dir) }); err != nil {
		return nil, err
	}
	for _, t := range j.tails {
		j.appended.Add(t.last)
	}
	if err := j.rotate(); err != nil {
		return nil, err
	}
	if err := j.fillReserve(); err != nil && !noSpace(err) {
		return nil, err
	}
	notify(j.dirty) // what is there already may be read once it is surely on the disk
	go j.syncLoop()
	// A full journal must not keep authpool from starting: what was begun before it
	// was full may be ended.
	if err := j.estimate(unfinished); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	if j.total > j.bound-j.segmentSize {
		notify(j.crowded)
	}
	return j, nil
}

// estimate ends the answers that were under way. All of them share one sync: there
// may be thousands.
func (j *Journal) estimate(unfinished []Event) error {
	j.mu.Lock()
	j.exempt = true
	for _, e := range unfinished {
		e.Estimated = true
		// The id closes the open record: a crash here repeats nothing.
		if _, err := j.put(recordEvent, &e); err != nil {
			j.exempt = false
			j.mu.Unlock()
			return err
		}
		j.recovery.Estimated++
	}
	j.exempt = false
	j.mu.Unlock()
	if j.opts.Sync > 0 || len(unfinished) == 0 {
		return nil
	}
	return j.syncAll()
}

// Recovery tells what OpenJournal had to repair.
func (j *Journal) Recovery() Recovery { return j.recovery }

// readBack reads all segments from the disk and returns the answers that were
// open, by age.
func (j *Journal) readBack() ([]Event, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	open := map[string]Event{}
	for i, entry := range entries { // sorted by name
		id, ok := segmentID(entry.Name())
		if !ok {
			continue
		}
		newest := !slices.ContainsFunc(entries[i+1:], func(e os.DirEntry) bool { _, ok := segmentID(e.Name()); return ok })
		seg, err := j.readSegment(id, newest, open)
		if err != nil {
			return nil, err
		}
		if seg != nil {
			j.segments = append(j.segments, seg)
			j.total += seg.size
		}
	}
	unfinished := slices.SortedFunc(maps.Values(open), func(a, b Event) int { return strings.Compare(a.ID, b.ID) })
	return unfinished, nil
}

// readSegment reads one segment. It returns nil when nothing is left of it.
func (j *Journal) readSegment(id uint64, newest bool, open map[string]Event) (*segment, error) {
	seg := &segment{id: id, path: segmentPath(j.dir, id), spans: map[string]*span{}}
	f, err := os.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // what was changed is synced
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var damage error
	seg.size, damage, err = scan(f, func(r record) error { return j.index(seg, r, open) })
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", seg.path, err)
	}
	switch lost := info.Size() - seg.size; {
	case damage == nil:
	case newest:
		j.recovery.Torn += lost
		if err := errors.Join(f.Truncate(seg.size), f.Sync()); err != nil {
			return nil, fmt.Errorf("cannot cut the torn end of %s: %w", seg.path, err)
		}
	default:
		j.recovery.Damaged += lost
	}
	if newest && seg.size <= int64(len(segmentMagic)) {
		return nil, os.Remove(seg.path)
	}
	return seg, nil
}

// index takes note of a record that stands in seg.
func (j *Journal) index(seg *segment, r record, open map[string]Event) error {
	if r.kind == recordOpen {
		e, err := r.event()
		if err != nil {
			return nil // its checksum is right, so a newer program wrote it
		}
		if was := j.open[e.ID]; was != nil {
			was.opens--
		}
		open[e.ID], j.open[e.ID] = e, seg
		seg.opens++
		return nil
	}
	if r.kind == recordWrite {
		j.lastWrite = max(j.lastWrite, r.number)
		seg.lastWrite = r.number
		return nil
	}
	if was := j.open[string(r.id)]; was != nil {
		was.opens--
		delete(j.open, string(r.id))
		delete(open, string(r.id))
	}
	if r.kind == recordVoid {
		return nil
	}
	t := j.tails[string(r.subscription)]
	if t == nil {
		t = &tail{}
		j.tails[string(r.subscription)] = t
	}
	t.last = max(t.last, r.number)
	s := seg.spans[string(r.subscription)]
	if s == nil {
		s = &span{first: r.number}
		seg.spans[string(r.subscription)] = s
	}
	s.last = max(s.last, r.number)
	return nil
}

// append writes one record. When it returns nil the record outlives the process,
// and with Sync zero an event outlives the machine. Opens and voids need no more: they
// stand before the event of their answer, and without an event nothing was promised.
func (j *Journal) append(kind byte, e *Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	at, err := j.put(kind, e)
	if err != nil || kind != recordEvent || j.opts.Sync > 0 {
		return err
	}
	for j.durable.before(at) {
		j.onDisk.Wait()
	}
	if !j.failed.before(at) {
		return fmt.Errorf("cannot bring the usage journal to the disk: %w", j.syncErr)
	}
	return nil
}

// put writes one record and takes note of it. It returns the place behind it.
func (j *Journal) put(kind byte, e *Event) (position, error) {
	if j.closed {
		return position{}, fmt.Errorf("cannot write the usage journal: %w", ErrJournalClosed)
	}
	var number int64
	t := j.tails[e.Subscription]
	if kind == recordEvent {
		if t == nil {
			// The event's strings may belong to a request's buffer.
			t = &tail{}
			j.tails[strings.Clone(e.Subscription)] = t
		}
		number = t.last + 1
	}
	j.buf = appendRecord(j.buf[:0], kind, number, e)
	size := int64(len(j.buf))
	if size > maxRecord {
		return position{}, fmt.Errorf("cannot record usage of %s: its names take %d bytes", e.Subscription, size)
	}
	if err := j.write(); err != nil {
		if kind != recordOpen {
			// The answer has ended all the same: its open record must not be
			// carried on for ever.
			j.setOpen(e.ID, nil)
		}
		return position{}, fmt.Errorf("cannot write the usage journal: %w", err)
	}
	seg := j.newest()
	switch kind {
	case recordOpen:
		j.setOpen(e.ID, seg)
	case recordVoid:
		j.setOpen(e.ID, nil)
	default:
		j.setOpen(e.ID, nil)
		t.last = number
		if t.segment != seg {
			t.segment, t.span = seg, &span{first: number}
			seg.spans[strings.Clone(e.Subscription)] = t.span
		}
		t.span.last = number
		j.appended.Add(1)
	}
	notify(j.dirty)
	return position{seg.id, seg.size}, nil
}

// setOpen notes that the answer id is open in seg, or ended when seg is nil.
func (j *Journal) setOpen(id string, seg *segment) {
	if was := j.open[id]; was != nil {
		was.opens--
		delete(j.open, id)
	}
	if seg != nil {
		j.open[strings.Clone(id)] = seg
		seg.opens++
	}
}

// write writes buf to the newest segment, or to a new one when that is full, if
// there is room.
func (j *Journal) write() error {
	if j.total+int64(len(j.buf)) > j.bound && !j.exempt {
		notify(j.crowded)
		if j.bound < j.opts.Max {
			return j.why
		}
		return ErrJournalFull
	}
	if j.newest().size+int64(len(j.buf)) > j.segmentSize {
		if err := j.rotate(); err != nil {
			return j.full(err)
		}
		if j.total > j.bound-j.segmentSize {
			notify(j.crowded)
		}
	}
	return j.full(j.writeNewest())
}

// full takes note when err is that of a disk without space: it is as if Max were
// reached, for a while.
func (j *Journal) full(err error) error {
	if noSpace(err) {
		j.bound, j.bounded, j.why = min(j.total, j.opts.Max), time.Now(), err
		notify(j.crowded)
	}
	return err
}

// writeNewest writes buf to the newest segment. What a failed write left behind is
// cut off again.
func (j *Journal) writeNewest() error {
	seg := j.newest()
	if _, err := seg.file.Write(j.buf); err != nil {
		if cut := seg.file.Truncate(seg.size); cut != nil {
			// The end of this file is not known any more: leave it.
			return errors.Join(err, cut, j.rotate())
		}
		return err
	}
	seg.size += int64(len(j.buf))
	j.total += int64(len(j.buf))
	return nil
}

func (j *Journal) newest() *segment { return j.segments[len(j.segments)-1] }

// rotate begins a new segment.
func (j *Journal) rotate() error {
	var id uint64 = 1
	if len(j.segments) > 0 {
		id = j.newest().id + 1
	}
	seg, err := createSegment(j.dir, id)
	if err != nil {
		return err
	}
	j.segments = append(j.segments, seg)
	j.total += seg.size
	j.newNames = true
	return nil
}

// syncLoop brings what was written to the disk, opts.Sync after the first write
// that is not there yet.
func (j *Journal) syncLoop() {
	defer close(j.stopped)
	for {
		select {
		case <-j.dirty:
		case <-j.quit:
			return
		}
		if j.opts.Sync > 0 {
			select {
			case <-time.After(j.opts.Sync):
			case <-j.quit:
				return
			}
		}
		j.sync()
	}
}

// sync brings everything written so far to the disk.
func (j *Journal) sync() {
	j.mu.Lock()
	at := position{j.newest().id, j.newest().size}
	j.mu.Unlock()
	j.syncTo(at)
}

// syncAll is sync, and tells whether the disk took it.
func (j *Journal) syncAll() error {
	j.mu.Lock()
	at := position{j.newest().id, j.newest().size}
	j.mu.Unlock()
	j.syncTo(at)
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.failed.before(at) {
		return fmt.Errorf("cannot bring the usage journal to the disk: %w", j.syncErr)
	}
	return nil
}

// syncTo returns when everything before at is on the disk; it may bring more there,
// so that those who wait meanwhile have nothing left to do. A failure is kept for
// those who wait, and counted; the bytes are then still read from the page cache,
// since that is as good as it gets.
func (j *Journal) syncTo(at position) {
	j.syncing.Lock()
	defer j.syncing.Unlock()

	j.mu.Lock()
	if !j.durable.before(at) {
		j.mu.Unlock()
		return
	}
	seg := j.newest()
	target := position{seg.id, seg.size}
	var files []*segment
	for _, s := range j.segments {
		if s.file != nil {
			files = append(files, s)
		}
	}
	names := j.newNames
	j.newNames = false
	j.mu.Unlock()

	var errs []error
	for _, s := range files {
		errs = append(errs, s.file.Sync())
		if s != seg {
			errs = append(errs, s.file.Close())
		}
	}
	if names {
		errs = append(errs, syncDir(j.dir))
	}
	err := errors.Join(errs...)
	if err != nil {
		syncFailures.Inc()
	}

	j.mu.Lock()
	for _, s := range files {
		if s != seg {
			s.file = nil
		}
	}
	j.durable = target
	if err != nil {
		j.failed, j.syncErr = target, err
	}
	j.mu.Unlock()
	j.onDisk.Broadcast()
	notify(j.grown)
}

// readable returns up to where the segment at or after id can be read, and whether
// it will not grow any more.
func (j *Journal) readable(id uint64) (seg uint64, path string, limit int64, sealed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i, _ := slices.BinarySearchFunc(j.segments, id, func(s *segment, id uint64) int {
		switch {
		case s.id < id:
			return -1
		case s.id > id:
			return 1
		}
		return 0
	})
	s := j.segments[min(i, len(j.segments)-1)]
	switch {
	case s.id < j.durable.segment:
		return s.id, s.path, s.size, true
	case s.id == j.durable.segment:
		return s.id, s.path, j.durable.offset, false
	}
	return s.id, s.path, 0, false
}

// find returns the place from which number of a subscription can be read, or where
// its next higher one can, and that number; ok is false when the journal has none.
func (j *Journal) find(subscription string, number int64) (at position, first int64, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		if sp := s.spans[subscription]; sp != nil && sp.last >= number {
			return position{s.id, 0}, max(sp.first, number), true
		}
	}
	return position{}, 0, false
}

// last returns the last number of a subscription.
func (j *Journal) last(subscription string) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t := j.tails[subscription]; t != nil {
		return t.last
	}
	return 0
}

// subscriptions returns the last number of each subscription.
func (j *Journal) subscriptions() map[string]int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	last := make(map[string]int64, len(j.tails))
	for name, t := range j.tails {
		last[name] = t.last
	}
	return last
}

// size returns the bytes of all segments.
func (j *Journal) size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.total
}

// hasRoom tells whether a whole segment may still be written.
func (j *Journal) hasRoom() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.total+j.segmentSize <= j.bound
}

// spaceForgotten is how long a disk that was found full is taken to be, unless
// segments go.
const spaceForgotten = 5 * time.Second

// trim removes the oldest segments of which everything has been counted: those for
// which that is longer ago than Keep, and near the bound any. applied tells the last
// number of a subscription that progress on disk says has been counted; save, which
// may be nil, makes all that last. It returns the size that is left.
func (j *Journal) trim(ctx context.Context, applied func(subscription string) int64, save func(context.Context) error, now time.Time) (total int64, err error) {
	gone, short := j.spare(applied, now)
	if len(gone) == 0 {
		if short {
			return j.size(), nil
		}
		return j.size(), j.fillReserve()
	}
	if save != nil {
		if err := j.withReserve(func() error { return save(ctx) }); err != nil {
			return j.size(), err
		}
	}
	if err := j.withReserve(func() error { return j.carry(gone) }); err != nil {
		return j.size(), err
	}
	removed := 0
	for _, s := range gone {
		// One that stays keeps those after it.
		if err = os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
		err = nil
		removed++
	}
	j.mu.Lock()
	for _, s := range gone[:removed] {
		j.total -= s.size
	}
	j.segments = slices.Delete(j.segments, 0, removed)
	j.mu.Unlock()
	return j.size(), errors.Join(err, j.fillReserve())
}

// spare returns the segments that may go now, and whether the disk is short of
// space. They are sealed, all of them is counted, and none older stays: it may hold
// the open record of an answer whose end is in them, and after a crash that answer
// would be counted again.
func (j *Journal) spare(applied func(subscription string) int64, now time.Time) (gone []*segment, short bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if now.Sub(j.bounded) > spaceForgotten {
		j.bound = j.opts.Max
	}
	left, held := j.total, int64(0)
	for i, s := range j.segments {
		if !s.countedBy(applied) {
			s.counted = time.Time{}
			held += s.size
			continue
		}
		if s.counted.IsZero() {
			s.counted = now
		}
		switch {
		case held > 0:
			held += s.size
		case len(gone) == i && s.file == nil && s != j.newest() && (now.Sub(s.counted) > j.opts.Keep || left > j.bound-j.segmentSize):
			gone = append(gone, s)
			left -= s.size
		}
	}
	j.held.Store(held)
	return gone, j.bound < j.opts.Max
}

// carry writes the open records in gone again, at the end of the journal, and brings
// them to the disk. An answer that takes an hour would else keep all usage of that
// hour. Max does not stop it: what goes is larger.
func (j *Journal) carry(gone []*segment) error {
	carried := false
	for _, s := range gone {
		j.mu.Lock()
		opens := s.opens
		j.mu.Unlock()
		if opens == 0 {
			continue
		}
		carried = true
		under, err := j.underWay(s)
		if err != nil {
			return err
		}
		for _, e := range under {
			if err := j.carryOne(s, &e); err != nil {
				return err
			}
		}
	}
	if !carried {
		return nil
	}
	return j.syncAll()
}

// underWay reads the open records in s whose answers are under way.
func (j *Journal) underWay(s *segment) (map[string]Event, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read from
	under := map[string]Event{}
	// What is damaged was found, and told, when the journal was opened.
	_, _, err = scan(f, func(r record) error {
		if r.kind != recordOpen {
			return nil
		}
		j.mu.Lock()
		held := j.open[string(r.id)] == s
		j.mu.Unlock()
		if e, err := r.event(); held && err == nil {
			under[e.ID] = e // the last one holds
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the answers under way in %s: %w", s.path, err)
	}
	return under, nil
}

// carryOne writes e again unless its answer has ended, or told more, meanwhile.
func (j *Journal) carryOne(s *segment, e *Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open[e.ID] != s {
		return nil
	}
	j.exempt = true
	defer func() { j.exempt = false }()
	_, err := j.put(recordOpen, e)
	return err
}

// Close brings everything to the disk and closes the files. Events that come later
// are refused. A Recorder closes its Journal itself.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.mu.Unlock()
	close(j.quit)
	<-j.stopped
	j.sync()

	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, s := range j.segments {
		if s.file != nil {
			errs = append(errs, s.file.Close())
			s.file = nil
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot close the usage journal in %s: %w", filepath.Clean(j.dir), err)
	}
	return nil
}

// notify wakes whoever waits on c, now or at the next time it looks.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

var syncFailures = promauto.NewCounter(prometheus.CounterOpts{
	Name: "authpool_usage_journal_sync_failures_total",
	Help: "Syncs of the usage journal that the disk refused: what was written is lost if the machine stops.",
})
