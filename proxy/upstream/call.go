package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// bigBody is the body size from which a request is sent in the background, so
// that an answer that comes before the end of the upload is read at once.
// Below it the bytes fit into the socket's buffer.
const bigBody = 64 << 10

// Call is one request on its way and then its answer. It is used by one
// goroutine, except for Cancel, which may be called from any. A Call can be used
// again after Close; its zero value is ready.
type Call struct {
	// Header is the answer's head after Do.
	Header fasthttp.ResponseHeader

	t    *Transport
	c    *conn
	br   *bufio.Reader
	body body
	head bool // a HEAD request: no body follows

	upgrade bool // the answer may be that another protocol is spoken from here on

	parts  [][]byte // what is sent in one system call; kept for its capacity
	vec    net.Buffers
	record []byte      // what is sent in one TLS record; kept for its capacity
	until  time.Time   // the read deadline set by Read
	stop   atomic.Bool // sending is to end

	mu        sync.Mutex // guards the three below against Cancel
	cancelled bool
	stopDial  context.CancelFunc
	live      net.Conn
}

// ErrCancelled is the cause of every error of a Call after Cancel.
var ErrCancelled = errors.New("call was cancelled")

// Cancel ends the call at once, wherever it is: dialling, sending, waiting or
// reading. Close must still be called.
func (c *Call) Cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancelled = true
	if c.stopDial != nil {
		c.stopDial()
	}
	if c.live != nil {
		_ = c.live.Close()
	}
}

// Do sends head and body parts to the origin and reads the answer's head.
// isHead tells that the method is HEAD. After an error the Call holds nothing;
// after success Close must be called.
//
// A kept-alive connection that breaks at once, before any byte of an answer, is
// replaced by a new one: the provider had closed it while it was idle. One that
// breaks later than staleWithin may have been working on the request, so that
// the failure is the caller's to judge.
func (t *Transport) Do(ctx context.Context, c *Call, o Origin, head []byte, body [][]byte, isHead bool) error {
	c.t, c.head, c.upgrade = t, isHead, false
	for fresh := false; ; fresh = true {
		reused, err := c.open(ctx, o, fresh)
		if err != nil {
			return err
		}
		start := time.Now()
		err = c.exchange(head, body)
		if err == nil {
			return nil
		}
		c.drop()
		if c.isCancelled() {
			return &Error{Op: "finish the call to", Addr: o.Addr, Sent: true, Err: ErrCancelled}
		}
		if reused && errors.Is(err, errNoAnswer) && time.Since(start) < staleWithin {
			continue
		}
		return err
	}
}

// Upgrade sends a request that asks to speak another protocol from here on (RFC 9110,
// section 7.8), on a connection that nothing was said on before and nothing will be
// behind it. Header.StatusCode is 101 after Do if the provider agrees: then Switched
// returns the connection. Any other answer is read as that of Do. It is never sent
// twice.
func (t *Transport) Upgrade(ctx context.Context, c *Call, o Origin, head []byte) error {
	c.t, c.head, c.upgrade = t, false, true
	if _, err := c.open(ctx, o, true); err != nil {
		return err
	}
	err := c.exchange(head, nil)
	if err == nil {
		c.body.spoiled = true
		return nil
	}
	c.drop()
	if c.isCancelled() {
		return &Error{Op: "finish the call to", Addr: o.Addr, Sent: true, Err: ErrCancelled}
	}
	return err
}

// Switched returns the connection on which another protocol is spoken, and what is to be
// read of it. Both are the Call's until Close, and Cancel closes the connection.
func (c *Call) Switched() (nc net.Conn, r io.Reader) {
	_ = c.c.nc.SetDeadline(time.Time{})
	return c.c.nc, c.br
}

// staleWithin is how soon a connection that died while idle shows it: a round
// trip, with room for a slow one.
const staleWithin = 2 * time.Second

