package provider

import (
	"bytes"
	"net/url"
	"slices"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// maxNamed is how many account-bound things a request may name whose agents are
// compared. A conversation repeats the files of all its turns.
const maxNamed = 256

// maxCandidate is the longest text that is looked at as the id of something, Google's
// URLs and escapes within it included.
const maxCandidate = 1 << 10

// Named finds every account-bound thing that a request names, wherever: while Pins
// are of the documented places, by which a request is routed, an agent that wants
// what is another's may look for a place that is not known here. A text inside JSON
// counts when all of it is an id, whatever its key.
type Named struct {
	IDs []string // in the form of Pins.IDs, each once
	// Unread says that not all could be looked at: there are too many ids, or the body
	// is compressed in a way that is not known here.
	Unread bool

	family Family
	starts *[256]bool // manifest.starts
	// A text that began in the former piece.
	text []byte
	long bool
}

// Begin makes n ready for a JSON text that comes by Write.
func (n *Named) Begin(f Family) {
	*n = Named{IDs: n.IDs[:0], text: n.text[:0], family: f, starts: &builtin().starts}
}

// Write reads the next piece of the text.
func (n *Named) Write(p []byte) { n.write(p) }

// names reads what the path, the query and the documented places of a request name.
func (n *Named) names(p *plainPath, query []byte, pins *Pins, f Family) {
	n.family, n.starts = f, &builtin().starts
	for _, id := range pins.IDs {
		n.addID(id)
	}
	var name [maxResource]byte
	for i, segment := range p.segments[:p.count] {
		n.add(segment)
		if f == Gemini && i > 0 && len(p.segments[i-1])+1+len(segment) <= maxResource {
			n.add(append(append(append(name[:0], p.segments[i-1]...), '/'), segment...))
		}
	}
	for len(query) > 0 {
		var field []byte
		field, query, _ = bytes.Cut(query, []byte{'&'})
		_, value, _ := bytes.Cut(field, []byte{'='})
		if text, err := url.QueryUnescape(string(value)); err == nil {
			n.add([]byte(text))
		}
	}
}

// write reads the next piece of a body. What stands between two quotation marks is
// looked at: that holds every text of a JSON body and, in a form, every line of JSON
// in a file, too.
func (n *Named) write(p []byte) {
	for {
		i := bytes.IndexByte(p, '"')
		if i < 0 {
			break
		}
		if piece := p[:i]; len(n.text) == 0 && !n.long {
			n.candidate(piece)
		} else {
			n.keep(piece)
			if !n.long {
				n.candidate(n.text)
			}
			n.text, n.long = n.text[:0], false
		}
		p = p[i+1:]
	}
	n.keep(p)
}

func (n *Named) keep(piece []byte) {
	if n.long || len(n.text)+len(piece) > maxCandidate {
		n.text, n.long = n.text[:0], true
		return
	}
	n.text = append(n.text, piece...)
}

// candidate looks at what stands between two quotation marks. Most are no ids at the
// first glance.
func (n *Named) candidate(text []byte) {
	if len(text) < minResource || len(text) > maxCandidate {
		return
	}
	if c := text[0]; !n.starts[c] && c != '\\' && n.family != Gemini || text[len(text)-1] == '\\' {
		return // the mark behind it is a part of a text, or it ends in a backslash
	}
	escaped := false
	for _, c := range text {
		if c <= ' ' || c > '~' {
			return
		}
		escaped = escaped || c == '\\'
	}
	if escaped {
		var buf [maxCandidate]byte
		text = jsonscan.Unquote(buf[:0], text)
	}
	n.add(text)
}

// minResource is shorter than any id: its kind, and a letter.
const minResource = len("vs_") + 1

// add adds what a text names, if it does.
func (n *Named) add(text []byte) {
	if len(text) < minResource {
		return
	}
	switch {
	case n.starts[text[0]] && len(text) <= maxResource && isResource(text):
		n.addID(string(text))
	case n.family == Gemini && bytes.IndexByte(text, '/') >= 0:
		if id := googleResource(text); id != nil {
			n.addID(string(id))
		}
	}
}

func (n *Named) addID(id string) {
	switch {
	case KeepResource(id) == keepNot || slices.Contains(n.IDs, id):
	case len(n.IDs) == maxNamed:
		n.Unread = true
	default:
		n.IDs = append(n.IDs, id)
	}
}

// Find reads all that r names. It reads the whole body, which Inspect has done
// already, and is for who needs to know.
func (n *Named) Find(r *Request, pins *Pins) {
	*n = Named{text: n.text[:0]}
	var pathBuf [256]byte
	path, _ := parsePath(pathBuf[:0], r.Rest) // Route has refused what is no path
	n.names(&path, r.Query, pins, r.Provider.Family)
	if len(r.Body) == 0 {
		return
	}
	var content contentHeaders
	content.read(r.Headers)
	if content.multipart() {
		formFields(content.mediaType, r.Body, func(_ string, value []byte) { n.add(value) })
	}
	if !content.encoded() {
		n.write(r.Body)
		return
	}
	n.Unread = n.Unread || !content.decoded(r.Body, make([]byte, 32<<10), func(piece []byte) bool {
		n.write(piece)
		return true
	})
}

// Missing is the status with which a provider of the family answers a request that
// names something which the account does not have.
func (f Family) Missing() int {
	if f == Gemini {
		return 403 // googleapis/python-genai#1218
	}
	return 404
}
