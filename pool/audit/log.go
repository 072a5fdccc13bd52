package audit

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The bounds of a Log and its times.
const (
	defaultFileSize = 16 << 20
	defaultFiles    = 64 // 1 GiB in all

	queueRoom = 4096                   // entries that wait for the disk
	batchRoom = 512                    // entries that are written and synced as one
	gather    = 100 * time.Millisecond // how long an entry waits for others to share a sync
	retry     = time.Second            // between attempts at a disk that fails
	nag       = time.Minute            // between log lines that say so

	signLines = 128              // lines after which a signature is due
	signAfter = 10 * time.Second // and time, since the first line without one
)

// Options says where and how much a Log writes.
type Options struct {
	Dir      string // made when it is not there
	FileSize int64  // bytes after which a new file begins; 0: 16 MiB
	Files    int    // files that are kept, at least 2; 0: 64
	// Failing is told when lines cannot be written, and with nil when they can again;
	// it must not wait. nil: nobody is told but the logger and the metrics.
	Failing func(error)
	Logger  *slog.Logger // nil: slog.Default()
}

// Log writes the audit log. Nobody who tells it something ever waits: what it has no
// room for, as the disk is full or slow, is dropped, counted, and told of in the log
// when that can be written again. A nil Log drops everything. It is safe for
// concurrent use; one process may have the folder open at a time, for which the state
// folder's lock cares.
type Log struct {
	opts Options
	log  *slog.Logger
	key  ed25519.PrivateKey

	queue    chan Entry
	drops    atomic.Int64
	uses     uses
	refusals refusals
	stop     chan struct{}
	done     chan struct{}
	closing  sync.Once

	// Of run alone.
	files     []string // oldest first
	file      *os.File // the last of files; nil: none is open
	size      int64    // bytes of it that are good
	at        chain    // the last line
	unsigned  int      // lines since the last signature
	since     time.Time
	headAt    uint64 // seq that head.json has
	ending    bool
	failing   error
	nagged    time.Time
	tornBytes bool // there may be more than size bytes in file

	writeAt func(f *os.File, b []byte, off int64) (int, error) // (*os.File).WriteAt, but in tests
}

// Open opens the log in a folder, or begins one, and starts to write. What a crash
// has left is mended, and what does not verify is left as it is; both are told of in
// the log. Close ends it. An error means that the folder cannot be used.
func Open(o Options) (*Log, error) { return openWith(o, (*os.File).WriteAt) }

func openWith(o Options, writeAt func(f *os.File, b []byte, off int64) (int, error)) (*Log, error) {
	if o.FileSize <= 0 {
		o.FileSize = defaultFileSize
	}
	if o.Files <= 0 {
		o.Files = defaultFiles
	}
	o.Files = max(o.Files, 2)
	l := &Log{
		opts: o, log: o.Logger, queue: make(chan Entry, queueRoom),
		stop: make(chan struct{}), done: make(chan struct{}), writeAt: writeAt,
	}
	if l.log == nil {
		l.log = slog.Default()
	}
	found, err := l.open()
	if err != nil {
		return nil, fmt.Errorf("cannot use the audit log in %s: %w", o.Dir, err)
	}
	go l.run(found)
	return l, nil
}

// PublicKey is the key by which the log verifies, as text.
func (l *Log) PublicKey() string {
	return FormatPublicKey(l.key.Public().(ed25519.PublicKey))
}

// Add notes an entry, at once and without waiting.
func (l *Log) Add(e Entry) {
	if l == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	select {
	case l.queue <- e:
	default:
		l.drops.Add(1)
		droppedEntries.Inc()
	}
}

// Close writes what waits, signs it and closes the file. What cannot be written now
// is lost, which the error says. Entries that come later are dropped. A second call
// does nothing.
func (l *Log) Close() error {
	l.closing.Do(func() { close(l.stop) })
	<-l.done
	if l.failing != nil {
		return fmt.Errorf("the last lines of the audit log were not written: %w", l.failing)
	}
	return nil
}

