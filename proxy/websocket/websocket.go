// Package websocket finds the frames of a WebSocket (RFC 6455) in bytes that pass, for
// who relays them unchanged and only reads along. It keeps nothing of them but the
// text of a control frame, 125 bytes at most, and does no I/O.
//
// Start at Reader.
package websocket

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"
)

// Opcode is what a frame is (RFC 6455, section 5.2).
type Opcode byte

// The opcodes.
const (
	Continuation Opcode = 0
	Text         Opcode = 1
	Binary       Opcode = 2
	Close        Opcode = 8
	Ping         Opcode = 9
	Pong         Opcode = 10
)

// IsControl tells whether a frame is none of a message's.
func (o Opcode) IsControl() bool { return o&8 != 0 }

// Status codes of a Close (RFC 6455, section 7.4.1).
const (
	GoingAway     = 1001
	ProtocolError = 1002
	Policy        = 1008
)

// Errors of Reader. What comes behind one can't be read any more.
var (
	ErrReserved = errors.New("a frame has reserved bits or a reserved opcode, as of an extension that nobody agreed on")
	ErrControl  = errors.New("a control frame is longer than 125 bytes, or in parts")
	ErrMessage  = errors.New("a message begins within another, or goes on without a beginning")
	ErrMask     = errors.New("a frame of the client is not masked, or one of the server is")
	ErrLength   = errors.New("a frame has a length above 63 bits")
)

// Reader reads the frames of one direction, pushed to it in pieces of any size. The zero
// value reads a server's. It is not safe for concurrent use.
type Reader struct {
	client  bool
	err     error
	header  [14]byte
	have    int // bytes of header
	need    int // of header, as far as is known; 0: nothing is
	inFrame bool
	message bool // one is under way
	kind    Opcode
	opcode  Opcode
	final   bool
	left    uint64 // bytes of the frame's payload
	mask    [4]byte
	at      int // where in mask the next byte of payload falls
	from    int // and the first of the piece returned last
	control [125]byte
	length  int // of what is in control
}

// NewClientReader returns a Reader of what a client sends.
func NewClientReader() *Reader { return &Reader{client: true} }

// Piece is what Next has found at the beginning of what it was given: a piece of a
// header, or of a payload.
type Piece struct {
	// Payload tells that the bytes are of a payload; Opcode is then its frame's, and
	// never Continuation: the frames of a message all have the message's.
	Payload bool
	Opcode  Opcode
	// Begins and Ends say that the piece has the first, or the last, byte of a message
	// or of a control frame. A header can be both.
	Begins, Ends bool
	// FrameEnds says that a frame ends with the piece.
	FrameEnds bool
}

// Next reads on in p and returns what it has found and how many bytes that is; 0 only
// for an empty p. The only errors are this package's, and they are final.
func (r *Reader) Next(p []byte) (piece Piece, n int, err error) {
	if r.err != nil || len(p) == 0 {
		return Piece{}, 0, r.err
	}
	if !r.inFrame {
		return r.readHeader(p)
	}
	n = len(p)
	if uint64(n) > r.left {
		n = int(r.left)
	}
	r.from, r.at = r.at, (r.at+n)&3
	piece = Piece{Payload: true, Opcode: r.frameKind()}
	if piece.Opcode.IsControl() {
		r.Unmask(r.control[r.length:], p[:n])
		r.length += n
	}
	r.left -= uint64(n)
	if r.left == 0 {
		piece.FrameEnds, piece.Ends = true, r.endFrame()
	}
	return piece, n, nil
}

// frameKind is what the payload of the frame under way belongs to.
func (r *Reader) frameKind() Opcode {
	if r.opcode == Continuation {
		return r.kind
	}
	return r.opcode
}

// endFrame tells whether what the frame belongs to ends with it.
func (r *Reader) endFrame() bool {
	r.inFrame = false
	switch {
	case r.opcode.IsControl():
		return true
	case r.final:
		r.message = false
		return true
	}
	return false
}

