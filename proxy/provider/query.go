package provider

import (
	"bytes"
	"iter"
)

// parameters yields the pieces of a query between its separators, with the
// decoded name of each. A `;` counts as a separator, because some servers take
// it for one. The name is valid until the next piece.
func parameters(query []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, piece []byte) bool) {
		var buf [maxName]byte
		for len(query) > 0 {
			piece := query
			if end := bytes.IndexAny(query, "&;"); end >= 0 {
				piece, query = query[:end], query[end+1:]
			} else {
				query = nil
			}
			name, _, _ := bytes.Cut(piece, []byte{'='})
			if len(name) <= 3*maxName {
				decoded, _ := unescape(buf[:0], name)
				name = decoded
			}
			if !yield(name, piece) {
				return
			}
		}
	}
}

// isSecretParameter tells whether a query parameter can hold a credential
// (providers.md 0.2; oauth_token is another name of access_token at Google).
func isSecretParameter(name []byte) bool {
	var buf [maxName]byte
	name = foldName(&buf, name)
	for i, c := range name {
		if c == '_' {
			name[i] = '-'
		}
	}
	switch string(name) {
	case "key", "api-key", "access-token", "oauth-token":
		return true
	}
	return bytes.HasPrefix(name, []byte("x-amz-"))
}

// appendQuery appends `?` and the query without the parameters that can hold
// credentials; the others stay as they are, bytes and order.
func appendQuery(dst, query []byte) []byte {
	at, written := 0, false // at: of the piece in query
	for name, piece := range parameters(query) {
		if !isSecretParameter(name) {
			if written {
				dst = append(dst, query[at-1])
			} else {
				dst = append(dst, '?')
			}
			dst = append(dst, piece...)
			written = true
		}
		at += len(piece) + 1
	}
	return dst
}
