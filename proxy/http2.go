package proxy

import (
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/proxy/agentconn"
	"github.com/authpool/authpool/proxy/h2"
)

// prefaceHead is what of a connection's preface is read as a request.
const prefaceHead = "PRI * HTTP/2.0\r\n\r\n"

// speaksHTTP2 tells whether what was read as a request is the preface of HTTP/2.
func speaksHTTP2(h *fasthttp.RequestHeader) bool {
	return string(h.Method()) == "PRI" && string(h.RequestURI()) == "*" && string(h.Protocol()) == "HTTP/2.0"
}

// http2 returns the server of HTTP/2, and makes it if there is none.
func (s *Server) http2(make bool) *h2.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.h2 == nil && make && !s.draining.Load() {
		s.h2 = h2.New(h2.Options{
			Open: s.openStream, HeaderLimit: s.opts.HeaderLimit, Idle: s.opts.Idle, WriteStall: s.opts.WriteStall, Log: s.log,
		})
	}
	return s.h2
}

// multiplexed is a connection of HTTP/2.
type multiplexed struct {
	*agentconn.Conn
	r io.Reader
}

// Read implements net.Conn.
func (m *multiplexed) Read(p []byte) (int, error) { return m.r.Read(p) }

// serveHTTP2 serves a connection that began with the preface of HTTP/2: by prior
// knowledge, or since TLS has agreed on it with an agent that speaks nothing else.
func (s *Server) serveHTTP2(outer *agentconn.Conn, r io.Reader) {
	server := s.http2(true)
	if server == nil {
		return // it is stopping
	}
	outer.HandOver()
	if outer.SetDeadline(time.Time{}) != nil {
		return
	}
	server.Serve(&multiplexed{outer, io.MultiReader(strings.NewReader(prefaceHead), r)})
}

// openStream has a stream of HTTP/2 served like a connection of its own.
func (s *Server) openStream(c net.Conn) (net.Conn, func(), error) {
	m, ok := c.(*multiplexed)
	if !ok || !s.enterConn() {
		return nil, nil, errors.New("it is stopping")
	}
	fast := s.fast
	if m.Said() != nil {
		fast = s.inside
	}
	agent, served := net.Pipe()
	stream := m.Stream(served)
	go func() {
		defer s.conns.Done()
		_ = fast.ServeConn(stream) // says how it ended, which is no error of ours
	}()
	return agent, stream.Leave, nil
}
