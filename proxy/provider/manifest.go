package provider

import (
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/authpool/authpool/proxy/meter"
)

// Action is what authpool does with the requests of a row of the path manifest.
type Action uint8

// The actions.
const (
	// Unknown is for paths that no row knows and that are not below the mount of an
	// API: they get no credential, and nothing is sent.
	Unknown Action = iota
	Inject         // gets a credential, and its answer is counted
	Free           // gets a credential, costs no tokens
	Bound          // gets a credential; what is there belongs to who made it
	Local          // answered by authpool itself with 404, nothing is sent
	Refuse         // refused with 403
)

var actionNames = [...]string{"unknown", "inject", "free", "bound", "local", "refuse"}

// String returns the action's name in the manifest.
func (a Action) String() string { return actionNames[a] }

// Sends tells whether requests of the action go to the provider, with a credential.
func (a Action) Sends() bool { return a == Inject || a == Free || a == Bound }

// parseAction is the inverse of String, but for Unknown, which no row can say.
func parseAction(name string) (Action, error) {
	if i := slices.Index(actionNames[:], name); i > 0 {
		return Action(i), nil
	}
	return 0, fmt.Errorf("unknown action %q: want one of %s", name, strings.Join(actionNames[1:], ", "))
}

// Endpoint is what a row of the path manifest says of the requests that it is for.
type Endpoint struct {
	// Name is the endpoint's path without version and ids, for logs and
	// explain: `messages`, `chat/completions`.
	Name string
	// Action is what is done with the request.
	Action Action
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
	// Lists says that the answer shows what the account has, whoever made it.
	Lists bool

	operators bool // the row is an operator's rule
	anthropic bool // of Anthropic's API, although API does not say so
	tells     bool // a stream tells its usage unasked, and to be asked may be an error
}

// Billable tells whether the answer of a call has to be counted: by what it
// tells, or for API.Items by what it lists.
func (e *Endpoint) Billable() bool { return e.API != meter.None }

// why says for what a row refuses.
type why uint8

const (
	whyNot why = iota // it does not
	whyAdministration
	whyBilling
	whyKeys
	whyOAuth
	whySecrets
	whyServer
)

var whyNames = [...]string{"", "administration", "billing", "keys", "oauth", "secrets", "server"}

// opens are the methods for which an operator's rule may open what is refused.
func (w why) opens() methods {
	switch w {
	case whyAdministration, whyBilling:
		return methodOf([]byte("GET")) | methodOf([]byte("HEAD"))
	case whyServer:
		return 1<<len(methodNames) - 1
	default: // who is let through would hold something that works without authpool
		return 0
	}
}

// row is a row of the manifest.
type row struct {
	pattern
	methods   methods
	families  families
	providers []string
	names     int // the segment that names the model, or what API.Items shows; 0 is none
	why       why
	socket    bool
	Endpoint
}

// isAt tells whether the row holds at a provider.
func (r *row) isAt(f Family, provider string) bool {
	return r.families.has(f) && (len(r.providers) == 0 || slices.Contains(r.providers, provider))
}

// methods is a set of HTTP methods. The zero value holds them all.
type methods uint8

// methodNames are those that a row can name; all others count as one more.
var methodNames = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

func parseMethods(names []string) (set methods, err error) {
	for _, name := range names {
		i := slices.Index(methodNames, name)
		switch {
		case i < 0:
			return 0, fmt.Errorf("unknown method %q: want some of %s", name, strings.Join(methodNames, ", "))
		case set&(1<<i) != 0:
			return 0, fmt.Errorf("the method %s stands there twice", name)
		}
		set |= 1 << i
	}
	return set, nil
}

func methodOf(name []byte) methods {
	for i, known := range methodNames {
		if string(name) == known {
			return 1 << i
		}
	}
	return 1 << len(methodNames)
}

func (set methods) has(one methods) bool { return set == 0 || set&one != 0 }

// manifest is the parsed file.
type manifest struct {
	mounts []string
	roots  families
	apis   []*row // of these only where they hold and the pattern
	rows   []*row
	kinds  []resourceKind
	// starts are the bytes with which ids of kinds can begin: nearly all texts of a
	// body are told apart from ids by it.
	starts [256]bool
}

//go:embed manifest.yaml
var manifestText []byte

// builtin is the manifest that authpool brings along, parsed when it is needed first:
// most commands need none.
var builtin = sync.OnceValue(func() *manifest {
	m, err := parseManifest(manifestText)
	if err != nil {
		panic("BUG: manifest.yaml: " + err.Error())
	}
	return m
})

// manifestVersion is the form of the file that this program reads.
const manifestVersion = 1

