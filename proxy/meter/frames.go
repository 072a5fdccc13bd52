package meter

import (
	"bytes"
	"encoding/base64"

	"github.com/authpool/authpool/proxy/eventstream"
	"github.com/authpool/authpool/proxy/jsonscan"
)

// frames reads an answer in AWS' event stream. A payload goes into the scanner
// as it comes, and what is found there is collected in Meter.event, as of any
// event: only at the frame's end, when its checksum was right, is it taken over.
// A frame whose checksum is wrong, or that was cut, has told nothing.
type frames struct {
	reader    eventstream.Reader
	begun     bool // the payload
	exception bool // the frame is an error

	// Of a payload that wraps the event's JSON text.
	wrapper jsonscan.Scanner
	coded   [1 << 9]byte // Base64 that is not decoded yet
	waiting int          // bytes of coded
	plain   [3 << 7]byte
}

func (f *frames) reset() {
	f.reader.Reset()
	f.next()
}

// next makes f ready for the next frame.
func (f *frames) next() { f.begun, f.exception, f.waiting = false, false, 0 }

// wrapperPaths are the places in a payload that wraps the event's JSON text:
// {"bytes":"..."}, beside which stands padding.
var wrapperPaths = jsonscan.MustCompile("bytes").Parts(0)

// exceptionTable is of the payload of a frame that tells of an error. Source:
// aws-sdk-go-v2/service/bedrockruntime, types.ModelStreamErrorException and the
// others of ResponseStream.
var exceptionTable = newTable([]place{
	{"message", failMessage},
	{"Message", failMessage},
	{"originalStatusCode", failStatus},
})

func (m *Meter) readFrames(p []byte) {
	for len(p) > 0 {
		what, data, n := m.frames.reader.Next(p)
		p = p[n:]
		switch what {
		case eventstream.Header:
			m.readFrameHeader()
		case eventstream.Payload:
			m.readPayload(data)
		case eventstream.End:
			m.endFrame()
		case eventstream.Broken:
			m.Blind()
			return
		default:
		}
	}
}

// readFrameHeader reads what a frame is. Errors that the service declares are of
// type exception, others of type error.
func (m *Meter) readFrameHeader() {
	e := &m.event
	switch name, value := m.frames.reader.Header(); string(name) {
	case ":message-type":
		m.frames.exception = string(value) == "exception" || string(value) == "error"
	case ":event-type":
		e.kind.set(value)
	case ":exception-type", ":error-code":
		e.failure.Type = string(value)
	case ":error-message":
		e.failure.Message = string(value)
	}
}

func (m *Meter) readPayload(p []byte) {
	f := m.frames
	wrapped := m.dialect.wrapped && !f.exception
	if !f.begun {
		f.begun = true
		if f.exception {
			m.begin(exceptionTable)
		} else {
			m.begin(m.dialect.events)
		}
		if wrapped {
			f.wrapper.Reset(wrapperPaths, (*unwrapper)(m))
		}
	}
	if wrapped {
		f.wrapper.Write(p)
	} else {
		m.scanner.Write(p)
	}
}

// endFrame takes over a frame whose checksum was right.
func (m *Meter) endFrame() {
	switch {
	case m.frames.exception:
		m.fail(&m.event)
	case m.event.whole:
		m.dialect.event(m, &m.event)
	}
	m.event.reset()
	m.frames.next()
}

// unwrapper is a Meter that reads the JSON text inside a payload.
type unwrapper Meter

// Found implements jsonscan.Handler. It decodes the pieces of a Base64 text that
// may be cut anywhere.
func (u *unwrapper) Found(v *jsonscan.Value) {
	if v.Kind != jsonscan.StringPart {
		return
	}
	f := u.frames
	for text := v.Raw; len(text) > 0; {
		piece := text
		switch i := bytes.IndexByte(text, '\\'); {
		case i == 0:
			text = text[1:] // of an escaped slash
			continue
		case i > 0:
			piece = text[:i]
		}
		n := copy(f.coded[f.waiting:], piece)
		text = text[n:]
		f.waiting += n
		whole := f.waiting &^ 3
		// Text that is not Base64 makes the JSON text incomplete, so that the
		// event is passed over.
		n, _ = base64.StdEncoding.Decode(f.plain[:], f.coded[:whole])
		u.scanner.Write(f.plain[:n])
		f.waiting = copy(f.coded[:], f.coded[whole:f.waiting])
	}
}
