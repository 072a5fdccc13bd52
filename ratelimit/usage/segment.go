package usage

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// segmentSuffix ends the name of a segment file; before it stands the segment's
// id in sixteen hex digits, so that names sort by age.
const segmentSuffix = ".seg"

// segment is one file of the journal and what stands in it.
type segment struct {
	id    uint64
	path  string
	size  int64            // of what is readable; what lies behind it is damage
	spans map[string]*span // by subscription
	opens int              // answers under way whose open record stands here
	// lastWrite is the number of the last entry of the WriteLog here, 0: none.
	lastWrite int64
	// counted is when all of it was first seen to be counted, zero before; only
	// trim looks at it.
	counted time.Time
	file    *os.File // for writing; nil once a newer segment has begun and this one is synced
}

// countedBy tells whether all events in the segment are counted.
func (s *segment) countedBy(applied func(subscription string) int64) bool {
	for name, sp := range s.spans {
		if sp.last > applied(name) {
			return false
		}
	}
	return true
}

// span is the range of one subscription's numbers in a segment.
type span struct{ first, last int64 }

func segmentPath(dir string, id uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%016x%s", id, segmentSuffix))
}

// segmentID returns the id in a file's name; ok is false for any other file.
func segmentID(name string) (id uint64, ok bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	id, err := strconv.ParseUint(hex, 16, 64)
	return id, err == nil
}

// createSegment makes an empty segment file.
func createSegment(dir string, id uint64) (*segment, error) {
	path := segmentPath(dir, id)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(segmentMagic); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return &segment{id: id, path: path, size: int64(len(segmentMagic)), spans: map[string]*span{}, file: f}, nil
}

// scan reads r as a segment and calls visit for each record. It returns the size
// of what was readable, and in damage why it stopped before the end, nil when it
// did not. err is a failure of the disk or of visit.
func scan(r io.Reader, visit func(record) error) (size int64, damage, err error) {
	in := bufio.NewReaderSize(r, 256<<10)
	magic, err := in.Peek(len(segmentMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, err
	}
	if string(magic) != segmentMagic {
		return 0, errRecord, nil
	}
	for n := len(magic); ; {
		if _, err := in.Discard(n); err != nil {
			return size, nil, err
		}
		size += int64(n)
		head, err := in.Peek(frameSize)
		if len(head) == frameSize {
			head, err = in.Peek(frameSize + payloadLength(head))
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return size, nil, err
		}
		if len(head) == 0 {
			return size, nil, nil
		}
		payload, length, damage := parseFrame(head)
		if damage != nil {
			return size, damage, nil
		}
		rec, damage := parseRecord(payload)
		if damage != nil {
			return size, damage, nil
		}
		if err := visit(rec); err != nil {
			return size, nil, err
		}
		n = length
	}
}
