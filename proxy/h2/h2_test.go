package h2_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/authpool/authpool/proxy/h2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// behind is what a Server's streams are led to: it keeps what arrives, byte for byte.
type behind struct {
	mu    sync.Mutex
	heads []string
	left  int

	answer func(c net.Conn, req *http.Request, body string)
	early  bool // it answers when the head is there
	done   sync.WaitGroup
}

func (b *behind) open(net.Conn) (net.Conn, func(), error) {
	near, far := net.Pipe()
	b.done.Go(func() {
		defer far.Close()
		var raw bytes.Buffer
		br := bufio.NewReader(io.TeeReader(far, &raw))
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if b.early {
			b.answer(far, req, "")
			return
		}
		body, err := io.ReadAll(req.Body)
		b.mu.Lock()
		head, _, _ := strings.Cut(raw.String(), "\r\n\r\n")
		b.heads = append(b.heads, head)
		b.mu.Unlock()
		if err == nil {
			b.answer(far, req, string(body))
		}
	})
	return near, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.left++
	}, nil
}

func (b *behind) seen() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.heads...)
}

// serve starts a Server with a listener; dial connects to it.
func serve(t *testing.T, b *behind) (server *h2.Server, dial func() net.Conn) {
	t.Helper()
	server = h2.New(h2.Options{Open: b.open, HeaderLimit: 16 << 10, Idle: time.Minute, WriteStall: time.Minute, Log: slog.New(slog.DiscardHandler)})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { server.Serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		server.Shutdown(ctx)
		serving.Wait()
		b.done.Wait()
	})
	return server, func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
}

func echo(c net.Conn, req *http.Request, body string) {
	text := req.Method + " " + req.RequestURI + " " + body
	_, _ = io.WriteString(c, "HTTP/1.1 203 Fine\r\nX-Mine: yes\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
	for _, part := range []string{text[:1], text[1:]} {
		_, _ = io.WriteString(c, hex(len(part))+"\r\n"+part+"\r\n")
	}
	_, _ = io.WriteString(c, "0\r\n\r\n")
}

func hex(n int) string {
	const digits = "0123456789abcdef"
	if n < 16 {
		return digits[n : n+1]
	}
	return hex(n/16) + digits[n%16:n%16+1]
}

// speak is a connection on which a test says what it likes.
type speak struct {
	t      *testing.T
	framer *http2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer
}

func speaking(t *testing.T, c net.Conn) *speak {
	t.Helper()
	_, _ = io.WriteString(c, h2.Preface)
	s := &speak{t: t, framer: http2.NewFramer(c, c)}
	s.enc = hpack.NewEncoder(&s.block)
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = s.framer.WriteSettings() // where it cannot, ask tells
	return s
}

// ask sends a request as it is given, pairs of fields and a body, and returns the status and the body of the answer,
// or how the stream or the connection was ended.
func (s *speak) ask(stream uint32, fields []string, body string) (status, text string) {
	s.t.Helper()
	s.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := s.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			s.t.Fatal(err)
		}
	}
	err := s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: s.block.Bytes(), EndHeaders: true, EndStream: body == ""})
	if err == nil && body != "" {
		err = s.framer.WriteData(stream, true, []byte(body))
	}
	if err != nil {
		return "gone", ""
	}
	for {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			return "gone", ""
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = s.framer.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			status = f.PseudoValue("status")
		case *http2.DataFrame:
			text += string(f.Data())
		case *http2.RSTStreamFrame:
			return "reset", ""
		case *http2.GoAwayFrame:
			return "gone", ""
		}
		if ends, ok := frame.(interface{ StreamEnded() bool }); ok && ends.StreamEnded() {
			return status, text
		}
	}
}

func request(path string, more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":authority", "a.test", ":path", path}, more...)
}

func TestRequest(t *testing.T) {
	b := &behind{answer: echo}
	_, dial := serve(t, b)
	s := speaking(t, dial())
	for i, tt := range []struct {
		fields []string
		body   string
		want   string
		head   string // a line of what HTTP/1.1 gets
	}{
		{request("/v1/x%2Fy?q=%41&r"), "", "POST /v1/x%2Fy?q=%41&r ", "Content-Length: 0"},
		{request("/m", "content-length", "5"), "12345", "POST /m 12345", "Content-Length: 5"},
		{request("/m"), "12345", "POST /m 12345", "Transfer-Encoding: chunked"},
		{request("/m", "x-api-key", "k", "te", "trailers"), "1", "POST /m 1", "X-Api-Key: k"},
	} {
		status, text := s.ask(uint32(2*i+1), tt.fields, tt.body)
		heads := b.seen()
		if status != "203" || text != tt.want || len(heads) != i+1 || !strings.Contains(heads[i]+"\r\n", "\r\n"+tt.head+"\r\n") {
			t.Errorf("%v: %s %q, HTTP/1.1 got %q", tt.fields, status, text, heads)
		}
		if strings.Contains(heads[i], "\r\nTe:") || !strings.Contains(heads[i], "\r\nHost: a.test\r\n") {
			t.Errorf("HTTP/1.1 got %q", heads[i])
		}
	}
}

