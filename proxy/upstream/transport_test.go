package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTransport(t *testing.T, change ...func(*Options)) *Transport {
	t.Helper()
	o := Options{
		Connect: 5 * time.Second, FirstByte: 30 * time.Second, Idle: 30 * time.Second,
		KeepAlive: time.Minute, MaxIdle: 8, HeadLimit: 16 << 10,
	}
	for _, f := range change {
		f(&o)
	}
	tr := New(o)
	t.Cleanup(tr.Close)
	return tr
}

// rawServer serves each accepted connection by one call of serve, in order.
func rawServer(t *testing.T, serve ...func(net.Conn)) Origin {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, f := range serve {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return Origin{Host: "127.0.0.1", Addr: ln.Addr().String()}
}

// readRequest reads one request and returns its body.
func readRequest(c net.Conn) string {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return "error: " + err.Error()
	}
	b, _ := io.ReadAll(r.Body)
	return string(b)
}

func head(n int) []byte {
	return fmt.Appendf(nil, "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", n)
}

func readAll(t *testing.T, c *Call) string {
	t.Helper()
	var all []byte
	buf := make([]byte, 7)
	for {
		n, err := c.Read(buf, 10*time.Second)
		all = append(all, buf[:n]...)
		if errors.Is(err, io.EOF) {
			return string(all)
		}
		if err != nil {
			t.Fatalf("read: %v (after %q)", err, all)
		}
	}
}

func TestBodies(t *testing.T) {
	tests := []struct {
		name, answer, want string
		reuse              bool
		fails              bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world", "hello world", true, false},
		{"empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", true, false},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", "", true, false},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", "hello world", true, false},
		{"trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n", "abc", true, false},
		{"until close", "HTTP/1.1 200 OK\r\n\r\nhello", "hello", false, false},
		{"informational first", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", true, false},
		{"connection close", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "ok", false, false},
		{"cut length", "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhello", "hello", false, true},
		{"cut chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", "hello", false, true},
		{"cut before the last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "hello", false, true},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", "hello", false, true},
		{"bad chunk end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\r\n0\r\n\r\n", "hello", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// Byte by byte, so that every border between reads occurs.
			o := rawServer(t, func(c net.Conn) {
				readRequest(c)
				for i := range tt.answer {
					_, _ = c.Write([]byte{tt.answer[i]})
				}
			})
			tr := newTransport(t)
			var call Call
			if err := tr.Do(context.Background(), &call, o, head(2), [][]byte{[]byte("hi")}, false); err != nil {
				t.Fatal(err)
			}
			defer call.Close()
			var got []byte
			var err error
			buf := make([]byte, 64)
			for err == nil {
				var n int
				n, err = call.Read(buf, 10*time.Second)
				got = append(got, buf[:n]...)
			}
			if string(got) != tt.want || errors.Is(err, io.EOF) == tt.fails {
				t.Errorf("got %q, %v; want %q, failure %v", got, err, tt.want, tt.fails)
			}
			call.Close()
			tr.mu.Lock()
			kept := len(tr.idle[o]) == 1
			tr.mu.Unlock()
			if kept != tt.reuse {
				t.Errorf("connection kept: %v, want %v", kept, tt.reuse)
			}
		})
	}
}

// A burst of small chunks is one read, not one for each chunk.
func TestChunksAreJoined(t *testing.T) {
	var b body
	b.reset(bufio.NewReader(strings.NewReader("1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")), chunked)
	buf := make([]byte, 16)
	n, err := b.read(buf)
	if string(buf[:n]) != "abc" {
		t.Errorf("first read = %q, %v; want all three chunks", buf[:n], err)
	}
}

// A chunk is handed over as soon as it is there, also when nothing follows it.
func TestChunkIsNotDelayed(t *testing.T) {
	next := make(chan struct{})
	o := rawServer(t, func(c net.Conn) {
		readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range 3 {
			_, _ = io.WriteString(c, "2\r\nhi\r\n")
			<-next
		}
	})
	var call Call
	if err := newTransport(t).Do(context.Background(), &call, o, head(0), nil, false); err != nil {
		t.Fatal(err)
	}
	defer call.Close()
	buf := make([]byte, 8)
	for i := range 3 {
		if n, err := call.Read(buf, 10*time.Second); string(buf[:n]) != "hi" || err != nil {
			t.Errorf("chunk %d: %q, %v", i, buf[:n], err)
		}
		next <- struct{}{}
	}
}

