package embedded

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The port for people takes little from strangers and not much from friends.
const (
	maxReaders  = 32               // connections at once
	loginTime   = 10 * time.Second // from the connection to the right password
	idleTime    = 5 * time.Minute  // between two requests
	requestTime = 10 * time.Second // from a request's first byte to its last
	writeTime   = 10 * time.Second // for the other end to take an answer
	acceptPause = 50 * time.Millisecond
)

var (
	strangerLimits = limits{args: 10, bulk: 4 << 10, total: 4 << 10}
	readerLimits   = limits{args: 1024, bulk: 1 << 20, total: 1 << 20}
)

// front is the read-only port on which people look at the store with redis-cli.
// It never hands the store a byte that it has not read itself: RESP libraries
// were tried and trust announced lengths (miniredis, and redcon v1.6.2, whose
// parser indexes out of range on the same eight-byte length that kills
// miniredis' and loops 2^31 times over "*2147483647").
type front struct {
	store    *Store
	password [32]byte // SHA-256
	listener net.Listener

	slots   chan struct{}
	running sync.WaitGroup
	stop    chan struct{}

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// listen opens the port.
func listen(s *Store, addr string, password [32]byte) (*front, error) {
	if password == ([32]byte{}) {
		return nil, errors.New("redis.listen: the port needs a password")
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("redis.listen: cannot listen on %s: %w; give another address, or off", addr, err)
	}
	f := &front{
		store:    s,
		password: password,
		listener: listener,
		slots:    make(chan struct{}, maxReaders),
		stop:     make(chan struct{}),
		conns:    map[net.Conn]struct{}{},
	}
	f.running.Go(f.accept)
	return f, nil
}

// close ends the port and waits for its connections to end.
func (f *front) close() error {
	err := f.listener.Close()
	close(f.stop)
	f.mu.Lock()
	f.closed = true
	for conn := range f.conns {
		err = errors.Join(err, conn.Close())
	}
	f.mu.Unlock()
	f.running.Wait()
	return err
}

func (f *front) accept() {
	for {
		conn, err := f.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors left, say: trying again at once would only burn
			select {
			case <-f.stop:
				return
			case <-time.After(acceptPause):
				continue
			}
		}
		select {
		case f.slots <- struct{}{}:
			f.running.Go(func() {
				defer func() { <-f.slots }()
				f.serve(conn)
			})
		default:
			f.turnAway(conn)
		}
	}
}

// turnAway tells a connection too many why it ends. The few bytes fit any socket
// buffer, so this does not wait.
func (f *front) turnAway(conn net.Conn) {
	_ = conn.SetWriteDeadline(time.Now().Add(acceptPause))
	_, _ = io.WriteString(conn, "-ERR max number of clients reached\r\n")
	_ = conn.Close()
}

// track remembers conn so that close can end it; it returns false when the port
// is closing already.
func (f *front) track(conn net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.conns[conn] = struct{}{}
	return true
}

func (f *front) forget(conn net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, conn)
}

// reader is one connection to the port. It has one request and one answer in
// memory at a time: what is pipelined stays in the socket.
type reader struct {
	front  *front
	conn   net.Conn
	in     *bufio.Reader
	out    bytes.Buffer
	caller *caller
	known  bool // gave the right password
	leave  bool // asked to end
}

// serve answers one connection until it ends, breaks the rules or is too slow.
// Errors of the connection are its end and nobody's news.
func (f *front) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }() // it may be closed already
	if !f.track(conn) {
		return
	}
	defer f.forget(conn)
	r := &reader{front: f, conn: conn, in: bufio.NewReaderSize(conn, 4<<10)}
	r.caller = newCaller(&r.out)
	login := time.Now().Add(loginTime)
	for !r.leave {
		args, err := r.next(login)
		if protocol := protocolError(""); errors.As(err, &protocol) {
			r.caller.peer.WriteError("ERR " + protocol.Error())
			r.leave = true
		} else if err != nil {
			return
		} else {
			r.answer(args)
		}
		if r.send() != nil {
			return
		}
	}
}

// next reads a request. Strangers have until login for everything; the others may
// think as long as idleTime and then have to write swiftly.
func (r *reader) next(login time.Time) ([]string, error) {
	if !r.known {
		if err := r.conn.SetReadDeadline(login); err != nil {
			return nil, err
		}
		return readRequest(r.in, strangerLimits)
	}
	if err := r.conn.SetReadDeadline(time.Now().Add(idleTime)); err != nil {
		return nil, err
	}
	if _, err := r.in.Peek(1); err != nil {
		return nil, err
	}
	if err := r.conn.SetReadDeadline(time.Now().Add(requestTime)); err != nil {
		return nil, err
	}
	return readRequest(r.in, readerLimits)
}

// send writes the answer. It is complete by now and no lock is held, so that a
// slow reader delays only itself.
func (r *reader) send() error {
	r.caller.peer.Flush()
	if err := r.conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	_, err := r.conn.Write(r.out.Bytes())
	if r.out.Cap() > 64<<10 {
		r.out = bytes.Buffer{}
	} else {
		r.out.Reset()
	}
	return err
}
