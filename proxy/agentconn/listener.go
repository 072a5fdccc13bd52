// Package agentconn is the agents' side of a connection: what fasthttp does not
// tell about it. It sees at once that the agent has left (also while the answer
// is silent, and under TLS), gives reads and writes time-outs that fit what is under
// way (a head has one that progress does not renew), bounds how many connections there
// are (Places), follows where requests begin and end apart from fasthttp (framing), and
// lets a refusal reach an agent that is still sending.
//
// Listen wraps a listener; From finds the Conn behind a request.
package agentconn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options are the limits of the connections of one Listener.
type Options struct {
	// Head is how long the head of a request may take, however slowly it comes: the
	// first one with the TLS handshake, from when the connection was accepted. A
	// stranger, who has not shown to be an agent's (Known), has as long between two
	// requests, too.
	Head       time.Duration
	ReadStall  time.Duration // how long an agent may stay silent inside a body, and between two requests
	WriteStall time.Duration // how long an agent may take to accept any byte
	TLS        *tls.Config   // nil: the agents speak plain HTTP
	Places     *Places       // shared with other Listeners; nil: there is no bound
}

// bodyRate is the least number of bytes of a body that an agent may send in a second,
// once it has had as long as for a head.
const bodyRate = 512

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
	c := &Conn{Conn: nc, raw: nc, l: l, until: time.Now().Add(l.opts.Head)}
	if l.opts.TLS != nil {
		c.Conn = tls.Server(nc, l.opts.TLS)
	}
	c.uid, c.hasUID = peerOf(nc)
	if l.opts.Places != nil && !l.opts.Places.enter(c) {
		c.turnAway()
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.leavePlace()
		_ = nc.Close()
		return nil
	}
	l.conns[c] = struct{}{}
	// A connection that can't be watched still serves: its agent's leaving is
	// then seen at the next write.
	l.watcher.add(c)
	return c
}

// turnedAway is what is said where there is no place: SDKs try again.
var turnedAway = func() string {
	const text = `{"error":{"type":"server_error","message":"authpool: too many connections are open now"}}` + "\n"
	return "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nX-Authpool-Error: unavailable\r\n" +
		"Retry-After: 1\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(text)) + "\r\n\r\n" + text
}()

// turnAway closes a connection for which there is no place.
func (c *Conn) turnAway() {
	if c.Conn == c.raw { // under TLS nothing can be said yet
		_ = c.raw.SetWriteDeadline(time.Now().Add(time.Second)) // a new connection has room for it
		_, _ = io.WriteString(c.raw, turnedAway)
	}
	_ = c.raw.Close()
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

	outer *Conn         // the one that this one is inside of; nil: none
	inner any           // what Within was given
	done  chan struct{} // closed with a Conn that Within has made
	addrs *Conn         // whose addresses it has; nil: its own

	watch   watch // the watcher's
	mu      sync.Mutex
	onLeave func(closed bool) // guarded by mu
	left    atomic.Bool

	uid    uint32 // of the agent's process
	hasUID bool
	place  place // guarded by Places

	linger   atomic.Bool
	draining atomic.Bool // its read deadline is the last
	handed   atomic.Bool // see HandOver
	known    atomic.Bool // see Known
	closing  sync.Once
	onClose  []func() // guarded by mu
	closed   bool     // guarded by mu

	// What follows is used by the serving goroutine only.
	framing    framing
	rest       []byte // what was read behind the request under way
	answered   int    // requests
	inside     bool   // another Conn is inside of this one and sets the deadlines
	phase      phase
	until      time.Time // when the phase has had the time of a head; zero: counted from the next read
	fresh      bool      // no read has waited in the phase
	received   int64     // bytes in it
	readUntil  time.Time // the read deadline now set
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
	in := &Conn{Conn: nc, raw: c.raw, l: c.l, outer: c, inner: said, uid: c.uid, hasUID: c.hasUID, done: make(chan struct{})}
	in.until, in.readUntil = time.Now().Add(c.l.opts.Head), c.readUntil
	in.known.Store(c.known.Load())
	c.Opaque()
	c.inside = true
	c.OnLeave(in.leave)
	return in
}

// Opaque says that what the agent sends from here on is no HTTP, or that of a Conn that
// is yet to be made within. It has as long as a head to come to that, or to HandOver.
func (c *Conn) Opaque() {
	if c.framing.state != opaque {
		c.framing.state, c.phase, c.until, c.fresh = opaque, other, time.Now().Add(c.l.opts.Head), false
	}
}

// root is the Conn that was accepted.
func (c *Conn) root() *Conn {
	for {
		switch {
		case c.outer != nil:
			c = c.outer
		case c.addrs != nil: // a stream's connection
			c = c.addrs
		default:
			return c
		}
	}
}

// Known says that an agent has shown itself on the connection, which is no stranger's
// from then on. It returns true the first time.
func (c *Conn) Known() bool {
	r := c.root()
	first := r.known.CompareAndSwap(false, true)
	c.known.Store(true)
	if first && r.l.opts.Places != nil {
		r.l.opts.Places.known(r)
	}
	return first
}

