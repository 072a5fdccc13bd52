package provider

import (
	"bytes"
	"encoding/base64"
	"iter"
)

// AgentTokens yields everything in a request that may be an agent's token, from
// every carrier of the contract, in the order in which it was sent; one token
// can come more than once. A request is one agent's only if all valid tokens
// among them are. What is yielded is valid until the next one.
func AgentTokens(headers Headers, query []byte) iter.Seq[[]byte] {
	return func(yield func(token []byte) bool) {
		for rest := headers; ; {
			name, value, next, ok := rest.cut()
			if !ok {
				break
			}
			rest = next
			if !headerTokens(name, value, yield) {
				return
			}
		}
		for len(query) > 0 {
			var piece []byte
			piece, query = cutParameter(query)
			if token := parameterToken(piece); len(token) > 0 && !yield(token) {
				return
			}
		}
	}
}

// headerTokens yields the tokens that one header carries; false when yield wants
// no more.
func headerTokens(name, value []byte, yield func(token []byte) bool) bool {
	var buf [maxName]byte
	var token []byte
	switch string(foldName(&buf, name)) {
	case "x-api-key", "api-key", "x-goog-api-key":
		token = value
	case "authorization", "proxy-authorization":
		token = authorizationToken(value)
	case "sec-websocket-protocol":
		for protocol, list := cutElement(value); protocol != nil; protocol, list = cutElement(list) {
			if token, ok := bytes.CutPrefix(protocol, []byte(subprotocolKey)); ok && !yield(token) {
				return false
			}
		}
	}
	return len(token) == 0 || yield(token)
}

// subprotocolKey begins the WebSocket subprotocol in which browsers send an
// OpenAI key (openai-node, realtime/websocket).
const subprotocolKey = "openai-insecure-api-key."

// authorizationToken reads the token of an Authorization header: a bearer
// token, the password of Basic, or the access key id of an AWS signature.
func authorizationToken(value []byte) []byte {
	scheme, rest, _ := bytes.Cut(value, []byte{' '})
	rest = trimSpace(rest)
	var buf [maxName]byte
	switch string(foldName(&buf, scheme)) {
	case "bearer":
		return rest
	case "basic":
		_, password := basic(rest)
		return password
	case "aws4-hmac-sha256":
		if _, after, ok := bytes.Cut(rest, []byte("Credential=")); ok {
			return accessKeyID(after)
		}
	}
	return nil
}

// basic reads the user name and the password of Basic (RFC 7617); nil when they are
// none.
func basic(encoded []byte) (user, password []byte) {
	decoded, err := base64.StdEncoding.AppendDecode(nil, encoded)
	if err != nil {
		return nil, nil
	}
	user, password, _ = bytes.Cut(decoded, []byte{':'})
	return user, password
}

// ProxyUser returns the user name of a Proxy-Authorization header's value, by which an
// agent behind HTTP(S)_PROXY names its session or itself; nil without one.
func ProxyUser(value []byte) []byte {
	scheme, rest, _ := bytes.Cut(value, []byte{' '})
	if !foldedEqual(scheme, "basic") {
		return nil
	}
	user, _ := basic(trimSpace(rest))
	return user
}

// accessKeyID cuts the key id off an AWS credential scope
// (ID/date/region/service/aws4_request).
func accessKeyID(scope []byte) []byte {
	id, _, _ := bytes.Cut(scope, []byte{'/'})
	return id
}

// parameterToken reads the token of a piece of a query, decoded.
func parameterToken(piece []byte) []byte {
	var buf [maxName]byte
	name := parameterName(&buf, piece)
	aws := string(name) == "x-amz-credential"
	if !aws && (!isSecretParameter(name) || bytes.HasPrefix(name, []byte("x-amz-"))) {
		return nil
	}
	_, value, _ := bytes.Cut(piece, []byte{'='})
	if bytes.IndexByte(value, '%') >= 0 {
		value, _ = unescape(nil, value)
	}
	if aws {
		return accessKeyID(value)
	}
	return value
}
