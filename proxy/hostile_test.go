package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Heads that two servers could read differently, or that are none at all. Each
// is sent twice: alone, and with a good request behind it that must not be
// answered, as whoever sent the first may have meant it to be a part of it.
func TestMalformedHeads(t *testing.T) {
	const (
		line = "POST /v1/messages HTTP/1.1\r\n"
		host = "Host: localhost\r\n"
		auth = "x-api-key: " + testToken + "\r\n"
		good = line + host + auth
		two  = "Content-Length: 2\r\n"
	)
	heads := []string{
		// The request line.
		"POST /v1/messages HTTP/1.1\n" + host + auth + two + "\r\n{}",
		"POST  /v1/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages  HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST\t/v1/messages\tHTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		" POST /v1/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages HTTP/1.1 \r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages HTTP/1.1\r\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/mess ages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages\x00 HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages\x7f HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages#part HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST v1/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST * HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages HTTP/2.0\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages HTTP/0.9\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages HTTP/1.2\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages HTTP/1.10\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages http/1.1\r\n" + host + auth + two + "\r\n{}",
		"P(ST /v1/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"POST ftp://localhost/v1/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST http://other.test/v1/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST http://localhost@other.test/v1/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		// The path.
		"POST /v1/messages/../complete HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/./messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/%2e%2e/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/.%2E/messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1\\messages HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"POST /v1/messages%00 HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		// Framing.
		good + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
		good + "Content-Length: 2\r\ncontent-length: 40\r\n\r\n{}",
		good + "Content-Length: 2, 2\r\n\r\n{}",
		good + "Content-Length: +2\r\n\r\n{}",
		good + "Content-Length: -2\r\n\r\n{}",
		good + "Content-Length: 0x2\r\n\r\n{}",
		good + "Content-Length: 2 2\r\n\r\n{}",
		good + "Content-Length: 99999999999999999999\r\n\r\n{}",
		good + "Content-Length:\r\n\r\n",
		good + two + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: chunked\r\n" + two + "\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: identity\r\n\r\n",
		good + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: chunked, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: \"chunked\"\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding:\x0bchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding : chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding:\r\n chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"POST /v1/messages HTTP/1.0\r\n" + host + auth + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: chunked\r\n\r\n2;\n{}\r\n0\r\n\r\nX",
		good + "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
		good + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx\r\n0\r\n\r\n",
		good + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
		"GET /v1/models HTTP/1.1\r\n" + host + auth + two + "\r\n{}",
		"HEAD /v1/models HTTP/1.1\r\n" + host + auth + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		// Header lines.
		good + "X-A: b\n" + two + "\r\n{}",
		good + "X-A: b\r" + two + "\r\n{}",
		good + "X-A: b\r\n c\r\n" + two + "\r\n{}",
		good + "X-A: b\r\n\tc\r\n" + two + "\r\n{}",
		line + " " + host + auth + two + "\r\n{}",
		good + "X-A : b\r\n" + two + "\r\n{}",
		good + "X A: b\r\n" + two + "\r\n{}",
		good + "X(A): b\r\n" + two + "\r\n{}",
		good + "X\x00A: b\r\n" + two + "\r\n{}",
		good + "X-A: b\x00c\r\n" + two + "\r\n{}",
		good + "X-A: b\x1bc\r\n" + two + "\r\n{}",
		good + ": b\r\n" + two + "\r\n{}",
		good + "no colon\r\n" + two + "\r\n{}",
		good + two + "\n{}",
		// The host.
		line + auth + two + "\r\n{}",
		line + host + host + auth + two + "\r\n{}",
		line + host + "hOST: other.test\r\n" + auth + two + "\r\n{}",
		line + "Host: evil.test\r\n" + auth + two + "\r\n{}",
		line + "Host:\r\n" + auth + two + "\r\n{}",
		line + "Host: localhost, evil.test\r\n" + auth + two + "\r\n{}",
		line + "Host: localhost:8787@evil.test\r\n" + auth + two + "\r\n{}",
	}
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	for _, head := range heads {
		for _, behind := range []string{"", messageRequest(message)} {
			c := r.dial()
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			_, _ = io.WriteString(c, head+behind)
			if behind == "" {
				// What is not whole would be waited for.
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			}
			raw, err := io.ReadAll(c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%q: the connection stays open", head)
			}
			br := bufio.NewReader(bytes.NewReader(raw))
			answers := 0
			for {
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					break
				}
				answers++
				_, _ = io.ReadAll(resp.Body)
				if resp.StatusCode < 400 || resp.StatusCode == 499 {
					t.Errorf("%q: answer %d is %d", head, answers, resp.StatusCode)
				}
			}
			if answers > 1 {
				t.Errorf("%q: %d answers", head, answers)
			}
		}
	}
	if got := up.requests(); len(got) > 0 {
		t.Errorf("%d of these reached the provider: %q", len(got), got)
	}
	t.Logf("%d heads", len(heads))
	if strings.Contains(r.log.text(), testToken) {
		t.Error("the log holds the agent token")
	}
}

