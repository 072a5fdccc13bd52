package agentconn

import (
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watcher learns from the kernel, through one epoll set, that a peer has closed
// its side (EPOLLRDHUP). Unlike a one-byte peek it sees that also behind bytes
// which nobody has read yet, such as a pipelined request; and it costs nothing
// per request, since each connection is registered once.
type watcher struct {
	epoll int
	wake  int // an eventfd that ends run
	done  chan struct{}

	mu      sync.Mutex
	last    uint64
	conns   map[uint64]*Conn
	running bool // there was something to watch
}

// watch is what the watcher keeps in a Conn. Events carry a number that is never
// given twice: the number of a descriptor is another connection's as soon as
// it is closed, which may be while its last event is still being told.
type watch struct {
	id uint64 // 0: not watched
	fd int
}

func eventOf(events uint32, id uint64) unix.EpollEvent {
	return unix.EpollEvent{Events: events, Fd: int32(id), Pad: int32(id >> 32)}
}

func idOf(ev unix.EpollEvent) uint64 { return uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32 }

func newWatcher() (*watcher, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot watch connections: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(ep)
		return nil, fmt.Errorf("cannot watch connections: %w", err)
	}
	w := &watcher{epoll: ep, wake: wake, done: make(chan struct{}), conns: make(map[uint64]*Conn)}
	ev := eventOf(unix.EPOLLIN, 0)
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		_ = unix.Close(ep)
		_ = unix.Close(wake)
		return nil, fmt.Errorf("cannot watch connections: %w", err)
	}
	return w, nil
}

func (w *watcher) run() {
	defer close(w.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(w.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		for _, ev := range events[:n] {
			id := idOf(ev)
			if id == 0 {
				return // woken by stop
			}
			w.mu.Lock()
			c := w.conns[id]
			w.mu.Unlock()
			if c != nil {
				c.leave(false)
			}
		}
	}
}

// add watches c, if it has a descriptor. The goroutine begins with the first that
// has: a test with connections in memory and a clock of its own could not have it
// wait in a system call.
func (w *watcher) add(c *Conn) {
	sc, ok := c.raw.(syscall.Conn)
	if !ok {
		return
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = rc.Control(func(fd uintptr) {
		ev := eventOf(unix.EPOLLRDHUP|unix.EPOLLET, w.last+1)
		if unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, int(fd), &ev) == nil {
			w.last++
			c.watch = watch{id: w.last, fd: int(fd)}
			w.conns[w.last] = c
			if !w.running {
				w.running = true
				go w.run()
			}
		}
	})
}

// remove must come before the descriptor is closed, since its number may be
// another connection's right after.
func (w *watcher) remove(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.watch.id == 0 {
		return
	}
	delete(w.conns, c.watch.id)
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, c.watch.fd, nil)
	c.watch.id = 0
}

func (w *watcher) stop() {
	w.mu.Lock()
	running := w.running
	w.mu.Unlock()
	if running {
		_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-w.done
	}
	_ = unix.Close(w.epoll)
	_ = unix.Close(w.wake)
}
