package jsonscan

import (
	"unicode/utf16"
	"unicode/utf8"
)

// Unquote appends to dst the text of a JSON string given without its quotes,
// with its escapes undone, and returns the result. A lone surrogate becomes
// U+FFFD; an escape that is cut off at the end (Value.Truncated) is left out.
func Unquote(dst, raw []byte) []byte {
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c != '\\' {
			dst = append(dst, c)
			continue
		}
		i++
		if i == len(raw) {
			return dst
		}
		switch raw[i] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r, ok := unit(raw[i+1:])
			if !ok {
				return dst
			}
			i += 4
			if utf16.IsSurrogate(r) {
				low, ok := rune(0), false
				if rest := raw[i+1:]; len(rest) > 2 && rest[0] == '\\' && rest[1] == 'u' {
					low, ok = unit(rest[2:])
				}
				pair := utf16.DecodeRune(r, low)
				if ok && pair != utf8.RuneError {
					i += 6
				}
				r = pair
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, raw[i])
		}
	}
	return dst
}

// unit reads the four hex digits of a \u escape.
func unit(hex []byte) (rune, bool) {
	if len(hex) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range hex[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
