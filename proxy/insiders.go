package proxy

import (
	"context"
	"net"
	"sync"

	"github.com/valyala/fasthttp"
)

// insiders are the connections inside CONNECT that read a request or write an answer.
// fasthttp waits at a stop for those that it has accepted itself, and an exchange ends
// before the last bytes of its answer have left. It is safe for concurrent use.
type insiders struct {
	mu   sync.Mutex
	busy map[net.Conn]struct{}
	idle chan struct{} // closed when nobody is busy any more; nil: nobody waits
}

// follow is called by fasthttp with each change.
func (i *insiders) follow(c net.Conn, state fasthttp.ConnState) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if state == fasthttp.StateActive {
		if i.busy == nil {
			i.busy = make(map[net.Conn]struct{})
		}
		i.busy[c] = struct{}{}
		return
	}
	delete(i.busy, c)
	if len(i.busy) == 0 && i.idle != nil {
		close(i.idle)
		i.idle = nil
	}
}

// wait waits until nobody is busy, or returns ctx's error. It is called once, when no
// request begins any more.
func (i *insiders) wait(ctx context.Context) error {
	i.mu.Lock()
	if len(i.busy) == 0 {
		i.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	i.idle = idle
	i.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
