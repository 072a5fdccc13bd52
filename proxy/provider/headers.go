package provider

import (
	"bytes"
	"iter"
)

// Headers is a request's header block as it was sent: the lines behind the
// request line, with or without the empty line at the end. The front has
// already refused what is ambiguous in it (folded lines, bare LF).
//
// Names are kept in the case in which they came, which is why looking one up
// means walking all of them.
type Headers []byte

// All yields name and value of every line, in order, as sent but without the
// white space around the value. Lines without a colon are left out.
func (h Headers) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for rest := h; ; {
			name, value, next, ok := rest.cut()
			if !ok || !yield(name, value) {
				return
			}
			rest = next
		}
	}
}

// Get returns the first value of a header, or nil. The name is in lower case.
func (h Headers) Get(name string) []byte {
	for rest := h; ; {
		n, value, next, ok := rest.cut()
		if !ok {
			return nil
		}
		if foldedEqual(n, name) {
			return value
		}
		rest = next
	}
}

// cut splits off the first line that has a name.
func (h Headers) cut() (name, value []byte, rest Headers, ok bool) {
	for len(h) > 0 {
		line := []byte(h)
		if end := bytes.IndexByte(h, '\n'); end >= 0 {
			line, h = h[:end], h[end+1:]
		} else {
			h = nil
		}
		line = bytes.TrimSuffix(line, []byte{'\r'})
		if len(line) == 0 {
			return nil, nil, nil, false
		}
		if colon := bytes.IndexByte(line, ':'); colon > 0 {
			return line[:colon], trimSpace(line[colon+1:]), h, true
		}
	}
	return nil, nil, nil, false
}

// trimSpace cuts spaces and tabs off both ends.
func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// foldedEqual compares b with s, which is in lower case, ignoring ASCII case.
func foldedEqual(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if lower(c) != s[i] {
			return false
		}
	}
	return true
}

// foldedPrefix tells whether b begins with prefix, which is in lower case.
func foldedPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && foldedEqual(b[:len(prefix)], prefix)
}

// lower returns the lower case of an ASCII byte.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// maxName is the longest header name that means something to this package.
const maxName = 64

// foldName writes name in lower case to buf and returns it, or nil when it is
// longer than any name that is looked for.
func foldName(buf *[maxName]byte, name []byte) []byte {
	if len(name) > maxName {
		return nil
	}
	for i, c := range name {
		buf[i] = lower(c)
	}
	return buf[:len(name)]
}

// cutElement splits the first element off a comma-separated header value; the
// element is empty when there are no more.
func cutElement(list []byte) (element, rest []byte) {
	for len(list) > 0 {
		element, list, _ = bytes.Cut(list, []byte{','})
		if element = trimSpace(element); len(element) > 0 {
			return element, list
		}
	}
	return nil, nil
}
