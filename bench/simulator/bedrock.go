package simulator

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"net/http"
	"slices"
	"strings"
)

// Bedrock's endpoints, by the last part of their path. What is invoked speaks Anthropic's Messages.
const (
	bedrockConverse       = "bedrock converse"
	bedrockConverseStream = "bedrock converse-stream"
	bedrockInvoke         = "bedrock invoke"
	bedrockInvokeStream   = "bedrock invoke-with-response-stream"
)

// bedrock finds the endpoint and the model, which stand in the path.
func (s *Simulator) bedrock(w http.ResponseWriter, r *http.Request, q *request) {
	q.model = r.PathValue("model")
	switch q.endpoint = Bedrock + " " + r.PathValue("method"); q.endpoint {
	case bedrockConverse, bedrockConverseStream, bedrockInvoke, bedrockInvokeStream:
		s.spend(w, r, q)
	default:
		s.unknown(w, r, q)
	}
}

func converseUsage(u usage) string {
	return fmt.Sprintf(`{"inputTokens":%d,"outputTokens":%d,"totalTokens":%d,"cacheReadInputTokens":%d,"cacheWriteInputTokens":%d}`,
		u.input, u.output, u.prompt()+u.output, u.cacheRead, u.write5m+u.write1h)
}

func converseDocument(x *exchange) (before, after string) {
	before = `{"metrics":{"latencyMs":1},"output":{"message":{"content":[`
	if x.call.thinking {
		before += fmt.Sprintf(`{"reasoningContent":{"reasoningText":{"text":%s,"signature":%s}}},`, quote(strings.Join(thoughts, "")), quote(x.thinkingSignature()))
	}
	end := `"}`
	if x.answer.tool {
		before += fmt.Sprintf(`{"toolUse":{"toolUseId":%s,"name":%s,"input":`, quote(x.openaiID("tooluse_")), quote(x.call.tool))
		end = `}}`
	} else {
		before += `{"text":"`
	}
	return before, fmt.Sprintf(`%s],"role":"assistant"}},"stopReason":%q,"usage":%s}`, end, x.stopReason(), converseUsage(x.usage))
}

func converseStream(x *exchange) iter.Seq[event] {
	return func(yield func(event) bool) {
		send := func(name, payload string, content bool, tokens int64) bool {
			return yield(event{raw: eventFrame(name, payload), content: content, tokens: tokens, terminal: name == "metadata"})
		}
		if !send("messageStart", `{"role":"assistant"}`, false, 0) {
			return
		}
		index := 0
		if x.call.thinking {
			for _, text := range thoughts {
				if !send("contentBlockDelta", `{"contentBlockIndex":0,"delta":{"reasoningContent":{"text":`+quote(text)+`}}}`, true, 1) {
					return
				}
			}
			if !send("contentBlockStop", `{"contentBlockIndex":0}`, true, 0) {
				return
			}
			index = 1
		}
		delta := func(text string) string { return `{"text":` + quote(text) + `}` }
		if x.answer.tool {
			start := fmt.Sprintf(`{"contentBlockIndex":%d,"start":{"toolUse":{"toolUseId":%s,"name":%s}}}`, index, quote(x.openaiID("tooluse_")), quote(x.call.tool))
			if !send("contentBlockStart", start, true, 0) {
				return
			}
			delta = func(text string) string { return `{"toolUse":{"input":` + quote(text) + `}}` }
		}
		for p := range x.answer.pieces() {
			if !send("contentBlockDelta", fmt.Sprintf(`{"contentBlockIndex":%d,"delta":%s}`, index, delta(p.text)), true, p.tokens) {
				return
			}
		}
		_ = send("contentBlockStop", fmt.Sprintf(`{"contentBlockIndex":%d}`, index), true, 0) &&
			send("messageStop", fmt.Sprintf(`{"stopReason":%q}`, x.stopReason()), true, 0) &&
			send("metadata", `{"metrics":{"latencyMs":1},"usage":`+converseUsage(x.usage)+`}`, false, 0)
	}
}

// invokeStream is Anthropic's stream, each event in a frame of its own; the last one repeats what was used.
func invokeStream(x *exchange) iter.Seq[event] {
	return func(yield func(event) bool) {
		for e := range messagesStream(x) {
			data := e.data
			if e.terminal {
				data = fmt.Sprintf(`%s,"amazon-bedrock-invocationMetrics":{"inputTokenCount":%d,"outputTokenCount":%d,"invocationLatency":1,"firstByteLatency":1}}`,
					strings.TrimSuffix(data, "}"), x.usage.input, x.usage.output)
			}
			e.raw = eventFrame("chunk", `{"bytes":"`+base64.StdEncoding.EncodeToString([]byte(data))+`","p":"abcdef"}`)
			if !yield(e) {
				return
			}
		}
	}
}

func bedrockError(*exchange) event {
	return event{raw: frame(`{"message":"The service is unavailable."}`,
		":exception-type", "serviceUnavailableException", ":content-type", "application/json", ":message-type", "exception")}
}

func eventFrame(name, payload string) string {
	return frame(payload, ":event-type", name, ":content-type", "application/json", ":message-type", "event")
}

// frame writes a message of the Amazon event stream (Smithy's specification): lengths, their checksum, headers that are
// strings, payload, checksum.
func frame(payload string, headers ...string) string {
	var h []byte
	for pair := range slices.Chunk(headers, 2) {
		name, value := pair[0], pair[1]
		h = append(append(h, byte(len(name))), name...)
		h = append(h, 7) // a string
		h = append(binary.BigEndian.AppendUint16(h, uint16(len(value))), value...)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(12+len(h)+len(payload)+4))
	b = binary.BigEndian.AppendUint32(b, uint32(len(h)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(append(b, h...), payload...)
	return string(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
}

var bedrockFailures = map[int]failure{
	400: {kind: "ValidationException", message: "The request is invalid."},
	401: {kind: "UnrecognizedClientException", message: "The security token included in the request is invalid."},
	403: {kind: "AccessDeniedException", message: "You don't have access to the model with the specified model ID."},
	404: {kind: "ResourceNotFoundException", message: "Could not resolve the foundation model from the provided model identifier."},
	408: {kind: "ModelTimeoutException", message: "The model took too long to answer."},
	424: {kind: "ModelErrorException", message: "The model failed."},
	429: {kind: "ThrottlingException", message: "Too many requests, please wait before trying again."},
	500: {kind: "InternalServerException", message: "The system encountered an unexpected error during processing."},
	503: {kind: "ServiceUnavailableException", message: "The service is unavailable."},
}