// HTTP/1.0 knows no chunks: a body without a length ends with the connection.
func TestHTTP10(t *testing.T) {
	received := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.body, "stream") {
			c.sse()
			c.chunk(msgStart + msgBlock + msgHello)
			c.wait(received)
			c.chunk(msgDelta + msgStop)
			c.last()
			return
		}
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 1)
	for _, keep := range []string{"", "Connection: keep-alive\r\n"} {
		old := func(body string) string {
			return strings.Replace(messageRequest(body), " HTTP/1.1\r\n", " HTTP/1.0\r\n"+keep, 1)
		}
		c := r.dial()
		br := bufio.NewReader(c)
		_, _ = io.WriteString(c, old(message))
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(resp.Body); string(got) != answer || err != nil || resp.Close != (keep == "") {
			t.Errorf("%q: close %v: %q, %v", keep, resp.Close, got, err)
		}

		c = r.dial()
		br = bufio.NewReader(c)
		_, _ = io.WriteString(c, old(messageS))
		if resp, err = http.ReadResponse(br, nil); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len(msgStart+msgBlock+msgHello))
		_, _ = io.ReadFull(resp.Body, first)
		received <- struct{}{}
		rest, err := io.ReadAll(resp.Body)
		if string(first)+string(rest) != msgStart+msgBlock+msgHello+msgDelta+msgStop || err != nil || !resp.Close || len(resp.TransferEncoding) > 0 || resp.ContentLength >= 0 {
			t.Errorf("%q: %v %q%q, %v", keep, resp.Header, first, rest, err)
		}
	}
	if events := r.waitEvents(4); len(events) != 4 {
		t.Errorf("%d events", len(events))
	}
}

// The upstream call of an agent of HTTP/1.0 that leaves ends, and so does one
// that shutting down cuts.
func TestHTTP10Leaves(t *testing.T) {
	ended := make(chan struct{}, 2)
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		_, _ = io.Copy(io.Discard, c)
		ended <- struct{}{}
	})
	r := newRig(t, up.url(), 1)
	for i := range 2 {
		c := r.dial()
		_, _ = io.WriteString(c, strings.Replace(messageRequest(messageS), " HTTP/1.1\r\n", " HTTP/1.0\r\n", 1))
		_, _ = c.Read(make([]byte, 1))
		if i == 0 {
			_ = c.Close()
		} else {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = r.server.Shutdown(ctx)
			if n := len(r.recorder.all()); n != 2 {
				t.Errorf("%d events when Shutdown has returned", n)
			}
		}
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal("the upstream call goes on")
		}
		r.waitEvents(i + 1)
	}
}

// Stopping waits for the answers to HTTP/1.0 as for all others.
func TestHTTP10EndsInTheGrace(t *testing.T) {
	goOn := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello)
		c.wait(goOn)
		c.chunk(msgDelta + msgStop)
		c.last()
	})
	r := newRig(t, up.url(), 1)
	c := r.dial()
	_, _ = io.WriteString(c, strings.Replace(messageRequest(messageS), " HTTP/1.1\r\n", " HTTP/1.0\r\n", 1))
	_, _ = c.Read(make([]byte, 1))
	done := make(chan error)
	go func() { done <- r.server.Shutdown(context.Background()) }()
	for !r.server.draining.Load() {
		runtime.Gosched()
	}
	select {
	case err := <-done:
		t.Fatalf("Shutdown has returned: %v", err)
	case <-time.After(300 * time.Millisecond): // several of fasthttp's looks
	}
	close(goOn)
	if rest, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(rest), msgStop) {
		t.Errorf("%q, %v", rest, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
