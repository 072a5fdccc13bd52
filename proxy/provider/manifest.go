package provider

import (
	"bytes"
	"slices"
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
}

// Billable tells whether the answer of a call has to be counted.
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
func (want pattern) matchAnywhere(p *plainPath) (start int, ok bool) {
	for i := range max(p.count, 1) {
		if p.start(i) && want.match(p, i) {
			return i, true
		}
	}
	return 0, false
}

// served is a row for calls that POST to a path. Other methods read, change or
// delete what is there: they cost no tokens, and one row is enough for them.
type served struct {
	pattern
	Endpoint
}

func row(path string, e Endpoint) served {
	if e.Name == "" {
		e.Name = strings.TrimSuffix(path, "/**")
	}
	return served{parsePattern(path), e}
}

// manifest are the known POST paths of all families, from
// the paths of their SDKs and API references. One list serves them all, because providers serve each other's dialects
// (OpenRouter and Ollama know /v1/messages).
var manifest = []served{
	// Anthropic
	row("messages", Endpoint{API: meter.AnthropicMessages, Conversation: true}),
	row("messages/count_tokens", Endpoint{Conversation: true}),
	row("messages/batches/**", Endpoint{Creates: true}),
	row("complete", Endpoint{API: meter.AnthropicComplete, Conversation: true}),
	row("sessions/**", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("agents/completions", Endpoint{API: meter.OpenAIChat, Conversation: true}), // Mistral
	row("agents/**", Endpoint{Creates: true}),
	row("environments/**", Endpoint{Creates: true}),
	row("vaults/**", Endpoint{Creates: true}),
	row("memory_stores/**", Endpoint{Creates: true}),
	row("deployments/*/chat/completions", Endpoint{Name: "chat/completions", API: meter.OpenAIChat, Conversation: true}), // Azure
	row("deployments/*/completions", Endpoint{Name: "completions", API: meter.OpenAICompletions, Conversation: true}),
	row("deployments/*/embeddings", Endpoint{Name: "embeddings", API: meter.OpenAIEmbeddings}),
	row("deployments/*/images/*", Endpoint{Name: "images", API: meter.OpenAIImages}),
	row("deployments/*/audio/speech", Endpoint{Name: "audio/speech", API: meter.OpenAISpeech}),
	row("deployments/*/audio/*", Endpoint{Name: "audio", API: meter.OpenAITranscriptions}),
	row("models/chat/completions", Endpoint{Name: "chat/completions", API: meter.OpenAIChat, Conversation: true}), // Azure's model inference
	row("models/embeddings", Endpoint{Name: "embeddings", API: meter.OpenAIEmbeddings}),

	// OpenAI and compatible
	row("chat/completions", Endpoint{API: meter.OpenAIChat, Conversation: true}),
	row("completions", Endpoint{API: meter.OpenAICompletions, Conversation: true}),
	row("responses", Endpoint{API: meter.OpenAIResponses, Conversation: true}),
	row("responses/compact", Endpoint{API: meter.OpenAIResponses, Conversation: true}),
	row("responses/input_tokens", Endpoint{Conversation: true}),
	row("responses/*/cancel", Endpoint{Name: "responses/cancel", Creates: true}),
	row("embeddings", Endpoint{API: meter.OpenAIEmbeddings}),
	row("moderations", Endpoint{}),
	row("images/*", Endpoint{Name: "images", API: meter.OpenAIImages}),
	row("audio/speech", Endpoint{API: meter.OpenAISpeech}),
	row("audio/transcriptions", Endpoint{API: meter.OpenAITranscriptions}),
	row("audio/translations", Endpoint{API: meter.OpenAITranscriptions}),
	row("fim/completions", Endpoint{API: meter.OpenAIChat, Conversation: true}), // Mistral
	row("batches/**", Endpoint{Creates: true}),
	row("files/**", Endpoint{Creates: true}),
	row("uploads/**", Endpoint{Creates: true}),
	row("vector_stores/**", Endpoint{Creates: true}),
	row("containers/**", Endpoint{Creates: true}),
	row("conversations/**", Endpoint{Creates: true}),
	row("skills/**", Endpoint{Creates: true}),
	row("assistants/**", Endpoint{Creates: true}),
	row("threads/runs", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("threads/*/runs/**", Endpoint{Name: "threads/runs", API: meter.OpenAIOther, Creates: true}),
	row("threads/**", Endpoint{Creates: true}),
	row("videos/**", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("fine_tuning/**", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("evals/**", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("event_logging/**", Endpoint{}), // telemetry of Claude Code

	// Ollama and Cohere
	row("chat", Endpoint{API: meter.OpenAIOther, Conversation: true}),
	row("generate", Endpoint{API: meter.OpenAIOther, Conversation: true}),
	row("embed", Endpoint{API: meter.OpenAIOther}),
}

// manifestByHead finds the rows of manifest by their first segment.
var manifestByHead = func() map[string][]*served {
	m := make(map[string][]*served)
	for i := range manifest {
		head := manifest[i].pattern[0]
		m[head] = append(m[head], &manifest[i])
	}
	return m
}()

var (
	resourceEndpoint = Endpoint{Name: "resource"}
	// otherEndpoint is for POST paths that no row knows. What a new path costs
	// is not known either, so that it is counted as unknown, not as nothing.
	otherEndpoint   = Endpoint{Name: "other", API: meter.OpenAIOther, Creates: true}
	unknownEndpoint = Endpoint{Name: "unknown", Creates: true}
)

// gemini are the methods behind the colon of a Gemini path (@google/genai).
// Their usage is not read yet: the answers count as unknown.
var gemini = map[string]*Endpoint{
	"generatecontent":       {Name: "generateContent", API: meter.OpenAIOther, Conversation: true},
	"streamgeneratecontent": {Name: "streamGenerateContent", API: meter.OpenAIOther, Conversation: true},
	"counttokens":           {Name: "countTokens", Conversation: true},
	"embedcontent":          {Name: "embedContent", API: meter.OpenAIOther},
	"batchembedcontents":    {Name: "batchEmbedContents", API: meter.OpenAIOther},
}

// endpoint finds the row of a path. The model is what the path names of it, or
// nil.
func (p *plainPath) endpoint(method []byte) (e *Endpoint, model []byte) {
	if string(method) != "POST" {
		return &resourceEndpoint, nil
	}
	versioned := false
	for i := range p.count {
		versioned = versioned || isVersion(p.segments[i])
		if !p.start(i) {
			continue
		}
		if e, model := p.geminiEndpoint(i); e != nil {
			return e, model
		}
		var head [maxName]byte
		for _, s := range manifestByHead[string(foldName(&head, p.segments[i]))] {
			if s.match(p, i) {
				if s.pattern[0] == "deployments" {
					model = p.segments[i+1]
				}
				return &s.Endpoint, model
			}
		}
	}
	if versioned {
		return &otherEndpoint, nil
	}
	return &unknownEndpoint, nil
}

// geminiEndpoint finds the row of `models/MODEL:METHOD` at segment i.
func (p *plainPath) geminiEndpoint(i int) (e *Endpoint, model []byte) {
	if i+2 != p.count || !foldedEqual(p.segments[i], "models") && !foldedEqual(p.segments[i], "tunedmodels") {
		return nil, nil
	}
	model, method, ok := cutLast(p.segments[i+1], ':')
	if !ok {
		return nil, nil
	}
	var name [maxName]byte
	if e := gemini[string(foldName(&name, method))]; e != nil {
		return e, model
	}
	return &otherEndpoint, model
}

// cutLast cuts b at the last sep.
func cutLast(b []byte, sep byte) (before, after []byte, ok bool) {
	if i := bytes.LastIndexByte(b, sep); i >= 0 {
		return b[:i], b[i+1:], true
	}
	return b, nil, false
}

// refusal is a row of the paths that get no credential: whoever reaches them
// with the operator's key could make keys, spend or administrate.
type refusal struct {
	pattern
	except []Family // families where the path is something else
}

func refuse(path string, except ...Family) refusal {
	return refusal{parsePattern(path + "/**"), except}
}

// refused are the paths without a credential, from the same sources.
var refused = []refusal{
	refuse("organizations"),
	refuse("organization"),
	refuse("projects", Gemini, Azure), // there: resources, not administration
	refuse("oauth"),
	refuse("oauth2"),
	refuse("user_profiles"),
	refuse("tunnels"),
	refuse("admin"),
	refuse("billing"),
	refuse("dashboard"),
	refuse("credits"),
	refuse("keys"),      // OpenRouter: makes keys
	refuse("auth/keys"), // OpenRouter: trades a code for a key
	refuse("auth_tokens"),
	refuse("chatkit/sessions"),
	refuse("realtime/sessions"),
	refuse("realtime/transcription_sessions"),
	refuse("realtimeapi/sessions", OpenAI, Anthropic, Gemini), // Azure
}

// refusedWords are segments that no path with a credential may hold anywhere.
var refusedWords = []string{"client_secrets", "client_secret", "api_keys", "api-keys", "apikeys", "admin_api_keys"}

// refuses tells whether the manifest refuses a path at a provider of family f.
func (p *plainPath) refuses(f Family) bool {
	for i := range refused {
		if _, ok := refused[i].matchAnywhere(p); ok && !refused[i].excepts(f) {
			return true
		}
	}
	for _, segment := range p.segments[:p.count] {
		for _, word := range refusedWords {
			if foldedEqual(segment, word) {
				return true
			}
		}
	}
	return false
}

func (r *refusal) excepts(f Family) bool {
	return slices.Contains(r.except, f)
}
