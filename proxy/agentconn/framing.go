package agentconn

import "bytes"

// framing finds where the requests begin and end in what an agent sends, apart from
// the HTTP library that serves them, and by the letter of RFC 9112: a request whose
// end two readers could see at two places is a fault, and so is one whose end the
// library does not see where framing does (Conn.Fault). It looks at line ends and at
// what says how long a body is; what else is wrong with a head is the server's to
// judge. The zero value waits for a request.
type framing struct {
	state   state
	fault   Fault
	left    int64  // bytes still to come of a body, or of a chunk
	part    []byte // of a line that has not come whole
	first   []byte // the request line, or as much of it as is kept
	length  int64  // by Content-Length; noLength: there is none
	chunked bool
	lines   int   // of the head so far, or of the trailers
	size    int   // of the head so far, or of the trailers
	extra   int64 // bytes of chunk-size lines beyond what the chunks' size justifies
	ended   int   // requests whose end was seen
}

// state is what the next byte belongs to.
type state uint8

const (
	between   state = iota // nothing: it begins a request
	startLine              // a request line
	fields
	body
	chunkSize
	chunk
	chunkEnd
	trailers
	opaque // what is not to be understood
)

// Fault is why a request may mean two things; empty: it does not. The texts are for
// the agent's developer.
type Fault string

// The faults that are told apart by others.
const (
	// TooManyFields is a head that is too large by the number of its lines.
	TooManyFields Fault = "there are more than 128 header lines"

	bareLF     Fault = "a line of the request ends without CR LF"
	badEnd     Fault = "the request's end is not where its head says"
	badLength  Fault = "Content-Length must be one number"
	badCoding  Fault = "the only Transfer-Encoding taken is chunked"
	twoLengths Fault = "Content-Length and Transfer-Encoding exclude each other"
	badChunk   Fault = "a chunk is not valid"
	badTrailer Fault = "a trailer is not valid"
	foldedLine Fault = "a header is folded over two lines"
	longLine   Fault = "a line of the request is too long"
)

// The bounds of what is looked at. A library that refuses more by itself is faster.
const (
	noLength    = -1
	maxFields   = 128
	maxLine     = 1 << 20   // the library's limit of a head is less, and the operator's
	maxFirst    = 512       // bytes that are kept of a request line
	keptPart    = 512       // bytes of memory that are kept for the next line in parts
	maxTrailers = 8 << 10   // bytes
	maxExtra    = 16 << 10  // bytes, see chunkLine
	maxHex      = 15        // digits of a chunk's size
	maxDigits   = 18        // of a Content-Length
	chunkExcuse = int64(16) // bytes that a chunk-size line may have for nothing
)

// take follows p, which the agent has sent, and returns how much of it belongs to the
// request that was begun: what is behind that is for another call. With a fault all of
// it does, since nobody can tell any more.
func (f *framing) take(p []byte) int {
	for at := 0; at < len(p); {
		switch f.state {
		case opaque:
			return len(p)
		case body, chunk:
			n := int(min(f.left, int64(len(p)-at)))
			at += n
			if f.left -= int64(n); f.left > 0 {
				continue
			}
			if f.state == body {
				f.end()
				return at
			}
			f.state = chunkEnd
		default:
			i := bytes.IndexByte(p[at:], '\n')
			if i < 0 {
				f.keep(p[at:])
				return len(p)
			}
			line := p[at : at+i+1]
			at += i + 1
			if len(f.part) > 0 {
				f.keep(line)
				line = f.part
			}
			f.endLine(line)
			if cap(f.part) > keptPart {
				f.part = nil
			}
			f.part = f.part[:0]
			if f.state == between {
				return at
			}
		}
	}
	return len(p)
}

// keep notes a part of a line.
func (f *framing) keep(p []byte) {
	if f.state == between {
		f.begin()
	}
	if len(f.part)+len(p) > maxLine {
		f.refuse(longLine)
		return
	}
	f.part = append(f.part, p...)
}

func (f *framing) begin() {
	f.state, f.length, f.chunked, f.lines, f.size, f.extra = startLine, noLength, false, 0, 0, 0
	f.first = f.first[:0]
}

