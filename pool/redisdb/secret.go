package redisdb

import (
	"fmt"
	"log/slog"
)

// hidden is what every print of a Secret shows.
const hidden = "***"

// Secret holds a text that must not be seen: a password, or a URL that may
// carry one. It prints as "***" under every verb and encoding. The zero Secret
// is empty.
type Secret struct{ text string }

// NewSecret wraps text, which the caller has resolved already.
func NewSecret(text string) Secret { return Secret{text: text} }

// Empty tells whether there is no text at all.
func (s Secret) Empty() bool { return s.text == "" }

// Format implements fmt.Formatter, so that no verb prints the text.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// String implements fmt.Stringer without the text.
func (s Secret) String() string { return hidden }

// LogValue implements slog.LogValuer without the text.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements encoding.TextMarshaler without the text.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }
