package agentconn

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"
)

// handOver is a listener of one connection.
type handOver struct {
	net.Listener
	conn net.Conn
}

func (h *handOver) Accept() (net.Conn, error) { return h.conn, nil }

// The limits of the connections of pipes.
const (
	headTime   = 20 * time.Second
	readStall  = 2 * time.Minute
	writeStall = time.Minute
)

// inBubble runs f in a bubble with both ends of a connection in memory, of which
// the server's is a Conn. The Listener is made outside of the bubble, since its
// watcher waits in the kernel, where no bubble's time goes on.
func inBubble(t *testing.T, f func(t *testing.T, agent, plain net.Conn, c *Conn)) {
	t.Helper()
	h := &handOver{}
	l, err := Listen(h, Options{Head: headTime, ReadStall: readStall, WriteStall: writeStall})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Stop()
	synctest.Test(t, func(t *testing.T) {
		agent, own := net.Pipe()
		defer agent.Close()
		h.conn = own
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f(t, agent, own, From(c))
	})
}

// slowly yields a piece every half minute, for ten minutes.
type slowly struct{ left int }

const (
	pieces = 20
	pause  = 30 * time.Second
)

func (s *slowly) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	time.Sleep(pause)
	return copy(p, "piece "), nil
}

// Trap: fasthttp's time-outs are one deadline for the whole request and one for
// the whole answer. A Conn takes them for none and has its own, which every byte
// renews, so that ten minutes of upload and ten minutes of stream pass limits of
// one and two.
func TestTrapDeadlineOfTheWholeAnswer(t *testing.T) {
	for _, tt := range []struct {
		name    string
		trapped bool // served without Conn: shows that there is a trap
	}{{"plain connection", true}, {"Conn", false}} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, agent, plain net.Conn, c *Conn) {
				server := &fasthttp.Server{
					Handler: func(ctx *fasthttp.RequestCtx) {
						ctx.Response.Header.Set("X-Got", fmt.Sprint(len(ctx.Request.Body())))
						ctx.SetBodyStream(&slowly{left: pieces}, -1)
					},
					ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute, NoDefaultDate: true,
				}
				served := make(chan struct{})
				go func() {
					defer close(served)
					conn := net.Conn(c)
					if tt.trapped {
						conn = plain
					}
					_ = server.ServeConn(conn) // the agent sees how it ended
					_ = conn.Close()
				}()
				upload, piece := pieces, make([]byte, 16<<10) // less would be slower than bodyRate
				if tt.trapped {
					upload = 1
				}
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					fmt.Fprintf(agent, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", upload*len(piece))
					for range upload {
						_, _ = agent.Write(piece)
						time.Sleep(pause)
					}
				}()
				resp, err := http.ReadResponse(bufio.NewReader(agent), nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if whole := err == nil && string(body) == strings.Repeat("piece ", pieces); whole == tt.trapped {
					t.Errorf("%d bytes, %v", len(body), err)
				}
				if !tt.trapped && resp.Header.Get("X-Got") != fmt.Sprint(pieces*16<<10) {
					t.Errorf("%s bytes arrived", resp.Header.Get("X-Got"))
				}
				_ = agent.Close()
				<-served
				<-sent
			})
		})
	}
}

// The other side of it: without progress the time is over, and not before.
func TestTrapStalledConnectionsEnd(t *testing.T) {
	near := func(t *testing.T, took, want time.Duration) {
		t.Helper()
		if took < want-2*time.Second || took > want {
			t.Errorf("ended after %v, want %v", took, want)
		}
	}
	inBubble(t, func(t *testing.T, _, _ net.Conn, c *Conn) {
		start := time.Now()
		if _, err := c.Write(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("an agent that takes nothing: %v", err)
		}
		near(t, time.Since(start), writeStall)
	})
	const (
		head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
		get  = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	)
	drip := strings.Repeat("X", 1000) // a header that never ends
	for _, tt := range []struct {
		name   string
		known  bool
		says   string        // at once
		drips  string        // a byte every second
		answer bool          // the first request is answered
		want   time.Duration // from the end of says
	}{
		{name: "nothing", want: headTime},
		{name: "half a head", says: head[:10], want: headTime},
		{name: "a head that drips", says: head[:10], drips: drip, want: headTime},
		{name: "blank lines that drip", drips: strings.Repeat("\r\n", 100), want: headTime},
		{name: "a stranger between two requests", says: get, answer: true, want: headTime},
		{name: "an agent between two requests", says: get, answer: true, known: true, want: readStall},
		{name: "an agent's next head that drips", says: get, drips: drip, answer: true, known: true, want: headTime + 2*time.Second},
		{name: "a stranger's body that stops", says: head + "x", want: headTime},
		{name: "an agent's body that stops", says: head + strings.Repeat("x", 900_000), known: true, want: readStall},
		{name: "a body that drips", says: head + "x", drips: drip, known: true, want: headTime + 2*time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, agent, _ net.Conn, c *Conn) {
				if tt.known {
					c.Known()
				}
				said := make(chan struct{})
				go func() {
					defer close(said)
					_, _ = io.WriteString(agent, tt.says)
					for i := range tt.drips {
						time.Sleep(time.Second)
						if _, err := io.WriteString(agent, tt.drips[i:i+1]); err != nil {
							return
						}
					}
				}()
				buf := make([]byte, 4096)
				for n := 0; n < len(tt.says); {
					m, err := c.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					n += m
				}
				if tt.answer {
					c.HeadEnded()
				}
				start := time.Now()
				var err error
				for err == nil {
					_, err = c.Read(buf)
				}
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
				near(t, time.Since(start), tt.want)
				_ = agent.Close()
				<-said
			})
		})
	}
}
