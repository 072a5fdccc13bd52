package notify

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/authpool/authpool/pool/event"
)

const (
	// queueMost bounds what waits for one target; beyond it the oldest goes.
	queueMost = 1000
	// queueBytes is the size at which the file is written anew without what is done.
	queueBytes = 4 << 20
	// lineMost bounds one line of the file; longer ones are damage.
	lineMost = 64 << 10

	queueSuffix = ".queue"
)

// delivery is one event on its way to one target. Its JSON is the file's.
type delivery struct {
	ID       string      `json:"id"`
	Host     string      `json:"host"` // where it was found out
	Event    event.Event `json:"event"`
	Repeated int         `json:"repeated,omitempty"`
}

// line is one line of a queue's file: a delivery that came, or the id of one that
// is over.
type line struct {
	Add  *delivery `json:"add,omitempty"`
	Done string    `json:"done,omitempty"`
}

// queue is what waits for one target, the same in memory and in a file that is only
// appended to. A file whose end was not written whole, or that is damaged, gives
// what can be read of it. It is safe for concurrent use.
type queue struct {
	path string

	mu    sync.Mutex
	items []delivery
	file  *os.File
	size  int64
}

// openQueue reads the queue at path, which need not exist; damaged is how many lines
// could not be read.
func openQueue(path string) (q *queue, damaged int, err error) {
	q = &queue{path: path}
	if damaged, err = q.read(); err != nil {
		return nil, 0, fmt.Errorf("cannot read the queue %s: %w", filepath.Base(path), err)
	}
	if err := q.rewrite(); err != nil {
		return nil, 0, fmt.Errorf("cannot write the queue %s: %w", filepath.Base(path), err)
	}
	return q, damaged, nil
}

// read takes over what stands in the file.
func (q *queue) read() (damaged int, err error) {
	f, err := os.Open(q.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	in := bufio.NewReaderSize(f, lineMost)
	for {
		text, err := in.ReadSlice('\n')
		var l line
		switch {
		case errors.Is(err, io.EOF) && len(text) == 0:
			return damaged, nil
		case errors.Is(err, bufio.ErrBufferFull) || err == nil && json.Unmarshal(text, &l) != nil || errors.Is(err, io.EOF):
			damaged++
		case err != nil:
			return damaged, err
		case l.Add != nil && l.Add.ID != "":
			q.items = append(q.items, *l.Add)
			q.items = q.items[max(0, len(q.items)-queueMost):]
		default:
			q.remove(l.Done)
		}
		if errors.Is(err, io.EOF) {
			return damaged, nil
		}
	}
}

// push puts d at the end; full tells that the oldest had to go. With an error d waits
// in memory alone.
func (q *queue) push(d delivery) (full bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, d)
	err = q.append(line{Add: &d})
	if len(q.items) > queueMost {
		full = true
		id := q.items[0].ID
		q.remove(id)
		err = errors.Join(err, q.append(line{Done: id}))
	}
	return full, err
}

// first is the oldest; ok is false when nothing waits.
func (q *queue) first() (d delivery, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return delivery{}, false
	}
	return q.items[0], true
}

// done takes one out.
func (q *queue) done(id string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.remove(id)
	return q.append(line{Done: id})
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

func (q *queue) remove(id string) {
	for i := range q.items {
		if q.items[i].ID == id {
			q.items = append(q.items[:i:i], q.items[i+1:]...)
			return
		}
	}
}

// append writes one line through to the disk; events are rare enough for that.
func (q *queue) append(l line) error {
	if q.file == nil || len(q.items) == 0 || q.size > queueBytes {
		return q.rewrite() // which may mend what has failed before, too
	}
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	n, err := q.file.Write(append(text, '\n'))
	q.size += int64(n)
	if err == nil {
		err = q.file.Sync()
	}
	if err != nil {
		q.drop()
	}
	return err
}

// drop lets go of the file, which is written anew at the next occasion.
func (q *queue) drop() {
	if q.file != nil {
		_ = q.file.Close() // what it would tell was told by Write or Sync
		q.file = nil
	}
}

// rewrite replaces the file by one with what waits.
func (q *queue) rewrite() error {
	q.drop()
	var text bytes.Buffer
	out := json.NewEncoder(&text)
	for i := range q.items {
		if err := out.Encode(line{Add: &q.items[i]}); err != nil {
			return err
		}
	}
	next := q.path + ".next"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(next, q.path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	q.file, q.size = f, int64(text.Len())
	return nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop()
}
