package proxy

import (
	"bytes"
	"net"
	"strings"

	"github.com/valyala/fasthttp"
)

// headFault is why a raw head is refused; "" when it is not. The texts are for
// the agent's developer.
type headFault string

// checkHead looks at a request's head as it was sent, before anything is
// routed by it. Two parsers that read a head differently can be made to see two
// requests in one (request smuggling), so that everything ambiguous is refused:
// RFC 9112, sections 2.2, 3.2, 5.1, 5.2, 6.1 and 6.3.
//
// raw holds the header lines with their line ends, and the empty line. closes tells that
// the connection is to end with the answer.
func checkHead(raw []byte, method []byte) (closes bool, fault headFault) {
	hosts, lengths, encodings := 0, 0, 0
	var length, encoding []byte
	for len(raw) > 0 {
		i := bytes.IndexByte(raw, '\n')
		if i < 0 || i == 0 || raw[i-1] != '\r' {
			return true, "a header line ends without CR LF"
		}
		line := raw[:i-1]
		raw = raw[i+1:]
		if len(line) == 0 {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			return true, "a header is folded over two lines"
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 || !isToken(line[:colon]) {
			return true, "a header name is not valid"
		}
		value := bytes.Trim(line[colon+1:], " \t")
		if !isFieldValue(value) {
			return true, "a header value has a control character"
		}
		switch name := line[:colon]; len(name) {
		case len("host"):
			if equalFold(name, "host") {
				hosts++
			}
		case len("connection"):
			if equalFold(name, "connection") {
				closes = closes || hasClose(value)
			}
		case len("content-length"):
			if equalFold(name, "content-length") {
				lengths++
				length = value
			}
		case len("transfer-encoding"):
			if equalFold(name, "transfer-encoding") {
				encodings++
				encoding = value
			}
		}
	}
	switch {
	case hosts != 1:
		return true, "there must be exactly one Host header"
	case lengths > 1 || lengths == 1 && !isDigits(length):
		return true, "Content-Length must be one number"
	case encodings > 0 && lengths > 0:
		return true, "Content-Length and Transfer-Encoding exclude each other"
	case encodings > 1 || encodings == 1 && !equalFold(encoding, "chunked"):
		return true, "the only Transfer-Encoding taken is chunked"
	case (string(method) == fasthttp.MethodGet || string(method) == fasthttp.MethodHead) &&
		(encodings > 0 || lengths == 1 && string(length) != "0"):
		return true, "a GET or HEAD request has no body here"
	}
	return closes, ""
}

// hasClose tells whether a Connection header has the option close, whose case is any
// and which may be one of several (RFC 9110, section 7.6.1). fasthttp knows it alone and
// in lower case.
func hasClose(value []byte) bool {
	for len(value) > 0 {
		var option []byte
		option, value, _ = bytes.Cut(value, []byte{','})
		if equalFold(bytes.Trim(option, " \t"), "close") {
			return true
		}
	}
	return false
}

// isMethod tells whether a method is one that providers serve. Methods are
// case-sensitive (RFC 9110, section 9.1); a `post` that a lenient provider took
// for a POST would be served uncounted.
func isMethod(method []byte) bool {
	switch string(method) {
	case fasthttp.MethodGet, fasthttp.MethodHead, fasthttp.MethodPost, fasthttp.MethodPut,
		fasthttp.MethodPatch, fasthttp.MethodDelete, fasthttp.MethodOptions:
		return true
	}
	return false
}

// isToken follows RFC 9110, section 5.6.2.
func isToken(b []byte) bool {
	for _, c := range b {
		if !tokenChar[c] {
			return false
		}
	}
	return len(b) > 0
}

var tokenChar = func() (t [256]bool) {
	for c := byte('0'); c <= '9'; c++ {
		t[c] = true
	}
	for c := byte('a'); c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()

// isFieldValue follows RFC 9110, section 5.5: no control character but tab.
func isFieldValue(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func isDigits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0 && len(b) < 19
}

// equalFold compares a name as sent with a lower-case one.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// splitTarget takes a request target apart. A target in absolute form is
// accepted only when its authority is the Host header's; anything else would
// make authpool a forward proxy, or let two parsers disagree about the host
// (RFC 9112, section 3.2.2). ok is false when they differ.
func splitTarget(target, host []byte) (path []byte, ok bool) {
	if len(target) > 0 && target[0] == '/' {
		return target, true
	}
	for _, scheme := range []string{"http://", "https://"} {
		if len(target) < len(scheme) || !equalFold(target[:len(scheme)], scheme) {
			continue
		}
		rest := target[len(scheme):]
		i := bytes.IndexAny(rest, "/?#")
		if i < 0 {
			i = len(rest)
		}
		if !bytes.EqualFold(rest[:i], host) {
			return nil, false
		}
		if path = rest[i:]; len(path) == 0 || path[0] != '/' {
			path = append([]byte{'/'}, path...)
		}
		return path, true
	}
	return nil, false
}

// isLocalHost tells whether a Host header names this machine. A web page whose
// name was rebound to 127.0.0.1 carries its own name there.
func isLocalHost(host string) bool {
	if h, port, err := net.SplitHostPort(host); err == nil {
		if !isDigits([]byte(port)) {
			return false
		}
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") || len(host) > len(".localhost") && strings.EqualFold(host[len(host)-len(".localhost"):], ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// isTarget tells whether a request target in origin form holds only what may
// stand there: no fragment, no space, no control character.
func isTarget(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c == 0x7f || c == '#' {
			return false
		}
	}
	return len(b) > 0 && b[0] == '/'
}
