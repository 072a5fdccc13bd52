package embedded

import (
	"bufio"
	"io"

	"github.com/alicebob/miniredis/v2/server"
)

// caller is one connection as miniredis knows it.
type caller struct {
	peer       *server.Peer
	subscribed bool // it has asked for messages at least once
}

// newCaller makes a caller whose answers go to w. miniredis may write to it at any
// time once it is subscribed, and while it holds its lock, so w must not wait for
// anybody.
func newCaller(w io.Writer) *caller {
	return &caller{peer: server.NewPeer(bufio.NewWriter(w))}
}

// run executes one command. args has at least the command's name.
func (s *Store) run(c *caller, args []string) {
	s.mu.Lock()
	s.calling = c
	s.server.Dispatch(c.peer, args)
	s.calling = nil
	s.mu.Unlock()
	c.peer.Flush()
}

// leave undoes what a caller left behind. miniredis does so by itself only for
// connections that it reads itself.
func (s *Store) leave(c *caller) {
	if c.subscribed {
		s.run(c, []string{"UNSUBSCRIBE"})
		s.run(c, []string{"PUNSUBSCRIBE"})
	}
}
