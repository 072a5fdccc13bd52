package provider

import (
	"bytes"
	"strings"
	"time"

	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/ratelimit"
)

// socket finds the row of a path that is a WebSocket whose turns can be counted; nil for
// all others: Lyria's music, for instance, and Gemini's sockets for short-lived tokens,
// which nobody gets here.
func (t *paths) socket(p *plainPath) *Endpoint {
	for _, r := range t.sockets {
		for i := range p.count {
			if (i == 0 || r.where != fromHost && t.mounted(p.segments[i-1])) && r.match(p, i) {
				return &r.Endpoint
			}
		}
	}
	return nil
}

// The beginning of a path of Gemini's Live API.
const (
	liveMount   = "ws"
	liveService = "google.ai.generativelanguage."
)

// joins reads from the query of a Realtime session's upgrade which model is to speak
// (Azure calls it a deployment), or which call the socket joins: that is the account's
// that has made it. Source: OpenAI's guide of the Realtime API, "server controls".
func (c *Call) joins(r *Request) (model []byte, err error) {
	named, joined := false, false
	for query := r.Query; len(query) > 0; {
		var piece []byte
		piece, query = cutParameter(query)
		var twice *bool
		var buf [maxName]byte
		switch name := parameterName(&buf, piece); {
		case string(name) == "model", string(name) == "deployment" && r.Provider.Family == Azure:
			twice = &named
		case string(name) == "call-id":
			twice = &joined
		default:
			continue
		}
		if *twice {
			return nil, &Refusal{
				Status: 400, Code: CodeDuplicateField, Family: c.Shape,
				Message: "the query names the model, or the call, more than once; send it once",
			}
		}
		*twice = true
		_, value, _ := bytes.Cut(piece, []byte{'='})
		value, ok := unescape(nil, value)
		switch {
		case !ok:
		case twice == &named:
			model = value
		case isResource(value):
			c.Pins.add(value)
		}
	}
	return model, nil
}

// SocketModel is the model that is named by a message of a WebSocket, as paths and
// answers name it: Gemini's `models/M` and Vertex' `projects/…/models/M` are M.
func SocketModel(name string) string {
	if i := strings.LastIndex(name, "models/"); i >= 0 {
		name = name[i+len("models/"):]
	}
	return CleanModel([]byte(name))
}

// secretProtocols begin the WebSocket subprotocols by which browsers send what stands
// in headers elsewhere (openai-node, realtime/websocket.ts).
var secretProtocols = []string{subprotocolKey, "openai-organization.", "openai-project."}

// isPlainProtocol tells whether a subprotocol is no credential and nobody's name.
func isPlainProtocol(protocol []byte) bool {
	for _, prefix := range secretProtocols {
		if foldedPrefix(protocol, prefix) {
			return false
		}
	}
	return !HoldsAgentToken(protocol)
}

// OffersProtocol tells whether an upgrade that goes upstream offers a subprotocol.
func OffersProtocol(headers Headers, protocol []byte) bool {
	for name, value := range headers.All() {
		if !foldedEqual(name, "sec-websocket-protocol") {
			continue
		}
		for element, list := cutElement(value); element != nil; element, list = cutElement(list) {
			if bytes.Equal(element, protocol) {
				return isPlainProtocol(element)
			}
		}
	}
	return false
}

// appendSocket appends what an upgrade keeps of its sec-websocket-… headers. The
// extensions are left out: the only one in use compresses the messages, and then they
// could not be read.
func appendSocket(dst, name, value []byte) []byte {
	switch {
	case foldedEqual(name, "sec-websocket-key"), foldedEqual(name, "sec-websocket-version"):
		if HoldsAgentToken(value) {
			return dst
		}
		return appendHeader(dst, name, value)
	case foldedEqual(name, "sec-websocket-protocol"):
		return appendList(dst, name, value, isPlainProtocol)
	}
	return dst
}

// CloseFailure is what a provider means that closes a socket with this code and text
// (RFC 6455, section 7.4); ok is false when that is no error of the provider's. Gemini
// says 1011 or 1008 and what it would say over HTTP (googleapis/python-genai#1917 and
// others: "RESOURCE_EXHAUSTED", "You exceeded your current quota"), OpenAI the error's
// type and code with a dot between.
func CloseFailure(code uint16, reason string) (f Failure, ok bool) {
	const normal, leaving = 1000, 1001
	if code == normal || code == leaving || reason == "" {
		return Failure{}, false
	}
	f = Failure{Message: reason}
	for _, word := range strings.FieldsFunc(reason, func(r rune) bool { return r != '_' && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }) {
		if status, known := statusOfName[word]; known {
			f.Code, f.Status = word, status
		}
	}
	if f.Code == "" && strings.Contains(strings.ToLower(reason), "exceeded your current quota") {
		f.Code, f.Status = "RESOURCE_EXHAUSTED", statusOfName["RESOURCE_EXHAUSTED"]
	}
	return f, f.Code != ""
}

// Buckets appends the limits that a Realtime session tells as what the headers of
// answers tell elsewhere.
func Buckets(dst []ratelimit.Window, limits []meter.Limit, now time.Time) []ratelimit.Window {
	for _, l := range limits {
		if l.Name == "" || l.Size <= 0 || l.Left < 0 {
			continue
		}
		dst = append(dst, ratelimit.Window{
			Name: l.Name, Kind: "bucket", Utilization: max(1-l.Left/l.Size, 0), Size: l.Size, Left: l.Left,
			Reset: now.Add(min(time.Duration(l.Reset*float64(time.Second)), maxRefill)), Seen: now,
		})
	}
	return dst
}
