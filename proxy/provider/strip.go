package provider

import "bytes"

// headerClass is what AppendHead does with a header of the agent's.
type headerClass uint8

const (
	passed         headerClass = iota
	dropped                    // a credential, an identity, or of the agent's connection
	versionHeader              // anthropic-version
	betaHeader                 // anthropic-beta
	encodingHeader             // Accept-Encoding
)

// classOf tells what to do with a header whose name is given in lower case;
// nil for a name longer than any that is looked for. An underscore counts as a
// hyphen, as it does for servers that hand headers on as environment variables.
func classOf(name []byte) headerClass {
	if bytes.IndexByte(name, '_') >= 0 {
		for i, c := range name {
			if c == '_' {
				name[i] = '-'
			}
		}
	}
	switch string(name) {
	// Credentials, and whose they are: what the providers' SDKs, Claude Code and
	// Codex know to send.
	case "authorization", "proxy-authorization", "cookie",
		"x-api-key", "api-key", "x-goog-api-key",
		"x-goog-user-project", "x-goog-iam-authorization-token",
		"openai-organization", "openai-project", "chatgpt-account-id",
		"x-organization-uuid", "anthropic-workspace-id", "anthropic-user-profile-id",
		"x-amz-security-token", "x-amz-date", "x-amz-content-sha256",
		"ocp-apim-subscription-key",
		"x-oai-attestation", "x-openai-authorization", "x-openai-actor-authorization",
		"x-claude-code-ide-authorization":
		return dropped
	// Hop by hop (RFC 9110 7.6.1), and what authpool writes itself. Expect is
	// answered by the front, and Upgrade is refused there.
	case "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "te", "trailer",
		"transfer-encoding", "upgrade", "http2-settings", "expect",
		"host", "content-length":
		return dropped
	// With these an upstream could take the request for one of another path or
	// method than the manifest has seen.
	case "x-original-url", "x-rewrite-url", "x-http-method-override", "x-http-method", "x-method-override":
		return dropped
	case "anthropic-version":
		return versionHeader
	case "anthropic-beta":
		return betaHeader
	case "accept-encoding":
		return encodingHeader
	}
	if bytes.HasPrefix(name, []byte("x-authpool-")) || bytes.HasPrefix(name, []byte("sec-websocket-")) {
		return dropped
	}
	return passed
}

// connection holds the headers that a request's Connection header names, in
// lower case; nil when it names none, as nearly always.
type connection map[string]struct{}

// connectionNames reads the Connection headers of a request.
func connectionNames(headers Headers) connection {
	var names connection
	for rest := headers; ; {
		name, value, next, ok := rest.cut()
		if !ok {
			return names
		}
		rest = next
		if !foldedEqual(name, "connection") {
			continue
		}
		for element, list := cutElement(value); element != nil; element, list = cutElement(list) {
			if foldedEqual(element, "keep-alive") || foldedEqual(element, "close") {
				continue
			}
			if names == nil {
				names = make(connection)
			}
			names[string(bytes.ToLower(element))] = struct{}{}
		}
	}
}

// has tells whether the connection's own header is called name.
func (c connection) has(name []byte) bool {
	if c == nil {
		return false
	}
	_, ok := c[string(bytes.ToLower(name))]
	return ok
}
