package provider

import "bytes"

// cutParameter splits the first piece off a query, and the separator behind it.
// A `;` counts as a separator, because some servers take it for one.
func cutParameter(query []byte) (piece, rest []byte) {
	if end := bytes.IndexAny(query, "&;"); end >= 0 {
		return query[:end], query[end+1:]
	}
	return query, nil
}

// parameterName writes the name of a piece of a query to buf: decoded, in lower
// case and with hyphens for underscores. It returns nil for a name that is
// longer than any that is looked for.
func parameterName(buf *[maxName]byte, piece []byte) []byte {
	raw, _, _ := bytes.Cut(piece, []byte{'='})
	n := 0
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' && i+2 < len(raw) {
			if high, low := unhex(raw[i+1]), unhex(raw[i+2]); high <= 15 && low <= 15 {
				c = high<<4 | low
				i += 2
			}
		}
		if c = lower(c); c == '_' {
			c = '-'
		}
		if n == maxName {
			return nil
		}
		buf[n] = c
		n++
	}
	return buf[:n]
}

// isSecretParameter tells whether a query parameter can hold a credential, by
// its name as parameterName returns it (access_token and its older name
// oauth_token are Google's, X-Amz-* those of a presigned request).
func isSecretParameter(name []byte) bool {
	switch string(name) {
	case "key", "api-key", "access-token", "oauth-token":
		return true
	}
	return bytes.HasPrefix(name, []byte("x-amz-"))
}

// appendQuery appends `?` and the query without the parameters that can hold
// credentials; the others stay as they are, bytes and order.
func appendQuery(dst, query []byte) []byte {
	separator := byte('?')
	for rest := query; len(rest) > 0; {
		piece, next := cutParameter(rest)
		var buf [maxName]byte
		if !isSecretParameter(parameterName(&buf, piece)) {
			if separator != '?' {
				separator = query[len(query)-len(rest)-1] // the one before piece
			}
			dst = append(dst, separator)
			dst = append(dst, piece...)
			separator = '&'
		}
		rest = next
	}
	return dst
}
