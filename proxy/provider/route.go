package provider

import (
	"bytes"
	"strconv"
	"strings"
)

// Target is where a request goes.
type Target struct {
	Provider *Provider
	// Rest is the path that the provider sees behind its Prefix, byte for byte
	// as it was sent. It is a part of the path given to Route.
	Rest []byte
}

// Route finds the provider of a request by its path, as sent and without the
// query, and for paths that several providers share by its headers (contract
// "Routing in base-URL mode"). Every error is a *Refusal; with that of a path that the
// manifest refuses comes the provider that it is one of.
func (r *Registry) Route(path []byte, headers Headers) (Target, error) {
	var buf [256]byte
	plain, ok := parsePath(buf[:0], path)
	if !ok {
		return Target{}, &Refusal{
			Status: 400, Code: CodeBadPath, Family: familyByHeaders(headers),
			Message: "the path holds dot segments, backslashes or bytes that providers read differently; send the provider's plain path",
		}
	}
	if p, rest, ok := r.named(path); ok {
		tail := plain.tail()
		if plain.deep { // its last segment may be one that is looked at without the name
			tail, _ = parsePath(buf[:0], rest) // a part of what is a path
		}
		if no := p.paths.forbids(&tail); no != nil {
			return Target{Provider: p}, forbidden(p.Family, &no.Endpoint)
		}
		return Target{p, rest}, nil
	}
	name := byPath(&plain, headers)
	if name == "" {
		f := familyByHeaders(headers)
		if no := r.anybodys[f].refuses(&plain); no != nil {
			return Target{}, forbidden(f, &no.Endpoint)
		}
		return Target{}, &Refusal{Status: 404, Code: CodeNotFound, Family: f, Message: "no route for this path; " + r.routes}
	}
	p := r.byName[name]
	if p == nil {
		return Target{}, &Refusal{
			Status: 404, Code: CodeNoSuchProvider, Family: familyByHeaders(headers),
			Message: "this path goes to the provider " + strconv.Quote(name) + ", which is not declared; " + r.routes,
		}
	}
	if no := p.paths.forbids(&plain); no != nil {
		return Target{Provider: p}, forbidden(p.Family, &no.Endpoint)
	}
	return Target{p, path}, nil
}

func forbidden(f Family, e *Endpoint) *Refusal {
	if e.operators {
		return &Refusal{Status: 403, Code: CodeForbiddenPath, Family: f, Endpoint: e, Message: "the operator has closed this path (providers: paths)"}
	}
	return &Refusal{
		Status: 403, Code: CodeForbiddenPath, Family: f, Endpoint: e,
		Message: "paths of administration, keys, billing, OAuth and secrets get no credential; use the provider's own console",
	}
}

// named splits `/<provider>/REST`.
func (r *Registry) named(path []byte) (p *Provider, rest []byte, ok bool) {
	end := bytes.IndexByte(path[1:], '/')
	if end < 0 {
		return nil, nil, false
	}
	p, ok = r.byName[string(path[1:1+end])]
	return p, path[1+end:], ok
}

// shared are the paths below /v1 that more than one provider may serve. The
// request's own headers decide between Anthropic and OpenAI.
var shared = []string{
	"models", "files", "batches", "uploads", "skills", "containers", "conversations", "vector_stores",
	"assistants", "threads", "fine_tuning", "evals", "videos",
	"agents", "sessions", "environments", "vaults", "memory_stores", "deployments", "dreams",
}

// byPath names the provider of a path without one, or returns "".
func byPath(p *plainPath, headers Headers) string {
	if p.count < 2 {
		return ""
	}
	version, head := p.segments[0], p.segments[1]
	switch {
	case foldedEqual(version, "v1beta"), foldedEqual(version, "v1alpha"):
		return "gemini"
	case foldedEqual(version, liveMount) && foldedPrefix(head, liveService):
		return "gemini"
	case !foldedEqual(version, "v1"):
		return ""
	}
	if p.count == 3 && (foldedEqual(head, "models") || foldedEqual(head, "tunedmodels")) && bytes.IndexByte(p.segments[2], ':') >= 0 {
		return "gemini"
	}
	var buf [maxName]byte
	switch string(foldName(&buf, head)) {
	case "messages":
		return "anthropic"
	case "complete":
		if p.count == 2 {
			return "anthropic"
		}
	case "chat":
		if p.count >= 3 && foldedEqual(p.segments[2], "completions") {
			return "openai"
		}
	case "responses", "images", "audio":
		return "openai"
	case "completions", "embeddings", "moderations", "realtime":
		if p.count == 2 {
			return "openai"
		}
	}
	for _, name := range shared {
		if foldedEqual(head, name) && familyByHeaders(headers) == Anthropic {
			return "anthropic"
		}
		if foldedEqual(head, name) {
			return "openai"
		}
	}
	return ""
}

// familyByHeaders tells from a request's headers whose SDK sent it.
func familyByHeaders(headers Headers) Family {
	for name := range headers.All() {
		switch {
		case foldedEqual(name, "anthropic-version"), foldedEqual(name, "x-api-key"):
			return Anthropic
		case foldedEqual(name, "x-goog-api-key"):
			return Gemini
		case foldedEqual(name, "amz-sdk-invocation-id"):
			return Bedrock
		}
	}
	return OpenAI
}

// describeRoutes lists the routes for a person whose path has none.
func describeRoutes(names []string) string {
	return "routes: /v1/messages, /v1/complete (anthropic); " +
		"/v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /v1/moderations, /v1/images, /v1/audio, /v1/realtime (openai); " +
		"/v1beta, /v1alpha, /v1/models/MODEL:METHOD, /ws/" + liveService + "… (gemini); " +
		"/v1/models, /v1/files and the like by your headers; " +
		"/PROVIDER/… for any of " + strings.Join(names, ", ")
}
