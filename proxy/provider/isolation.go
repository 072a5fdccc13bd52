package provider

import (
	"bytes"
	"net/url"
	"slices"
	"strings"

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
	form   bool       // the body is one with files

	// What has begun in the former piece.
	quoted, single, line cutting
}

// cutting cuts texts out of a body that comes in pieces.
type cutting struct {
	text []byte
	long bool // longer than any id
}

// Begin makes n ready for a JSON text that comes by Write.
func (n *Named) Begin(f Family) { n.begin(f, n.IDs[:0]) }

func (n *Named) begin(f Family, ids []string) {
	*n = Named{
		IDs: ids, family: f, starts: &builtin().starts,
		quoted: cutting{text: n.quoted.text[:0]}, single: cutting{text: n.single.text[:0]}, line: cutting{text: n.line.text[:0]},
	}
}

// Write reads the next piece of the text.
func (n *Named) Write(p []byte) { n.write(p) }

// names reads what the path, the query and the documented places of a request name.
func (n *Named) names(p *plainPath, query []byte, pins *Pins) {
	for _, id := range pins.IDs {
		n.addID([]byte(id))
	}
	var name [maxResource]byte
	for i, segment := range p.segments[:p.count] {
		n.add(segment)
		if n.family == Gemini && i > 0 && len(p.segments[i-1])+1+len(segment) <= maxResource {
			n.add(append(append(append(name[:0], p.segments[i-1]...), '/'), segment...))
		}
	}
	n.fields(query)
}

// fields reads the values of a query, or of the form of a page, and of lists in them.
func (n *Named) fields(query []byte) {
	for len(query) > 0 {
		var field []byte
		field, query = cutParameter(query)
		_, value, _ := bytes.Cut(field, []byte{'='})
		text, err := url.QueryUnescape(string(value))
		if err != nil {
			continue
		}
		n.add([]byte(text))
		if strings.IndexByte(text, ',') >= 0 {
			for one := range strings.SplitSeq(text, ",") {
				n.add([]byte(one))
			}
		}
	}
}

// write reads the next piece of a body. What stands between two quotation marks is
// looked at: that holds every text of a JSON body and, in a form, every line of JSON
// in a file, too. Google takes single ones as well (protobuf's JSON parser). A field of a
// form is a line of its own; how the form is cut, providers may see in different ways.
func (n *Named) write(p []byte) {
	n.cut(&n.quoted, p, '"')
	if n.family == Gemini {
		n.cut(&n.single, p, '\'')
	}
	if n.form {
		n.cut(&n.line, p, '\n')
	}
}

// cut looks at what stands between two marks.
func (n *Named) cut(c *cutting, p []byte, mark byte) {
	for {
		i := bytes.IndexByte(p, mark)
		if i < 0 {
			break
		}
		if piece := p[:i]; len(c.text) == 0 && !c.long {
			if n.glance(piece) {
				n.candidate(piece)
			}
		} else {
			c.keep(piece)
			if !c.long {
				n.candidate(c.text)
			}
			c.text, c.long = c.text[:0], false
		}
		p = p[i+1:]
	}
	c.keep(p)
}

func (c *cutting) keep(piece []byte) {
	if c.long || len(c.text)+len(piece) > maxCandidate {
		c.text, c.long = c.text[:0], true
		return
	}
	c.text = append(c.text, piece...)
}

// glance tells whether a text may be an id: most are none at the first look.
func (n *Named) glance(text []byte) bool {
	return len(text) >= minResource && len(text) <= maxCandidate && (n.starts[text[0]] || n.family == Gemini)
}

// candidate looks at what stands between two marks. In UTF-16 and UTF-32, which Python's
// servers take for JSON too, ASCII has zeros around it, and in UTF-8 there is none.
func (n *Named) candidate(text []byte) {
	if !n.glance(text) || text[len(text)-1] == '\\' {
		return // the mark behind it is a part of a text, if it ends in a backslash
	}
	if text[0] == 0 {
		n.candidate(bytes.ReplaceAll(text, []byte{0}, nil))
		return
	}
	if n.form {
		text = bytes.TrimSuffix(text, []byte{'\r'})
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
		n.addID(text)
	case n.family == Gemini:
		if bytes.IndexByte(text, '%') >= 0 {
			if plain, err := url.PathUnescape(string(text)); err == nil {
				text = []byte(plain)
			}
		}
		if bytes.IndexByte(text, '/') < 0 {
			return
		}
		if id := googleResource(text); id != nil {
			n.addID(id)
		}
	}
}

func (n *Named) addID(name []byte) {
	id := string(plainID(name))
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
	n.begin(r.Provider.Family, nil)
	var pathBuf [256]byte
	path, _ := parsePath(pathBuf[:0], r.Rest) // Route has refused what is no path
	n.names(&path, r.Query, pins)
	if len(r.Body) == 0 {
		return
	}
	var content contentHeaders
	content.read(r.Headers)
	n.form = content.files
	if content.page {
		n.fields(r.Body)
		n.Unread = n.Unread || content.encoded()
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
