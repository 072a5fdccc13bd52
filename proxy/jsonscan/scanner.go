package jsonscan

import (
	"encoding/binary"
	"math/bits"
)

// maxDepth is how deeply a text may be nested, as in encoding/json. Above it
// the text counts as malformed.
const maxDepth = 10000

// Scanner reads one JSON text pushed to it in pieces. The zero value is not
// usable before Reset. A Scanner is not safe for concurrent use.
type Scanner struct {
	paths *Paths
	to    Handler
	state state

	pos   int64 // offset of the first byte of the piece being read
	depth int   // open objects and arrays
	kinds [(maxDepth + 63) / 64]uint64

	// stack holds the open objects and arrays that lie on a path; as a place
	// off the paths has no place on the paths below it, these are always the
	// outermost ones.
	stack   [maxPathDepth + 1]frame
	matched int

	// The value that is read next or now.
	cur      frame
	hasKey   bool // cur's key is in key
	inKey    bool // the string being read is a key
	escaped  bool // the string being read holds an escape
	inParts  bool // the string being read is reported in parts
	keep     int  // bytes of the scalar being read to be kept
	length   int  // bytes of it read in earlier pieces
	mark     int  // where in the piece the scalar's unread part begins
	literal  string
	literalI int

	keyStart, keyEnd int64
	key              [maxKey]byte
	keyLen           int
	buf              []byte // the scalar's beginning, from earlier pieces
	value            Value
}

// frame is one value that lies on a path, or node none for one that does not.
type frame struct {
	start            int64
	keyStart, keyEnd int64
	index            int // Value.Index of this value
	elems            int // elements begun, of an array
	node             int16
}

type state uint8

const (
	inValue      state = iota // a value must begin
	inFirstValue              // a value, or the array's end
	inFirstKey                // a key, or the object's end
	inNextKey                 // a key
	inColon
	inAfter // a comma or the end of what is open
	inEnd   // the text's value is complete
	inString
	inEscape
	inHex1
	inHex2
	inHex3
	inHex4
	inLiteral
	inMinus
	inZero
	inDigits
	inPoint
	inFraction
	inE
	inESign
	inExponent
	inMalformed
)

// Reset makes s read a new text and report the values at paths to h.
func (s *Scanner) Reset(paths *Paths, h Handler) {
	s.paths, s.to = paths, h
	s.state = inValue
	s.pos, s.depth, s.matched = 0, 0, 0
	s.hasKey = false
	s.cur = frame{node: 0, keyStart: -1, keyEnd: -1}
	if cap(s.buf) < paths.buffer {
		s.buf = make([]byte, 0, paths.buffer)
	}
	s.buf = s.buf[:0]
}

// Valid reports whether the text so far is the beginning of a JSON text. After
// a malformed byte it is false and everything that follows is ignored.
func (s *Scanner) Valid() bool { return s.state != inMalformed }

// Done reports whether a complete JSON text was read. A number that is the
// whole text is complete only after Close.
func (s *Scanner) Done() bool { return s.state == inEnd }

// Close says that the text ends here and returns Done.
func (s *Scanner) Close() bool {
	if s.depth == 0 && s.numberMayEnd() {
		s.endScalar(Number, nil, 0, s.pos)
		s.state = inEnd
	}
	return s.Done()
}

// Write reads the next piece of the text. It keeps nothing of p.
func (s *Scanner) Write(p []byte) {
	s.mark = 0
	i := 0
	for i < len(p) {
		c := p[i]
		switch s.state {
		case inString:
			i = s.inString(p, i)
			// A colon mostly follows a key at once.
			if s.state == inColon && i < len(p) && p[i] == ':' {
				s.state = inValue
				i++
			}
			continue
		case inValue, inFirstValue:
			if !isSpace(c) {
				s.beginValue(c, i)
			}
		case inFirstKey, inNextKey:
			switch {
			case c == '"':
				s.beginKey(i)
			case isSpace(c):
			case c == '}' && s.state == inFirstKey:
				s.endContainer(c, i)
			default:
				s.state = inMalformed
			}
		case inColon:
			if c == ':' {
				s.state = inValue
			} else if !isSpace(c) {
				s.state = inMalformed
			}
		case inAfter:
			s.after(c, i)
		case inEnd:
			if !isSpace(c) {
				s.state = inMalformed
			}
		case inEscape:
			switch c {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
				s.state = inString
			case 'u':
				s.state = inHex1
			default:
				s.state = inMalformed
			}
		case inHex1, inHex2, inHex3, inHex4:
			switch {
			case !isHex(c):
				s.state = inMalformed
			case s.state == inHex4:
				s.state = inString
			default:
				s.state++
			}
		case inLiteral:
			i = s.inLiteral(p, i)
			continue
		case inDigits:
			for i < len(p) && isDigit(p[i]) {
				i++
			}
			if i < len(p) && !s.inNumber(p[i]) {
				s.endNumber(p, i)
				continue
			}
		case inMalformed:
			return
		default:
			if !s.inNumber(c) {
				s.endNumber(p, i) // and read c again behind it
				continue
			}
		}
		i++
	}
	s.carry(p)
	s.pos += int64(len(p))
}

