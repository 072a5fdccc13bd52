package usage

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// maxName is the length of the longest model, agent or session in Redis.
const maxName = 128

// cleanModel returns the model as it may stand in a field name: printable ASCII,
// at most maxName bytes. Whoever fills an Event has cleaned it already; this is
// the last line of defence before Redis. An answer that names no model counts
// for "unknown".
func cleanModel(s string) string {
	if s == "" {
		return "unknown"
	}
	s = s[:min(len(s), maxName)]
	return strings.Map(func(r rune) rune {
		if r < '!' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// cleanID returns an agent or session as it may stand in a key: letters, digits,
// dot, underscore and hyphen are kept, anything else becomes a hash.
func cleanID(s string) string {
	ok := len(s) <= maxName
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
	}
	if ok {
		return s
	}
	return hashed(s)
}

// shorten returns a name that is too long as a hash.
func shorten(s string) string {
	if len(s) <= maxName {
		return s
	}
	return hashed(s)
}

func hashed(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "h-" + hex.EncodeToString(sum[:16])
}
