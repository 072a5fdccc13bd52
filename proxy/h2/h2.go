// Package h2 serves agents that speak HTTP/2 alone, as the AWS SDK for JavaScript does
// with Bedrock: each of their streams becomes a request of HTTP/1.1 on a connection in
// memory, so that one handler serves all. The standard library speaks the protocol
// (RFC 9113); this package carries heads and bodies over, unbuffered and both ways.
//
// Start at New. Connections come by Serve, from whoever has seen the Preface.
package h2

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Preface begins every connection of HTTP/2 (RFC 9113, section 3.4). A server of
// HTTP/1.1 reads its first line as a request.
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Alone makes config's GetConfigForClient: it agrees on HTTP/2 with agents that offer
// nothing else. All others settle for what config offers, HTTP/1.1, which needs no
// streams inside of a connection.
func Alone(config *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	alone := config.Clone()
	alone.NextProtos = []string{"h2"}
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, "h2") && !slices.Contains(hello.SupportedProtos, "http/1.1") {
			return alone, nil
		}
		return config, nil
	}
}

// streams is how many requests one connection may have under way.
const streams = 250

// Options are what a Server works with. Every field must be set.
type Options struct {
	// Open begins a connection of HTTP/1.1 for one stream of a connection that Serve got.
	// left is called when the stream's agent is gone; whoever opened closes the result.
	Open        func(outer net.Conn) (stream net.Conn, left func(), err error)
	HeaderLimit int           // bytes of a request head
	Idle        time.Duration // how long a connection without a request is kept
	WriteStall  time.Duration // how long an agent may accept nothing
	Log         *slog.Logger
}

// Server serves connections of HTTP/2. It is safe for concurrent use.
type Server struct {
	opts Options
	http *http.Server
	ln   *listener
	done sync.WaitGroup // of the goroutines of http: that of Serve, and one for each connection
}

// New returns a Server with a goroutine, which ends with Shutdown.
func New(opts Options) *Server {
	s := &Server{opts: opts, ln: &listener{conns: make(chan net.Conn), closed: make(chan struct{})}}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // TLS is below, if there is any
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		Protocols:         protocols,
		MaxHeaderBytes:    opts.HeaderLimit,
		IdleTimeout:       opts.Idle,
		ReadHeaderTimeout: opts.Idle,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: streams, WriteByteTimeout: opts.WriteStall, SendPingTimeout: time.Minute},
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, outerKey{}, c) },
		ConnState:         s.follow,
		ErrorLog:          log.New(quietWriter{opts.Log}, "", 0),
	}
	s.done.Go(func() { _ = s.http.Serve(s.ln) }) // always ErrServerClosed
	return s
}

// follow counts the connections' goroutines. One that is told to go for a fault of its
// protocol lingers for a second, closed or not.
func (s *Server) follow(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.done.Add(1)
	case http.StateClosed:
		s.done.Done()
	default:
	}
}

// outerKey finds the connection of a request.
type outerKey struct{}

// Serve serves a connection until its end. c begins with the Preface.
func (s *Server) Serve(c net.Conn) {
	one := &conn{Conn: c, done: make(chan struct{})}
	select {
	case s.ln.conns <- one:
		<-one.done
	case <-s.ln.closed:
		_ = c.Close()
	}
}

// Shutdown takes no connection any more, tells agents to go (GOAWAY), and lets requests
// under way end until ctx does. Then connections are closed.
func (s *Server) Shutdown(ctx context.Context) {
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close() // nothing is to be saved
	}
	s.ln.close()
	s.done.Wait()
}

// listener hands on the connections that Serve gets.
type listener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) close() { l.once.Do(func() { close(l.closed) }) }

func (l *listener) Close() error {
	l.close()
	return nil
}

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "h2", Net: "memory"} }

// conn tells when it was closed.
type conn struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.done) })
	return err
}

