package agentconn

import (
	"net"
	"time"
)

// Stream returns a Conn for one of several conversations that go on inside c at the same
// time: nc is one end of a pipe, and what is said of it is what is said of c. Closing it
// leaves c as it is, and nothing but Leave tells that its agent is gone.
func (c *Conn) Stream(nc net.Conn) *Conn {
	s := &Conn{Conn: nc, raw: nc, l: c.l, inner: c.inner, addrs: c, uid: c.uid, hasUID: c.hasUID, until: time.Now().Add(c.l.opts.Head)}
	s.known.Store(c.known.Load())
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.l.closed {
		_ = nc.Close()
	} else {
		c.l.conns[s] = struct{}{}
	}
	return s
}

// Leave says that the agent of a Stream is gone.
func (c *Conn) Leave() { c.leave(false) }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr {
	if c.addrs != nil {
		return c.addrs.LocalAddr()
	}
	return c.Conn.LocalAddr()
}

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr {
	if c.addrs != nil {
		return c.addrs.RemoteAddr()
	}
	return c.Conn.RemoteAddr()
}
