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

	mu    sync.Mutex
	conns map[int32]*Conn
}

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
	w := &watcher{epoll: ep, wake: wake, done: make(chan struct{}), conns: make(map[int32]*Conn)}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		_ = unix.Close(ep)
		_ = unix.Close(wake)
		return nil, fmt.Errorf("cannot watch connections: %w", err)
	}
	go w.run()
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
			if int(ev.Fd) == w.wake {
				return
			}
			w.mu.Lock()
			c := w.conns[ev.Fd]
			w.mu.Unlock()
			if c != nil {
				c.leave()
			}
		}
	}
}

func (w *watcher) add(c *Conn) {
	c.fd = -1
	sc, ok := c.Conn.(syscall.Conn)
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
		ev := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)}
		if unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, int(fd), &ev) == nil {
			c.fd = int(fd)
			w.conns[int32(fd)] = c
		}
	})
}

// remove must come before the descriptor is closed, since its number may be
// another connection's right after.
func (w *watcher) remove(c *Conn) {
	if c.fd < 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, int32(c.fd))
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, c.fd, nil)
	c.fd = -1
}

func (w *watcher) stop() {
	_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-w.done
	_ = unix.Close(w.epoll)
	_ = unix.Close(w.wake)
}
