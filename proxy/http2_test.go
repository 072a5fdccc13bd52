package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/proxy/agentconn"
)

// speaker is an agent that speaks HTTP/2 alone, over connections that dial makes.
func speaker(secure *tls.Config, dial func() net.Conn) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(secure == nil)
	protocols.SetHTTP2(secure != nil)
	return &http.Client{Transport: &http.Transport{
		Protocols: protocols, TLSClientConfig: secure, DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return dial(), nil },
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			config := secure.Clone()
			config.NextProtos = []string{"h2"}
			c := tls.Client(dial(), config)
			err := c.HandshakeContext(ctx)
			return c, err
		},
	}}
}

// An agent that speaks nothing but HTTP/2 is served: with prior knowledge at the base
// URL, and inside what CONNECT has opened.
func TestHTTP2Alone(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1, intercepted(t, u))
	for name, tt := range map[string]struct {
		secure *tls.Config
		url    string
		dial   func() net.Conn
	}{
		"prior knowledge": {nil, "http://" + r.addr + "/v1/messages", r.dial},
		"intercepted": {r.trusted(), "https://llm.example.test/v1/messages", func() net.Conn {
			c, status := r.open("my-session", testToken, "llm.example.test:443")
			if status != 200 {
				t.Fatal(status)
			}
			return c
		}},
	} {
		t.Run(name, func(t *testing.T) {
			agent := speaker(tt.secure, tt.dial)
			defer agent.CloseIdleConnections()
			for range 3 {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, tt.url, strings.NewReader(message))
				req.Header.Set("X-Api-Key", testToken)
				resp, err := agent.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 || string(body) != answer {
					t.Fatalf("%s %d %s, %v", resp.Proto, resp.StatusCode, body, err)
				}
			}
		})
	}
	if n := len(r.waitEvents(6)); n != 6 || strings.Contains(strings.Join(u.requests(), ""), testToken) {
		t.Errorf("%d events; the provider got %s", n, u.requests())
	}
}

// A stream comes event by event; an agent that takes its request back ends the call.
func TestHTTP2Stream(t *testing.T) {
	next, left := make(chan struct{}), make(chan struct{})
	u := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock)
		c.chunk(msgHello)
		c.wait(next)
		c.chunk(msgHello)
		_, _ = c.Read(make([]byte, 1))
		close(left)
	})
	r := newRig(t, u.url(), 1)
	agent := speaker(nil, r.dial)
	defer agent.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.addr+"/v1/messages", strings.NewReader(messageS))
	req.Header.Set("X-Api-Key", testToken)
	req.ContentLength = -1 // a body of unknown length
	resp, err := agent.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	defer func() { _ = resp.Body.Close() }()
	hello := hellos(t, resp.Body)
	hello()
	close(next)
	hello()
	cancel()
	select {
	case <-left:
	case <-time.After(time.Minute):
		t.Fatal("the provider is not told that the agent has left")
	}
	if e := r.waitEvents(1)[0]; !e.Estimated {
		t.Errorf("what was used is %+v", e)
	}
}

// lateReader is a connection with one request, of which a Read is under way until it is
// closed.
type lateReader struct {
	net.Conn
	request *strings.Reader
	reading chan struct{} // closed by the Read that waits
	closed  chan struct{}
	order   chan string
}

func (c *lateReader) Read(p []byte) (int, error) {
	if n, err := c.request.Read(p); err == nil {
		return n, nil
	}
	close(c.reading)
	<-c.closed
	c.order <- "read"
	return copy(p, "late"), nil
}

func (c *lateReader) Close() error {
	close(c.closed)
	return nil
}

// A connection that was taken from fasthttp is given back, with the reader that the next
// agent's connection gets, when nobody reads it any more; and is not read after that.
func TestTakenConnectionIsReadToItsEnd(t *testing.T) {
	r := newRig(t, "http://127.0.0.1:1", 1)
	late := &lateReader{
		Conn: &playedConn{}, request: strings.NewReader("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		reading: make(chan struct{}), closed: make(chan struct{}), order: make(chan string, 2),
	}
	l, err := agentconn.Listen(oneConn{conn: late}, agentconn.Options{Head: time.Minute, ReadStall: time.Minute, WriteStall: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Stop()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var taken io.Reader
	got := make(chan string, 1)
	fast := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
		r.server.hijack(ctx, func(_ *agentconn.Conn, from io.Reader) {
			taken = from
			go func() {
				p := make([]byte, 8)
				n, _ := from.Read(p)
				got <- string(p[:n])
			}()
			<-late.reading
		}, func() { late.order <- "given back" })
	}}
	_ = fast.ServeConn(c) // it was taken
	if first := <-late.order; first != "read" {
		t.Error("it was given back while it was read")
	}
	if text := <-got; text != "late" {
		t.Errorf("read %q", text)
	}
	<-late.order
	if n, err := taken.Read(make([]byte, 8)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("afterwards it reads %d bytes, %v", n, err)
	}
}
