package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Line is one line of the log, read.
type Line struct {
	Seq    uint64            `json:"seq"`
	Time   string            `json:"time"` // RFC 3339, UTC, with microseconds
	Kind   Kind              `json:"kind"`
	Actor  string            `json:"actor"`
	Fields map[string]string `json:"fields"`
	Hash   string            `json:"hash,omitempty"`
}

const (
	timeLayout = "2006-01-02T15:04:05.000000Z"
	// maxValue is the longest value of a field, in bytes. Those that come from
	// outside are short already; this is for what is forgotten.
	maxValue = 512
	// maxLine is more than a line with all its fields at that length can have.
	maxLine = 256 << 10
	// fieldHash is what stands before a line's hash, which ends with lineEnd.
	fieldHash, lineEnd = `,"hash":"`, `"}`
)

// digest is a line's hash.
type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// parseDigest reads what String has written, and nothing else.
func parseDigest(text string) (d digest, ok bool) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(d) {
		return d, false
	}
	copy(d[:], raw)
	return d, d.String() == text // capital letters are not ours
}

// chain is where the log stands: its last line.
type chain struct {
	seq  uint64
	hash digest
}

// next is the hash of a line with these bytes.
func (c chain) next(body []byte) (d digest) {
	h := sha256.New()
	h.Write(c.hash[:])
	h.Write(body)
	h.Sum(d[:0])
	return d
}

// appendLine appends the line of e, which follows c, and moves c on.
func (c *chain) appendLine(dst []byte, e Entry) ([]byte, error) {
	fields := make(map[string]string, len(e.Fields))
	for name, value := range e.Fields {
		if value != "" {
			fields[name] = shorten(value)
		}
	}
	body, err := json.Marshal(Line{
		Seq: c.seq + 1, Time: e.Time.UTC().Format(timeLayout), Kind: e.Kind, Actor: shorten(e.Actor), Fields: fields,
	})
	if err != nil {
		return dst, fmt.Errorf("cannot write an audit line: %w", err)
	}
	body = appendASCII(nil, body[:len(body)-1]) // without the closing brace
	*c = chain{c.seq + 1, c.next(body)}
	dst = append(dst, body...)
	dst = append(dst, fieldHash...)
	dst = hex.AppendEncode(dst, c.hash[:])
	return append(dst, lineEnd+"\n"...), nil
}

// shorten cuts s to maxValue.
func shorten(s string) string {
	if len(s) <= maxValue {
		return s
	}
	end := maxValue
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// appendASCII appends JSON with everything but printable ASCII escaped. Encoding/json
// leaves what a terminal may obey, as CSI in one character, or writing from right to
// left.
func appendASCII(dst, src []byte) []byte {
	for len(src) > 0 {
		r, size := utf8.DecodeRune(src)
		src = src[size:]
		switch {
		case r < 0x7f:
			dst = append(dst, byte(r))
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, high, low)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
	}
	return dst
}

var errNoLine = errors.New("it is not a line of the audit log")

// parseLine reads a line without its newline. body is what is hashed.
func parseLine(raw []byte) (line Line, body []byte, hash digest, err error) {
	at := len(raw) - len(lineEnd) - hex.EncodedLen(len(hash)) - len(fieldHash)
	if at < 0 || !bytes.HasSuffix(raw, []byte(lineEnd)) || !bytes.HasPrefix(raw[at:], []byte(fieldHash)) {
		return line, nil, hash, errNoLine
	}
	hash, ok := parseDigest(string(raw[at+len(fieldHash) : len(raw)-len(lineEnd)]))
	if !ok || json.Unmarshal(raw, &line) != nil {
		return line, nil, hash, errNoLine
	}
	return line, raw[:at], hash, nil
}

// ParseLine reads a line of the log, with or without its newline, and checks nothing
// but its form.
func ParseLine(raw []byte) (Line, error) {
	line, _, _, err := parseLine(bytes.TrimSuffix(raw, []byte("\n")))
	return line, err
}

// When is the line's time, zero when it is none.
func (l *Line) When() time.Time {
	t, _ := time.Parse(timeLayout, l.Time)
	return t
}
