package agentconn

import (
	"errors"
	"io"
	"net"
	"os"
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
	opts := Options{ReadStall: time.Minute, WriteStall: time.Minute}
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

func TestBareLF(t *testing.T) {
	tests := []struct {
		writes []string
		want   bool
	}{
		{[]string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n"}, false},
		{[]string{"GET / HTTP/1.1\r", "\nHost: x\r\n\r\n"}, false},
		{[]string{"GET / HTTP/1.1\nHost: x\r\n\r\n"}, true},
		{[]string{"GET / HTTP/1.1", "\nHost: x\r\n\r\n"}, true},
		{[]string{"GET / HT", "TP/1.1", "\nHost: x\r\n\r\n"}, true},
		{[]string{"\r\n", "\n", "GET / HTTP/1.1\nHost: x\r\n\r\n"}, true},
		{[]string{"\r\n\r", "\nGET / HTTP/1.1\r", "\nHost: x\n\n"}, false},
		// The rest of a pipelined request's body.
		{[]string{"{\n\"model\": \"m\"\n}"}, false},
	}
	for _, tt := range tests {
		agent, c := pair(t)
		buf := make([]byte, 256)
		for _, w := range tt.writes {
			_, _ = agent.Write([]byte(w))
			if _, err := io.ReadFull(c, buf[:len(w)]); err != nil {
				t.Fatal(err)
			}
		}
		if c.BareLF() != tt.want {
			t.Errorf("%q: BareLF = %v", tt.writes, c.BareLF())
		}
	}
}

func TestStalls(t *testing.T) {
	short := func(o *Options) { o.ReadStall, o.WriteStall = 20*time.Millisecond, 20*time.Millisecond }
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
