// Package upstream carries one request to a provider over HTTP/1.1 and hands
// its answer back as a head and a stream of bytes.
//
// Start at Transport.Do. It differs from a usual HTTP client in what a
// streaming proxy needs: a call can be cancelled at every moment (while
// dialling, sending, waiting for the head, or reading), it is never repeated
// behind the caller's back except on a kept-alive connection that turned out to
// be dead before a byte of the answer came, an answer that arrives while the
// body is still being sent is not lost, and redirects are never followed.
package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options are a Transport's limits. Every duration must be positive.
type Options struct {
	Connect   time.Duration  // to dial, and for the TLS handshake
	FirstByte time.Duration  // from the end of the request to the answer's head
	Idle      time.Duration  // between two reads or writes that make progress
	KeepAlive time.Duration  // how long an unused connection is kept
	MaxIdle   int            // unused connections kept for each origin
	RootCAs   *x509.CertPool // nil: the system's
	HeadLimit int            // bytes of an answer's head; also the read buffer's size
	// Dial opens a connection to host:port until ctx ends; nil: over TCP, by the
	// system's resolver.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

// Origin is where a connection goes. The zero value is not usable.
type Origin struct {
	TLS  bool
	Host string // name for SNI and certificate verification
	Addr string // host:port to dial
}

// Transport keeps connections to origins. It is safe for concurrent use.
type Transport struct {
	opts    Options
	tls     sync.Map // host → *tls.Config, each with its own session cache
	readers sync.Pool

	mu     sync.Mutex
	idle   map[Origin][]*conn // last used at the end
	closed bool
	sweep  *time.Timer
}

// ErrClosed is returned by Do after Close.
var ErrClosed = errors.New("upstream transport is closed")

// New returns a Transport without connections.
func New(opts Options) *Transport {
	t := &Transport{opts: opts, idle: make(map[Origin][]*conn)}
	if opts.Dial == nil {
		dialer := &net.Dialer{Timeout: opts.Connect}
		t.opts.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }
	}
	t.readers.New = func() any { return bufio.NewReaderSize(nil, opts.HeadLimit) }
	t.sweep = time.AfterFunc(opts.KeepAlive, t.sweepIdle)
	return t
}

// Close closes every unused connection. Answers still being read keep theirs
// until they end; it is not reused then.
func (t *Transport) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.sweep.Stop()
	for o, conns := range t.idle {
		for _, c := range conns {
			_ = c.nc.Close()
		}
		delete(t.idle, o)
	}
}

// conn is one connection, used by one call at a time.
type conn struct {
	nc     net.Conn
	origin Origin
	since  time.Time // when it was last put back
}

// take returns the most recently used idle connection that still lives, or nil.
func (t *Transport) take(o Origin) (*conn, error) {
	for {
		c, err := t.pop(o)
		if c == nil || err != nil || time.Since(c.since) < checkAfter || c.quiet() {
			return c, err
		}
		_ = c.nc.Close()
	}
}

// checkAfter is how long a connection must have been idle to be looked at
// before it is used again.
const checkAfter = time.Second

// quiet tells whether nothing has come on an idle connection: neither its end,
// so that a request is not sent in vain (and a second time), nor bytes, which
// would be taken for the answer to the next request.
func (c *conn) quiet() bool {
	nc := c.nc
	for t, ok := nc.(*tls.Conn); ok; t, ok = nc.(*tls.Conn) { // twice behind an https:// proxy
		nc = t.NetConn()
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return true
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = rc.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = errors.Is(err, unix.EAGAIN)
	})
	return quiet && err == nil
}

// pop takes the most recently used idle connection.
func (t *Transport) pop(o Origin) (*conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	conns := t.idle[o]
	if len(conns) == 0 {
		return nil, nil
	}
	c := conns[len(conns)-1]
	conns[len(conns)-1] = nil
	t.idle[o] = conns[:len(conns)-1]
	return c, nil
}

// put keeps c for the next call to its origin, or closes it when there are
// enough.
func (t *Transport) put(c *conn) {
	t.mu.Lock()
	conns := t.idle[c.origin]
	keep := !t.closed && len(conns) < t.opts.MaxIdle
	if keep {
		c.since = time.Now()
		t.idle[c.origin] = append(conns, c)
	}
	t.mu.Unlock()
	if !keep {
		_ = c.nc.Close()
	}
}

// sweepIdle closes connections unused for longer than KeepAlive, and runs again
// until Close.
func (t *Transport) sweepIdle() {
	limit := time.Now().Add(-t.opts.KeepAlive)
	var old []*conn
	t.mu.Lock()
	defer t.mu.Unlock()
	for o, conns := range t.idle {
		n := 0
		for n < len(conns) && conns[n].since.Before(limit) {
			n++
		}
		old = append(old, conns[:n]...)
		if n == len(conns) {
			delete(t.idle, o)
		} else {
			t.idle[o] = append([]*conn(nil), conns[n:]...)
		}
	}
	for _, c := range old {
		_ = c.nc.Close()
	}
	if !t.closed {
		t.sweep.Reset(t.opts.KeepAlive / 2)
	}
}

// dial opens a connection; it stops when ctx ends.
func (t *Transport) dial(ctx context.Context, o Origin) (*conn, error) {
	nc, err := t.opts.Dial(ctx, o.Addr)
	if err != nil {
		return nil, &Error{Op: "connect to", Addr: o.Addr, Sent: false, Err: err}
	}
	if !o.TLS {
		return &conn{nc: nc, origin: o}, nil
	}
	tc := tls.Client(nc, t.tlsConfig(o.Host))
	hctx, cancel := context.WithTimeout(ctx, t.opts.Connect)
	defer cancel()
	if err := tc.HandshakeContext(hctx); err != nil {
		_ = nc.Close()
		return nil, &Error{Op: "open TLS to", Addr: o.Addr, Sent: false, Err: err}
	}
	return &conn{nc: tc, origin: o}, nil
}

func (t *Transport) tlsConfig(host string) *tls.Config {
	if c, ok := t.tls.Load(host); ok {
		return c.(*tls.Config)
	}
	c, _ := t.tls.LoadOrStore(host, &tls.Config{
		ServerName:         host,
		RootCAs:            t.opts.RootCAs,
		NextProtos:         []string{"http/1.1"},
		MinVersion:         tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(32),
		VerifyConnection:   verifyRevocation,
	})
	return c.(*tls.Config)
}

// Error is a failed call.
type Error struct {
	Op   string // what could not be done: "connect to", "send to", "read from", ...
	Addr string // host:port
	Sent bool   // whether the provider may have received the whole request
	Err  error
}

func (e *Error) Error() string { return "cannot " + e.Op + " " + e.Addr + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
