package proxy

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// playedConn is an agent that has sent everything and waits.
type playedConn struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *playedConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *playedConn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *playedConn) Close() error                { return nil }
func (c *playedConn) LocalAddr() net.Addr         { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (c *playedConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }
func (c *playedConn) SetDeadline(time.Time) error      { return nil }
func (c *playedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *playedConn) SetWriteDeadline(time.Time) error { return nil }

// Whatever bytes an agent sends, what reaches the provider is a request that a
// strict parser reads, with the provider's credential in its one form and
// nobody else's; and nothing panics.
func FuzzRequests(f *testing.F) {
	good := messageRequest(message)
	f.Add([]byte(good))
	f.Add([]byte(good + messageRequest(messageS)))
	f.Add([]byte(strings.Replace(good, "Content-Length: 89\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n59\r\n", 1) + "\r\n0\r\n\r\n"))
	f.Add([]byte("GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + testToken + "\r\nCookie: a=b\r\nX-Goog-Api-Key: x\r\n\r\n"))
	f.Add([]byte("POST http://localhost/openai/v1/chat/completions?key=" + testToken + " HTTP/1.1\r\nhOST: localhost\r\nexpect: 100-continue\r\ncontent-length: 17\r\nConnection: X-A, close\r\nX-A: b\r\n\r\n{\"stream\":true }}"))
	f.Add([]byte("HEAD /anthropic/v1/models HTTP/1.0\r\nHost: localhost\r\nx-api-key:" + testToken + "\r\n\r\n"))
	up := newUpstream(f, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(f, up.url(), 1, func(o *rigOptions) { o.quiet = true })
	r.server.log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelError}))
	host := strings.TrimPrefix(up.url(), "http://")
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := &playedConn{in: bytes.NewReader(sent)}
		_ = r.server.fast.ServeConn(c)
		up.mu.Lock()
		heads := up.heads
		up.heads = nil
		up.mu.Unlock()
		for _, head := range heads {
			req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
			if err != nil {
				t.Fatalf("%v: %q came of %q", err, head, sent)
			}
			apiKey, bearer := req.Header.Values("X-Api-Key"), req.Header.Values("Authorization")
			anthropic := slices.Equal(apiKey, []string{key("anthropic", 1)}) && len(bearer) == 0
			openai := slices.Equal(bearer, []string{"Bearer " + key("openai", 1)}) && len(apiKey) == 0
			if anthropic == openai || req.Host != host || len(req.TransferEncoding) > 0 ||
				len(req.Header.Values("Cookie"))+len(req.Header.Values("Api-Key"))+len(req.Header.Values("X-Goog-Api-Key"))+len(req.Header.Values("Proxy-Authorization")) > 0 {
				t.Fatalf("%q came of %q", head, sent)
			}
		}
		// Every answer is whole and readable, up to the end.
		br := bufio.NewReader(&c.out)
		for {
			if _, err := br.Peek(1); err != nil {
				break
			}
			if bytes.Contains(sent, []byte("HEAD ")) {
				break // whose answer has a body can't be told from outside
			}
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("%v: an answer to %q", err, sent)
			}
			if _, err := io.ReadAll(resp.Body); err != nil {
				t.Fatalf("%v: an answer to %q", err, sent)
			}
		}
		if log := r.log.text(); log != "" {
			t.Fatalf("%s", log)
		}
	})
}
