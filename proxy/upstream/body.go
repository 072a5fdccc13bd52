package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"syscall"
)

// Values of body.length beside a real length.
const (
	chunked  = -1
	untilEOF = -2
)

// body reads an answer's body (RFC 9112, section 6) out of a buffered
// connection. A failed read by time-out leaves its state whole, so that reading
// can go on.
type body struct {
	br      *bufio.Reader
	length  int64 // bytes left of a body of known length, or chunked, or untilEOF
	left    int64 // bytes left of the current chunk
	state   chunkState
	done    bool
	broken  bool // the framing is not HTTP's
	spoiled bool // the connection can't be used for another answer
}

type chunkState uint8

const (
	chunkSize    chunkState = iota // before a size line
	chunkData                      // in a chunk's bytes
	chunkEnd                       // before the CRLF behind a chunk
	chunkTrailer                   // after the last chunk
)

func (b *body) reset(br *bufio.Reader, length int64) {
	*b = body{br: br, length: length, done: length == 0}
}

func (b *body) ended() bool { return b.done }

// errMalformed is an answer that breaks HTTP's framing.
var errMalformed = errors.New("malformed chunk in the answer")

// read fills p with what is there and blocks only while there is nothing. It
// returns io.EOF together with or after the last bytes.
func (b *body) read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	if b.broken {
		return 0, errMalformed
	}
	switch b.length {
	case chunked:
		return b.readChunks(p)
	case untilEOF:
		n, err := b.br.Read(p)
		if errors.Is(err, io.EOF) {
			b.done = true
		}
		return n, err
	}
	if int64(len(p)) > b.length {
		p = p[:b.length]
	}
	n, err := b.br.Read(p)
	b.length -= int64(n)
	if b.length == 0 {
		b.done = true
		return n, io.EOF
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// readChunks copies the bytes of as many chunks as are buffered: a burst of
// small chunks becomes one read.
func (b *body) readChunks(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		// Framing that is not wholly buffered is waited for only while there is
		// nothing to hand over, so that a partial size line delays no byte.
		if b.state != chunkData {
			if n > 0 && !b.lineBuffered() {
				return n, nil
			}
			if err := b.frame(); err != nil {
				b.broken = errors.Is(err, errMalformed)
				if n > 0 && b.broken {
					return n, nil // the error comes with the next read
				}
				return n, err
			}
			continue
		}
		if n > 0 && b.br.Buffered() == 0 {
			return n, nil
		}
		q := p[n:]
		if int64(len(q)) > b.left {
			q = q[:b.left]
		}
		m, err := b.br.Read(q)
		n += m
		if b.left -= int64(m); b.left == 0 {
			b.state = chunkEnd
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	return n, nil
}

// lineBuffered tells whether a whole line waits in the buffer.
func (b *body) lineBuffered() bool {
	w, _ := b.br.Peek(b.br.Buffered())
	return bytes.IndexByte(w, '\n') >= 0
}

// frame reads one line of framing. It returns io.EOF at the end of the body.
func (b *body) frame() error {
	line, err := b.line()
	if err != nil {
		return err
	}
	switch b.state {
	case chunkEnd:
		if len(line) != 0 {
			return errMalformed
		}
		b.state = chunkSize
	case chunkSize:
		if i := bytes.IndexByte(line, ';'); i >= 0 { // chunk extension
			line = line[:i]
		}
		size, err := strconv.ParseUint(string(bytes.TrimRight(line, " \t")), 16, 62)
		if err != nil {
			return errMalformed
		}
		if b.left, b.state = int64(size), chunkData; size == 0 {
			b.state = chunkTrailer
		}
	case chunkData: // has no lines
	case chunkTrailer:
		if len(line) == 0 {
			b.done = true
			return io.EOF
		}
	}
	return nil
}

// line takes one line without its end out of the buffer. A line that has not
// come whole stays there, so that a time-out loses nothing.
func (b *body) line() ([]byte, error) {
	for n := 1; ; n = b.br.Buffered() + 1 {
		_, err := b.br.Peek(n) // waits for one byte more than there was
		w, _ := b.br.Peek(b.br.Buffered())
		if i := bytes.IndexByte(w, '\n'); i >= 0 {
			_, _ = b.br.Discard(i + 1)
			return bytes.TrimSuffix(w[:i], []byte{'\r'}), nil
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, errMalformed
		}
		if errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
}

// isReset tells whether the peer reset the connection.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
