package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	copyEvery   = time.Second      // how long a line may wait for others to be copied with
	copyLines   = 256              // as one
	copyTimeout = 10 * time.Second // of each talk with the stream
)

// Stream is a copy of the log's lines elsewhere, out of reach of who can change the
// files. *store.AuditStream is one in Redis.
type Stream interface {
	// Last is the last line that is there, with its seq; 0: there is none.
	Last(ctx context.Context) (seq uint64, line []byte, err error)
	// Append puts lines behind, without their newlines and each with its seq, in order.
	// One that is there already is passed over.
	Append(ctx context.Context, seqs []uint64, lines [][]byte) error
}

// StreamName tells the logs of several processes apart: by their keys.
func (l *Log) StreamName() string {
	sum := sha256.Sum256([]byte(l.PublicKey()))
	return hex.EncodeToString(sum[:16])
}

// CopyTo copies every line to the stream within a second or so, and what it has missed
// when healthy says that it can be asked again: the files are what waits, so that
// nothing is lost between but what they drop for room. It ends with stop, after a last
// try.
func (l *Log) CopyTo(stream Stream, healthy func() bool) (stop func(context.Context)) {
	c := &copier{log: l, stream: stream, healthy: healthy}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(copyEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				c.copyAll(ctx)
			}
		}
	}()
	return func(ctx context.Context) {
		cancel()
		<-done
		c.copyAll(ctx)
	}
}

// copier is what CopyTo knows between two rounds.
type copier struct {
	log     *Log
	stream  Stream
	healthy func() bool

	known  bool   // last is what the stream has
	last   uint64 // the last line that was copied
	file   string // the one that was read last
	offset int64  // up to there
	failed bool   // and it was told
	told   uint64 // the line of the stream that is not in the files
}

// copyAll copies what there is.
func (c *copier) copyAll(ctx context.Context) {
	for c.healthy() {
		more, err := c.copySome(ctx)
		if err != nil && ctx.Err() == nil && !c.failed {
			c.failed = true
			c.log.log.Warn("the audit log is not copied to its stream; it is tried again", "error", err)
		}
		if err == nil {
			c.failed = false
		}
		if err != nil || !more {
			return
		}
	}
}

// copySome copies the next lines and tells whether there may be more.
func (c *copier) copySome(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	if !c.known {
		var line []byte
		if c.last, line, err = c.stream.Last(ctx); err != nil {
			return false, err
		}
		c.known, c.file, c.offset = true, "", 0
		if err := c.compare(line); err != nil {
			return false, err
		}
	}
	seqs, lines, file, offset, err := c.next()
	if err != nil || len(lines) == 0 {
		return false, err
	}
	if err := c.stream.Append(ctx, seqs, lines); err != nil {
		c.known = false
		return false, err
	}
	linesCopied.Add(float64(len(lines)))
	c.last, c.file, c.offset = seqs[len(seqs)-1], file, offset
	return len(lines) == copyLines, nil
}

// next reads the lines behind the last one that was copied, and where they end.
func (c *copier) next() (seqs []uint64, lines [][]byte, file string, offset int64, err error) {
	names, err := List(c.log.opts.Dir)
	if err != nil {
		return nil, nil, "", 0, err
	}
	file, offset = c.file, c.offset
	for i, name := range names {
		if name < file {
			continue
		}
		if i+1 < len(names) {
			if first, _ := firstSeq(names[i+1]); first <= c.last {
				continue // all of it was copied
			}
		}
		if name > file {
			file, offset = name, 0
		}
		offset, err = eachWhole(filepath.Join(c.log.opts.Dir, name), offset, func(raw []byte) bool {
			line, err := ParseLine(raw)
			if err == nil && line.Seq > c.last { // one that is damaged is the verifier's to tell of
				seqs, lines = append(seqs, line.Seq), append(lines, bytes.Clone(raw))
			}
			return len(lines) < copyLines
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone for room
			return nil, nil, "", 0, err
		}
		if len(lines) == copyLines {
			break
		}
	}
	return seqs, lines, file, offset, nil
}

// compare looks for the last line of the stream in the files. When it is another one
// there, or they end before it, somebody has put an earlier log back: the log says so,
// once, and its copy goes on behind that line.
func (c *copier) compare(last []byte) error {
	names, err := List(c.log.opts.Dir)
	if err != nil || c.last == 0 || len(names) == 0 {
		return err
	}
	same, seen := false, uint64(0)
	for i, name := range names {
		if first, _ := firstSeq(name); i == 0 && first > c.last {
			return nil // dropped for room
		}
		if _, err := eachWhole(filepath.Join(c.log.opts.Dir, name), 0, func(raw []byte) bool {
			if line, err := ParseLine(raw); err == nil {
				seen = line.Seq
				same = same || seen == c.last && bytes.Equal(raw, last)
			}
			return seen < c.last
		}); err != nil {
			return err
		}
	}
	if !same && c.told != c.last {
		c.told = c.last
		c.log.log.Error("the audit log is not the one that was copied to its stream: its folder was put back or changed", "line", c.last)
		c.log.Add(Entry{Kind: diverged, Actor: Itself, Fields: map[string]string{
			"what": "line " + strconv.FormatUint(c.last, 10) + " of the Redis stream is another one here, or not here",
		}})
	}
	return nil
}

// eachWhole calls f with the whole lines of a file from an offset on, without their
// newlines, until f wants no more, and returns where the last of them ends.
func eachWhole(path string, from int64, f func(raw []byte) bool) (end int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return from, err
	}
	defer func() { _ = file.Close() }() // only read
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return from, err
	}
	err = eachLineOf(file, func(_ int, raw []byte) error {
		from += int64(len(raw)) + 1
		if !f(raw) {
			return io.EOF
		}
		return nil
	})
	if errors.Is(err, errTorn) || errors.Is(err, io.EOF) {
		err = nil // it is being written; enough
	}
	return from, err
}

var linesCopied = promauto.NewCounter(prometheus.CounterOpts{
	Name: "authpool_audit_copied_total",
	Help: "Lines of the audit log that were copied to its Redis stream.",
})