// The file, as it is written.
type (
	manifestFile struct {
		Version   int            `yaml:"version"`
		Mounts    []string       `yaml:"mounts"`
		Roots     []string       `yaml:"roots"`
		APIs      []apiLine      `yaml:"apis"`
		Rows      []rowLine      `yaml:"rows"`
		Resources []resourceLine `yaml:"resources"`
	}
	placeLine struct {
		Families    []string `yaml:"families"`
		NotFamilies []string `yaml:"not_families"`
		Providers   []string `yaml:"providers"`
	}
	apiLine struct {
		Path  string    `yaml:"path"`
		Where placeLine `yaml:",inline"`
	}
	rowLine struct {
		Path         string    `yaml:"path"`
		Methods      []string  `yaml:"methods"`
		Action       string    `yaml:"action"`
		Why          string    `yaml:"why"`
		Name         string    `yaml:"name"`
		Dialect      string    `yaml:"dialect"`
		Shape        string    `yaml:"shape"`
		Named        int       `yaml:"named"`
		Conversation bool      `yaml:"conversation"`
		Streams      bool      `yaml:"streams"`
		Lists        bool      `yaml:"lists"`
		Socket       bool      `yaml:"socket"`
		Where        placeLine `yaml:",inline"`
	}
	resourceLine struct {
		Prefix string `yaml:"prefix"`
		Keep   string `yaml:"keep"`
	}
)

// dialects are the manifest's words for what package meter reads.
var dialects = map[string]meter.API{
	"anthropic-messages":      meter.AnthropicMessages,
	"anthropic-complete":      meter.AnthropicComplete,
	"anthropic-batch-results": meter.AnthropicBatchResults,
	"openai-chat":             meter.OpenAIChat,
	"openai-completions":      meter.OpenAICompletions,
	"openai-responses":        meter.OpenAIResponses,
	"openai-stored-response":  meter.OpenAIStoredResponse,
	"openai-embeddings":       meter.OpenAIEmbeddings,
	"openai-images":           meter.OpenAIImages,
	"openai-transcriptions":   meter.OpenAITranscriptions,
	"openai-speech":           meter.OpenAISpeech,
	"openai-batch-output":     meter.OpenAIBatchOutput,
	"cohere-chat":             meter.CohereChat,
	"cohere-generate":         meter.CohereGenerate,
	"cohere-embed":            meter.CohereEmbed,
	"rerank":                  meter.Rerank,
	"ollama-chat":             meter.OllamaChat,
	"ollama-embed":            meter.OllamaEmbed,
	"mistral-conversation":    meter.MistralConversation,
	"openai-responses-socket": meter.OpenAIResponsesSocket,
	"openai-realtime":         meter.OpenAIRealtime,
	"gemini-live":             meter.GeminiLive,
	"unknown":                 meter.OpenAIOther,
}

// parseManifest reads the text of a manifest. What it does not know is an error, and so
// is what stands there twice: a row that is spelled wrong must not be one that is
// missing.
func parseManifest(text []byte) (*manifest, error) {
	var file manifestFile
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("cannot read the path manifest: %w", err)
	}
	if file.Version != manifestVersion {
		return nil, fmt.Errorf("the path manifest has version %d, and this program reads %d", file.Version, manifestVersion)
	}
	m := &manifest{mounts: file.Mounts}
	var errs []error
	for _, name := range file.Roots {
		f, err := ParseFamily(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("roots: %w", err))
			continue
		}
		m.roots |= at(f)
	}
	for _, line := range file.APIs {
		r := &row{}
		var err error
		if r.pattern, err = parsePattern(line.Path); err == nil {
			err = r.place(&line.Where)
		}
		if err == nil && (r.where != fromHost || !r.open) {
			err = errors.New("an API's mount begins with / and ends in **")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("apis: %q: %w", line.Path, err))
			continue
		}
		m.apis = append(m.apis, r)
	}
	for i := range file.Rows {
		r, err := parseRow(&file.Rows[i])
		if err == nil && slices.ContainsFunc(m.rows, r.repeats) {
			err = errors.New("there is a row for that already")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("rows: %q: %w", file.Rows[i].Path, err))
			continue
		}
		m.rows = append(m.rows, r)
	}
	for _, line := range file.Resources {
		kind, err := parseResource(line)
		if err == nil && slices.ContainsFunc(m.kinds, func(other resourceKind) bool { return strings.HasPrefix(kind.prefix, other.prefix) }) {
			err = errors.New("one before has them already")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("resources: %q: %w", line.Prefix, err))
			continue
		}
		m.kinds = append(m.kinds, kind)
		m.starts[kind.prefix[0]] = true
	}
	for _, c := range []byte("0123456789abcdefABCDEF{u" + "\\\x00") { // UUIDs; what may turn out to be one
		m.starts[c] = true
	}
	return m, errors.Join(errs...)
}

func parseRow(line *rowLine) (*row, error) {
	r := &row{names: line.Named, socket: line.Socket}
	var err error
	if r.pattern, err = parsePattern(line.Path); err != nil {
		return r, err
	}
	if r.methods, err = parseMethods(line.Methods); err != nil {
		return r, err
	}
	if err := r.place(&line.Where); err != nil {
		return r, err
	}
	action, err := parseAction(line.Action)
	if err != nil {
		return r, err
	}
	api, known := dialects[line.Dialect]
	_, literal := r.head()
	r.why = why(max(0, slices.Index(whyNames[:], line.Why)))
	switch {
	case line.Dialect != "" && !known:
		return r, fmt.Errorf("unknown dialect %q", line.Dialect)
	case action == Inject && line.Dialect == "":
		return r, errors.New("inject needs a dialect; what costs nothing is free")
	case action != Inject && action != Bound && line.Dialect != "":
		return r, fmt.Errorf("%s is not counted by a dialect", action)
	case line.Why != whyNames[r.why] || (r.why != whyNot) != (action == Refuse):
		return r, fmt.Errorf("why is for what is refused, and one of %s", strings.Join(whyNames[1:], ", "))
	case action == Refuse && (r.methods != 0 || !r.open):
		return r, errors.New("what is refused is so with all methods, and all that is below")
	case action == Refuse && r.where != anywhere && !literal:
		return r, errors.New("what is refused begins with a word")
	case line.Socket != api.Socket() || line.Socket && (action != Inject || r.methods != methodOf([]byte("GET"))):
		return r, errors.New("a socket is asked for by GET, and counted by a dialect of sockets")
	case line.Lists && (action != Bound || api != meter.None):
		return r, errors.New("lists show what is bound, and cost nothing")
	case line.Shape != "" && line.Shape != Anthropic.String():
		return r, fmt.Errorf("unknown shape %q: want %s", line.Shape, Anthropic)
	case line.Named < 0 || line.Named >= len(r.segments):
		return r, errors.New("named is no segment of the path")
	}
	r.Endpoint = Endpoint{
		Name: line.Name, Action: action, API: api, Conversation: line.Conversation, Streams: line.Streams, Lists: line.Lists,
		Creates:   action == Bound && r.methods.has(methodOf([]byte("POST"))),
		anthropic: line.Shape != "",
	}
	if r.Name == "" {
		r.Name = r.name()
	}
	return r, nil
}

// place reads where a row holds.
func (r *row) place(line *placeLine) error {
	var set families
	for _, list := range [][]string{line.Families, line.NotFamilies} {
		for _, name := range list {
			f, err := ParseFamily(name)
			if err != nil {
				return err
			}
			if set.has(f) && set != 0 {
				return fmt.Errorf("the family %s stands there twice", name)
			}
			set |= at(f)
		}
	}
	switch {
	case len(line.Families) > 0 && len(line.NotFamilies) > 0:
		return errors.New("families and not_families stand beside each other")
	case len(line.NotFamilies) > 0:
		set = ^set
	}
	r.families, r.providers = set, line.Providers
	return nil
}

// repeats tells whether another row says something about the same requests.
func (r *row) repeats(other *row) bool {
	return r.text == other.text && r.socket == other.socket && (r.methods == 0 || other.methods == 0 || r.methods&other.methods != 0) &&
		(r.families == 0 || other.families == 0 || r.families&other.families != 0) &&
		(len(r.providers) == 0 || len(other.providers) == 0 || slices.ContainsFunc(r.providers, func(one string) bool { return slices.Contains(other.providers, one) }))
}

// How long it is remembered whose an account-bound thing is.
const (
	keepMonth = 30 * 24 * time.Hour
	keepYear  = 365 * 24 * time.Hour
	keepNot   = 0
)

func parseResource(line resourceLine) (resourceKind, error) {
	keep, known := map[string]time.Duration{"month": keepMonth, "year": keepYear, "never": keepNot}[line.Keep]
	switch {
	case len(line.Prefix) < minResource-1:
		return resourceKind{}, errors.New("the prefix is too short to tell ids from words")
	case !known:
		return resourceKind{}, fmt.Errorf("unknown time to keep %q: want month, year or never", line.Keep)
	}
	return resourceKind{line.Prefix, keep}, nil
}
