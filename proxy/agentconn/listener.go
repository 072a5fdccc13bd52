// Package agentconn is the agents' side of a connection: what fasthttp does not
// tell about it. It sees at once that the agent has left (also while the answer
// is silent, and under TLS), gives writes a time-out that progress renews,
// checks the line end of a request line, and lets a refusal reach an agent that
// is still sending.
//
// Listen wraps a listener; From finds the Conn behind a request.
package agentconn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options are the limits of the connections of one Listener.
type Options struct {
	ReadStall  time.Duration // how long an agent may stay silent inside a request, and between two
	WriteStall time.Duration // how long an agent may take to accept any byte
	TLS        *tls.Config   // nil: the agents speak plain HTTP
}

// Listener accepts Conns. To end it: Close, CloseConns, Stop.
type Listener struct {
	net.Listener
	opts    Options
	watcher *watcher

	mu     sync.Mutex
	conns  map[*Conn]struct{}
	closed bool // by CloseConns: none is to be added

	closing sync.Once
	done    chan struct{} // closed by Close
}

// Listen wraps ln. The Listener owns a goroutine that ends with Stop.
func Listen(ln net.Listener, opts Options) (*Listener, error) {
	w, err := newWatcher()
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: ln, opts: opts, watcher: w, conns: make(map[*Conn]struct{}), done: make(chan struct{})}, nil
}

// Close implements net.Listener. What was accepted stays open.
func (l *Listener) Close() error {
	l.closing.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// acceptPause is how long Accept waits while there are too many open files.
const acceptPause = 50 * time.Millisecond

// Accept implements net.Listener. It fails only when the Listener is closed:
// that the machine has run out of descriptors or memory passes, and a server
// that stopped accepting for it would have to be started again by hand.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		switch {
		case err == nil:
			if c := l.wrap(nc); c != nil {
				return c, nil
			}
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
			errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			select {
			case <-time.After(acceptPause):
			case <-l.done:
			}
		default:
			return nil, err
		}
	}
}

// wrap makes a Conn of an accepted connection; nil when it came too late.
func (l *Listener) wrap(nc net.Conn) *Conn {
	c := &Conn{Conn: nc, raw: nc, l: l}
	if l.opts.TLS != nil {
		c.Conn = tls.Server(nc, l.opts.TLS)
	}
	c.headStarts.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = nc.Close()
		return nil
	}
	l.conns[c] = struct{}{}
	// A connection that can't be watched still serves: its agent's leaving is
	// then seen at the next write.
	l.watcher.add(c)
	return c
}

// CloseConns closes every connection at once, whatever it is doing, and those
// that are still accepted.
func (l *Listener) CloseConns() {
	l.mu.Lock()
	l.closed = true
	conns := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.close(false)
	}
}

// Stop ends the watcher and waits for it. Call it when no connection is left.
func (l *Listener) Stop() { l.watcher.stop() }

// Conn is one agent's connection. Reads and writes are the agent's plain text,
// also under TLS.
type Conn struct {
	net.Conn
	raw net.Conn // below TLS
	l   *Listener

	outer *Conn // the one that this one is inside of; nil: none
	inner any   // what Within was given

	watch   watch // the watcher's
	mu      sync.Mutex
	onLeave func(closed bool) // guarded by mu
	left    atomic.Bool

	headStarts atomic.Bool // the next byte read begins a request head
	bareLF     atomic.Bool
	lineEnd    []byte // the last bytes of a request line that has not come whole
	linger     atomic.Bool
	draining   atomic.Bool // its read deadline is the last
	handed     atomic.Bool // see HandOver
	closing    sync.Once
	readUntil  time.Time // the read deadline now set, used by the serving goroutine only
	writeUntil time.Time
}

// From returns the Conn that nc is; nil when it is none.
func From(nc net.Conn) *Conn {
	c, _ := nc.(*Conn)
	return c
}

// Within returns a Conn that goes on inside c, which serves nothing else any more: nc
// is what the agent says from here on, c itself or TLS over it. What is said of it by
// Said: whoever opened it keeps that there. Closing it closes c.
func (c *Conn) Within(nc net.Conn, said any) *Conn {
	in := &Conn{Conn: nc, raw: c.raw, l: c.l, outer: c, inner: said}
	in.headStarts.Store(true)
	c.headStarts.Store(false) // what comes is not lines of a head
	c.OnLeave(in.leave)
	return in
}

// Said is what Within was given, nil for a connection that is inside of none.
func (c *Conn) Said() any { return c.inner }

