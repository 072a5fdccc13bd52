// Package agentconn is the agents' side of a connection: what fasthttp does not
// tell about it. It sees at once that the agent has left (also while the answer
// is silent), gives writes a time-out that progress renews, checks the line end
// of a request line, and lets a refusal reach an agent that is still sending.
//
// Listen wraps a listener; From finds the Conn behind a request.
package agentconn

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options are the limits of the connections of one Listener.
type Options struct {
	ReadStall  time.Duration // how long an agent may stay silent inside a request, and between two
	WriteStall time.Duration // how long an agent may take to accept any byte
}

// Listener accepts Conns. Close it first, then Wait or CloseConns.
type Listener struct {
	net.Listener
	opts    Options
	watcher *watcher

	mu    sync.Mutex
	conns map[*Conn]struct{}
}

// Listen wraps ln. The Listener owns a goroutine that ends with Stop.
func Listen(ln net.Listener, opts Options) (*Listener, error) {
	w, err := newWatcher()
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: ln, opts: opts, watcher: w, conns: make(map[*Conn]struct{})}, nil
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: nc, l: l}
	c.headStarts.Store(true)
	l.mu.Lock()
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	// A connection that can't be watched still serves: its agent's leaving is
	// then seen at the next write.
	l.watcher.add(c)
	return c, nil
}

// CloseConns closes every connection, whatever it is doing: for those who work
// for its agent it is as if the agent had left.
func (l *Listener) CloseConns() {
	l.mu.Lock()
	conns := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		c.leave() // whoever waits for the provider need not
	}
}

// Stop ends the watcher and waits for it. Call it when no connection is left.
func (l *Listener) Stop() { l.watcher.stop() }

// Conn is one agent's connection.
type Conn struct {
	net.Conn
	l *Listener

	fd      int // for the watcher, -1 when not watched
	mu      sync.Mutex
	onLeave func() // guarded by mu
	left    atomic.Bool

	headStarts atomic.Bool // the next byte read begins a request head
	bareLF     atomic.Bool
	lastByte   byte
	linger     atomic.Bool
	closing    sync.Once
	readUntil  time.Time // the read deadline now set, used by the serving goroutine only
	writeUntil time.Time
}

// From returns the Conn behind nc, which may be TLS on top of it; nil when there
// is none.
func From(nc net.Conn) *Conn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	c, _ := nc.(*Conn)
	return c
}

// OnLeave has f called once as soon as the agent is gone; at once when it is
// already. A half-closed connection counts as gone: no agent sends a request
// and then says that it will never send another while it still waits. nil takes
// the callback away and waits for one that is running. f must not block.
func (c *Conn) OnLeave(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onLeave = f
	if f != nil && c.left.Load() {
		c.onLeave = nil
		f()
	}
}

// leave is called by the watcher.
func (c *Conn) leave() {
	c.left.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.onLeave; f != nil {
		c.onLeave = nil
		f()
	}
}

// Left tells whether the agent is gone.
func (c *Conn) Left() bool { return c.left.Load() }

// HeadEnded tells the Conn that a request was answered, so that the next byte
// begins a new one.
func (c *Conn) HeadEnded() { c.headStarts.Store(true) }

// BareLF tells whether the request line ended in a line feed alone (RFC 9112,
// section 2.2, leaves it to the server; two parsers that differ here can be
// made to see two requests).
func (c *Conn) BareLF() bool { return c.bareLF.Load() }

// Linger makes Close give the agent time to read an answer although it is still
// sending: without it the kernel would answer the unread bytes with a reset,
// which can overtake the answer.
func (c *Conn) Linger() { c.linger.Store(true) }

// renewAfter is how old a deadline may be before progress renews it: one second
// of inaccuracy saves a timer change per read and write.
const renewAfter = time.Second

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	now := time.Now()
	if until := now.Add(c.l.opts.ReadStall); until.Sub(c.readUntil) > renewAfter {
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

// checkLine looks at the first line end behind headStarts.
func (c *Conn) checkLine(p []byte) {
	i := bytes.IndexByte(p, '\n')
	if i < 0 {
		c.lastByte = p[len(p)-1]
		return
	}
	before := c.lastByte
	if i > 0 {
		before = p[i-1]
	}
	if before != '\r' {
		c.bareLF.Store(true)
	}
	c.lastByte = 0
	c.headStarts.Store(false)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	written := 0
	for {
		now := time.Now()
		if until := now.Add(c.l.opts.WriteStall); until.Sub(c.writeUntil) > renewAfter {
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

// SetReadDeadline does nothing: Read renews its own.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetDeadline does nothing: Read and Write renew their own.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing: Write renews its own.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// lingerBytes and lingerTime bound what is read from an agent that was refused.
const (
	lingerBytes = 256 << 20
	lingerTime  = 2 * time.Second
)

// Close implements net.Conn.
func (c *Conn) Close() error {
	var err error
	c.closing.Do(func() {
		if c.linger.Load() {
			c.drain()
		}
		c.l.watcher.remove(c)
		c.l.mu.Lock()
		delete(c.l.conns, c)
		c.l.mu.Unlock()
		err = c.Conn.Close()
	})
	return err
}

// drain says that nothing more will be sent and reads on for a moment.
func (c *Conn) drain() {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); !ok || cw.CloseWrite() != nil {
		return
	}
	if c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
}
