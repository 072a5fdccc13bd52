// Package jsonscan finds a few values in JSON text that arrives in pieces of
// any size, without decoding it and without keeping it.
//
// Both sides of the proxy read JSON that must pass byte for byte: requests, to
// find the model or the session, and answers, to find the tokens used. A
// Scanner is pushed the bytes as they come and calls its Handler for each
// value that stands at a path compiled before. A path matches by structure
// only: text inside a string never does, however much it looks like JSON.
//
// Start at Compile for the paths and at Scanner for the reading. A Scanner
// accepts exactly the texts that RFC 8259 allows (as encoding/json does), to a
// nesting depth of 10,000, uses constant memory and allocates nothing once it
// has been used.
package jsonscan

// Kind says what a Value is. An object or array is reported twice: when it
// begins and when it ends.
type Kind uint8

// The kinds of a reported value.
const (
	ObjectBegin Kind = iota + 1
	ObjectEnd
	ArrayBegin
	ArrayEnd
	String
	Number
	True
	False
	Null
	// StringPart is a piece of a string at a path of Paths.Parts.
	StringPart
)

// Value is one value at one of the compiled paths. It and its slices are valid
// only until the handler returns.
type Value struct {
	// Path is the index of the matched path in the list given to Compile.
	Path int
	Kind Kind

	// Raw is a scalar's text as it stands in the input: a string without its
	// quotes and with its escapes, a number, a literal. It is nil for objects
	// and arrays, and holds at most the path's limit of bytes.
	Raw []byte
	// Truncated says that Raw is only the beginning of the scalar.
	Truncated bool
	// Escaped says that a string holds escapes; see Unquote.
	Escaped bool

	// Start and End are the value's place in the input, counted in bytes from
	// Reset, quotes and brackets included. When an object or array begins, End
	// is the offset just behind its opening bracket.
	Start, End int64
	// KeyStart and KeyEnd are the place of the value's key, quotes included;
	// both are -1 when the value is not a member of an object.
	KeyStart, KeyEnd int64

	// Key is the decoded key when the path's last segment is `*`, cut to 128
	// bytes; nil otherwise and when an object or array ends.
	Key []byte
	// Index is the position of the element that the value is, or is inside of,
	// in the innermost array that the path names; 0 when it names none.
	Index int
}

// Handler is told of the values that a Scanner finds, in the order of the text.
type Handler interface {
	// Found is called within Write or Close. It must not keep v.
	Found(v *Value)
}