// endNumber ends the number before p[i], which is not of it.
func (s *Scanner) endNumber(p []byte, i int) {
	if !s.numberMayEnd() {
		s.state = inMalformed
		return
	}
	s.endScalar(Number, p, i, s.pos+int64(i))
	s.afterValue()
}

// carry keeps what the next piece needs of a key or scalar that goes on there.
func (s *Scanner) carry(p []byte) {
	if s.state < inString || s.state == inMalformed {
		return
	}
	part := p[s.mark:]
	if s.inParts {
		s.reportPart(part)
	}
	if s.length == 0 {
		s.buf = s.buf[:0]
	}
	s.length += len(part)
	if room := s.keep - len(s.buf); room > 0 {
		s.buf = append(s.buf, part[:min(room, len(part))]...)
	}
}

// inString reads on from p[i] to the end of the string, to an escape, or to
// the end of the piece, and returns where it stopped.
func (s *Scanner) inString(p []byte, i int) int {
	i = indexSpecial(p, i)
	// Text of programs has an escape every few dozen bytes: those of two bytes
	// are passed here, without a change of state.
	for i+1 < len(p) && p[i] == '\\' && shortEscape[p[i+1]] {
		s.escaped = true
		i = indexSpecial(p, i+2)
	}
	if i == len(p) {
		return i
	}
	switch p[i] {
	case '"':
		if s.inKey {
			s.endKey(p, i)
			s.state = inColon
		} else {
			s.endScalar(String, p, i, s.pos+int64(i)+1)
			s.afterValue()
		}
	case '\\':
		s.escaped = true
		s.state = inEscape
	default:
		s.state = inMalformed
	}
	return i + 1
}

// shortEscape are the bytes that make an escape with a backslash before them
// (RFC 8259, section 7); u begins a longer one.
var shortEscape = [256]bool{'"': true, '\\': true, '/': true, 'b': true, 'f': true, 'n': true, 'r': true, 't': true}

// indexSpecial returns the index of the first quote, backslash or control byte
// at or behind p[i], or len(p).
func indexSpecial(p []byte, i int) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	for ; i+8 <= len(p); i += 8 {
		w := binary.LittleEndian.Uint64(p[i:])
		quote := w ^ ones*'"'
		slash := w ^ ones*'\\'
		// A borrow can mark a byte wrongly only above a rightly marked one,
		// so the lowest mark is right.
		m := ((quote-ones)&^quote | (slash-ones)&^slash | (w-ones*0x20)&^w) & highs
		if m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	for ; i < len(p); i++ {
		if c := p[i]; c == '"' || c == '\\' || c < 0x20 {
			return i
		}
	}
	return i
}

// beginValue reads the first byte of a value, at p[i].
func (s *Scanner) beginValue(c byte, i int) {
	first := s.state == inFirstValue
	if c == ']' && first {
		s.endContainer(c, i)
		return
	}
	s.locate(i)
	switch {
	case c == '"':
		s.inKey = false
		s.beginScalar(i + 1)
		s.state = inString
		s.inParts = s.cur.node != none && s.paths.parts != none && int(s.paths.nodes[s.cur.node].path) == s.paths.parts
	case c == '{':
		s.beginContainer(ObjectBegin)
	case c == '[':
		s.beginContainer(ArrayBegin)
	case c == '-':
		s.beginScalar(i)
		s.state = inMinus
	case c == '0':
		s.beginScalar(i)
		s.state = inZero
	case c >= '1' && c <= '9':
		s.beginScalar(i)
		s.state = inDigits
	case c == 't':
		s.beginLiteral("true", i)
	case c == 'f':
		s.beginLiteral("false", i)
	case c == 'n':
		s.beginLiteral("null", i)
	default:
		s.state = inMalformed
	}
}