// open gives the call a connection, a new one if fresh.
func (c *Call) open(ctx context.Context, o Origin, fresh bool) (reused bool, err error) {
	var pc *conn
	if !fresh {
		if pc, err = c.t.take(o); err != nil {
			return false, err
		}
	}
	reused = pc != nil
	if pc == nil {
		dctx, stop := context.WithCancel(ctx)
		defer stop()
		c.mu.Lock()
		c.stopDial = stop
		cancelled := c.cancelled
		c.mu.Unlock()
		if cancelled {
			return false, &Error{Op: "connect to", Addr: o.Addr, Err: ErrCancelled}
		}
		if pc, err = c.t.dial(dctx, o); err != nil {
			if c.isCancelled() {
				err = &Error{Op: "connect to", Addr: o.Addr, Err: ErrCancelled}
			}
			return false, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopDial = nil
	if c.cancelled {
		_ = pc.nc.Close()
		return false, &Error{Op: "connect to", Addr: o.Addr, Err: ErrCancelled}
	}
	c.c, c.live = pc, pc.nc
	c.until = time.Time{}
	c.br = c.t.readers.Get().(*bufio.Reader)
	c.br.Reset(pc.nc)
	return reused, nil
}

// errNoAnswer marks that the connection ended before a byte of the answer.
var errNoAnswer = errors.New("the provider closed the connection without an answer")

// exchange sends the request and reads the head.
func (c *Call) exchange(head []byte, body [][]byte) error {
	size := 0
	for _, p := range body {
		size += len(p)
	}
	if size < bigBody {
		werr := c.send(head, body, size)
		// An answer may be waiting although the request could not be sent
		// whole, a 413 or 429 for instance: it says more than the broken pipe.
		wait := c.t.opts.FirstByte
		if werr != nil {
			wait = time.Second
		}
		if err := c.readHead(wait); err != nil {
			if werr != nil {
				return &Error{Op: "send to", Addr: c.c.origin.Addr, Sent: false, Err: errors.Join(errNoAnswer, werr)}
			}
			return err
		}
		c.answer(werr != nil)
		return nil
	}

	c.stop.Store(false)
	sent := make(chan error, 1)
	go func() { sent <- c.send(head, body, size) }()
	return c.readHeadWhile(sent)
}

// send writes the request; every write that makes progress renews the time-out.
func (c *Call) send(head []byte, body [][]byte, size int) error {
	nc := c.c.nc
	if err := nc.SetWriteDeadline(time.Now().Add(c.t.opts.Idle)); err != nil {
		return err
	}
	if _, plain := nc.(*net.TCPConn); plain && size < bigBody {
		c.parts = append(append(c.parts[:0], head), body...)
		c.vec = c.parts
		_, err := c.vec.WriteTo(nc)
		clear(c.parts)
		return err
	}
	if len(head)+size <= 16<<10 { // one TLS record
		c.record = append(c.record[:0], head...)
		for _, p := range body {
			c.record = append(c.record, p...)
		}
		_, err := nc.Write(c.record)
		clear(c.record) // the head holds the credential
		return err
	}
	if _, err := nc.Write(head); err != nil {
		return err
	}
	for _, p := range body {
		for len(p) > 0 {
			n := min(len(p), 256<<10)
			if _, err := nc.Write(p[:n]); err != nil {
				return err
			}
			if p = p[n:]; len(p) > 0 {
				if err := nc.SetWriteDeadline(time.Now().Add(c.t.opts.Idle)); err != nil {
					return err
				}
				// Looked at only behind the new deadline, so that the one by
				// which readHeadWhile interrupts a write is never overwritten.
				if c.stop.Load() {
					return os.ErrDeadlineExceeded
				}
			}
		}
	}
	return nil
}

// readHeadWhile reads the head while the request is still being sent, and
// waits for the sender to stop.
func (c *Call) readHeadWhile(sent <-chan error) error {
	// While sending there is no limit for the head but the sender's own
	// progress; once sent, first_byte counts.
	_ = c.c.nc.SetReadDeadline(time.Time{})
	done := make(chan error, 1)
	go func() {
		err := <-sent
		limit := c.t.opts.FirstByte
		if err != nil {
			limit = time.Second
		}
		_ = c.c.nc.SetReadDeadline(time.Now().Add(limit))
		done <- err
	}()
	err := c.parseHead()
	if err == nil {
		// The head is here. If the upload is not finished, stop it: the provider
		// has said what it had to say.
		c.stop.Store(true)
		_ = c.c.nc.SetWriteDeadline(time.Now())
		werr := <-done
		_ = c.c.nc.SetWriteDeadline(time.Time{})
		c.answer(werr != nil)
		return nil
	}
	_ = c.c.nc.Close()
	if werr := <-done; werr != nil {
		return &Error{Op: "send to", Addr: c.c.origin.Addr, Sent: false, Err: errors.Join(errNoAnswer, werr)}
	}
	return err
}

func (c *Call) readHead(wait time.Duration) error {
	if err := c.c.nc.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return &Error{Op: "read from", Addr: c.c.origin.Addr, Sent: true, Err: errors.Join(errNoAnswer, err)}
	}
	return c.parseHead()
}

// parseHead reads heads until a final one; informational ones (1xx) are
// skipped.
func (c *Call) parseHead() error {
	for begun := false; ; begun = true {
		c.Header.Reset()
		c.Header.DisableNormalizing()
		c.Header.SetNoDefaultContentType(true)
		if err := c.Header.Read(c.br); err != nil {
			return &Error{Op: "read the answer of", Addr: c.c.origin.Addr, Sent: true, Err: c.headError(err, begun)}
		}
		switch code := c.Header.StatusCode(); {
		case code >= 200:
			return nil
		case code == fasthttp.StatusSwitchingProtocols && c.upgrade:
			return nil
		case code == fasthttp.StatusSwitchingProtocols:
			return &Error{Op: "read the answer of", Addr: c.c.origin.Addr, Sent: true, Err: errSwitched}
		}
	}
}

// Why a head could not be read.
var (
	errSwitched = errors.New("it switched to another protocol unasked")
	errHead     = errors.New("the answer's head is not HTTP/1.1")
	errHeadSize = errors.New("the answer's head is too large")
)

// headError words why a head could not be read. What fasthttp says of a head
// quotes it, and a head may repeat the credential: that goes no further. begun
// says that an informational head came before: then the request has arrived, and
// is not to be sent again behind the caller's back.
func (c *Call) headError(err error, begun bool) error {
	var small *fasthttp.ErrSmallBuffer
	switch {
	case errors.As(err, &small):
		return errHeadSize
	case errors.Is(err, fasthttp.ErrTimeout), errors.Is(err, os.ErrDeadlineExceeded):
		return os.ErrDeadlineExceeded
	case !begun && c.br.Buffered() == 0 && (errors.Is(err, io.EOF) || isReset(err)):
		return errNoAnswer
	case errors.Is(err, io.EOF), isReset(err):
		return io.ErrUnexpectedEOF
	}
	return errHead
}

// answer prepares the body. spoiled: the connection must not be used again.
func (c *Call) answer(spoiled bool) {
	code := c.Header.StatusCode()
	length := int64(c.Header.ContentLength())
	switch {
	case code == fasthttp.StatusSwitchingProtocols:
		length = untilEOF
	case c.head || code == fasthttp.StatusNoContent || code == fasthttp.StatusNotModified:
		length = 0
	case length < -1: // neither length nor chunks: until the connection closes
		length = untilEOF
	}
	c.body.reset(c.br, length)
	c.body.spoiled = spoiled || length == untilEOF || c.Header.ConnectionClose()
}

// Read reads bytes of the answer's body. It returns as soon as any are there,
// and fills p as far as more are already buffered. wait is how long it may stay
// silent; a time-out (os.ErrDeadlineExceeded) does not end the answer: the next
// Read goes on where this one stopped.
func (c *Call) Read(p []byte, wait time.Duration) (int, error) {
	// A deadline that is less than a second off the wanted one is left alone:
	// setting it costs more than reading a buffered event.
	until := time.Now().Add(wait)
	if off := until.Sub(c.until); off > min(time.Second, wait/4) || off < 0 {
		if err := c.c.nc.SetReadDeadline(until); err != nil {
			return 0, c.readError(err)
		}
		c.until = until
	}
	n, err := c.body.read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.readError(err)
	}
	return n, err
}

