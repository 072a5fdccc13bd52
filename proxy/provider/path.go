package provider

import "bytes"

// maxSegments is how many segments of a path are looked at. No API's path is
// deeper, and one that is gets no credential.
const maxSegments = 16

// maxPathDecodes is how often a path may change by percent-decoding before it is
// refused. Once is normal; more is how one hides a path from a proxy.
const maxPathDecodes = 3

// plainPath is a path as the most lenient upstream could read it: decoded as
// often as it can be, without empty segments and path parameters. The manifest is
// matched against it, never against the bytes that were sent.
type plainPath struct {
	segments [maxSegments][]byte
	count    int
	deep     bool // there are more segments
}

// parsePath reads path, which stands behind the host in a URL, without the
// query. It returns false for a path that upstreams could understand in
// different ways: dot segments in any encoding, backslashes, control and
// non-ASCII bytes (overlong UTF-8), an encoded `?` or `#`, malformed or often
// nested escapes. The result lives in path or, when that has escapes, in buf.
func parsePath(buf, path []byte) (p plainPath, ok bool) {
	if len(path) == 0 || path[0] != '/' || bytes.IndexByte(path, ' ') >= 0 {
		return p, false
	}
	for decodes := 0; ; decodes++ {
		if !plainBytes(path) || dotSegments(path) {
			return p, false
		}
		if bytes.IndexByte(path, '%') < 0 {
			break
		}
		if decodes == maxPathDecodes {
			return p, false
		}
		// A text never grows by decoding, so that it may be done in place.
		buf, ok = unescape(buf[:0], path)
		if !ok {
			return p, false
		}
		path = buf
	}
	for more := true; more; {
		var segment []byte
		segment, path, more = bytes.Cut(path, []byte{'/'})
		segment = trimSegment(segment)
		switch {
		case len(segment) == 0:
		case p.count == maxSegments:
			p.deep = true
		default:
			p.segments[p.count] = segment
			p.count++
		}
	}
	return p, true
}

// tail is the path without its first segment.
func (p plainPath) tail() plainPath {
	for i := 1; i < p.count; i++ {
		p.segments[i-1] = p.segments[i]
	}
	p.count--
	return p
}

// badPath tells whether path is one that parsePath refuses; the empty one is not.
func badPath(path []byte) bool {
	_, ok := parsePath(nil, path)
	return len(path) > 0 && !ok
}

// plainBytes tells whether every byte may stand in a path of an API.
func plainBytes(path []byte) bool {
	for _, c := range path {
		if c < ' ' || c > '~' || c == '\\' || c == '#' || c == '?' {
			return false
		}
	}
	return true
}

// dotSegments tells whether a segment of path is `.` or `..`, path parameters
// (`..;x`) and white space around it aside.
func dotSegments(path []byte) bool {
	for len(path) > 0 {
		var segment []byte
		segment, path, _ = bytes.Cut(path, []byte{'/'})
		segment, _, _ = bytes.Cut(segment, []byte{';'})
		segment = trimSpace(segment)
		if string(segment) == "." || string(segment) == ".." {
			return true
		}
	}
	return false
}

// trimSegment cuts off what some servers ignore at the end of a segment.
func trimSegment(segment []byte) []byte {
	segment, _, _ = bytes.Cut(segment, []byte{';'})
	segment = trimSpace(segment)
	for len(segment) > 0 && segment[len(segment)-1] == '.' {
		segment = segment[:len(segment)-1]
	}
	return segment
}

// unescape appends to dst the text with its percent escapes undone; false when
// one is malformed.
func unescape(dst, text []byte) ([]byte, bool) {
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '%' {
			if i+2 >= len(text) {
				return dst, false
			}
			high, low := unhex(text[i+1]), unhex(text[i+2])
			if high > 15 || low > 15 {
				return dst, false
			}
			c = high<<4 | low
			i += 2
		}
		dst = append(dst, c)
	}
	return dst, true
}

// unhex returns the value of a hex digit, or more than 15.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// isVersion tells whether a segment is an API version: v1, v1beta, v2, v1beta1.
func isVersion(segment []byte) bool {
	if len(segment) < 2 || lower(segment[0]) != 'v' || segment[1] < '0' || segment[1] > '9' {
		return false
	}
	for _, c := range segment[2:] {
		if c = lower(c); (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