// run owns the files. batch is what Open has found.
func (l *Log) run(batch []Entry) {
	defer close(l.done)
	if len(batch) > 0 {
		batch = l.write(batch)
	}
	timer := time.NewTimer(l.nextTime(batch))
	defer timer.Stop()
	for {
		in := l.queue
		if len(batch) >= batchRoom {
			in = nil // the queue is what waits for a disk that fails
		}
		select {
		case e := <-in:
			batch = append(batch, e)
			if len(batch) > 1 && len(batch) < batchRoom {
				continue // the timer runs already
			}
		case <-timer.C:
			if l.failing == nil { // else they would fill the memory instead
				batch = append(batch, l.refusals.due(time.Now())...)
			}
			batch = l.write(batch)
		case <-l.stop:
			l.finish(batch)
			return
		}
		timer.Reset(l.nextTime(batch))
	}
}

// nextTime is how long nothing needs to be done when nothing comes.
func (l *Log) nextTime(batch []Entry) time.Duration {
	const never = time.Hour
	wait := never
	if due := l.refusals.next(); !due.IsZero() {
		wait = min(wait, time.Until(due))
	}
	if l.unsigned > 0 {
		wait = min(wait, time.Until(l.since.Add(signAfter)))
	}
	switch {
	case l.failing != nil:
		wait = retry
	case len(batch) >= batchRoom:
		wait = 0
	case len(batch) > 0 || l.drops.Load() > 0:
		wait = min(wait, gather)
	}
	return max(0, wait)
}

// finish writes and signs what there is, and closes the file.
func (l *Log) finish(batch []Entry) {
	l.ending = true
	for more := true; more; {
		select {
		case e := <-l.queue:
			batch = append(batch, e)
		default:
			more = false
		}
	}
	l.write(append(batch, l.refusals.rest(time.Now())...))
	if l.file != nil {
		if err := l.file.Close(); err != nil && l.failing == nil {
			l.failing = err
		}
	}
}

// write writes the batch and what else is due, and returns what could not be written.
func (l *Log) write(batch []Entry) []Entry {
	now := time.Now()
	entries := batch
	lost := l.drops.Load()
	if lost > 0 {
		entries = append(slices.Clip(entries), Entry{
			Time: now, Kind: dropped, Actor: Itself, Fields: map[string]string{"count": strconv.FormatInt(lost, 10)},
		})
	}
	written, err := l.store(now, entries)
	if written {
		l.drops.Add(-lost)
		batch = nil
	}
	l.tell(now, err)
	return batch
}

// store brings entries to the disk, signs when that is due, and tells whether the
// entries are there; after an error they may be all the same.
func (l *Log) store(now time.Time, entries []Entry) (written bool, err error) {
	if len(entries) > 0 {
		if err := l.makeRoom(now); err != nil {
			return false, err
		}
		if err := l.append(now, entries...); err != nil {
			return false, err
		}
	}
	if l.unsigned >= signLines || l.unsigned > 0 && (l.ending || now.Sub(l.since) >= signAfter) {
		if err := l.sign(now); err != nil {
			return true, err
		}
	}
	return true, l.moveHead()
}

// append writes lines and syncs them. After an error none of them is there.
func (l *Log) append(now time.Time, entries ...Entry) error {
	if l.tornBytes {
		if err := l.file.Truncate(l.size); err != nil {
			return err
		}
		l.tornBytes = false
	}
	at := l.at
	var text []byte
	for _, e := range entries {
		var err error
		if text, err = at.appendLine(text, e); err != nil {
			return err
		}
	}
	l.tornBytes = true
	if _, err := l.writeAt(l.file, text, l.size); err != nil {
		return err
	}
	// After a sync that failed nobody knows what is on the disk: the lines are
	// written again.
	if err := l.file.Sync(); err != nil {
		return err
	}
	l.tornBytes = false
	l.size += int64(len(text))
	l.at = at
	if l.unsigned == 0 {
		l.since = now
	}
	l.unsigned += len(entries)
	linesWritten.Add(float64(len(entries)))
	return nil
}