func FuzzChunks(f *testing.F) {
	f.Add("5\r\nhello\r\n0\r\n\r\n", 3)
	f.Add("ffffffffffffffff\r\n", 1)
	f.Add("0\r\nA: b\r\n\r\n", 1)
	f.Fuzz(func(t *testing.T, wire string, size int) {
		if size < 1 || size > 1<<12 {
			return
		}
		read := func(n int) (string, error) {
			var b body
			b.reset(bufio.NewReaderSize(iotest{strings.NewReader(wire), n}, 64), chunked)
			var all []byte
			buf := make([]byte, size)
			for range 1 << 16 {
				m, err := b.read(buf)
				all = append(all, buf[:m]...)
				if err != nil {
					return string(all), err
				}
			}
			t.Fatal("the body does not end")
			return "", nil
		}
		a, aerr := read(1)
		b, berr := read(1 << 12)
		if a != b || errors.Is(aerr, io.EOF) != errors.Is(berr, io.EOF) {
			t.Fatalf("cut into bytes: %q %v; whole: %q %v", a, aerr, b, berr)
		}
	})
}

// iotest reads at most n bytes at a time.
type iotest struct {
	r io.Reader
	n int
}

func (r iotest) Read(p []byte) (int, error) { return r.r.Read(p[:min(len(p), r.n)]) }

// A time-out in the middle of a chunk's frame does not lose the place.
func TestReadGoesOnAfterTimeout(t *testing.T) {
	goOn := make(chan struct{})
	o := rawServer(t, func(c net.Conn) {
		readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1")
		<-goOn
		_, _ = io.WriteString(c, "0\r\n, and then rest.\r\n0\r\n\r\n")
	})
	tr := newTransport(t)
	var call Call
	if err := tr.Do(context.Background(), &call, o, head(0), nil, false); err != nil {
		t.Fatal(err)
	}
	defer call.Close()
	buf := make([]byte, 64)
	n, err := call.Read(buf, 10*time.Second)
	if string(buf[:n]) != "hello" || err != nil {
		t.Fatalf("first read: %q, %v", buf[:n], err)
	}
	if n, err = call.Read(buf, time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("silent read: %d, %v; want a time-out", n, err)
	}
	close(goOn)
	if got := readAll(t, &call); got != ", and then rest." {
		t.Errorf("after the time-out: %q", got)
	}
}