// Unmask writes the payload that Next has returned last to dst, in the clear. dst must
// be as long, and may be payload itself.
func (r *Reader) Unmask(dst, payload []byte) {
	if !r.client {
		copy(dst, payload)
		return
	}
	for i, c := range payload {
		dst[i] = c ^ r.mask[(r.from+i)&3]
	}
}

// readHeader reads on in a frame's header.
func (r *Reader) readHeader(p []byte) (piece Piece, n int, err error) {
	for n < len(p) {
		r.header[r.have] = p[n]
		r.have++
		n++
		if r.have == 2 {
			r.need = 2 + lengthBytes(r.header[1])
			if r.header[1]&0x80 != 0 {
				r.need += len(r.mask)
			}
		}
		if r.have >= 2 && r.have == r.need {
			piece, err = r.beginFrame()
			return piece, n, err
		}
	}
	return Piece{}, n, nil
}

// lengthBytes is how long the length is that follows the second byte of a header.
func lengthBytes(second byte) int {
	switch second & 0x7f {
	case 126:
		return 2
	case 127:
		return 8
	}
	return 0
}

// beginFrame takes a whole header over.
func (r *Reader) beginFrame() (Piece, error) {
	h := r.header[:r.have]
	r.have = 0
	r.opcode, r.final = Opcode(h[0]&0x0f), h[0]&0x80 != 0
	masked := h[1]&0x80 != 0
	r.left = uint64(h[1] & 0x7f)
	switch lengthBytes(h[1]) {
	case 2:
		r.left = uint64(binary.BigEndian.Uint16(h[2:]))
	case 8:
		r.left = binary.BigEndian.Uint64(h[2:])
	}
	switch {
	case h[0]&0x70 != 0 || r.opcode > Binary && !r.opcode.IsControl() || r.opcode > Pong:
		r.err = ErrReserved
	case r.opcode.IsControl() && (!r.final || h[1]&0x7f > 125):
		r.err = ErrControl
	case !r.opcode.IsControl() && (r.opcode == Continuation) != r.message:
		r.err = ErrMessage
	case masked != r.client:
		r.err = ErrMask
	case r.left>>63 != 0:
		r.err = ErrLength
	}
	if r.err != nil {
		return Piece{}, r.err
	}
	if masked {
		copy(r.mask[:], h[len(h)-len(r.mask):])
	}
	r.at, r.inFrame = 0, true
	piece := Piece{Begins: r.opcode != Continuation}
	switch {
	case r.opcode.IsControl():
		r.length = 0
	case r.opcode != Continuation:
		r.kind, r.message = r.opcode, true
	}
	piece.Opcode = r.frameKind()
	if r.left == 0 {
		piece.FrameEnds, piece.Ends = true, r.endFrame()
	}
	return piece, nil
}

// Whole tells whether no frame is under way, so that another one, of a third hand, may
// be put behind what was read so far.
func (r *Reader) Whole() bool { return !r.inFrame && r.have == 0 && r.err == nil }

// Closing returns the code and the text of a Close, when Next has returned the end of
// one; 0 for one without a code.
func (r *Reader) Closing() (code uint16, reason string) {
	text := r.control[:r.length]
	if len(text) < 2 {
		return 0, ""
	}
	return binary.BigEndian.Uint16(text), string(text[2:])
}

// maxReason is the longest text of a Close.
const maxReason = 123

// AppendClose appends a server's Close. A reason that is too long for one is cut.
func AppendClose(dst []byte, code uint16, reason string) []byte {
	if len(reason) > maxReason {
		n := maxReason
		for n > 0 && !utf8.RuneStart(reason[n]) {
			n--
		}
		reason = reason[:n]
	}
	dst = append(dst, 0x80|byte(Close), byte(2+len(reason)))
	dst = binary.BigEndian.AppendUint16(dst, code)
	return append(dst, reason...)
}
