// Package recall keeps on disk what was last known of records that operators keep in
// Redis: agents, with their hashed tokens and limits, and subscriptions, with their
// switches and sealed secrets. A process that starts while Redis is away goes on by
// that, as one does that was there before: what was revoked or switched off stays so.
// Redis is the truth, and once it is there nothing else counts.
package recall

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/authpool/authpool/pool/store"
)

const (
	format = 1
	// most bounds the file, in bytes: far more than a fleet's records come to.
	most = 64 << 20
	// pause is how long a change waits after the one before: who makes a thousand agents
	// has not all of them written a thousand times.
	pause = time.Second
)

// Errors of Load, beside fs.ErrNotExist.
var (
	ErrDamaged = errors.New("the file is damaged")
	ErrOther   = errors.New("the file is of another Redis, or of another version of authpool")
)

// File keeps the records of one kind. It is safe for concurrent use; a nil one keeps
// nothing.
type File struct {
	path, of string
	log      *slog.Logger

	mu      sync.Mutex
	pending []byte // what is to be written; nil: nothing is
	written time.Time
	failed  bool // the last time; it is logged once
}

// head is the first line of a file. The records follow it, as one JSON array.
type head struct {
	Format int       `json:"format"`
	Of     string    `json:"of"` // which records of which Redis they are
	Known  time.Time `json:"known"`
	Sum    string    `json:"sha256"` // of the rest
}

// New returns the file at path; of names the records, and the Redis that has them: those
// of another one are never taken for them. Nothing is read or written before it is asked.
func New(path, of string, log *slog.Logger) *File { return &File{path: path, of: of, log: log} }

// Load returns the records, and when they were as they are.
func (f *File) Load() (list []store.Record, known time.Time, err error) {
	if f == nil {
		return nil, time.Time{}, fs.ErrNotExist
	}
	fail := func(err error) ([]store.Record, time.Time, error) {
		return nil, time.Time{}, fmt.Errorf("cannot read what was last known in %s: %w", f.path, err)
	}
	file, err := os.Open(f.path)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = file.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return fail(err)
	}
	line, rest, whole := bytes.Cut(text, []byte("\n"))
	var h head
	if !whole || len(text) > most || json.Unmarshal(line, &h) != nil {
		return fail(ErrDamaged)
	}
	if h.Format != format || h.Of != f.of {
		return fail(ErrOther)
	}
	if h.Sum != sumOf(rest) || json.Unmarshal(rest, &list) != nil {
		return fail(ErrDamaged)
	}
	return list, h.Known, nil
}

// Keep has the records written: at once, or with the next Flush when others were written
// a moment ago. What cannot be written is tried again.
func (f *File) Keep(list []store.Record) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	text, err := f.encode(list, now)
	if err != nil {
		// What is older may tell of tokens that were revoked since.
		f.pending = nil
		f.log.Error("what operators have set is not kept for a start without Redis", "error", errors.Join(err, os.Remove(f.path)))
		return
	}
	f.pending = text
	f.flush(now)
}

// Flush writes what waits, where it has waited long enough. It is to be called now and
// then.
func (f *File) Flush() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flush(time.Now())
}

// Close writes what waits.
func (f *File) Close() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written = time.Time{}
	f.flush(time.Now())
}

func (f *File) flush(now time.Time) {
	if f.pending == nil || now.Sub(f.written) < pause {
		return
	}
	f.written = now
	if err := f.write(f.pending); err != nil {
		if !f.failed {
			f.log.Error("what operators have set is not kept for a start without Redis", "error", err)
		}
		f.failed = true
		return
	}
	f.pending, f.failed = nil, false
}

func (f *File) encode(list []store.Record, now time.Time) ([]byte, error) {
	rest, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("cannot write %s: %w", f.path, err)
	}
	line, err := json.Marshal(head{format, f.of, now.UTC().Truncate(time.Millisecond), sumOf(rest)})
	if err != nil {
		return nil, fmt.Errorf("cannot write %s: %w", f.path, err)
	}
	text := append(append(line, '\n'), rest...)
	if len(text) > most {
		return nil, fmt.Errorf("cannot write %s: %d bytes are more than the %d that it may have", f.path, len(text), most)
	}
	return text, nil
}

// write replaces the file in one step: a crash leaves the former one or this.
func (f *File) write(text []byte) error {
	fresh, err := os.OpenFile(f.path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = fresh.Write(text)
	err = errors.Join(err, fresh.Sync(), fresh.Close())
	if err == nil {
		err = os.Rename(fresh.Name(), f.path)
	}
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

func sumOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
