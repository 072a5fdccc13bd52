package provider

import (
	"bytes"
	"strconv"

	"github.com/authpool/authpool/proxy/meter"
)

// Inspect reads what a request says about itself: one walk over its headers and
// one forward scan over its body, which is never decoded and encoded again. A
// compressed body is scanned decompressed, up to a bound, and never patched. A
// body that is not JSON tells nothing and is no error: the provider is to
// answer it. Every error is a *Refusal: for paths that get no credential, and for
// bodies, and queries of WebSockets, that name a field twice on which authpool would act,
// since the provider might read the other.
func Inspect(r *Request) (Call, error) {
	var pathBuf [256]byte
	path, _ := parsePath(pathBuf[:0], r.Rest) // Route has refused what is no path
	endpoint, named := r.Provider.paths.endpoint(&path, r.Method)
	c := Call{Endpoint: endpoint, Shape: shape(r.Provider, endpoint), Stream: endpoint.Streams}
	if no := endpoint.withhold(r.Provider, r.Rest); no != nil {
		return Call{}, no
	}
	if r.Upgrade {
		if c.Endpoint, named = r.Provider.paths.socket(&path), nil; c.Endpoint == nil {
			return Call{}, &Refusal{
				Status: 426, Code: CodeUpgrade, Family: c.Shape,
				Message: "what is said on this WebSocket could not be counted, so that it is not relayed; use plain HTTP with server-sent events",
			}
		}
		endpoint = c.Endpoint
		c.Shape, c.Stream = shape(r.Provider, endpoint), false
		if endpoint.API == meter.OpenAIRealtime {
			var err error
			if named, err = c.joins(r); err != nil {
				return Call{}, err
			}
		}
	}
	switch {
	case endpoint.API.Items():
		c.Batch = CleanSession(named) // the form of ids that can stand in a key
	case len(named) > 0:
		c.Model = CleanModel(named)
	}
	path.pins(&c.Pins, r.Provider.Family)

	var id identity
	id.found[fromProxyUser] = r.ProxyUser
	id.found[fromToken] = []byte(r.TokenSession)
	var content contentHeaders
	for rest := r.Headers; ; {
		name, value, next, ok := rest.cut()
		if !ok {
			break
		}
		rest = next
		var buf [maxName]byte
		switch name := foldName(&buf, name); string(name) {
		case "x-stainless-retry-count":
			// No count above that makes a difference.
			if n, err := strconv.ParseUint(string(value), 10, 8); err == nil {
				c.RetryCount = int(n)
			}
		case "amz-sdk-request": // its value: "attempt=2; max=3"
			attempt, _, _ := bytes.Cut(bytes.TrimPrefix(value, []byte("attempt=")), []byte{';'})
			if n, err := strconv.ParseUint(string(attempt), 10, 8); err == nil && n > 0 {
				c.RetryCount = int(n) - 1
			}
		case "content-type", "content-encoding":
			content.header(name, value)
		case "x-parent-session-id", "x-codex-parent-thread-id":
			id.parent = value
		case "x-claude-code-agent-id":
			id.claudeAgent = value
		case "x-claude-code-parent-agent-id":
			id.claudeParent = value
		default:
			if s, ok := headerSource(name); ok && len(id.found[s]) == 0 {
				id.found[s] = value
			}
		}
	}

	var m making
	if len(r.Body) > 0 {
		var err error
		if m, err = c.readBody(r, &content, &id); err != nil {
			return Call{}, err
		}
	}
	c.Makes = c.makes(r.Method, m)
	c.Seals = c.Seals || endpoint.Name == "responses/compact"
	c.Session = id.session()
	if c.Session.ID == "" && endpoint.Conversation {
		c.Session = Session{ID: hashSession(r, id.found[fromHash]), Source: sourceNames[fromHash]}
	}
	c.Unsafe = c.Unsafe || endpoint.Creates
	if string(r.Method) != "POST" {
		c.Unsafe = !isSafe(r.Method)
	}
	return c, nil
}

// isSafe tells whether a method may be repeated whatever became of it.
func isSafe(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "DELETE":
		return true
	}
	return false
}

// shape finds in whose shape errors are told: that of the dialect that the path
// belongs to, else the provider's own.
func shape(p *Provider, e *Endpoint) Family {
	f, ok := e.shape()
	switch {
	case ok && (e.API != meter.OpenAIEmbeddings || p.Family != Voyage):
		return f
	case p.Family == Azure:
		return OpenAI
	default:
		return p.Family
	}
}

// shape is that of the endpoint's dialect; false when it is many providers', or
// nobody's in particular.
func (e *Endpoint) shape() (Family, bool) {
	if e.anthropic {
		return Anthropic, true
	}
	switch e.API {
	case meter.AnthropicMessages, meter.AnthropicComplete:
		return Anthropic, true
	case meter.OpenAIResponsesSocket, meter.OpenAIRealtime:
		return OpenAI, true
	case meter.GeminiLive:
		return Gemini, true
	case meter.OpenAIChat, meter.OpenAICompletions, meter.OpenAIResponses, meter.OpenAIStoredResponse,
		meter.OpenAIImages, meter.OpenAITranscriptions, meter.OpenAISpeech, meter.OpenAIEmbeddings:
		return OpenAI, true
	case meter.GeminiGenerate, meter.GeminiStream, meter.GeminiEmbed, meter.VertexPredict:
		return Gemini, true
	case meter.BedrockInvoke, meter.BedrockConverse:
		return Bedrock, true
	case meter.CohereChat, meter.CohereGenerate, meter.CohereEmbed:
		return Cohere, true
	case meter.OllamaChat, meter.OllamaEmbed:
		return Ollama, true
	default:
		return 0, false
	}
}
