package provider

import (
	"strconv"

	"github.com/authpool/authpool/proxy/meter"
)

// paths is the manifest as it holds at one provider, the operator's rules in front. It
// finds rows by the first segment of their patterns, so that a request costs the same
// however many there are.
type paths struct {
	rules []*rule // the operator's
	lifts bool    // one of them allows what is refused

	mounts []string
	all    bool // all is the provider's API: the base URL ends in its version
	root   bool // what is known also begins at the host
	apis   []*row

	refusals map[string][]*row // by the first segment, of patterns that begin at a mount
	words    map[string]*row   // that are refused wherever they stand
	marks    []*row            // refused wherever they stand, and no words

	rows  map[string][]*row
	loose []*row // rows whose first segment is no text

	sockets []*row
}

// newPaths selects from m what holds at a provider.
func newPaths(m *manifest, f Family, provider string) *paths {
	t := &paths{mounts: m.mounts, root: m.roots&at(f) != 0, refusals: map[string][]*row{}, words: map[string]*row{}, rows: map[string][]*row{}}
	for _, r := range m.apis {
		if r.isAt(f, provider) {
			t.apis = append(t.apis, r)
		}
	}
	for _, r := range m.rows {
		if !r.isAt(f, provider) {
			continue
		}
		head, literal := r.head()
		switch {
		case r.socket:
			t.sockets = append(t.sockets, r)
		case r.Action == Refuse && r.where == anywhere && literal && len(r.segments) == 1:
			t.words[head] = r
		case r.Action == Refuse && r.where == anywhere:
			t.marks = append(t.marks, r)
		case r.Action == Refuse:
			t.refusals[head] = append(t.refusals[head], r)
		case literal:
			t.rows[head] = append(t.rows[head], r)
		default:
			t.loose = append(t.loose, r)
		}
	}
	return t
}

// refuses returns the row by which the manifest refuses a path whatever the method, or
// nil.
func (t *paths) refuses(p *plainPath) *row { return t.refusesFrom(p, 0) }

// refusesFrom is refuses for rows that match from segment start on, or from one behind.
func (t *paths) refusesFrom(p *plainPath, start int) *row {
	for i := start; i < p.count; i++ {
		segment := p.segments[i]
		var buf [maxName]byte
		name := foldName(&buf, segment)
		if r := t.words[string(name)]; r != nil {
			return r
		}
		if rows := t.refusals[string(name)]; len(rows) > 0 {
			begins := i == 0 || t.mounted(p.segments[i-1])
			for _, r := range rows {
				if (i == 0 || begins && r.where == fromMount) && r.match(p, i) {
					return r
				}
			}
		}
		for _, r := range t.marks {
			if r.match(p, i) {
				return r
			}
		}
	}
	return nil
}

// forbids is refuses, but for what an operator's rule may allow: which method that is
// for is seen when the request is inspected.
func (t *paths) forbids(p *plainPath) *row {
	no := t.refuses(p)
	if no == nil || !t.lifts {
		return no
	}
	for _, r := range t.rules {
		if r.Action.Sends() && r.exact() && r.match(p, 0) {
			return nil
		}
	}
	return no
}

// mounted tells whether an API may begin behind a segment: one that only says where it
// is mounted (`v1`, `openai`).
func (t *paths) mounted(segment []byte) bool {
	if isVersion(segment) {
		return true
	}
	for _, mount := range t.mounts {
		if foldedEqual(segment, mount) {
			return true
		}
	}
	return false
}

// api tells whether a path is below the mount of an API.
func (t *paths) api(p *plainPath) bool {
	if t.all {
		return true
	}
	for _, r := range t.apis {
		if r.match(p, 0) {
			return true
		}
	}
	return false
}

var (
	// resourceEndpoint is for all methods but POST. They read, change or delete
	// what is there: that costs no tokens, and one row is enough for it.
	resourceEndpoint = Endpoint{Name: "resource", Action: Free}
	// otherEndpoint is for POST paths of an API that no row knows. What a new path costs
	// is not known either, so that it is counted as unknown, not as nothing.
	otherEndpoint = Endpoint{Name: "other", Action: Inject, API: meter.OpenAIOther, Creates: true}
	// unknownEndpoint is for a host's other paths.
	unknownEndpoint = Endpoint{Name: "unknown", Action: Unknown}
)

var post = methodOf([]byte("POST"))

// endpoint finds what a request is. Named is what the path names: the model, or the
// batch or response that the answer shows; else nil.
func (t *paths) endpoint(p *plainPath, method []byte) (e *Endpoint, named []byte) {
	if p.deep {
		return &unknownEndpoint, nil // what it is stands further down
	}
	one := methodOf(method)
	for _, r := range t.rules {
		if !r.methods.has(one) || !r.match(p, 0) {
			continue
		}
		if r.Action.Sends() && !r.exact() && t.refuses(p) != nil {
			continue // what is refused is opened by its own path alone
		}
		return r.endpoint(t, p, one)
	}
	if t.lifts { // else Route has looked
		if r := t.refuses(p); r != nil {
			return &r.Endpoint, nil
		}
	}
	return t.find(p, one)
}

// find is endpoint without the operator's rules and without what is refused.
func (t *paths) find(p *plainPath, method methods) (e *Endpoint, named []byte) {
	api, known := t.api(p), false
	for i := range p.count {
		begins := api || t.root
		if i > 0 {
			if begins = api && t.mounted(p.segments[i-1]); !begins {
				continue
			}
		}
		if begins && method == post {
			if e, model := p.googleEndpoint(i); e != nil {
				return e, model
			}
			if e, model := p.bedrockEndpoint(i); e != nil {
				return e, model
			}
		}
		var head [maxName]byte
		for _, rows := range [...][]*row{t.rows[string(foldName(&head, p.segments[i]))], t.loose} {
			for _, r := range rows {
				switch {
				case r.where == fromHost && i > 0, r.where != fromHost && !begins, !r.match(p, i):
				case !r.methods.has(method):
					known = known || begins
				case r.names > 0:
					return &r.Endpoint, p.segments[i+r.names]
				default:
					return &r.Endpoint, nil
				}
			}
		}
	}
	switch {
	case !api && !known:
		return &unknownEndpoint, nil
	case method == post:
		return &otherEndpoint, nil
	default:
		return &resourceEndpoint, nil
	}
}

// withhold is the answer to a request whose row has it not sent, or nil.
func (e *Endpoint) withhold(p *Provider, rest []byte) *Refusal {
	f := shape(p, e)
	switch e.Action {
	case Refuse:
		return forbidden(f, e)
	case Local:
		return &Refusal{
			Status: 404, Code: CodeLocal, Family: f, Endpoint: e,
			Message: "calls of " + e.Name + " are answered by authpool itself and not sent to the provider",
		}
	case Unknown:
		return &Refusal{
			Status: 404, Code: CodeUnknownPath, Family: f, Endpoint: e,
			Message: strconv.Quote(string(rest[:min(len(rest), maxShown)])) + " is no known path of " + p.Name + "'s API and gets no credential; " +
				"if it should, an operator allows it by providers." + p.Name + ".paths",
		}
	default:
		return nil
	}
}

// maxShown is how much of a path a message repeats.
const maxShown = 100