// An answer that comes while a large body is still being sent is read, and the
// upload stopped: this was "connection reset" with a client that writes first.
func TestAnswerDuringUpload(t *testing.T) {
	o := rawServer(t, func(c net.Conn) {
		_, _ = bufio.NewReader(c).ReadString('\n')
		_, _ = io.WriteString(c, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nslow")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.CopyN(io.Discard, c, 1<<20)
	})
	tr := newTransport(t)
	big := make([]byte, 64<<20)
	var call Call
	if err := tr.Do(context.Background(), &call, o, head(len(big)), [][]byte{big}, false); err != nil {
		t.Fatal(err)
	}
	defer call.Close()
	if call.Header.StatusCode() != 429 || string(call.Header.Peek("Retry-After")) != "7" {
		t.Errorf("status %d", call.Header.StatusCode())
	}
	if got := readAll(t, &call); got != "slow" {
		t.Errorf("body %q", got)
	}
}

// A small request to a provider that answers and closes without reading it.
func TestAnswerToUnreadRequest(t *testing.T) {
	o := rawServer(t, func(c net.Conn) {
		b := make([]byte, 1)
		_, _ = io.ReadFull(c, b)
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	})
	var call Call
	if err := newTransport(t).Do(context.Background(), &call, o, head(60000), [][]byte{make([]byte, 60000)}, false); err != nil {
		t.Fatal(err)
	}
	defer call.Close()
	if got := readAll(t, &call); got != "big" || call.Header.StatusCode() != 413 {
		t.Errorf("%d %q", call.Header.StatusCode(), got)
	}
}

func TestStaleConnectionIsReplaced(t *testing.T) {
	answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
	o := rawServer(t,
		func(c net.Conn) { readRequest(c); _, _ = io.WriteString(c, answer+"1.") }, // then closed, as an idle one
		func(c net.Conn) { _, _ = io.WriteString(c, answer+readRequest(c)) },
	)
	tr := newTransport(t)
	for i, want := range []string{"1.", "2."} {
		var call Call
		if err := tr.Do(context.Background(), &call, o, head(2), [][]byte{[]byte("2.")}, false); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		if got := readAll(t, &call); got != want {
			t.Errorf("call %d: %q, want %q", i, got, want)
		}
		call.Close()
	}
}

// A new connection that breaks is the caller's to judge: nothing is sent twice
// behind its back.
func TestNewConnectionIsNotRepeated(t *testing.T) {
	o := rawServer(t, func(c net.Conn) { readRequest(c) })
	var call Call
	err := newTransport(t).Do(context.Background(), &call, o, head(2), [][]byte{[]byte("hi")}, false)
	var e *Error
	if !errors.As(err, &e) || !e.Sent {
		t.Fatalf("err = %v; want an *Error with Sent", err)
	}
}

func TestCancel(t *testing.T) {
	silent := func(before string) func(net.Conn) {
		return func(c net.Conn) {
			readRequest(c)
			_, _ = io.WriteString(c, before)
			_, _ = io.Copy(io.Discard, c) // until the other side closes
		}
	}
	t.Run("waiting for the head", func(t *testing.T) {
		o := rawServer(t, silent(""))
		var call Call
		time.AfterFunc(10*time.Millisecond, call.Cancel)
		if err := newTransport(t).Do(context.Background(), &call, o, head(0), nil, false); !errors.Is(err, ErrCancelled) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("while sending", func(t *testing.T) {
		o := rawServer(t, func(c net.Conn) {
			_, _ = bufio.NewReader(c).ReadString('\n')
			b := make([]byte, 1)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
			}
		})
		var call Call
		time.AfterFunc(10*time.Millisecond, call.Cancel)
		big := make([]byte, 256<<20)
		if err := newTransport(t).Do(context.Background(), &call, o, head(len(big)), [][]byte{big}, false); !errors.Is(err, ErrCancelled) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("silent body", func(t *testing.T) {
		o := rawServer(t, silent("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"))
		var call Call
		if err := newTransport(t).Do(context.Background(), &call, o, head(0), nil, false); err != nil {
			t.Fatal(err)
		}
		defer call.Close()
		buf := make([]byte, 8)
		_, _ = call.Read(buf, time.Minute)
		time.AfterFunc(10*time.Millisecond, call.Cancel)
		if _, err := call.Read(buf, time.Minute); !errors.Is(err, ErrCancelled) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("before", func(t *testing.T) {
		o := rawServer(t)
		var call Call
		call.Cancel()
		if err := newTransport(t).Do(context.Background(), &call, o, head(0), nil, false); !errors.Is(err, ErrCancelled) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestTLSIsVerified(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	s.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	o := Origin{TLS: true, Host: "example.com", Addr: s.Listener.Addr().String()}
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())

	var call Call
	err := newTransport(t).Do(context.Background(), &call, o, head(0), nil, false)
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); !unknown {
		t.Errorf("unknown authority: err = %v", err)
	}
	tr := newTransport(t, func(opts *Options) { opts.RootCAs = roots })
	wrong := o
	wrong.Host = "other.test"
	var name x509.HostnameError
	if err := tr.Do(context.Background(), &call, wrong, head(0), nil, false); !errors.As(err, &name) {
		t.Errorf("wrong host: err = %v", err)
	}
	if err := tr.Do(context.Background(), &call, o, head(0), nil, false); err != nil {
		t.Fatalf("known authority: %v", err)
	}
	if got := readAll(t, &call); got != "ok" {
		t.Errorf("body %q", got)
	}
	if cs := call.c.nc.(*tls.Conn).ConnectionState(); cs.NegotiatedProtocol != "http/1.1" {
		t.Errorf("negotiated %q: HTTP/2 is not spoken here", cs.NegotiatedProtocol)
	}
	call.Close()
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	closed := make(chan struct{})
	o := rawServer(t, func(c net.Conn) {
		readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
		close(closed)
	})
	tr := newTransport(t, func(o *Options) { o.KeepAlive = 20 * time.Millisecond })
	var call Call
	if err := tr.Do(context.Background(), &call, o, head(0), nil, false); err != nil {
		t.Fatal(err)
	}
	call.Close()
	<-closed
}