// serve has one request served by HTTP/1.1.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	outer, ok := r.Context().Value(outerKey{}).(*conn)
	head, valid := appendHead(nil, r)
	if !ok || !valid {
		http.Error(w, "authpool: the request cannot be said in HTTP/1.1", http.StatusBadRequest)
		return
	}
	stream, left, err := s.opts.Open(outer.Conn)
	if err != nil {
		http.Error(w, "authpool: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	stop := context.AfterFunc(r.Context(), func() {
		left()
		_ = stream.Close()
	})
	defer stop()
	var sending sync.WaitGroup
	defer sending.Wait()
	defer func() { // ends what is still being sent, though the agent may send no more
		_ = stream.Close()
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	}()
	sending.Go(func() { send(stream, head, r) })
	resp, err := http.ReadResponse(bufio.NewReader(stream), r)
	if err != nil {
		panic(http.ErrAbortHandler) // the agent is told by a reset
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or is given up
	carry(w, resp)
}

// appendHead writes a request's head as HTTP/1.1 has it; ok is false when it holds what
// would be read there as something else (RFC 9113, section 10.3).
func appendHead(dst []byte, r *http.Request) (_ []byte, ok bool) {
	if !isTarget(r.RequestURI) || !isText(r.Host) || r.Host == "" || r.Method == http.MethodConnect || !isLength(r.Header["Content-Length"]) {
		return dst, false
	}
	dst = fmt.Appendf(dst, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, r.RequestURI, r.Host)
	for name, values := range r.Header {
		if ofConnection[name] {
			continue
		}
		for _, value := range values {
			if !isText(value) {
				return dst, false
			}
			dst = fmt.Appendf(dst, "%s: %s\r\n", name, value)
		}
	}
	switch {
	case r.ContentLength > 0 || r.ContentLength == 0 && r.Method != http.MethodGet && r.Method != http.MethodHead:
		dst = append(dst, "Content-Length: "+strconv.FormatInt(r.ContentLength, 10)+"\r\n"...)
	case r.ContentLength < 0:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	}
	return append(dst, "\r\n"...), true
}

// ofConnection are headers that HTTP/2 does not have, and those that are written anew.
var ofConnection = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Transfer-Encoding": true, "Upgrade": true,
	"Te": true, "Trailer": true, "Content-Length": true, "Expect": true, "Host": true,
}

func isTarget(s string) bool {
	return strings.HasPrefix(s, "/") && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' })
}

func isText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// isLength tells whether a request has one length at most, and that as RFC 9110, section
// 8.6 has it. net/http takes what is none for 0, and lets a body through that comes late.
func isLength(values []string) bool {
	return len(values) == 0 ||
		len(values) == 1 && values[0] != "" && !strings.ContainsFunc(values[0], func(r rune) bool { return r < '0' || r > '9' })
}

// send sends head and body. When it cannot, the answer says why, or its lack.
func send(stream net.Conn, head []byte, r *http.Request) {
	if _, err := stream.Write(head); err != nil {
		return
	}
	if r.ContentLength >= 0 {
		if n, _ := io.Copy(stream, r.Body); n < r.ContentLength {
			_ = stream.Close() // nobody is to wait for the rest
		}
		return
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, werr := fmt.Fprintf(stream, "%x\r\n%s\r\n", n, buf[:n]); werr != nil {
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_, _ = io.WriteString(stream, "0\r\n\r\n")
			return
		case err != nil:
			_ = stream.Close() // a body that was cut must not look whole
			return
		}
	}
}

// carry sends an answer on, as it comes.
func carry(w http.ResponseWriter, resp *http.Response) {
	for name, values := range resp.Header {
		if ofConnection[name] && name != "Content-Length" {
			continue
		}
		w.Header()[textproto.CanonicalMIMEHeaderKey(name)] = values
	}
	if resp.Header.Get("Date") == "" {
		w.Header()["Date"] = nil
	}
	w.WriteHeader(resp.StatusCode)
	flusher := http.NewResponseController(w)
	buf := make([]byte, 16<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil || flusher.Flush() != nil {
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			panic(http.ErrAbortHandler) // a cut answer must not look whole
		}
	}
}

// quietWriter takes what the standard library says of broken connections, which can
// hold parts of a head: that there was something.
type quietWriter struct{ log *slog.Logger }

// Write implements io.Writer.
func (w quietWriter) Write(p []byte) (int, error) {
	w.log.Debug("connection of HTTP/2 failed")
	return len(p), nil
}
