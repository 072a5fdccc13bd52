package usage

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// readChunk is how much of a segment is read at a time. It holds the largest record,
// and hundreds of the usual ones.
const readChunk = 128 << 10

// reader reads the journal's records in order, as far as they are on the disk. It
// is for one goroutine.
type reader struct {
	journal *Journal
	at      position // of the next record
	file    *os.File // of segment at.segment, or nil
	buf     []byte   // bytes of the file from at on
	scratch [readChunk]byte
}

// seek makes the record at p the next one.
func (r *reader) seek(p position) {
	r.drop()
	r.at = p
}

// next returns the next record and its place, or ok false when there is none yet.
// The record is valid until the next call. An error means that a part of a segment
// could not be read any more; reading goes on behind it.
func (r *reader) next() (rec record, at position, ok bool, err error) {
	for {
		if payload, size, err := parseFrame(r.buf); err == nil {
			rec, err := parseRecord(payload)
			if err != nil {
				return record{}, r.at, false, r.skip(err)
			}
			at = r.at
			r.at.offset += int64(size)
			r.buf = r.buf[size:]
			return rec, at, true, nil
		} else if len(r.buf) > 0 && !errors.Is(err, errShort) {
			return record{}, r.at, false, r.skip(err)
		}
		more, err := r.fill()
		if err != nil {
			return record{}, r.at, false, r.skip(err)
		}
		if !more {
			return record{}, r.at, false, nil
		}
	}
}

// fill reads on. more is false at the end of what is on the disk.
func (r *reader) fill() (more bool, err error) {
	for {
		seg, path, limit, sealed := r.journal.readable(r.at.segment)
		if seg != r.at.segment {
			r.seek(position{seg, 0})
		}
		r.at.offset = max(r.at.offset, int64(len(segmentMagic)))
		want := limit - r.at.offset
		if want > int64(len(r.buf)) {
			if r.file == nil {
				if r.file, err = os.Open(path); err != nil {
					return false, err
				}
			}
			n, err := r.file.ReadAt(r.scratch[:min(want, readChunk)], r.at.offset)
			if err != nil && !errors.Is(err, io.EOF) {
				return false, err
			}
			if n <= len(r.buf) {
				return false, errShort
			}
			r.buf = r.scratch[:n]
			return true, nil
		}
		if !sealed {
			return false, nil
		}
		if len(r.buf) > 0 {
			return false, errShort
		}
		r.seek(position{seg + 1, 0})
	}
}

// skip leaves the rest of the segment, which cannot be read, and says so. The
// newest segment is read again later, from the same place.
func (r *reader) skip(cause error) error {
	seg, path, limit, sealed := r.journal.readable(r.at.segment)
	at := r.at
	if sealed && seg == at.segment {
		r.seek(position{seg + 1, 0})
		return fmt.Errorf("cannot read %d bytes of usage in %s: %w", limit-at.offset, path, cause)
	}
	r.drop()
	return fmt.Errorf("cannot read usage in %s: %w", path, cause)
}

// drop forgets what is buffered.
func (r *reader) drop() {
	if r.file != nil {
		r.file.Close() //nolint:errcheck // only read from: nothing is lost
	}
	r.file, r.buf = nil, nil
}