// locate finds the place in the paths of the value that begins at p[i].
func (s *Scanner) locate(i int) {
	s.cur.start = s.pos + int64(i)
	if s.depth == 0 {
		return // Reset has set the root's place
	}
	if s.matched < s.depth {
		s.cur.node = none
		return
	}
	parent := &s.stack[s.matched-1]
	if s.inObject() {
		s.cur.keyStart, s.cur.keyEnd = s.keyStart, s.keyEnd
		s.cur.index = parent.index
		return // endKey has set the node
	}
	s.cur.node = s.paths.nodes[parent.node].elem
	s.cur.keyStart, s.cur.keyEnd = -1, -1
	s.cur.index = parent.elems
	s.hasKey = false
	parent.elems++
}

func (s *Scanner) beginContainer(k Kind) {
	if s.depth == maxDepth {
		s.state = inMalformed
		return
	}
	word, bit := s.depth/64, uint64(1)<<(s.depth%64)
	if k == ObjectBegin {
		s.kinds[word] |= bit
		s.state = inFirstKey
	} else {
		s.kinds[word] &^= bit
		s.state = inFirstValue
	}
	s.depth++
	if s.cur.node == none {
		return
	}
	s.cur.elems = 0
	s.stack[s.matched] = s.cur
	s.matched++
	s.report(k, &s.cur, s.cur.start+1, s.hasKey)
}

func (s *Scanner) endContainer(c byte, i int) {
	object := s.inObject()
	if object != (c == '}') {
		s.state = inMalformed
		return
	}
	if s.matched == s.depth {
		s.matched--
		k := ArrayEnd
		if object {
			k = ObjectEnd
		}
		s.report(k, &s.stack[s.matched], s.pos+int64(i)+1, false)
	}
	s.depth--
	s.afterValue()
}

// report tells the handler that an object or array begins or ends.
func (s *Scanner) report(k Kind, f *frame, end int64, withKey bool) {
	path := s.paths.nodes[f.node].path
	if path == none {
		return
	}
	s.value = Value{
		Path: int(path), Kind: k, Start: f.start, End: end,
		KeyStart: f.keyStart, KeyEnd: f.keyEnd, Index: f.index,
	}
	if withKey {
		s.value.Key = s.key[:s.keyLen]
	}
	s.to.Found(&s.value)
}

// beginScalar starts a scalar whose kept text begins at p[i].
func (s *Scanner) beginScalar(i int) {
	s.escaped, s.inParts = false, false
	s.keep, s.length, s.mark = 0, 0, i
	if s.cur.node != none {
		if path := s.paths.nodes[s.cur.node].path; path != none {
			s.keep = s.paths.limits[path]
		}
	}
}

// endScalar reports the scalar whose kept text ends before p[i].
func (s *Scanner) endScalar(k Kind, p []byte, i int, end int64) {
	if s.cur.node == none {
		return
	}
	path := s.paths.nodes[s.cur.node].path
	if path == none {
		return
	}
	var part []byte
	if p != nil {
		part = p[s.mark:i]
	}
	if s.inParts {
		s.reportPart(part)
	}
	raw, whole := s.text(part)
	s.value = Value{
		Path: int(path), Kind: k, Raw: raw, Truncated: !whole, Escaped: s.escaped,
		Start: s.cur.start, End: end,
		KeyStart: s.cur.keyStart, KeyEnd: s.cur.keyEnd, Index: s.cur.index,
	}
	if s.hasKey {
		s.value.Key = s.key[:s.keyLen]
	}
	s.to.Found(&s.value)
}

// reportPart tells the handler of the next piece of a string's text.
func (s *Scanner) reportPart(part []byte) {
	if len(part) == 0 {
		return
	}
	s.value = Value{
		Path: s.paths.parts, Kind: StringPart, Raw: part, Escaped: s.escaped,
		Start: s.cur.start, End: s.cur.start,
		KeyStart: s.cur.keyStart, KeyEnd: s.cur.keyEnd, Index: s.cur.index,
	}
	s.to.Found(&s.value)
}

