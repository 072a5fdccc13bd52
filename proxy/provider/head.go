package provider

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/authpool/authpool/pool/credential"
)

// Head is what an agent sent, for the request head that goes upstream.
type Head struct {
	Method  []byte
	Rest    []byte // Target.Rest
	Query   []byte // without its `?`
	Headers Headers
	// Length is of the body that will follow: the agent's, changed by a Patch.
	// -1: there is no body and no Content-Length.
	Length int64
	// Identity asks the provider not to compress its answer, because bytes of
	// it will have to be taken out.
	Identity bool
	// Upgrade asks for a WebSocket.
	Upgrade bool
}

// The names and values that authpool itself puts on a request.
const (
	// anthropicVersion is sent for agents that name no version. Two versions
	// live; what an agent names is never changed: under the other
	// version the same body can be refused (Anthropic's versioning page).
	anthropicVersion = "2023-06-01"
	// oauthBeta must be among the betas of a request with an OAuth token
	// (anthropic-sdk-typescript, lib/credentials).
	oauthBeta = "oauth-2025-04-20"
	// oauthTokenPrefix begins Anthropic's OAuth access tokens, apiKeyPrefix its
	// API keys: the text tells the kind, however it was configured.
	oauthTokenPrefix = "sk-ant-oat" //nolint:gosec // how tokens begin, not one
	apiKeyPrefix     = "sk-ant-api" //nolint:gosec // how keys begin, not one
)

// form is how one credential stands on one request.
type form struct {
	header string // name and what stands before the secret
	oauth  bool   // Anthropic's OAuth, which has a beta of its own
}

// form returns the one form in which cred is sent to p.
func (p *Provider) form(cred credential.Credential) form {
	const bearer = "Authorization: Bearer "
	switch p.Family {
	case Anthropic:
		secret := cred.Secret.Reveal()
		oauth := strings.HasPrefix(secret, oauthTokenPrefix) ||
			cred.Scheme == credential.Bearer && !strings.HasPrefix(secret, apiKeyPrefix)
		if oauth || cred.Scheme == credential.Bearer {
			return form{bearer, oauth}
		}
		return form{"x-api-key: ", false}
	case Gemini:
		if cred.Scheme == credential.APIKey {
			return form{"x-goog-api-key: ", false}
		}
	case Azure:
		if cred.Scheme == credential.APIKey {
			return form{"api-key: ", false}
		}
	case OpenAI, Bedrock, Cohere, Ollama, Voyage:
	}
	return form{bearer, false}
}

// AppendHead appends the whole HTTP/1.1 request head for the upstream: request
// line, headers, empty line. The agent's headers keep their order, case and
// bytes, except that everything that could be a credential or that belongs to
// the agent's own connection is left out, in whatever case and however often it
// stands there, and that cred is put on in exactly one
// form with what it needs beside it.
//
// It allocates nothing when dst is big enough and the agent's Connection
// header names no other headers. It fails only for a credential that
// cannot stand in a header.
func (p *Provider) AppendHead(dst []byte, h *Head, cred credential.Credential) ([]byte, error) {
	secret := cred.Secret.Reveal()
	if !isFieldValue(secret) || secret == "" {
		return dst, &Refusal{
			Status: 502, Code: CodeBadCredential, Family: p.Family,
			Message: "the subscription's credential is empty or holds bytes that no header may hold",
		}
	}
	form := p.form(cred)

	dst = append(dst, h.Method...)
	dst = append(dst, ' ')
	dst = append(dst, p.Prefix...)
	dst = append(dst, h.Rest...)
	dst = appendQuery(dst, h.Query)
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, p.Host...)
	dst = append(dst, "\r\n"...)

	named := connectionNames(h.Headers)
	var hasVersion, hasBeta bool
	for rest := h.Headers; ; {
		name, value, next, ok := rest.cut()
		if !ok {
			break
		}
		rest = next
		if !isToken(name) || !isFieldValue(value) || named.has(name) {
			continue
		}
		var buf [maxName]byte
		class := classOf(foldName(&buf, name))
		if class != dropped && HoldsAgentToken(value) {
			continue
		}
		switch class {
		case passed:
		case dropped:
			if h.Upgrade {
				dst = appendSocket(dst, name, value)
			}
			continue
		case versionHeader:
			hasVersion = true
		case betaHeader:
			if p.Family != Anthropic {
				break
			}
			dst = appendBetas(dst, name, value, rest, hasBeta, form.oauth)
			hasBeta = true
			continue
		case encodingHeader:
			if h.Identity {
				continue
			}
			dst = appendEncodings(dst, name, value)
			continue
		}
		dst = appendHeader(dst, name, value)
	}

	if p.Family == Anthropic {
		if !hasVersion {
			dst = append(dst, "anthropic-version: "+anthropicVersion+"\r\n"...)
		}
		if form.oauth && !hasBeta {
			dst = append(dst, "anthropic-beta: "+oauthBeta+"\r\n"...)
		}
	}
	if h.Upgrade {
		dst = append(dst, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	if h.Identity {
		dst = append(dst, "Accept-Encoding: identity\r\n"...)
	}
	dst = append(dst, form.header...)
	dst = append(dst, secret...)
	dst = append(dst, "\r\n"...)
	if h.Length >= 0 {
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, h.Length, 10)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...), nil
}

