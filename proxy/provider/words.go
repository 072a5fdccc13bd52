package provider

import (
	"crypto/sha256"
	"encoding/hex"
)

// maxWord is the longest session id or model name that is kept (contract
// "Words").
const maxWord = 128

// CleanSession brings the id of a session to the contract's form, so that it
// can stand in a Redis key: ids of [A-Za-z0-9._-]{1,128} are kept, anything
// else becomes `h-` and 128 bit of its SHA-256 in hex. No id stays no id.
func CleanSession(id []byte) string {
	if len(id) == 0 {
		return ""
	}
	if len(id) <= maxWord && isWord(id) {
		return string(id)
	}
	return hashed(sha256.Sum256(id))
}

func isWord(id []byte) bool {
	for _, c := range id {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// hashed writes a session id for what has none that can be kept.
func hashed(sum [sha256.Size]byte) string {
	var id [2 + 32]byte
	copy(id[:], "h-")
	hex.Encode(id[2:], sum[:16])
	return string(id[:])
}

// CleanModel brings a model's name to the contract's form: at most 128
// printable ASCII characters. Others are replaced by `?`, one a byte, and the
// rest is cut off.
func CleanModel(name []byte) string {
	if len(name) > maxWord {
		name = name[:maxWord]
	}
	for i, c := range name {
		if c < ' ' || c > '~' {
			clean := append([]byte(nil), name...)
			for j := i; j < len(clean); j++ {
				if clean[j] < ' ' || clean[j] > '~' {
					clean[j] = '?'
				}
			}
			return string(clean)
		}
	}
	return string(name)
}
