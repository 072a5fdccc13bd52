package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkMessage is one request of an agent with a kept connection, to a
// provider that answers at once: what it costs both ends of both connections,
// the provider and the agent included. bench/ compares the program as a whole.
func BenchmarkMessage(b *testing.B) {
	for _, size := range []int{2 << 10, 200 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			up := newEcho(b, jsonReply)
			r := newRig(b, "http://"+up.Addr().String(), 1, func(o *rigOptions) { o.quiet = true })
			body := `{"model":"claude-sonnet-4-5","max_tokens":10,"messages":[{"role":"user","content":"` + strings.Repeat("x", size-100) + `"}]}`
			request := fmt.Appendf(nil, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: %s\r\nanthropic-version: 2023-06-01\r\nContent-Type: application/json\r\nX-Authpool-Session: bench\r\nContent-Length: %d\r\n\r\n%s", testToken, len(body), body)
			c := r.dial()
			br := bufio.NewReader(c)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(request); err != nil {
					b.Fatal(err)
				}
				if err := skipAnswer(br); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// jsonReply is a whole answer with its head.
var jsonReply = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)

// newEcho is a provider that gives every request the same reply and allocates
// nothing for it.
func newEcho(b testing.TB, reply []byte) net.Listener {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				br := bufio.NewReaderSize(c, 64<<10)
				for {
					if skipAnswer(br) != nil {
						return
					}
					if _, err := c.Write(reply); err != nil {
						return
					}
				}
			}()
		}
	}()
	b.Cleanup(func() { _ = ln.Close(); <-done })
	return ln
}

// skipAnswer reads a message with a Content-Length.
func skipAnswer(br *bufio.Reader) error {
	length := 0
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			_, err := br.Discard(length)
			return err
		}
		if name, value, ok := bytes.Cut(line, []byte(": ")); ok && bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
}
