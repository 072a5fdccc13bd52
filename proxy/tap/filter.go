package tap

import (
	"bytes"
	"slices"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// maxHeld bounds the bytes of an event that are held back while it may still
// be the usage chunk. A usage chunk has a few hundred bytes.
const maxHeld = 64 << 10

// The places in a chat completion chunk that tell the usage chunk.
const (
	atChoices = iota
	atChoice
	atUsage
	atError
	atOther
)

var chunkPaths = jsonscan.MustCompile("choices", "choices[]", "usage", "error", "*")

// filter takes the usage chunk out of an OpenAI stream: the one that the
// provider adds because authpool asked for include_usage. Its choices are an
// empty array, its usage is an object, and nothing else in it matters to an
// agent: what describes the chunk (id, model, ...) or measures it (Azure's
// latency_checkpoint, Groq's x_groq) does not; an error does, and any list, such
// as Azure's prompt_filter_results or a search's citations.
//
// The bytes of an event are held back until it cannot be the usage chunk, which
// for a chunk with content is where its first choice begins.
type filter struct {
	events  Events
	scanner jsonscan.Scanner
	begun   bool // the scanner has read a part of this event
	choices bool
	usage   bool
	matters bool

	fate fate
	tail fate   // what became of the event before
	held []byte // bytes of the current event from earlier pieces
	buf  []byte // held bytes and what followed, passed on
}

// A chunk with a choice holds one of these. Looking for them spares the reading
// of nearly every chunk: no usage chunk has such keys.
var (
	deltaKey = []byte(`"delta":`)
	textKey  = []byte(`"text":`)
)

// fate says what becomes of the bytes at hand.
type fate uint8

const (
	undecided fate = iota
	kept
	dropped
)

func (f *filter) reset() {
	f.events.Reset()
	f.next()
	f.tail = kept
	f.held = f.held[:0]
}

// next makes f ready for the next event.
func (f *filter) next() {
	f.begun, f.choices, f.usage, f.matters = false, false, false, false
	f.fate = undecided
}

// Found implements jsonscan.Handler for one chunk.
func (f *filter) Found(v *jsonscan.Value) {
	switch v.Path {
	case atChoices:
		if v.Kind == jsonscan.ArrayBegin {
			f.choices = true
		} else if v.Kind != jsonscan.ArrayEnd {
			f.matters = true
		}
	case atChoice:
		f.matters = true
	case atUsage:
		f.usage = f.usage || v.Kind == jsonscan.ObjectBegin
	case atError:
		f.matters = f.matters || v.Kind != jsonscan.Null
	case atOther:
		f.matters = f.matters || v.Kind == jsonscan.ArrayBegin
	}
}

// pass returns the bytes that may go on now. They lie in p or in f.buf.
func (f *filter) pass(p []byte) []byte {
	out := output{bytes: p[:0], piece: p, inPlace: true}
	from := 0 // p[from:at] may be of a usage chunk, as f.held may
	for at := 0; at < len(p); {
		other := f.events.other
		what, data, n := f.events.Next(p[at:])
		at += n
		switch what {
		case Line:
			if f.events.some {
				continue
			}
		case Data:
			f.read(data)
		case End:
			f.tail = kept
			if f.fate == undecided && f.isUsageChunk() {
				f.held = f.held[:0]
				from = at
				f.tail = dropped
				if other {
					// The event's name or a comment has gone on already: an
					// event that has no data ends it.
					out.add(lineFeed)
				}
			}
			f.next()
		case Tail:
			if f.tail == dropped {
				from = at
			}
		default:
		}
		if f.fate == undecided && f.events.mayBeEvent() && what != Line {
			continue
		}
		f.release(&out)
		out.keep(from, at)
		from = at
	}
	f.held = append(f.held, p[from:]...)
	if len(f.held) > maxHeld {
		f.fate = kept
		f.release(&out)
	}
	if !out.inPlace {
		f.buf = out.bytes
	}
	return out.bytes
}

// release puts out what was held back. It is older than anything else of the
// piece that is put out.
func (f *filter) release(out *output) {
	if len(f.held) == 0 {
		return
	}
	*out = output{bytes: append(f.buf[:0], f.held...), piece: out.piece}
	f.held = f.held[:0]
}

// output collects the bytes that go on of one piece: as a part of the piece
// itself while that is possible.
type output struct {
	bytes   []byte
	piece   []byte
	inPlace bool // bytes is the beginning of piece
}

func (o *output) keep(from, to int) {
	if o.inPlace && len(o.bytes) == from {
		o.bytes = o.piece[:to]
		return
	}
	o.bytes = append(o.bytes, o.piece[from:to]...)
}

func (o *output) add(text []byte) { o.bytes = append(o.bytes, text...) }

// finish is pass for the last bytes of the answer: nothing is held any longer,
// but a usage chunk that lacks only its blank line is still left out.
func (f *filter) finish(p []byte) []byte {
	out := f.pass(p)
	if len(f.held) > 0 && !f.isUsageChunk() {
		out = append(slices.Clip(out), f.held...)
	}
	f.held = f.held[:0]
	return out
}

// read reads a part of the current event's data.
func (f *filter) read(data []byte) {
	if f.fate != undecided {
		return
	}
	if !f.begun {
		f.begun = true
		if bytes.Contains(data, deltaKey) || bytes.Contains(data, textKey) {
			f.fate = kept
			return
		}
		f.scanner.Reset(chunkPaths, f)
	}
	f.scanner.Write(data)
	if f.matters || !f.scanner.Valid() {
		f.fate = kept
	}
}

func (f *filter) isUsageChunk() bool {
	return f.begun && f.scanner.Done() && f.choices && f.usage && !f.matters
}
