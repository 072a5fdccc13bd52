package tunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"
)

// recordHandshake is the first byte of TLS (RFC 8446, section 5.1).
const recordHandshake = 22

// denied is the alert that ends a forbidden tunnel: access_denied, fatal (RFC 8446,
// section 6.2), in a record of TLS 1.2. A client tells it in other words than a lost
// connection.
var denied = []byte{21, 3, 3, 0, 2, 2, 49}

// maxHello is more than a ClientHello takes that crypto/tls reads (64 KiB), also in
// small records.
const maxHello = 128 << 10

var (
	errSeen     = errors.New("the ClientHello has been read")
	errTooLarge = errors.New("the ClientHello is too large")
)

// serverName reads a ClientHello that begins with first and goes on in r, in however
// many records. all is what was read, with perhaps more behind it; ok is false when
// that is no ClientHello.
func serverName(first []byte, r io.Reader) (name string, all []byte, ok bool) {
	c := &recorded{all: first, from: r}
	// The standard library's reader is the one to trust here: what it takes for a
	// ClientHello with another name than a server does would be a way around.
	err := tls.Server(c, &tls.Config{ //nolint:gosec // nothing is ever agreed on
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name = hello.ServerName
			return nil, errSeen
		},
	}).Handshake()
	return name, c.all, errors.Is(err, errSeen)
}

// recorded is a connection of which only the reading is real.
type recorded struct {
	all  []byte // that came
	done int    // of all: read
	from io.Reader
}

// Read implements net.Conn.
func (c *recorded) Read(p []byte) (int, error) {
	if c.done == len(c.all) {
		if len(c.all) > maxHello {
			return 0, errTooLarge
		}
		n, err := c.from.Read(p)
		c.all = append(c.all, p[:n]...)
		c.done = len(c.all)
		return n, err
	}
	n := copy(p, c.all[c.done:])
	c.done += n
	return n, nil
}

// Write implements net.Conn: the alert of the end is not for the agent.
func (c *recorded) Write(p []byte) (int, error) { return len(p), nil }

// Close implements net.Conn.
func (c *recorded) Close() error { return nil }

// LocalAddr implements net.Conn.
func (c *recorded) LocalAddr() net.Addr { return nil }

// RemoteAddr implements net.Conn.
func (c *recorded) RemoteAddr() net.Addr { return nil }

// SetDeadline implements net.Conn.
func (c *recorded) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (c *recorded) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (c *recorded) SetWriteDeadline(time.Time) error { return nil }
