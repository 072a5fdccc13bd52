package tap

import "bytes"

// Token is what Events found.
type Token uint8

const (
	// None means that the piece holds no more than was used up.
	None Token = iota
	// Line is the beginning of a line that may be a data line: it has used the
	// bytes before that line.
	Line
	// Data is a part of an event's data. Parts follow each other without
	// anything between them; lines are joined by "\n".
	Data
	// End is the end of an event.
	End
	// Tail is the rest of the line end that ended the event before: the LF of
	// a CRLF that was cut.
	Tail
)

// Events cuts server-sent events out of a stream that arrives in pieces, by
// the rules of the HTML standard (section 9.2.6): lines end in LF, CR or CRLF,
// an event may have many data lines, comments and unknown fields are passed
// over, a byte order mark may stand in front. It keeps no text, so that events
// may be of any size. The zero value is ready; it is not safe for concurrent
// use.
//
// Of the fields only data is told: the dialects repeat an event's name within
// its data.
type Events struct {
	state   eventState
	matched int  // bytes of the byte order mark or of a field name that matched
	some    bool // the event has a data line
	other   bool // the event has another line before its first data line
}

type eventState uint8

const (
	inBOM      eventState = iota // at the very beginning
	inLineHead                   // at the beginning of a line
	inName                       // in a field name that may be data
	inValueGap                   // behind the colon of a data line
	inData
	inOther // in a line of no interest
	inCR    // behind a CR; an LF belongs to it
	inEndCR // the same, and the event has ended
)

const (
	byteOrderMark = "\xef\xbb\xbf"
	dataField     = "data"
)

var lineFeed = []byte{'\n'}

// Reset makes e ready for another stream.
func (e *Events) Reset() { *e = Events{} }

// Next reads p up to the next token and returns the token, the data when it is
// Data, and how many bytes of p were used. The data is a part of p.
func (e *Events) Next(p []byte) (what Token, data []byte, n int) {
	for n < len(p) {
		c := p[n]
		switch e.state {
		case inBOM:
			if c == byteOrderMark[e.matched] {
				n++
				e.matched++
				if e.matched == len(byteOrderMark) {
					e.state = inLineHead
				}
				continue
			}
			// Bytes that began a mark but are none begin an unknown field.
			if e.matched > 0 {
				e.notData()
			} else {
				e.state = inLineHead
			}
		case inEndCR:
			e.state = inLineHead
			if c == '\n' {
				return Tail, nil, n + 1
			}
		case inCR:
			e.state = inLineHead
			if c == '\n' {
				n++
			}
		case inLineHead:
			switch c {
			case '\n', '\r':
				n++
				if e.lineEnd(c, p, &n) {
					return End, nil, n
				}
			case dataField[0]:
				e.matched = 0
				e.state = inName
				return Line, nil, n
			default:
				e.notData()
			}
		case inName:
			switch {
			case e.matched < len(dataField) && c == dataField[e.matched]:
				n++
				e.matched++
			case e.matched == len(dataField) && c == ':':
				n++
				e.state = inValueGap
				if e.some {
					return Data, lineFeed, n
				}
				e.some = true
			case e.matched == len(dataField) && (c == '\n' || c == '\r'):
				// "data" alone is a data line with an empty value.
				again := e.some
				e.some = true
				e.state = inOther
				if again {
					return Data, lineFeed, n
				}
			default:
				e.notData()
			}
		case inValueGap:
			e.state = inData
			if c == ' ' {
				n++
			}
		case inData:
			end := lineLength(p[n:])
			if end > 0 {
				return Data, p[n : n+end], n + end
			}
			n++
			e.state = inLineHead
			if c == '\r' {
				e.state = inCR
			}
		case inOther:
			n += lineLength(p[n:])
			if n == len(p) {
				break
			}
			e.state = inLineHead
			if p[n] == '\r' {
				e.state = inCR
			}
			n++
		}
	}
	return None, nil, n
}

// mayBeEvent reports whether the bytes since the last Line may be an event's.
func (e *Events) mayBeEvent() bool {
	return e.some || e.state == inName
}

func (e *Events) notData() {
	e.state = inOther
	e.other = e.other || !e.some
}

// lineEnd reads the end of a blank line and reports whether an event ended. An
// LF behind a CR is taken too when it is there.
func (e *Events) lineEnd(c byte, p []byte, n *int) bool {
	ended := e.some
	e.some, e.other = false, false
	if c == '\r' {
		switch {
		case *n < len(p) && p[*n] == '\n':
			*n++
		case *n < len(p):
		case ended:
			e.state = inEndCR
		default:
			e.state = inCR
		}
	}
	return ended
}

// lineLength returns the length of the line that p begins with, without its end.
func lineLength(p []byte) int {
	if i := bytes.IndexByte(p, '\n'); i >= 0 {
		p = p[:i]
	}
	if i := bytes.IndexByte(p, '\r'); i >= 0 {
		return i
	}
	return len(p)
}
