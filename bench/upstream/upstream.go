// Package upstream is the provider of the benchmarks: it answers as cheaply as a server can, so that what is
// measured is the proxy before it. It checks nothing and bills nothing; for that there is bench/simulator.
//
// The request's header X-Bench says what to answer:
//
//	json             a Messages answer of about 1.4 KB with usage (also when there is no X-Bench)
//	sse EVENTS PACE  a Messages stream of EVENTS deltas with PACE between them ("sse 200 0s"), one write each
//
// Requests must have a Content-Length or no body; anything else ends the connection.
package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server answers on a listener until it is closed.
type Server struct {
	ln      net.Listener
	running sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

// Start serves on ln, which the server then owns.
func Start(ln net.Listener) *Server {
	s := &Server{ln: ln, conns: make(map[net.Conn]bool)}
	s.running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			if !s.add(c) {
				return
			}
		}
	})
	return s
}

func (s *Server) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return false
	}
	s.conns[c] = true
	s.running.Go(func() {
		serve(c)
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	})
	return true
}

// Addr is where the server listens, HOST:PORT.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Close ends all connections and waits for them.
func (s *Server) Close() error {
	err := s.ln.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
	return err
}

// serve answers the requests of one connection until it ends.
func serve(c net.Conn) {
	r := bufio.NewReaderSize(c, 64<<10)
	for {
		want, err := readRequest(r)
		if err != nil {
			return
		}
		if want.events == 0 {
			_, err = c.Write(jsonAnswer)
		} else {
			err = want.stream(c)
		}
		if err != nil {
			return
		}
	}
}

// answer is what a request asks for.
type answer struct {
	events int // 0: JSON
	pace   time.Duration
}

// readRequest reads a request and throws its body away.
func readRequest(r *bufio.Reader) (want answer, err error) {
	length := 0
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return want, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if first || !ok {
			continue
		}
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			length, err = strconv.Atoi(string(bytes.TrimSpace(value)))
		case bytes.EqualFold(name, []byte("x-bench")):
			want, err = parse(string(value))
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			err = errors.New("chunked requests are not served")
		}
		if err != nil {
			return want, err
		}
	}
	_, err = r.Discard(length)
	return want, err
}

func parse(value string) (answer, error) {
	fields := strings.Fields(value)
	if len(fields) == 1 && fields[0] == "json" {
		return answer{}, nil
	}
	if len(fields) != 3 || fields[0] != "sse" {
		return answer{}, fmt.Errorf("x-bench: %q, want json or sse EVENTS PACE", value)
	}
	events, err := strconv.Atoi(fields[1])
	if err != nil {
		return answer{}, fmt.Errorf("x-bench: events: %w", err)
	}
	pace, err := time.ParseDuration(fields[2])
	if err != nil {
		return answer{}, fmt.Errorf("x-bench: pace: %w", err)
	}
	return answer{events, pace}, nil
}

func (a answer) stream(c net.Conn) error {
	if _, err := c.Write(streamHead); err != nil {
		return err
	}
	for range a.events {
		if a.pace > 0 {
			<-time.After(a.pace)
		}
		if _, err := c.Write(deltaEvent); err != nil {
			return err
		}
	}
	_, err := c.Write(streamEnd)
	return err
}

// JSONBytes is the size of the JSON answer's body.
func JSONBytes() int { return len(jsonBody) }

// StreamBytes is the size of the body of a stream of n deltas, without its framing.
func StreamBytes(n int) int { return len(startEvents) + n*len(deltaBody) + len(endEvents) }

var (
	jsonBody = `{"id":"msg_bench","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[{"type":"text","text":"` +
		strings.Repeat("A proxy should cost little. ", 40) +
		`"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":500,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":280,"service_tier":"standard"}}`
	jsonAnswer = []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nrequest-id: req_bench\r\nContent-Length: " + strconv.Itoa(len(jsonBody)) + "\r\n\r\n" + jsonBody)

	startEvents = "event: message_start\ndata: " + `{"type":"message_start","message":{"id":"msg_bench","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":500,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}}` + "\n\n" +
		"event: content_block_start\ndata: " + `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}` + "\n\n"
	deltaBody = "event: content_block_delta\ndata: " + `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" a few words of text, so"}}` + "\n\n"
	endEvents = "event: content_block_stop\ndata: " + `{"type":"content_block_stop","index":0}` + "\n\n" +
		"event: message_delta\ndata: " + `{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":280}}` + "\n\n" +
		"event: message_stop\ndata: " + `{"type":"message_stop"}` + "\n\n"

	// X-Accel-Buffering makes nginx pass events on as they come, as the providers' streams ask it to.
	streamHead = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nrequest-id: req_bench\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(startEvents))
	deltaEvent = []byte(chunk(deltaBody))
	streamEnd  = []byte(chunk(endEvents) + "0\r\n\r\n")
)

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }
