// Package provider knows what differs between LLM providers on the wire: which
// of them a path belongs to, what a request says about itself, how a credential
// is put on it, and what an answer says about limits. It keeps no state between
// requests and does no I/O.
//
// In the order in which a request meets it: Registry.Route finds the provider,
// AgentTokens the token that names the agent, Inspect the facts of the call
// (manifest.yaml says what each path means, and which get no credential),
// Provider.AppendHead writes the upstream's request head, Classify reads the
// answer and Repeatable says whether another subscription may be tried.
// ErrorBody writes an error of authpool's own so that the provider's SDKs
// understand it.
package provider

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Family is the dialect that a provider speaks: its credential header, its
// errors and its limit headers.
type Family uint8

// The families.
const (
	OpenAI    Family = iota // OpenAI and everything compatible with it
	Anthropic               // Anthropic and everything compatible with it
	Gemini                  // the Gemini API of generativelanguage.googleapis.com, and Vertex AI
	Azure                   // Azure OpenAI: OpenAI's bodies, an own credential header
	Bedrock                 // Amazon Bedrock, with its API keys
	Cohere                  // Cohere
	Ollama                  // Ollama's own API, which has OpenAI's and Anthropic's beside it
	Voyage                  // Voyage: OpenAI's embeddings, errors of its own
)

var familyNames = [...]string{"openai", "anthropic", "gemini", "azure", "bedrock", "cohere", "ollama", "voyage"}

// String returns the family's name in the config.
func (f Family) String() string { return familyNames[f] }

// ParseFamily is the inverse of String.
func ParseFamily(name string) (Family, error) {
	if i := slices.Index(familyNames[:], name); i >= 0 {
		return Family(i), nil
	}
	return 0, fmt.Errorf("unknown provider type %q: want one of %s", name, strings.Join(familyNames[:], ", "))
}

// families is a set of families. The zero value holds them all.
type families uint16

// at is the set of list.
func at(list ...Family) families {
	var set families
	for _, f := range list {
		set |= 1 << f
	}
	return set
}

func (set families) has(f Family) bool { return set == 0 || set&(1<<f) != 0 }

// Options describes one provider, as the config gives it.
type Options struct {
	Name    string
	Family  Family
	BaseURL string // scheme and host, a path prefix allowed
	// AllowPlaintext lets BaseURL be http, which shows the credential to
	// everyone on the way.
	AllowPlaintext bool
	// AskUsage says that streams that did not ask for usage are made to ask.
	AskUsage bool
	// Paths are asked before the built-in path manifest.
	Paths []PathRule
}

// Provider is an API family reached at one base URL. It is immutable.
type Provider struct {
	Name     string
	Family   Family
	TLS      bool   // the scheme is https
	Host     string // host, and port where the base URL names one
	Origin   string // scheme and Host, such as https://api.openai.com
	Prefix   string // path put before every REST path; empty or "/…" without a slash at its end
	AskUsage bool

	paths *paths
	notes []*PathError
}

// New checks o and makes the Provider of it.
func New(o Options) (*Provider, error) {
	p, err := newProvider(o)
	if err != nil {
		return nil, fmt.Errorf("cannot use provider %q: %w", o.Name, err)
	}
	return p, nil
}

func newProvider(o Options) (*Provider, error) {
	if o.Name == "" || strings.ContainsAny(o.Name, "/%?# ") {
		return nil, errors.New("its name cannot stand in a path")
	}
	if slices.Contains(reservedNames, o.Name) {
		return nil, errors.New("its name begins paths of authpool's own routes; choose another")
	}
	u, err := url.Parse(o.BaseURL)
	switch {
	case err != nil:
		// The error repeats the URL, which can hold a password.
		return nil, errors.New("its base_url is not a URL")
	case u.Host == "" || u.Opaque != "":
		return nil, errors.New("its base_url has no host")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("its base_url holds more than scheme, host and path")
	case u.Scheme == "http" && !o.AllowPlaintext:
		return nil, errors.New("its base_url is http: set allow_plaintext if the credential may be seen on the way")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("its base_url has the scheme %q: want https", u.Scheme)
	}
	prefix := strings.TrimSuffix(u.EscapedPath(), "/")
	if strings.ContainsFunc(u.Host+prefix, isControl) || badPath([]byte(prefix)) {
		return nil, errors.New("its base_url holds characters that no request line may hold")
	}
	p := &Provider{
		Name: o.Name, Family: o.Family, TLS: u.Scheme == "https",
		Host: u.Host, Prefix: prefix, AskUsage: o.AskUsage, Origin: u.Scheme + "://" + u.Host,
		paths: newPaths(builtin(), o.Family, o.Name),
	}
	p.paths.all = isVersion([]byte(prefix[strings.LastIndexByte(prefix, '/')+1:]))
	var faults []*PathError
	if p.notes, faults = p.paths.add(o.Paths, o.Name); len(faults) > 0 {
		errs := make([]error, len(faults))
		for i, fault := range faults {
			errs[i] = fault
		}
		return nil, errors.Join(errs...)
	}
	return p, nil
}

func isControl(r rune) bool { return r <= ' ' || r == 0x7f }

// reservedNames cannot name a provider, because routes without a provider
// begin with them (contract "Routing").
var reservedNames = []string{"v1", "v1beta", "v1alpha", "healthz"}

// Registry holds the providers that requests can name. It is immutable and
// safe for concurrent use.
type Registry struct {
	byName      map[string]*Provider
	byAuthority map[Authority][]*Provider
	hosts       map[string]bool // of byAuthority
	routes      string          // what NotFound lists
	notes       []*PathError
	// anybodys are the paths of each family, for requests that go to no provider.
	anybodys [len(familyNames)]*paths
}

// NewRegistry makes a Registry of options. Names must be unique.
func NewRegistry(options []Options) (*Registry, error) {
	r := &Registry{byName: make(map[string]*Provider, len(options))}
	var errs []error
	names := make([]string, 0, len(options))
	for _, o := range options {
		p, err := New(o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if r.byName[p.Name] != nil {
			errs = append(errs, fmt.Errorf("cannot use provider %q: it is declared twice", p.Name))
			continue
		}
		r.byName[p.Name] = p
		r.notes = append(r.notes, p.notes...)
		names = append(names, p.Name)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for f := range r.anybodys {
		r.anybodys[f] = newPaths(builtin(), Family(f), "")
	}
	slices.Sort(names)
	r.routes = describeRoutes(names)
	r.byAuthority = byAuthority(r.byName)
	r.hosts = make(map[string]bool, len(r.byAuthority))
	for a := range r.byAuthority {
		r.hosts[a.Host] = true
	}
	return r, nil
}

// Provider returns the provider of that name, or nil.
func (r *Registry) Provider(name string) *Provider { return r.byName[name] }

// PathNotes are about rules of operators that allow what is refused without them.
func (r *Registry) PathNotes() []*PathError { return r.notes }
