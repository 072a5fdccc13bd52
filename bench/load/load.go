// Package load sends one request again and again over a fixed number of connections and says how long the
// answers took. It speaks HTTP/1.1 on raw sockets, so that it costs less than what it measures.
//
// Start at [Run].
package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// timeout bounds one answer; a request that takes longer has failed.
const timeout = 60 * time.Second

// Options say what to send, where to, and how fast.
type Options struct {
	// Address is HOST:PORT.
	Address string
	// Request is one whole HTTP/1.1 request, as it is sent.
	Request []byte
	// Connections send at the same time, each one request after the other.
	Connections int
	// Duration is how long requests are begun; those under way are finished.
	Duration time.Duration
	// Rate is how many requests are begun each second, over all connections (open loop); each is timed from when
	// it was due, so that a late start counts. Zero begins the next when the last is answered (closed loop).
	Rate float64
	// BodyBytes is the size that every answer's body must have; other answers have failed.
	BodyBytes int
}

// Result is what came of a run.
type Result struct {
	// Requests were answered with 200 and a whole body, Failures were not.
	Requests, Failures int
	// FirstFailure is why the first failed, or nil.
	FirstFailure error
	// Elapsed is from the first request to the last answer.
	Elapsed time.Duration
	// Latency is to the end of the answer, FirstByte to its first byte.
	Latency, FirstByte Histogram
}

// Run sends requests until o.Duration has passed, or ctx ends. The error is about the options only; failed
// requests are in the result.
func Run(ctx context.Context, o Options) (*Result, error) {
	if o.Connections < 1 || o.Duration <= 0 || o.Rate < 0 || len(o.Request) == 0 {
		return nil, errors.New("cannot run: connections, duration and request are needed, and a rate of 0 or more")
	}
	begin := time.Now()
	results := make([]Result, o.Connections)
	var workers sync.WaitGroup
	for i := range o.Connections {
		workers.Go(func() {
			w := worker{options: o, begin: begin, number: i, result: &results[i]}
			w.run(ctx)
		})
	}
	workers.Wait()
	total := &Result{Elapsed: time.Since(begin)}
	for i := range results {
		r := &results[i]
		total.Requests += r.Requests
		total.Failures += r.Failures
		if total.FirstFailure == nil {
			total.FirstFailure = r.FirstFailure
		}
		total.Latency.Merge(&r.Latency)
		total.FirstByte.Merge(&r.FirstByte)
	}
	return total, nil
}

// worker is one connection.
type worker struct {
	options Options
	begin   time.Time
	number  int
	result  *Result

	conn   net.Conn
	reader *bufio.Reader
}

func (w *worker) run(ctx context.Context) {
	defer w.hangUp()
	end := w.begin.Add(w.options.Duration)
	for n := 0; ctx.Err() == nil; n++ {
		due := time.Now()
		if w.options.Rate > 0 {
			turn := float64(n*w.options.Connections + w.number)
			due = w.begin.Add(time.Duration(turn / w.options.Rate * float64(time.Second)))
		}
		if !due.Before(end) {
			return
		}
		if !wait(ctx, time.Until(due)) {
			return
		}
		first, err := w.exchange(ctx)
		now := time.Now()
		if err != nil {
			w.hangUp()
			if ctx.Err() != nil {
				return // given up, not failed
			}
			w.result.Failures++
			if w.result.FirstFailure == nil {
				w.result.FirstFailure = err
			}
			continue
		}
		w.result.Requests++
		w.result.Latency.Add(now.Sub(due))
		w.result.FirstByte.Add(first.Sub(due))
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *worker) hangUp() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// exchange sends the request and reads the answer; first is when its first byte came.
func (w *worker) exchange(ctx context.Context) (first time.Time, err error) {
	if w.conn == nil {
		var d net.Dialer
		if w.conn, err = d.DialContext(ctx, "tcp", w.options.Address); err != nil {
			w.conn = nil
			return first, err
		}
		w.reader = bufio.NewReaderSize(w.conn, 64<<10)
	}
	if err := w.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return first, err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := w.conn.Write(w.options.Request); err != nil {
		return first, err
	}
	if _, err := w.reader.Peek(1); err != nil {
		return first, err
	}
	first = time.Now()
	n, err := readAnswer(w.reader)
	if err == nil && n != w.options.BodyBytes {
		err = fmt.Errorf("the body has %d bytes, want %d", n, w.options.BodyBytes)
	}
	return first, err
}

// readAnswer reads one answer and returns the size of its body.
func readAnswer(r *bufio.Reader) (int, error) {
	status, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		rest, _ := r.Peek(min(r.Buffered(), 500))
		return 0, fmt.Errorf("status %q, then %q", bytes.TrimSpace(status), rest)
	}
	length, chunked := 0, false
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch value = bytes.TrimSpace(value); {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, err
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = bytes.EqualFold(value, []byte("chunked"))
		}
	}
	if !chunked {
		return r.Discard(length)
	}
	total := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return total, err
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 31)
		if err != nil {
			return total, err
		}
		if _, err := r.Discard(int(n)); err != nil {
			return total, err
		}
		total += int(n)
		end, err := r.ReadSlice('\n')
		if err != nil {
			return total, err
		}
		if len(bytes.TrimSpace(end)) != 0 {
			return total, io.ErrUnexpectedEOF
		}
		if n == 0 {
			return total, nil
		}
	}
}