// Peer is the user whose process is at the other end; ok is false where that is not
// known, as of all that is no unix socket.
func (c *Conn) Peer() (uid uint32, ok bool) { return c.uid, c.hasUID }

// OnClose has f called once when the connection that was accepted is closed by our
// side, which comes after the agent has left, too; at once when it is already.
func (c *Conn) OnClose(f func()) {
	r := c.root()
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.onClose = append(r.onClose, f)
	}
	r.mu.Unlock()
	if closed {
		f()
	}
}

// Done is closed when a Conn that Within has made is.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Said is what Within was given, nil for a connection that is inside of none.
func (c *Conn) Said() any { return c.inner }

// Nested tells whether the connection is inside of another one.
func (c *Conn) Nested() bool { return c.outer != nil || c.addrs != nil && c.addrs.Nested() }

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
func (c *Conn) HeadEnded() { c.answered++ }

// Fault tells why the request that was read may mean two things to two readers, such as
// the one that has read it and another in front of it; empty: it does not. It is to be
// asked between a request's last byte and HeadEnded.
func (c *Conn) Fault() Fault {
	f := &c.framing
	switch {
	case f.fault != "":
		return f.fault
	case f.state != between || f.ended != c.answered+1:
		return badEnd
	}
	return ""
}

// RequestLine is the line of the request under way, or its beginning; empty: it has not
// come.
func (c *Conn) RequestLine() []byte {
	if f := &c.framing; f.state == startLine && len(f.part) > 0 {
		return f.part[:min(len(f.part), maxFirst)]
	}
	return c.framing.first
}

// Linger makes Close give the agent time to read an answer although it is still
// sending: without it the kernel would answer the unread bytes with a reset,
// which can overtake the answer.
func (c *Conn) Linger() { c.linger.Store(true) }

// HandOver leaves the deadlines to the caller from now on, and has CloseWrite pass on
// that one side has ended: for what is relayed and not served. OnLeave's callback goes.
func (c *Conn) HandOver() {
	c.OnLeave(nil)
	c.Opaque()
	for ; c != nil; c = c.outer {
		c.handed.Store(true)
	}
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

// Read implements net.Conn. One call returns bytes of one request only.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.rest) > 0 {
		n := c.frame(c.rest[:min(len(p), len(c.rest))])
		copy(p, c.rest[:n])
		if c.rest = c.rest[n:]; len(c.rest) == 0 {
			c.rest = nil
		}
		return n, nil
	}
	if err := c.renewRead(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if n == 0 {
		return n, err
	}
	m := c.frame(p[:n])
	if m < n {
		c.rest = append([]byte(nil), p[m:n]...) // no more than the reader's buffer
		err = nil                               // it comes again
	}
	return m, err
}

// phase is what an agent is sending, by which it has time.
type phase uint8

const (
	waiting phase = iota // between two requests
	head
	payload
	other
)

func (f *framing) phase() phase {
	switch f.state {
	case between:
		return waiting
	case startLine, fields:
		return head
	case opaque:
		return other
	default:
		return payload
	}
}

// frame follows what was read, and returns how much of it is of the request under way.
func (c *Conn) frame(p []byte) int {
	ended := c.framing.ended
	n := c.framing.take(p)
	switch now := c.framing.phase(); {
	case c.framing.ended != ended:
		c.phase, c.until, c.fresh, c.received = waiting, time.Time{}, false, 0
	case now == c.phase:
		c.received += int64(n)
	case now == head && ended == 0:
		c.phase = now // the first one's time is running
	default:
		c.phase, c.until, c.fresh, c.received = now, time.Time{}, true, 0
	}
	return n
}

// renewRead sets the deadline of a read.
func (c *Conn) renewRead() error {
	if c.handed.Load() || c.inside || c.draining.Load() {
		return nil
	}
	now := time.Now()
	opts := &c.l.opts
	until := now.Add(opts.ReadStall)
	switch known := c.known.Load(); {
	case known && c.phase == waiting && c.framing.ended > 0:
		// It may be silent between two requests.
	case known && c.fresh:
		// Most of the time the rest has come already. Who sends a first byte and then
		// nothing is as one who sends none.
		c.fresh = false
	default:
		if c.until.IsZero() {
			c.until = now.Add(opts.Head)
		}
		by := c.until
		if c.phase == payload {
			by = by.Add(time.Duration(c.received) * (time.Second / bodyRate))
		}
		if by.Before(until) {
			until = by
		}
	}
	if d := until.Sub(c.readUntil); d > renewAfter(opts.ReadStall) || d < 0 {
		c.readUntil = until
		return c.raw.SetReadDeadline(until)
	}
	return nil
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
			c.leavePlace()
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
		if c.done != nil {
			close(c.done)
		}
	})
	return err
}

// leavePlace gives back what the connection has taken up.
func (c *Conn) leavePlace() {
	if c.l.opts.Places != nil {
		c.l.opts.Places.leave(c)
	}
	c.mu.Lock()
	all := c.onClose
	c.onClose, c.closed = nil, true
	c.mu.Unlock()
	for _, f := range all {
		f()
	}
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
