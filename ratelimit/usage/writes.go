package usage

import (
	"fmt"
	"os"
)

// WriteLog is the part of a Journal that has nothing to do with usage: it holds
// what an embedded Redis was told to write while somebody waited for it, until that
// is in a snapshot. It lies in the same segments as the usage, so that one sync
// serves both. Entries are opaque here; their numbers have no hole.
//
// A segment goes although it has entries; the Recorder's Save, which makes what
// they say last, comes before that.
//
// Append and Sync are safe for concurrent use.
type WriteLog struct{ journal *Journal }

// Writes returns the journal's log of writes.
func (j *Journal) Writes() WriteLog { return WriteLog{j} }

// MaxWrite is the largest entry of a WriteLog: nearly 64 KiB.
const MaxWrite = maxRecord - 64

// Replay calls visit for every entry whose number is above after, in order. The
// numbers of entries to come are above after, too. It is called once, before the
// first Append; entry is valid during the call only. The error is visit's, or that
// of a segment that cannot be read.
func (w WriteLog) Replay(after int64, visit func(number int64, entry []byte) error) error {
	j := w.journal
	j.mu.Lock()
	j.lastWrite = max(j.lastWrite, after)
	var paths []string
	for _, s := range j.segments {
		if s.lastWrite > after {
			paths = append(paths, s.path)
		}
	}
	j.mu.Unlock()
	for _, path := range paths {
		if err := replaySegment(path, after, visit); err != nil {
			return fmt.Errorf("cannot read back the writes in %s: %w", path, err)
		}
	}
	return nil
}

func replaySegment(path string, after int64, visit func(number int64, entry []byte) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	// What is damaged was found, and told, when the journal was opened.
	_, _, err = scan(f, func(r record) error {
		if r.kind != recordWrite || r.number <= after {
			return nil
		}
		return visit(r.number, r.rest)
	})
	return err
}

// Append adds an entry of at most MaxWrite bytes and returns its number. The entry
// outlives the process when it returns, and the machine after the next Sync. A full
// journal refuses it with ErrJournalFull.
func (w WriteLog) Append(entry []byte) (number int64, err error) {
	j := w.journal
	if len(entry) > MaxWrite {
		return 0, fmt.Errorf("cannot log a write of %d bytes: more than %d", len(entry), MaxWrite)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, fmt.Errorf("cannot log a write: %w", ErrJournalClosed)
	}
	j.buf = appendWrite(j.buf[:0], j.lastWrite+1, entry)
	if err := j.write(); err != nil {
		return 0, fmt.Errorf("cannot log a write: %w", err)
	}
	j.lastWrite++
	j.newest().lastWrite = j.lastWrite
	notify(j.dirty)
	return j.lastWrite, nil
}

// Sync returns when everything appended before the call is on the disk. Those who
// call it at the same time share the disk's work.
func (w WriteLog) Sync() error {
	return w.journal.syncAll()
}
