package agentconn

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns both ends of a connection that a Listener accepted.
func pair(t *testing.T, change ...func(*Options)) (agent *net.TCPConn, c *Conn) {
	t.Helper()
	opts := Options{Head: time.Minute, ReadStall: time.Minute, WriteStall: time.Minute}
	for _, f := range change {
		f(&opts)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(ln, opts)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ac, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = nc.Close()
		_ = l.Close()
		l.CloseConns()
		l.Stop()
	})
	return nc.(*net.TCPConn), From(ac)
}

func TestOnLeave(t *testing.T) {
	tests := []struct {
		name  string
		leave func(*net.TCPConn) error
	}{
		{"closed", func(c *net.TCPConn) error { return c.Close() }},
		{"half-closed", func(c *net.TCPConn) error { return c.CloseWrite() }},
		{"reset", func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) }},
		// A one-byte peek would see this byte for ever, and never the end behind it.
		{"closed behind an unread pipelined byte", func(c *net.TCPConn) error {
			_, err := c.Write([]byte("G"))
			return errors.Join(err, c.Close())
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			agent, c := pair(t)
			left := make(chan struct{})
			var once sync.Once
			c.OnLeave(func(bool) { once.Do(func() { close(left) }) })
			select {
			case <-left:
				t.Fatal("left before it did")
			default:
			}
			if err := tt.leave(agent); err != nil {
				t.Fatal(err)
			}
			select {
			case <-left:
			case <-time.After(10 * time.Second):
				t.Fatal("nobody noticed")
			}
			again := make(chan struct{}, 4)
			c.OnLeave(func(bool) { again <- struct{}{} })
			<-again // already gone: at once
		})
	}
}

func TestOnLeaveTakenAway(t *testing.T) {
	agent, c := pair(t)
	var calls atomic.Int32
	c.OnLeave(func(bool) { calls.Add(1) })
	c.OnLeave(nil)
	_ = agent.Close()
	seen := make(chan struct{})
	for !c.Left() {
		// The watcher is another goroutine; a read ends when the agent has left.
		_, _ = c.Read(make([]byte, 1))
	}
	close(seen)
	if n := calls.Load(); n != 0 {
		t.Errorf("called %d times after it was taken away", n)
	}
}

// One call of Read never returns bytes of two requests, and Fault tells of every
// request whose end another reader could see elsewhere, however it comes in pieces.
func TestFraming(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: x\r\n"
	const chunked = head + "Transfer-Encoding: chunked\r\n\r\n"
	good := []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		head + "Content-Length: 0\r\n\r\n",
		head + "content-LENGTH:\t5 \r\n\r\n{\n\n\n}",
		chunked + "0\r\n\r\n",
		chunked + "3\r\nabc\r\n0A;x=\"y\"\r\n0123456789\r\n000\r\nX-Trailer: y\r\n\r\n",
		"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
	}
	bad := []string{
		"GET / HTTP/1.1\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\n\n",
		"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		head + "X: a\r\n b\r\n\r\n",
		head + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
		head + "Content-Length: 1, 1\r\n\r\na",
		head + "Content-Length: +1\r\n\r\na",
		head + "Content-Length: 0x1\r\n\r\na",
		head + "Content-Length:\r\n\r\n",
		head + "Content-Length: 1234567890123456789\r\n\r\n",
		head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		head + "Transfer-Encoding: identity\r\n\r\n",
		head + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
		head + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		chunked + "3\nabc\r\n0\r\n\r\n",
		chunked + "3\r\nabc\n0\r\n\r\n",
		chunked + "3\r\nabcd\r\n0\r\n\r\n",
		chunked + "0x3\r\nabc\r\n0\r\n\r\n",
		chunked + "-3\r\nabc\r\n0\r\n\r\n",
		chunked + " 3\r\nabc\r\n0\r\n\r\n",
		chunked + "3 \r\nabc\r\n0\r\n\r\n",
		chunked + ";x\r\nabc\r\n0\r\n\r\n",
		chunked + "10000000000000003\r\nabc\r\n0\r\n\r\n",
		chunked + "3;a\rb\r\nabc\r\n0\r\n\r\n",
		chunked + strings.Repeat("1;"+strings.Repeat("x", 200)+"\r\na\r\n", 100) + "0\r\n\r\n",
		chunked + "0\r\nno colon\r\n\r\n",
		chunked + "0\r\nX: y\n\r\n",
		chunked + "0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 100)+"\r\n", 100) + "\r\n",
		head + strings.Repeat("X: y\r\n", 128) + "\r\n",
		"{\n\"model\": \"m\"\n}\n",
	}
	f := func(in string, want bool, step int, before string) {
		t.Helper()
		c := &Conn{Conn: &played{in: before + in, step: step}, l: &Listener{opts: Options{ReadStall: time.Minute}}}
		c.raw = c.Conn
		buf, got := make([]byte, 64<<10), ""
		if before != "" {
			for c.framing.ended == 0 {
				n, err := c.Read(buf)
				if got += string(buf[:n]); err != nil {
					t.Fatal(err)
				}
			}
			if got != before || c.Fault() != "" {
				t.Fatalf("%q was read, %q", got, c.Fault())
			}
			c.HeadEnded()
			got = ""
		}
		for len(got) < len(in) {
			n, err := c.Read(buf)
			if got += string(buf[:n]); err != nil {
				t.Fatal(err)
			}
		}
		if fault := c.Fault(); got != in || (fault == "") != want {
			t.Errorf("%.200q by %d behind %q: %q", in, step, before, fault)
		}
	}
	for _, step := range []int{1, 2, 7, 1 << 20} {
		for _, before := range []string{"", good[0], good[3], good[5]} {
			for _, in := range good {
				f(in, true, step, before)
			}
			for _, in := range bad {
				f(in, false, step, before)
			}
		}
	}
}

