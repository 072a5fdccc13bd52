// Package eventstream cuts the messages of AWS' binary event stream
// (application/vnd.amazon.eventstream) out of an answer that arrives in pieces
// of any size, without keeping them.
//
// A message is laid out so, all numbers big-endian (Smithy's specification
// "Amazon Event Stream"):
//
//	total length u32, headers' length u32, CRC-32 of these 8 bytes
//	headers: name's length u8, name, type u8, value
//	payload
//	CRC-32 of everything before
//
// Start at Reader.Next. What it tells of a message is only a claim until End
// says that the message's checksum was right: whoever reads the payload as it
// comes must not act on it before.
package eventstream

import (
	"encoding/binary"
	"hash/crc32"
)

// Token is what a Reader found.
type Token uint8

const (
	// None means that the piece holds no more than was used up.
	None Token = iota
	// Header is a header with a text; see Reader.Header. Those of other types
	// are passed over.
	Header
	// Payload is a part of a message's payload. Parts follow each other without
	// anything between them.
	Payload
	// End is the end of a message whose checksum was right.
	End
	// Broken means that a checksum was wrong or a length impossible. Nothing
	// that follows can be read.
	Broken
)

// Bounds of a message, as AWS' SDKs have them.
const (
	maxHeaders = 128 << 10
	maxPayload = 16 << 20
)

const (
	preludeSize  = 12
	checksumSize = 4
)

// What is kept of a header. The names and values that tell what a message is
// are much shorter.
const (
	maxName  = 32
	maxValue = 256
)

// Reader reads one stream. The zero value is ready. It uses constant memory,
// allocates nothing and is not safe for concurrent use.
type Reader struct {
	state   state
	fixed   [preludeSize]byte // the prelude, or the checksum
	filled  int
	crc     uint32
	headers int // bytes that follow
	payload int

	step     step
	left     int // bytes of the name, the length or the value that follow
	kind     byte
	name     [maxName]byte
	nameLen  int // of all of it
	value    [maxValue]byte
	valueLen int // of what is kept
}

type state uint8

const (
	inPrelude state = iota
	inHeaders
	inPayload
	inChecksum
	inBroken
)

// step is a part of a header.
type step uint8

const (
	nameLength step = iota
	nameText
	valueKind
	valueLength1
	valueLength2
	valueBytes
)

// kindText is the type of a header with a text.
const kindText = 7

// valueSizes are the sizes of the values of the header types 0 to 9: true,
// false, byte, short, integer, long, byte array, text, timestamp, UUID. Those of
// -1 tell their size.
var valueSizes = [...]int{0, 0, 1, 2, 4, 8, -1, -1, 8, 16}

// Reset makes r ready for another stream.
func (r *Reader) Reset() {
	r.state, r.filled, r.step = inPrelude, 0, nameLength
}

// Next reads p up to the next token and returns the token, the data when it is
// Payload, and how many bytes of p were used. The data is a part of p.
func (r *Reader) Next(p []byte) (what Token, data []byte, n int) {
	for n < len(p) {
		switch r.state {
		case inPrelude:
			n += r.fill(p[n:], preludeSize)
			if r.filled == preludeSize && !r.begin() {
				r.state = inBroken
			}
		case inHeaders:
			from := n
			what = None
			for n < len(p) && r.headers > 0 && what == None {
				what = r.readHeader(p[n])
				n++
				r.headers--
			}
			r.crc = crc32.Update(r.crc, crc32.IEEETable, p[from:n])
			if r.headers == 0 {
				if r.step != nameLength {
					what = Broken
				}
				r.afterHeaders()
			}
			switch what {
			case Broken:
				r.state = inBroken
			case Header:
				return Header, nil, n
			default:
			}
		case inPayload:
			data = p[n:min(len(p), n+r.payload)]
			r.crc = crc32.Update(r.crc, crc32.IEEETable, data)
			r.payload -= len(data)
			if r.payload == 0 {
				r.state = inChecksum
			}
			return Payload, data, n + len(data)
		case inChecksum:
			n += r.fill(p[n:], checksumSize)
			if r.filled < checksumSize {
				continue
			}
			r.filled = 0
			if binary.BigEndian.Uint32(r.fixed[:]) == r.crc {
				r.state = inPrelude
				return End, nil, n
			}
			r.state = inBroken
		case inBroken:
			return Broken, nil, len(p)
		}
	}
	if r.state == inBroken {
		return Broken, nil, n
	}
	return None, nil, n
}

// Header returns the name and the text of the header that was found, valid
// until the next call of Next. A text of more than 256 bytes is cut; a header
// with a name of more than 32 bytes is not told.
func (r *Reader) Header() (name, value []byte) {
	return r.name[:r.nameLen], r.value[:r.valueLen]
}

// fill reads on in a field of size bytes and returns how many of p are of it.
func (r *Reader) fill(p []byte, size int) int {
	n := copy(r.fixed[r.filled:size], p)
	r.filled += n
	return n
}

// begin reads the prelude and reports whether it is one.
func (r *Reader) begin() bool {
	r.filled = 0
	total := binary.BigEndian.Uint32(r.fixed[:])
	headers := binary.BigEndian.Uint32(r.fixed[4:])
	if binary.BigEndian.Uint32(r.fixed[8:]) != crc32.ChecksumIEEE(r.fixed[:8]) {
		return false
	}
	const around = preludeSize + checksumSize
	if headers > maxHeaders || total < around+headers || total-around-headers > maxPayload {
		return false
	}
	r.crc = crc32.ChecksumIEEE(r.fixed[:])
	r.headers = int(headers)
	r.payload = int(total - around - headers)
	r.state, r.step = inHeaders, nameLength
	if r.headers == 0 {
		r.afterHeaders()
	}
	return true
}

func (r *Reader) afterHeaders() {
	r.state = inPayload
	if r.payload == 0 {
		r.state = inChecksum
	}
}

// readHeader reads one byte of the headers. It returns Header at the end of one
// that is to be told, Broken for what is none.
func (r *Reader) readHeader(c byte) Token {
	switch r.step {
	case nameLength:
		if c == 0 {
			return Broken
		}
		r.left, r.nameLen, r.valueLen = int(c), 0, 0
		r.step = nameText
	case nameText:
		if r.nameLen < maxName {
			r.name[r.nameLen] = c
		}
		r.nameLen++
		if r.left--; r.left == 0 {
			r.step = valueKind
		}
	case valueKind:
		if int(c) >= len(valueSizes) {
			return Broken
		}
		r.kind = c
		if r.left = valueSizes[c]; r.left < 0 {
			r.step = valueLength1
			return None
		}
		return r.beginValue()
	case valueLength1:
		r.left = int(c) << 8
		r.step = valueLength2
	case valueLength2:
		r.left |= int(c)
		return r.beginValue()
	case valueBytes:
		if r.valueLen < maxValue {
			r.value[r.valueLen] = c
			r.valueLen++
		}
		if r.left--; r.left == 0 {
			return r.endHeader()
		}
	}
	return None
}

// beginValue goes on to a value of left bytes, which may be none.
func (r *Reader) beginValue() Token {
	if r.left == 0 {
		return r.endHeader()
	}
	r.step = valueBytes
	return None
}

func (r *Reader) endHeader() Token {
	r.step = nameLength
	if r.kind == kindText && r.nameLen <= maxName {
		return Header
	}
	return None
}
