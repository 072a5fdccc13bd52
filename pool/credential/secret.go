package credential

import (
	"fmt"
	"log/slog"
	"unique"
)

// Secret is a text that must not be seen. The zero Secret is empty.
// A Secret is immutable, safe for concurrent use, and equal (==) to another
// exactly when they hold the same text.
//
// The text stands behind a pointer: fmt's %p passes over Format and would print
// a string field as it is.
type Secret struct{ text unique.Handle[string] }

// NewSecret wraps text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{text: unique.Make(text)}
}

// Reveal returns the text itself. Callers must not log, store or return it.
func (s Secret) Reveal() string {
	if s.Empty() {
		return ""
	}
	return s.text.Value()
}

// Empty tells whether there is no secret at all.
func (s Secret) Empty() bool { return s == Secret{} }

// Hint is a form that people can tell apart and nobody can use: the last two
// characters of a secret that is long enough to spare them.
func (s Secret) Hint() string {
	text := s.Reveal()
	switch n := len(text); {
	case n == 0:
		return "(empty)"
	case n < 16:
		return "***"
	default:
		return "***" + text[n-2:]
	}
}

// Format implements fmt.Formatter, so that no verb can print the text.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.Hint())) }

// String implements fmt.Stringer with the hint.
func (s Secret) String() string { return s.Hint() }

// LogValue implements slog.LogValuer with the hint.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.Hint()) }

// MarshalText implements encoding.TextMarshaler with the hint, for JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.Hint()), nil }