// OnLeave has f called as soon as the agent is gone; at once when it is
// already. A half-closed connection counts as gone: no agent sends a request
// and then says that it will never send another while it still waits. closed
// tells that it is our side that has closed the connection, which can come
// after the agent left: f may be called more than once. nil takes the callback
// away and waits for one that is running. f must not block.
func (c *Conn) OnLeave(f func(closed bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onLeave = f
	if f != nil && c.left.Load() {
		f(false)
	}
}

// leave tells whoever works for the agent that it is gone.
func (c *Conn) leave(closed bool) {
	c.left.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.onLeave; f != nil {
		f(closed)
	}
}

// Left tells whether the agent is gone.
func (c *Conn) Left() bool { return c.left.Load() }

// HeadEnded tells the Conn that a request was answered, so that the next byte
// begins a new one.
func (c *Conn) HeadEnded() { c.headStarts.Store(true) }

// BareLF tells whether the request line ended in a line feed alone (RFC 9112,
// section 2.2, leaves it to the server; two parsers that differ here can be
// made to see two requests). The line of a request that came in one read with
// the end of the request before it is not seen.
func (c *Conn) BareLF() bool { return c.bareLF.Load() }

// Linger makes Close give the agent time to read an answer although it is still
// sending: without it the kernel would answer the unread bytes with a reset,
// which can overtake the answer.
func (c *Conn) Linger() { c.linger.Store(true) }

// HandOver leaves the deadlines to the caller from now on, and has CloseWrite pass on
// that one side has ended: for what is relayed and not served. OnLeave's callback goes.
func (c *Conn) HandOver() {
	c.OnLeave(nil)
	c.headStarts.Store(false)
	c.handed.Store(true)
}

// CloseWrite says to the agent that nothing more will come.
func (c *Conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// renewAfter is how old a deadline may be before progress renews it: one second
// of inaccuracy saves a timer change per read and write.
func renewAfter(stall time.Duration) time.Duration { return min(time.Second, stall/4) }

// renews tells whether Read and Write set deadlines: not inside another Conn, which
// does, and not once they are handed over.
func (c *Conn) renews() bool { return c.outer == nil && !c.handed.Load() }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	now := time.Now()
	if until := now.Add(c.l.opts.ReadStall); c.renews() && until.Sub(c.readUntil) > renewAfter(c.l.opts.ReadStall) && !c.draining.Load() {
		c.readUntil = until
		if err := c.Conn.SetReadDeadline(until); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	if n > 0 && c.headStarts.Load() {
		c.checkLine(p[:n])
	}
	return n, err
}

// checkLine looks at the line end of a request line, behind any blank lines. A
// line that does not end in a version is none: what follows a pipelined request
// in the same read is not seen from its beginning.
func (c *Conn) checkLine(p []byte) {
	const version = len("HTTP/1.1")
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			c.lineEnd = append(c.lineEnd, p[max(0, len(p)-version-1):]...)
			c.lineEnd = c.lineEnd[max(0, len(c.lineEnd)-version-1):]
			return
		}
		line := p[:i]
		p = p[i+1:]
		if len(c.lineEnd) > 0 {
			line = append(c.lineEnd, line...)
			c.lineEnd = nil
		}
		if len(line) == 0 || len(line) == 1 && line[0] == '\r' {
			continue
		}
		if n := len(line) - version; n >= 0 && bytes.HasPrefix(line[n:], []byte("HTTP/")) {
			c.bareLF.Store(true)
		}
		c.headStarts.Store(false)
		return
	}
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	written := 0
	for {
		now := time.Now()
		if until := now.Add(c.l.opts.WriteStall); c.renews() && until.Sub(c.writeUntil) > renewAfter(c.l.opts.WriteStall) {
			c.writeUntil = until
			if err := c.Conn.SetWriteDeadline(until); err != nil {
				return written, err
			}
		}
		// Large writes go in pieces, so that a slow agent which does accept
		// bytes is not taken for one that does not.
		q := p[written:min(len(p), written+64<<10)]
		n, err := c.Conn.Write(q)
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// SetReadDeadline does nothing before HandOver: Read renews its own.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if !c.handed.Load() {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline does nothing before HandOver: Read and Write renew their own.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetWriteDeadline does nothing before HandOver: Write renews its own.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if !c.handed.Load() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// lingerBytes and lingerTime bound what is read from an agent that was refused.
const (
	lingerBytes = 256 << 20
	lingerTime  = 2 * time.Second
)

// Close implements net.Conn.
func (c *Conn) Close() error { return c.close(true) }

// close closes the connection: politely, which may take a moment, or at once.
func (c *Conn) close(politely bool) error {
	var err error
	c.closing.Do(func() {
		if politely && c.linger.Load() {
			c.drain()
		}
		if c.outer == nil {
			c.l.watcher.remove(c)
			c.l.mu.Lock()
			delete(c.l.conns, c)
			c.l.mu.Unlock()
		}
		switch {
		case politely && c.outer != nil:
			err = errors.Join(c.Conn.Close(), c.outer.close(true))
		case politely:
			err = c.Conn.Close()
		default:
			err = c.raw.Close() // without TLS's farewell, which could block
		}
		c.leave(true)
	})
	return err
}

// drain says that nothing more will be sent and reads on for a moment.
func (c *Conn) drain() {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); !ok || cw.CloseWrite() != nil {
		return
	}
	c.draining.Store(true)
	if c.outer != nil {
		c.outer.draining.Store(true)
	}
	if c.raw.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
}
