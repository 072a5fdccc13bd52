package embedded

import (
	"bufio"
	"io"

	"github.com/alicebob/miniredis/v2/server"
)

// caller is one connection as miniredis knows it.
type caller struct {
	peer       *server.Peer
	subscribed bool // it has asked for messages; guarded by mu
}

// newCaller makes a caller whose answers go to w. miniredis may write to it at any
// time once it is subscribed, and while it holds its lock, so w must not wait for
// anybody.
func newCaller(w io.Writer) *caller {
	return &caller{peer: server.NewPeer(bufio.NewWriter(w))}
}

// run executes one command. args has at least the command's name.
func (s *Store) run(c *caller, args []string) {
	s.execute(c, args)
	c.peer.Flush()
}

func (s *Store) execute(c *caller, args []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calling = c
	s.server.Dispatch(c.peer, args)
	s.calling = nil
}

// runRead executes one reading command with arguments that a stranger to this
// program chose. It returns false when miniredis panicked on them, as it does for
// SSCAN with a cursor of -1: nothing has changed then, but the answer may be half
// written, so the connection must end.
func (s *Store) runRead(c *caller, args []string) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if reason := recover(); reason != nil {
			// Only holders of mu take miniredis' lock: if it is taken, the command
			// that panicked took it.
			s.mini.TryLock()
			s.mini.Unlock()
			s.logger.Error("A reading command failed inside the embedded Redis", "command", printable(args[0]), "reason", reason)
		}
	}()
	s.server.Dispatch(c.peer, args)
	return true
}

// leave undoes what a caller left behind. miniredis does so by itself only for
// connections that it reads itself.
func (s *Store) leave(c *caller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsubscribe(c)
}

// unsubscribe ends a caller's wait for messages. mu is held.
func (s *Store) unsubscribe(c *caller) {
	if c.subscribed {
		s.server.Dispatch(c.peer, []string{"UNSUBSCRIBE"})
		s.server.Dispatch(c.peer, []string{"PUNSUBSCRIBE"})
		c.subscribed = false
	}
}
