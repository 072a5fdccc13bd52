package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// overPipe has a Call answered by serve over a connection in memory, whose time
// is the bubble's.
func overPipe(t *testing.T, opts func(*Options), serve func(c net.Conn), use func(t *testing.T, do func(body []byte) error, c *Call)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport(t, opts, func(o *Options) { o.KeepAlive = 24 * time.Hour })
		o := Origin{Host: "h", Addr: "h:1"}
		own, provider := net.Pipe()
		tr.put(&conn{nc: own, origin: o})
		served := make(chan struct{})
		go func() { defer close(served); serve(provider); _ = provider.Close() }()
		var call Call
		use(t, func(body []byte) error {
			return tr.Do(t.Context(), &call, o, head(len(body)), [][]byte{body}, false)
		}, &call)
		call.Close()
		<-served
	})
}

// Trap: a time-out for the whole answer ends long streams, and without one a
// silent provider is waited for without end. Every piece renews it.
func TestTrapIdleTimeIsRenewed(t *testing.T) {
	const events = 15 // an hour
	overPipe(t, func(o *Options) { o.FirstByte, o.Idle = 10*time.Minute, 5*time.Minute }, func(c net.Conn) {
		readRequest(c)
		time.Sleep(9 * time.Minute) // it thinks
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range events {
			time.Sleep(4 * time.Minute)
			_, _ = io.WriteString(c, "2\r\nhi\r\n")
		}
		_, _ = io.Copy(io.Discard, c) // and then nothing
	}, func(t *testing.T, do func([]byte) error, call *Call) {
		if err := do([]byte("hi")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		for i := range events {
			if n, err := call.Read(buf, 5*time.Minute); string(buf[:n]) != "hi" || err != nil {
				t.Fatalf("event %d: %q, %v", i, buf[:n], err)
			}
		}
		start := time.Now()
		_, err := call.Read(buf, 5*time.Minute)
		if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took < 5*time.Minute-time.Second || took > 5*time.Minute {
			t.Errorf("silence ended after %v: %v", took, err)
		}
	})
}

// The same for a large upload to a provider that takes it slowly.
func TestTrapUploadTimeIsRenewed(t *testing.T) {
	overPipe(t, func(o *Options) { o.FirstByte, o.Idle = time.Minute, 5*time.Minute }, func(c net.Conn) {
		br := bufio.NewReaderSize(c, 16)
		for n := 0; n < 4<<20; n += 64 << 10 { // half an hour in all
			time.Sleep(30 * time.Second)
			if _, err := io.CopyN(io.Discard, br, 64<<10); err != nil {
				return
			}
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		_, _ = io.Copy(io.Discard, c)
	}, func(t *testing.T, do func([]byte) error, call *Call) {
		if err := do(make([]byte, 4<<20)); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, call); got != "ok" {
			t.Errorf("%q", got)
		}
	})
}

// Trap: HostClient's Do takes no context: dialling and the handshake must end
// with the agent too.
func TestTrapDialCanBeCancelled(t *testing.T) {
	for _, how := range []string{"Cancel", "context"} {
		t.Run(how, func(t *testing.T) {
			begun := make(chan struct{})
			o := rawServer(t, func(c net.Conn) {
				_, _ = c.Read(make([]byte, 1)) // the client's hello
				close(begun)
				_, _ = io.Copy(io.Discard, c)
			})
			o.TLS = true
			tr := newTransport(t, func(opts *Options) { opts.Connect = time.Minute })
			var call Call
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() {
				<-begun
				if how == "Cancel" {
					call.Cancel()
				} else {
					cancel()
				}
			}()
			start := time.Now()
			err := tr.Do(ctx, &call, o, head(0), nil, false)
			if err == nil || time.Since(start) > 10*time.Second {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
			if how == "Cancel" && !errors.Is(err, ErrCancelled) {
				t.Errorf("err = %v", err)
			}
		})
	}
}

// Trap: an answer that comes early during an upload came back as "connection
// reset" three times out of three. Here the provider closes at once and reads
// nothing of the body.
func TestTrapAnswerBeforeTheEndOfTheUpload(t *testing.T) {
	for _, size := range []int{1, bigBody - 1, bigBody, 1 << 20, 16 << 20} {
		for round := range 3 {
			o := rawServer(t, func(c net.Conn) {
				_, _ = bufio.NewReaderSize(c, 16).ReadString('\n')
				_, _ = io.WriteString(c, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nslow")
			})
			var call Call
			err := newTransport(t).Do(context.Background(), &call, o, head(size), [][]byte{make([]byte, size)}, false)
			if err != nil {
				t.Errorf("%d bytes, round %d: %v", size, round, err)
				continue
			}
			if got := readAll(t, &call); call.Header.StatusCode() != 429 || got != "slow" {
				t.Errorf("%d bytes, round %d: %d %q", size, round, call.Header.StatusCode(), got)
			}
			call.Close()
		}
	}
}

// Trap: HostClient sends a request again by itself. Once a byte of an answer has
// come the provider has worked on it, on a kept connection as well.
func TestTrapNothingIsSentTwiceOnceAnswered(t *testing.T) {
	for _, partial := range []string{"H", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 100 Continue\r\n\r\n"} {
		var second atomic.Bool
		o := rawServer(t,
			func(c net.Conn) {
				readRequest(c)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				readRequest(c)
				_, _ = io.WriteString(c, partial)
			},
			func(c net.Conn) { second.Store(readRequest(c) == "hi") },
		)
		tr := newTransport(t)
		var call Call
		if err := tr.Do(context.Background(), &call, o, head(2), [][]byte{[]byte("hi")}, false); err != nil {
			t.Fatal(err)
		}
		call.Close()
		err := tr.Do(context.Background(), &call, o, head(2), [][]byte{[]byte("hi")}, false)
		if err == nil || second.Load() {
			t.Errorf("after %q: %v, sent again: %v", partial, err, second.Load())
		}
	}
}

// The same on a new connection, without a byte of an answer: it was not idle, so
// that the request may be under way, and its repetition is the caller's to judge.
func TestTrapNothingIsSentTwiceOnANewConnection(t *testing.T) {
	var second atomic.Bool
	o := rawServer(t,
		func(c net.Conn) { readRequest(c) },
		func(c net.Conn) { second.Store(readRequest(c) == "hi") },
	)
	var call Call
	err := newTransport(t).Do(context.Background(), &call, o, head(2), [][]byte{[]byte("hi")}, false)
	if err == nil || second.Load() {
		t.Errorf("%v, sent again: %v", err, second.Load())
	}
}

// Trap: an abandoned stream holds its connection. Closed before its end it is
// closed for the provider too, and never used for another answer.
func TestTrapAbandonedAnswerFreesItsConnection(t *testing.T) {
	gone := make(chan struct{})
	o := rawServer(t,
		func(c net.Conn) {
			readRequest(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
			_, _ = io.Copy(io.Discard, c)
			close(gone)
		},
		func(c net.Conn) {
			readRequest(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond")
		},
	)
	tr := newTransport(t)
	var call Call
	if err := tr.Do(context.Background(), &call, o, head(0), nil, false); err != nil {
		t.Fatal(err)
	}
	if _, err := call.Read(make([]byte, 8), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	call.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the provider goes on for nobody")
	}
	if err := tr.Do(context.Background(), &call, o, head(0), nil, false); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, &call); got != "second" {
		t.Errorf("%q", got)
	}
	call.Close()
}

// Trap: the read buffer is the limit of the answer's head.
func TestTrapLargeAnswerHead(t *testing.T) {
	for _, size := range []int{15 << 10, 17 << 10} {
		o := rawServer(t, func(c net.Conn) {
			readRequest(c)
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Big: %s\r\nContent-Length: 0\r\n\r\n", strings.Repeat("b", size))
		})
		var call Call
		err := newTransport(t).Do(context.Background(), &call, o, head(0), nil, false)
		if fits := size < 16<<10; (err == nil) != fits {
			t.Errorf("a head of %d bytes: %v", size, err)
		}
		call.Close()
	}
}