// sign signs all lines before.
func (l *Log) sign(now time.Time) error {
	signature := ed25519.Sign(l.key, lineMessage(l.at.hash))
	err := l.append(now, Entry{
		Time: now, Kind: signed, Actor: Itself, Fields: map[string]string{"signature": base64.StdEncoding.EncodeToString(signature)},
	})
	if err == nil {
		l.unsigned = 0
	}
	return err
}

// moveHead lets head.json tell of the last line, never of one that is not synced.
func (l *Log) moveHead() error {
	if l.headAt == l.at.seq {
		return nil
	}
	if err := writeHead(l.opts.Dir, l.key, l.at); err != nil {
		return err
	}
	l.headAt = l.at.seq
	return nil
}

// makeRoom begins a new file when there is none or the last one is full, and removes
// the oldest when they are too many.
func (l *Log) makeRoom(now time.Time) error {
	if l.file == nil || l.size >= l.opts.FileSize {
		if l.unsigned > 0 && l.file != nil {
			if err := l.sign(now); err != nil {
				return err
			}
		}
		if err := l.newFile(); err != nil {
			return err
		}
	}
	if l.size == 0 {
		if err := l.append(now, Entry{Time: now, Kind: fileBegun, Actor: Itself, Fields: map[string]string{
			"prev": l.at.hash.String(), "public_key": l.PublicKey(),
		}}); err != nil {
			return err
		}
	}
	for len(l.files) > l.opts.Files {
		if err := l.removeOldest(now); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) newFile() error {
	name := fileName(l.at.seq + 1)
	f, err := os.OpenFile(filepath.Join(l.opts.Dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := syncDir(l.opts.Dir); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if l.file != nil {
		if err := l.file.Close(); err != nil {
			l.log.Warn("a file of the audit log was synced but not closed", "error", err)
		}
	}
	l.file, l.size, l.tornBytes = f, 0, false
	l.files = append(l.files, name)
	return nil
}

// removeOldest removes the oldest file once a signed line tells of it.
func (l *Log) removeOldest(now time.Time) error {
	last, err := beginning(l.opts.Dir, l.files[1]) // what it follows
	if err != nil {
		// It does not verify, nor will what is left.
		l.log.Warn("a damaged audit file follows the one that is removed for room", "file", l.files[1], "error", err)
	}
	err = l.append(now, Entry{Time: now, Kind: removed, Actor: Itself, Fields: map[string]string{
		"file": l.files[0], "seq": strconv.FormatUint(last.seq, 10), "hash": last.hash.String(),
	}})
	if err == nil {
		err = l.sign(now)
	}
	if err == nil {
		err = l.moveHead()
	}
	if err == nil {
		err = os.Remove(filepath.Join(l.opts.Dir, l.files[0]))
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		l.files = l.files[1:]
		return nil
	}
	return err
}

// removedChain reads which line a line of the kind removed tells of as the last one.
func removedChain(line *Line) (chain, error) {
	seq, err := strconv.ParseUint(line.Fields["seq"], 10, 64)
	hash, ok := parseDigest(line.Fields["hash"])
	if err != nil || !ok {
		return chain{}, errNoLine
	}
	return chain{seq, hash}, nil
}

// tell raises the alarm when writing begins to fail, and ends it.
func (l *Log) tell(now time.Time, err error) {
	was := l.failing
	l.failing = err
	switch {
	case err != nil && (was == nil || now.Sub(l.nagged) >= nag):
		l.nagged = now
		l.log.Error("the audit log cannot be written; what happens is kept as long as there is room, then it is lost", "error", err, "waiting", len(l.queue), "dropped", l.drops.Load())
	case err == nil && was != nil:
		l.log.Info("the audit log is written again")
	}
	if (err == nil) == (was == nil) {
		return
	}
	failingNow.Set(0)
	if err != nil {
		failingNow.Set(1)
	}
	if l.opts.Failing != nil {
		l.opts.Failing(err)
	}
}

var (
	linesWritten = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_audit_lines_total",
		Help: "Lines written to the audit log, its own among them.",
	})
	droppedEntries = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_audit_dropped_total",
		Help: "Entries that the audit log had no room for, as the disk was full or slow.",
	})
	failingNow = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_audit_failing",
		Help: "1 while the audit log cannot be written.",
	})
)
