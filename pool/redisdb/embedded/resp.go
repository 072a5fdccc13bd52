package embedded

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// limits bound one request. Nothing is allocated for what a request announces,
// only for what has arrived.
type limits struct {
	args  int // number of arguments, the command's name included
	bulk  int // bytes of one argument
	total int // bytes of all arguments together
}

// protocolError says why a request is none. The connection cannot go on, because
// nobody knows where the next request begins.
type protocolError string

// Error implements error.
func (e protocolError) Error() string { return "Protocol error: " + string(e) }

var (
	errNoArray   = protocolError("a request must be an array of bulk strings")
	errNoBulk    = protocolError("expected a bulk string")
	errBadLength = protocolError("a length is not a plain number")
	errBadEnd    = protocolError("a line does not end with CR LF")
)

// firstChunk is what is allocated before any byte of an argument has come.
const firstChunk = 16 << 10

// readRequest reads one request of the Redis protocol: "*<count>\r\n", then for
// each argument "$<length>\r\n<bytes>\r\n". There are no inline requests, so that
// a stray HTTP request is refused by its first byte. It returns io.EOF only
// between two requests.
//
// See https://redis.io/docs/latest/develop/reference/protocol-spec/
func readRequest(r *bufio.Reader, lim limits) ([]string, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	if first != '*' {
		return nil, errNoArray
	}
	count, err := readLength(r, lim.args, "arguments")
	if err != nil {
		return nil, err
	}
	if count == 0 {
		return nil, errNoArray
	}
	var args []string
	left := lim.total
	for range count {
		first, err := r.ReadByte()
		if err != nil {
			return nil, midway(err)
		}
		if first != '$' {
			return nil, errNoBulk
		}
		size, err := readLength(r, min(lim.bulk, left), "bytes")
		if err != nil {
			return nil, err
		}
		left -= size
		arg, err := readBulk(r, size)
		if err != nil {
			return nil, err
		}
		args = append(args, arg)
	}
	return args, nil
}

// readLength reads the digits of a length and the end of its line.
func readLength(r *bufio.Reader, most int, what string) (int, error) {
	n := 0
	for digits := 0; ; digits++ {
		c, err := r.ReadByte()
		if err != nil {
			return 0, midway(err)
		}
		switch {
		case c == '\r' && digits > 0:
			return n, readByte(r, '\n')
		case c < '0' || c > '9':
			return 0, errBadLength
		}
		if n = n*10 + int(c-'0'); n > most {
			return 0, protocolError(fmt.Sprintf("more than %d %s", most, what))
		}
	}
}

// readBulk reads size bytes and the end of their line. The buffer grows with what
// arrives, at most doubling.
func readBulk(r *bufio.Reader, size int) (string, error) {
	buf := make([]byte, 0, min(size, firstChunk))
	for len(buf) < size {
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(size, 2*cap(buf)))
			copy(grown, buf)
			buf = grown
		}
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err != nil {
			return "", midway(err)
		}
	}
	if err := readByte(r, '\r'); err != nil {
		return "", err
	}
	return string(buf), readByte(r, '\n')
}

func readByte(r *bufio.Reader, want byte) error {
	c, err := r.ReadByte()
	if err != nil {
		return midway(err)
	}
	if c != want {
		return errBadEnd
	}
	return nil
}

// midway marks an end of input inside a request.
func midway(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