func (c *Call) readError(err error) error {
	if c.isCancelled() {
		err = ErrCancelled
	}
	return &Error{Op: "read from", Addr: c.c.origin.Addr, Sent: true, Err: err}
}

// Ended tells that the whole body has been read.
func (c *Call) Ended() bool { return c.body.ended() }

// Close ends the call. A connection whose answer was read to its end is kept
// for the next call, any other is closed. It is safe to call twice.
func (c *Call) Close() {
	if c.c == nil {
		return
	}
	if c.body.ended() && !c.body.spoiled && c.br.Buffered() == 0 && c.release() {
		c.t.readers.Put(c.br)
		c.br = nil
		_ = c.c.nc.SetReadDeadline(time.Time{})
		c.t.put(c.c)
		c.c = nil
		return
	}
	c.drop()
}

// release takes the connection out of Cancel's reach; false when Cancel came
// first.
func (c *Call) release() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live = nil
	return !c.cancelled
}

// drop closes the connection and gives its reader back.
func (c *Call) drop() {
	c.release()
	_ = c.c.nc.Close()
	c.br.Reset(nil)
	c.t.readers.Put(c.br)
	c.c, c.br = nil, nil
	c.body = body{}
}

// Reset makes a closed Call ready for its next use.
func (c *Call) Reset() {
	c.Header.Reset()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancelled, c.stopDial, c.live = false, nil, nil
}

func (c *Call) isCancelled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cancelled
}
