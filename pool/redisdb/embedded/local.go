package embedded

import (
	"bufio"
	"context"
	"net"
	"sync"
)

// localLimits bound the requests of authpool's own clients: far above anything
// they send, and still an end.
var localLimits = limits{args: 1 << 16, bulk: 64 << 20, total: 64 << 20}

// maxPending is how much a client inside the process may leave unread before its
// connection is closed: a subscriber that sleeps must not collect messages
// without end.
const maxPending = 64 << 20

// local is one connection from inside the process. Its answers wait in memory
// until its client reads them, so that a client that reads slowly delays no other
// command: miniredis writes messages to subscribers while it holds its lock.
type local struct {
	conn   net.Conn
	caller *caller

	mu      sync.Mutex
	pending []byte
	wake    chan struct{} // holds one: pending has become non-empty, or the end has come
	ended   bool
}

// Dial returns a connection to the store over memory. It fits the Dialer of a
// Redis client, and works inside a synctest bubble.
func (s *Store) Dial(context.Context) (net.Conn, error) { return s.dial(s.serveCommands) }

// dial makes a connection that serve answers.
func (s *Store) dial(serve func(*local)) (net.Conn, error) {
	s.conns.Lock()
	defer s.conns.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	client, own := net.Pipe()
	l := &local{conn: own, wake: make(chan struct{}, 1)}
	l.caller = newCaller(l)
	s.locals[l] = struct{}{}
	s.running.Go(func() { s.serveLocal(l, serve) })
	return client, nil
}

// closeLocals ends all connections and lets no new one in.
func (s *Store) closeLocals() {
	s.conns.Lock()
	defer s.conns.Unlock()
	s.closed = true
	for l := range s.locals {
		_ = l.conn.Close() // a pipe's Close reports nothing
	}
}

func (s *Store) serveLocal(l *local, serve func(*local)) {
	var writer sync.WaitGroup
	writer.Go(l.pump)
	serve(l)
	l.end()
	writer.Wait()
	s.conns.Lock()
	delete(s.locals, l)
	s.conns.Unlock()
}

// serveCommands answers a usual connection.
func (s *Store) serveCommands(l *local) {
	c := l.caller
	in := bufio.NewReader(l.conn)
	for !c.peer.Closed() {
		args, err := readRequest(in, localLimits)
		if err != nil {
			break
		}
		s.run(c, args)
	}
	s.leave(c)
}

// Write implements io.Writer for miniredis. It never waits.
func (l *local) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return 0, net.ErrClosed
	}
	if len(l.pending)+len(p) > maxPending {
		l.ended = true
		_ = l.conn.Close() // a pipe's Close reports nothing
		return 0, net.ErrClosed
	}
	l.pending = append(l.pending, p...)
	l.signal()
	return len(p), nil
}

// signal wakes the pump.
func (l *local) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// end lets the pump send what is pending, then close.
func (l *local) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.signal()
}

// pump carries pending answers to the client until the end.
func (l *local) pump() {
	defer func() { _ = l.conn.Close() }() // a pipe's Close reports nothing
	var spare []byte
	for range l.wake {
		l.mu.Lock()
		out, ended := l.pending, l.ended
		l.pending = spare[:0]
		l.mu.Unlock()
		if len(out) > 0 {
			if _, err := l.conn.Write(out); err != nil {
				return
			}
		}
		if ended {
			return
		}
		if spare = out; cap(spare) > 64<<10 {
			spare = nil
		}
	}
}