// text returns the key or scalar that ends with part, cut to what is kept, and
// whether that is the whole of it.
func (s *Scanner) text(part []byte) (text []byte, whole bool) {
	length := s.length + len(part)
	whole = length <= s.keep
	if s.length == 0 {
		return part[:min(len(part), s.keep)], whole
	}
	if room := s.keep - len(s.buf); room > 0 {
		s.buf = append(s.buf, part[:min(room, len(part))]...)
	}
	return s.buf, whole
}

func (s *Scanner) beginKey(i int) {
	s.inKey = true
	s.escaped, s.inParts = false, false
	s.state = inString
	s.length, s.mark = 0, i+1
	s.keyStart = s.pos + int64(i)
	s.keep = 0
	if s.matched == s.depth {
		s.keep = maxRawKey
	}
}

// endKey finds the place of the value whose key ends at p[i].
func (s *Scanner) endKey(p []byte, i int) {
	s.keyEnd = s.pos + int64(i) + 1
	s.hasKey = false
	if s.matched < s.depth {
		return
	}
	name, whole := s.text(p[s.mark:i])
	if s.escaped {
		var decoded [maxRawKey]byte
		name = Unquote(decoded[:0], name)
	}
	node, star := s.paths.child(s.stack[s.matched-1].node, name, whole)
	s.cur.node = node
	if star {
		s.hasKey = true
		s.keyLen = copy(s.key[:], name)
	}
}

func (s *Scanner) after(c byte, i int) {
	switch {
	case isSpace(c):
	case c == '}' || c == ']':
		s.endContainer(c, i)
	case c != ',':
		s.state = inMalformed
	case s.inObject():
		s.state = inNextKey
	default:
		s.state = inValue
	}
}

func (s *Scanner) afterValue() {
	s.state = inAfter
	if s.depth == 0 {
		s.state = inEnd
	}
}

// inObject reports whether the innermost open container is an object.
func (s *Scanner) inObject() bool {
	d := s.depth - 1
	return s.kinds[d/64]&(1<<(d%64)) != 0
}

func (s *Scanner) beginLiteral(text string, i int) {
	s.beginScalar(i)
	s.literal, s.literalI = text, 1
	s.state = inLiteral
}

// inLiteral reads on from p[i] to the end of the literal or of the piece, and
// returns where it stopped.
func (s *Scanner) inLiteral(p []byte, i int) int {
	for ; s.literalI < len(s.literal); i++ {
		if i == len(p) {
			return i
		}
		if p[i] != s.literal[s.literalI] {
			s.state = inMalformed
			return i
		}
		s.literalI++
	}
	k := Null
	switch s.literal[0] {
	case 't':
		k = True
	case 'f':
		k = False
	}
	s.endScalar(k, p, i, s.pos+int64(i))
	s.afterValue()
	return i
}

// inNumber reads one more byte of a number and reports whether it is one.
func (s *Scanner) inNumber(c byte) bool {
	digit := isDigit(c)
	switch s.state {
	case inMinus:
		switch {
		case c == '0':
			s.state = inZero
		case digit:
			s.state = inDigits
		default:
			return false
		}
	case inZero, inDigits:
		switch {
		case digit && s.state == inDigits:
		case c == '.':
			s.state = inPoint
		case c == 'e' || c == 'E':
			s.state = inE
		default:
			return false
		}
	case inPoint:
		if !digit {
			return false
		}
		s.state = inFraction
	case inFraction:
		switch {
		case digit:
		case c == 'e' || c == 'E':
			s.state = inE
		default:
			return false
		}
	case inE:
		switch {
		case digit:
			s.state = inExponent
		case c == '+' || c == '-':
			s.state = inESign
		default:
			return false
		}
	case inESign:
		if !digit {
			return false
		}
		s.state = inExponent
	default: // inExponent
		return digit
	}
	return true
}

// numberMayEnd reports whether the number read so far is a whole one.
func (s *Scanner) numberMayEnd() bool {
	switch s.state {
	case inZero, inDigits, inFraction, inExponent:
		return true
	default:
		return false
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isHex(c byte) bool {
	return isDigit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
