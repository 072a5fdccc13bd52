package provider

import (
	"strings"

	"github.com/authpool/authpool/proxy/meter"
)

// Endpoint is one row of the path manifest: what a path of a provider's API
// does.
type Endpoint struct {
	// Name is the endpoint's path without version and ids, for logs and
	// explain: `messages`, `chat/completions`.
	Name string
	// API is the dialect in which the answer tells its usage; meter.None when
	// the call costs no tokens.
	API meter.API
	// Conversation says that the call is a turn of a conversation, so that it
	// belongs to a session even when nothing names one.
	Conversation bool
	// Creates says that the call leaves something behind at the provider
	// (a batch, a file, a stored conversation), so that repeating it would
	// leave it twice.
	Creates bool
	// Streams says that the answer is a stream unless the body asks for none.
	Streams bool

	anthropic bool // of Anthropic's API, although API does not say so
	tells     bool // a stream tells its usage unasked, and to be asked may be an error
}

// Billable tells whether the answer of a call has to be counted: by what it
// tells, or for API.Items by what it lists.
func (e *Endpoint) Billable() bool { return e.API != meter.None }

// pattern is a path below a provider's mount: segments in lower case, where `*`
// stands for any one segment and a last `**` for any number of them.
type pattern []string

func parsePattern(text string) pattern { return strings.Split(text, "/") }

// match tells whether the segments of p from i on are the pattern's.
func (want pattern) match(p *plainPath, i int) bool {
	for _, segment := range want {
		switch {
		case segment == "**":
			return true
		case i >= p.count:
			return false
		case segment != "*" && !foldedEqual(p.segments[i], segment):
			return false
		}
		i++
	}
	return i == p.count
}

// matchAnywhere tells whether the pattern matches p from any start.
func (want pattern) matchAnywhere(p *plainPath) bool {
	for i := range max(p.count, 1) {
		if p.start(i) && want.match(p, i) {
			return true
		}
	}
	return false
}

// served is a row for the calls of one method to a path.
type served struct {
	pattern
	at    families
	names int // the segment that names the model, or what API.Items shows; 0 is none
	Endpoint
}

// row is one of all families, since providers serve each other's dialects
// (OpenRouter and Ollama know /v1/messages).
func row(path string, e Endpoint) served { return rowAt(0, path, e) }

// rowAt is for a path that means something else at other families.
func rowAt(at families, path string, e Endpoint) served {
	if e.Name == "" {
		e.Name = strings.TrimSuffix(path, "/**")
	}
	return served{pattern: parsePattern(path), at: at, Endpoint: e}
}

// naming says that segment n of the path names the model, or the batch or response
// that the answer shows.
func (s served) naming(n int) served {
	s.names = n
	return s
}

// byHead finds rows by their first segment.
func byHead(rows []served) map[string][]*served {
	m := make(map[string][]*served)
	for i := range rows {
		head := rows[i].pattern[0]
		m[head] = append(m[head], &rows[i])
	}
	return m
}

var (
	postedByHead  = byHead(posted)
	fetchedByHead = byHead(fetched)
)

var (
	// resourceEndpoint is for all methods but POST. They read, change or delete
	// what is there: that costs no tokens, and one row is enough for it.
	resourceEndpoint = Endpoint{Name: "resource"}
	// otherEndpoint is for POST paths that no row knows. What a new path costs
	// is not known either, so that it is counted as unknown, not as nothing.
	otherEndpoint   = Endpoint{Name: "other", API: meter.OpenAIOther, Creates: true}
	unknownEndpoint = Endpoint{Name: "unknown", Creates: true}
)

// endpoint finds the row of a path at a provider of family f. Named is what the
// path names: the model, or the batch or response that the answer shows; else nil.
func (p *plainPath) endpoint(method []byte, f Family) (e *Endpoint, named []byte) {
	switch string(method) {
	case "POST":
	case "GET":
		for i := range p.count {
			if s := p.find(fetchedByHead, i, f); s != nil {
				return &s.Endpoint, p.segments[i+s.names]
			}
		}
		return &resourceEndpoint, nil
	default:
		return &resourceEndpoint, nil
	}
	versioned := false
	for i := range p.count {
		versioned = versioned || isVersion(p.segments[i])
		if !p.start(i) {
			continue
		}
		if e, model := p.googleEndpoint(i); e != nil {
			return e, model
		}
		if e, model := p.bedrockEndpoint(i); e != nil {
			return e, model
		}
		if s := p.find(postedByHead, i, f); s != nil {
			if s.names > 0 {
				named = p.segments[i+s.names]
			}
			return &s.Endpoint, named
		}
	}
	if versioned {
		return &otherEndpoint, nil
	}
	return &unknownEndpoint, nil
}

// find returns the first of rows that matches from segment i on.
func (p *plainPath) find(rows map[string][]*served, i int, f Family) *served {
	if !p.start(i) {
		return nil
	}
	var head [maxName]byte
	for _, s := range rows[string(foldName(&head, p.segments[i]))] {
		if s.at.has(f) && s.match(p, i) {
			return s
		}
	}
	return nil
}
