//go:build unix && !linux

package agentconn

import (
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watcher asks each connection twice a second whether
// its peer is gone, by a peek. Outside Linux there is no one portable event for
// it; behind an unread pipelined request the peek sees nothing, and the next
// write then tells.
type watcher struct {
	quit chan struct{}
	done chan struct{}

	mu    sync.Mutex
	conns map[*Conn]syscall.RawConn
}

// watch is what the watcher keeps in a Conn: here, nothing.
type watch struct{}

const peekEvery = 500 * time.Millisecond

func newWatcher() (*watcher, error) {
	w := &watcher{quit: make(chan struct{}), done: make(chan struct{}), conns: make(map[*Conn]syscall.RawConn)}
	go w.run()
	return w, nil
}

func (w *watcher) run() {
	defer close(w.done)
	tick := time.NewTicker(peekEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.quit:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		var gone []*Conn
		for c, rc := range w.conns {
			if !c.Left() && peerGone(rc) {
				gone = append(gone, c)
			}
		}
		w.mu.Unlock()
		for _, c := range gone {
			c.leave(false)
		}
	}
}

func peerGone(rc syscall.RawConn) bool {
	gone := false
	_ = rc.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = err == nil && n == 0 || err == unix.ECONNRESET
	})
	return gone
}

func (w *watcher) add(c *Conn) {
	if sc, ok := c.raw.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			w.mu.Lock()
			w.conns[c] = rc
			w.mu.Unlock()
		}
	}
}

func (w *watcher) remove(c *Conn) {
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
}

func (w *watcher) stop() {
	close(w.quit)
	<-w.done
}