// What agents' tokens look like; the shortest is shorter than any that is made.
const (
	agentTokenPrefix = "apa_"
	agentTokenLeast  = 20
)

// HoldsAgentToken tells whether a text, such as a header's that is no carrier of tokens,
// has one all the same, be it an agent's of ours or another's, and whatever stands before
// it: it stays here.
func HoldsAgentToken(value []byte) bool {
	for at := 0; ; {
		i := bytes.Index(value[at:], []byte(agentTokenPrefix))
		if i < 0 {
			return false
		}
		at += i + len(agentTokenPrefix)
		end := at
		for end < len(value) && isTokenText(value[end]) {
			end++
		}
		if end-at >= agentTokenLeast {
			return true
		}
	}
}

// isTokenText tells whether c can be part of an agent's token (RFC 4648, section 5).
func isTokenText(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

func appendHeader(dst, name, value []byte) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

// appendBetas appends the agent's anthropic-beta header. With OAuth all of them
// become one list that holds oauthBeta once, in place of the first; without
// OAuth each stays, but without oauthBeta, which an API key may not ask for.
func appendBetas(dst, name, value []byte, rest Headers, again, oauth bool) []byte {
	if !oauth {
		return appendList(dst, name, value, func(beta []byte) bool { return string(beta) != oauthBeta })
	}
	if again {
		return dst
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	begin := len(dst)
	dst = append(dst, value...)
	for {
		n, v, next, ok := rest.cut()
		if !ok {
			break
		}
		rest = next
		if foldedEqual(n, "anthropic-beta") && isFieldValue(v) && len(v) > 0 {
			dst = append(dst, ',')
			dst = append(dst, v...)
		}
	}
	for beta, list := cutElement(dst[begin:]); beta != nil; beta, list = cutElement(list) {
		if string(beta) == oauthBeta {
			return append(dst, "\r\n"...)
		}
	}
	if len(dst) > begin {
		dst = append(dst, ',')
	}
	return append(dst, oauthBeta+"\r\n"...)
}

// appendEncodings appends Accept-Encoding with the codings that the answer's
// meter can decode.
func appendEncodings(dst, name, value []byte) []byte {
	begin := len(dst)
	dst = appendList(dst, name, value, isDecodable)
	if len(dst) == begin {
		dst = appendHeader(dst, name, []byte("identity"))
	}
	return dst
}

// isDecodable tells whether an element of Accept-Encoding (a coding, perhaps
// with a weight) is one that authpool can decode.
func isDecodable(element []byte) bool {
	coding, _, _ := bytes.Cut(element, []byte{';'})
	var buf [maxName]byte
	switch string(foldName(&buf, trimSpace(coding))) {
	case "gzip", "x-gzip", "deflate", "br", "zstd", "identity":
		return true
	}
	return false
}

// appendList appends a header whose value is a list, with the elements that
// keep wants; as it was sent when that is all of them, not at all when it is
// none.
func appendList(dst, name, value []byte, keep func(element []byte) bool) []byte {
	all, some := true, false
	for element, list := cutElement(value); element != nil; element, list = cutElement(list) {
		if keep(element) {
			some = true
		} else {
			all = false
		}
	}
	if all {
		return appendHeader(dst, name, value)
	}
	if !some {
		return dst
	}
	dst = append(dst, name...)
	separator := ": "
	for element, list := cutElement(value); element != nil; element, list = cutElement(list) {
		if keep(element) {
			dst = append(dst, separator...)
			dst = append(dst, element...)
			separator = ", "
		}
	}
	return append(dst, "\r\n"...)
}

// isToken tells whether name is one that RFC 9110 allows for a header.
func isToken(name []byte) bool {
	for _, c := range name {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return len(name) > 0
}

// isFieldValue tells whether value can stand in a header without ending it.
func isFieldValue[T []byte | string](value T) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