func (f *framing) end() {
	f.state = between
	f.ended++
}

func (f *framing) refuse(why Fault) {
	if f.fault == "" {
		f.fault = why
	}
	f.state = opaque
}

// endLine takes one line with its end.
func (f *framing) endLine(line []byte) {
	if f.state == between {
		f.begin()
	}
	n := len(line) - len("\r\n")
	if n < 0 || line[n] != '\r' {
		f.refuse(bareLF)
		return
	}
	line = line[:n]
	switch f.state { //nolint:exhaustive // the others are not of lines
	case startLine:
		if len(line) == 0 {
			return // RFC 9112, section 2.2, has empty lines before a request passed over
		}
		f.first = append(f.first, line[:min(n, maxFirst)]...)
		f.state = fields
	case fields:
		f.field(line)
	case chunkSize:
		f.chunkLine(line)
	case chunkEnd:
		if n > 0 {
			f.refuse(badChunk)
			return
		}
		f.state = chunkSize
	case trailers:
		f.trailer(line)
	}
}

// field takes a line of a head.
func (f *framing) field(line []byte) {
	if len(line) == 0 {
		f.headEnded()
		return
	}
	if f.lines++; f.lines > maxFields {
		f.refuse(TooManyFields)
		return
	}
	switch line[0] {
	case ' ', '\t':
		f.refuse(foldedLine)
	case 'c', 'C':
		if value, ok := valueOf(line, "content-length"); ok {
			n, valid := number(value)
			if !valid || f.length != noLength {
				f.refuse(badLength)
				return
			}
			f.length = n
		}
	case 't', 'T':
		if value, ok := valueOf(line, "transfer-encoding"); ok {
			if f.chunked || !bytes.EqualFold(value, []byte("chunked")) {
				f.refuse(badCoding)
				return
			}
			f.chunked = true
		}
	}
}

func (f *framing) headEnded() {
	switch {
	case f.chunked && f.length != noLength:
		f.refuse(twoLengths)
	case f.chunked:
		f.state, f.lines, f.size = chunkSize, 0, 0
	case f.length > 0:
		f.state, f.left = body, f.length
	default:
		f.end()
	}
}

// chunkLine takes the size of a chunk, with extensions that say nothing to anybody
// here (RFC 9112, section 7.1.1). Who pads many small chunks with them is stopped, as
// net/http does.
func (f *framing) chunkLine(line []byte) {
	digits, extension, extended := bytes.Cut(line, []byte{';'})
	if len(digits) == 0 || len(digits) > maxHex || extended && !printable(extension) {
		f.refuse(badChunk)
		return
	}
	var n int64
	for _, c := range digits {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			f.refuse(badChunk)
			return
		}
		n = n<<4 | int64(c)
	}
	f.extra = max(0, f.extra+int64(len(line))-chunkExcuse-2*n)
	switch {
	case f.extra > maxExtra:
		f.refuse(badChunk)
	case n == 0:
		f.state = trailers
	default:
		f.state, f.left = chunk, n
	}
}

// trailer takes a line behind the last chunk. What trailers say is dropped.
func (f *framing) trailer(line []byte) {
	if len(line) == 0 {
		f.end()
		return
	}
	f.lines++
	f.size += len(line)
	if f.lines > maxFields || f.size > maxTrailers || bytes.IndexByte(line, ':') <= 0 || line[0] == ' ' || line[0] == '\t' || !printable(line) {
		f.refuse(badTrailer)
	}
}

// valueOf returns the value of a header line, if it is the one of that name, which is
// in lower case.
func valueOf(line []byte, name string) ([]byte, bool) {
	if len(line) <= len(name) || line[len(name)] != ':' || !bytes.EqualFold(line[:len(name)], []byte(name)) {
		return nil, false
	}
	return bytes.Trim(line[len(name)+1:], " \t"), true
}

// number reads a Content-Length: digits and nothing else.
func number(b []byte) (n int64, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
		if len(b) > maxDigits {
			return 0, false
		}
	}
	return n, len(b) > 0
}

// printable tells whether b has no control character but tabs.
func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