// played is an agent that says something by pieces of a size.
type played struct {
	net.Conn
	in   string
	step int
}

func (p *played) Read(b []byte) (int, error) {
	n := copy(b, p.in[:min(len(p.in), p.step)])
	if p.in = p.in[n:]; n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (p *played) SetReadDeadline(time.Time) error { return nil }

func TestStalls(t *testing.T) {
	short := func(o *Options) {
		o.Head, o.ReadStall, o.WriteStall = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	}
	_, c := pair(t, short)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silent agent: %v", err)
	}
	if _, err := c.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("agent that takes nothing: %v", err)
	}
}

// Without lingering the kernel resets a connection that is closed with bytes
// unread, and the reset can overtake the answer.
func TestLinger(t *testing.T) {
	agent, c := pair(t)
	const upload = 8 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := agent.Write(make([]byte, upload))
		sent <- errors.Join(err, agent.CloseWrite())
	}()
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("too large"))
	c.Linger()
	_ = c.Close()
	if err := <-sent; err != nil {
		t.Errorf("upload: %v", err)
	}
	if got, err := io.ReadAll(agent); string(got) != "too large" || err != nil {
		t.Errorf("answer %q, %v", got, err)
	}
}

// exhausted fails as a machine does that has no descriptor left.
type exhausted struct {
	net.Listener
	errs []error
}

func (l *exhausted) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		return l.Listener.Accept()
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
}

func TestAcceptGoesOnAfterExhaustion(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(&exhausted{ln, []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM}}, Options{ReadStall: time.Minute, WriteStall: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	agent, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if _, err := l.Accept(); err != nil {
		t.Errorf("Accept: %v", err)
	}
	_ = l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	l.CloseConns()
	l.Stop()
}

// Whoever works for an agent learns that our side has closed the connection,
// also after the agent has left.
func TestOnLeaveTellsOfOurClosing(t *testing.T) {
	agent, c := pair(t)
	told := make(chan bool, 4)
	c.OnLeave(func(closed bool) { told <- closed })
	_ = agent.Close()
	if <-told {
		t.Error("the agent left, and our closing was told")
	}
	c.l.CloseConns()
	for closed := range told {
		if closed {
			return
		}
	}
}

func TestNoConnectionAfterCloseConns(t *testing.T) {
	_, c := pair(t)
	c.l.CloseConns()
	agent, err := net.Dial("tcp", c.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	go func() { _, _ = c.l.Accept() }()
	_ = agent.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := agent.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a connection accepted after CloseConns stays open")
	}
}
