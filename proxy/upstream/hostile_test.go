package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// What a provider sends instead of a head is not told on: it may repeat the
// credential.
func TestBrokenHeads(t *testing.T) {
	const canary = "sk-canary-0001"
	tests := []struct {
		name, answer string
		want         error
	}{
		{"no HTTP", "your key is " + canary + "\r\n\r\n", errHead},
		{"broken header", "HTTP/1.1 200 OK\r\nX-Key: " + canary + "\r\n nothing\x00\r\n\r\n", errHead},
		{"two lengths", "HTTP/1.1 200 OK\r\nX-Key: " + canary + "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", errHead},
		{"unknown coding", "HTTP/1.1 200 OK\r\nX-Key: " + canary + "\r\nTransfer-Encoding: gzip\r\n\r\n", errHead},
		{"endless", "HTTP/1.1 200 OK\r\nX-Key: " + strings.Repeat(canary, 2000), errHeadSize},
		{"cut", "HTTP/1.1 200 OK\r\nX-Key: " + canary, errHead},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: " + canary + "\r\n\r\n", errSwitched},
		{"nothing", "", errNoAnswer},
		{"informational and then nothing", "HTTP/1.1 103 Early Hints\r\nLink: " + canary + "\r\n\r\n", io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := rawServer(t, func(c net.Conn) {
				readRequest(c)
				_, _ = io.WriteString(c, tt.answer)
			})
			var c Call
			err := newTransport(t).Do(context.Background(), &c, o, head(0), nil, false)
			var ue *Error
			if !errors.As(err, &ue) || !ue.Sent || !errors.Is(err, tt.want) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v", err)
			}
			if strings.Contains(fmt.Sprint(err), "canary") {
				t.Errorf("the error tells the credential: %v", err)
			}
		})
	}
}

// A head that does not come in time is told from one that is broken, whether
// nothing of it came or a part.
func TestLateHead(t *testing.T) {
	for _, part := range []string{"", "HTTP/1.1 200 OK\r\nX-A: b"} {
		for _, size := range []int{0, bigBody} {
			stop := make(chan struct{})
			o := rawServer(t, func(c net.Conn) {
				readRequest(c)
				_, _ = io.WriteString(c, part)
				<-stop
			})
			var c Call
			tr := newTransport(t, func(o *Options) { o.FirstByte = 30 * time.Millisecond })
			if err := tr.Do(context.Background(), &c, o, head(size), [][]byte{make([]byte, size)}, false); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%q, body of %d: %v", part, size, err)
			}
			close(stop)
		}
	}
}

// Framing that is broken behind good bytes ends the answer; nothing behind it is
// read as if it were in place.
func TestBrokenChunks(t *testing.T) {
	const good = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc"
	for _, bad := range []string{
		"\r\nzz\r\n3\r\ndef\r\n0\r\n\r\n", "xx\r\n\r\n3\r\ndef\r\n0\r\n\r\n", "\r\n-1\r\n3\r\ndef\r\n0\r\n\r\n", "\r\n\r\n3\r\ndef\r\n0\r\n\r\n",
		"\r\n0x3\r\ndef\r\n0\r\n\r\n", "\r\nffffffffffffffff\r\ndef\r\n0\r\n\r\n",
	} {
		o := rawServer(t, func(c net.Conn) {
			readRequest(c)
			_, _ = io.WriteString(c, good+bad)
		})
		var c Call
		if err := newTransport(t).Do(context.Background(), &c, o, head(0), nil, false); err != nil {
			t.Fatal(err)
		}
		var got []byte
		buf := make([]byte, 64)
		var err error
		for err == nil {
			var n int
			n, err = c.Read(buf, 10*time.Second)
			got = append(got, buf[:n]...)
		}
		if string(got) != "abc" || !errors.Is(err, errMalformed) || c.Ended() {
			t.Errorf("%q: read %q, %v", bad, got, err)
		}
		if _, again := c.Read(buf, time.Second); !errors.Is(again, errMalformed) {
			t.Errorf("%q: the next read: %v", bad, again)
		}
		c.Close()
	}
}

// A connection on which something came while it was idle is not used again: its
// end, or an answer that nobody asked for and that would be taken for the next
// request's.
func TestIdleConnectionIsLookedAt(t *testing.T) {
	for name, unasked := range map[string]string{
		"closed":           "",
		"unasked answer":   "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
		"somebody's bytes": "x",
	} {
		t.Run(name, func(t *testing.T) {
			sent := make(chan struct{})
			release := make(chan struct{})
			served := make(chan string, 2)
			ok := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
			o := rawServer(t, func(c net.Conn) {
				served <- readRequest(c)
				_, _ = io.WriteString(c, ok)
				_, _ = io.WriteString(c, unasked)
				if unasked == "" {
					_ = c.Close()
				}
				close(sent)
				if unasked != "" {
					<-release
				}
			}, func(c net.Conn) {
				served <- readRequest(c)
				_, _ = io.WriteString(c, ok)
			})
			tr := newTransport(t)
			var c Call
			get := func() {
				t.Helper()
				if err := tr.Do(context.Background(), &c, o, head(0), nil, false); err != nil {
					t.Fatal(err)
				}
				if got := readAll(t, &c); c.Header.StatusCode() != 200 || got != "ok" {
					t.Errorf("%d %q", c.Header.StatusCode(), got)
				}
				c.Close()
				c.Reset()
			}
			get()
			<-sent
			tr.mu.Lock()
			kept := append([]*conn(nil), tr.idle[o]...)
			tr.mu.Unlock()
			for _, k := range kept {
				k.since = time.Now().Add(-2 * checkAfter)
				for k.quiet() {
					runtime.Gosched() // what was sent is still on its way
				}
			}
			close(release)
			get()
			if len(served) != 2 {
				t.Errorf("%d requests were served", len(served))
			}
		})
	}
}