// What HTTP/1.1 would read as something else never gets there.
func TestRequestsThatAreOthersInHTTP1(t *testing.T) {
	bad := map[string]struct {
		fields []string
		body   string
	}{
		"line end in a value":      {request("/", "x-a", "b\r\nx-api-key: stolen"), ""},
		"line feed in a value":     {request("/", "x-a", "b\nx-b: c"), ""},
		"NUL in a value":           {request("/", "x-a", "b\x00c"), ""},
		"line end in a name":       {request("/", "x-a\r\nx-b", "c"), ""},
		"colon in a name":          {request("/", "x-a: b", "c"), ""},
		"upper case":               {request("/", "X-A", "c"), ""},
		"line end in the path":     {request("/ HTTP/1.1\r\nHost: b\r\n\r\nGET /"), ""},
		"space in the path":        {request("/a HTTP/1.1"), ""},
		"another host in the path": {request("http://b.test/"), ""},
		"no path":                  {request(""), ""},
		"line end in the host":     {[]string{":method", "GET", ":scheme", "http", ":authority", "a\r\nx: y", ":path", "/"}, ""},
		"no host":                  {[]string{":method", "GET", ":scheme", "http", ":path", "/"}, ""},
		"line end in the method":   {[]string{":method", "GET / HTTP/1.1\r\nA: b\r\n\r\nGET", ":scheme", "http", ":authority", "a.test", ":path", "/"}, ""},
		"CONNECT":                  {[]string{":method", "CONNECT", ":authority", "b.test:443"}, ""},
		"transfer-encoding":        {request("/", "transfer-encoding", "chunked"), "0\r\n\r\nGET / HTTP/1.1\r\n\r\n"},
		"connection":               {request("/", "connection", "x-api-key"), ""},
		"upgrade":                  {request("/", "upgrade", "websocket"), ""},
		"longer than it says":      {request("/", "content-length", "1"), "12345"},
		"shorter than it says":     {request("/", "content-length", "9"), "12345"},
		"two lengths":              {request("/", "content-length", "5", "content-length", "1"), "12345"},
		"a length that is none":    {request("/", "content-length", "+5"), "12345"},
		"a length without digits":  {request("/", "content-length", ""), ""},
		"a length of hex":          {request("/", "content-length", "0x5"), ""},
		"a second path":            {request("/", ":path", "/b"), ""},
	}
	for name, tt := range bad {
		t.Run(name, func(t *testing.T) {
			b := &behind{answer: echo}
			_, dial := serve(t, b)
			status, _ := speaking(t, dial()).ask(1, tt.fields, tt.body)
			if status == "203" {
				t.Errorf("it was answered; HTTP/1.1 got %q", b.seen())
			}
			for _, head := range b.seen() {
				if strings.Contains(head, "stolen") || strings.Contains(head, "Upgrade") || strings.Contains(head, "x-b: c") {
					t.Errorf("HTTP/1.1 got %q", head)
				}
			}
			if other, text := speaking(t, dial()).ask(1, request("/good"), ""); other != "203" || text != "POST /good " {
				t.Errorf("the next one is answered %s %q", other, text)
			}
		})
	}
}

// An answer that is cut is not whole for the agent either.
func TestCutAnswer(t *testing.T) {
	b := &behind{answer: func(c net.Conn, _ *http.Request, _ string) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
	}}
	_, dial := serve(t, b)
	if status, text := speaking(t, dial()).ask(1, request("/"), ""); status != "reset" {
		t.Errorf("%s %q", status, text)
	}
}

// At a stop requests under way may end, and then the connection does.
func TestShutdown(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	b := &behind{answer: func(c net.Conn, req *http.Request, body string) {
		close(asked)
		<-answer
		echo(c, req, body)
	}}
	server, dial := serve(t, b)
	s := speaking(t, dial())
	s.block.Reset()
	var got sync.WaitGroup
	var status string
	got.Go(func() { status, _ = s.askThroughGoAway(1, request("/")) })
	<-asked
	var stopping sync.WaitGroup
	stopping.Go(func() { server.Shutdown(t.Context()) })
	close(answer)
	got.Wait()
	stopping.Wait()
	if status != "203" {
		t.Errorf("the request under way is answered %s", status)
	}
	if after, _ := speaking(t, dial()).ask(1, request("/"), ""); after != "gone" {
		t.Errorf("afterwards: %s", after)
	}
}

// askThroughGoAway is ask by an agent that is told to go meanwhile.
func (s *speak) askThroughGoAway(stream uint32, fields []string) (status, text string) {
	for i := 0; i < len(fields); i += 2 {
		_ = s.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: s.block.Bytes(), EndHeaders: true, EndStream: true})
	for {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			return "gone", ""
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			status = f.PseudoValue("status")
		case *http2.DataFrame:
			text += string(f.Data())
			if f.StreamEnded() {
				return status, text
			}
		}
	}
}

// A connection that breaks the protocol, and is told so, leaves nothing behind when the
// Server is gone, however little time that has.
func TestBrokenProtocol(t *testing.T) {
	b := &behind{answer: echo}
	server, dial := serve(t, b)
	s := speaking(t, dial())
	if err := s.framer.WriteRawFrame(http2.FrameData, 0, 0, []byte("of no stream")); err != nil {
		t.Fatal(err)
	}
	for told := false; !told; {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		_, told = frame.(*http2.GoAwayFrame)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	server.Shutdown(ctx)
	stacks := make([]byte, 1<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("http2serverConn")) {
		t.Errorf("still there:\n%s", stacks)
	}
}

// An answer that comes before the request's body is whole ends the stream, though the
// agent sends nothing more.
func TestEarlyAnswer(t *testing.T) {
	b := &behind{answer: echo, early: true}
	server, dial := serve(t, b)
	s := speaking(t, dial())
	s.block.Reset()
	for i, fields := 0, request("/m", "content-length", "9"); i < len(fields); i += 2 {
		_ = s.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.block.Bytes(), EndHeaders: true})
	for ended := false; !ended; {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := frame.(type) {
		case *http2.RSTStreamFrame:
			ended = true
		case *http2.DataFrame:
			ended = f.StreamEnded()
		}
	}
	server.Shutdown(t.Context()) // waits for the request's goroutines
}
