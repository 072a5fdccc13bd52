package provider

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrorBody appends the JSON body of an error of authpool's own, in the shape
// of the family's errors and with a type that its SDKs understand. The message
// is made to start with `authpool:`. The code is authpool's, for OpenAI's
// `code`, except where SDKs know one for the status. The request id stands in
// Anthropic's shape only; it may be empty.
func ErrorBody(dst []byte, f Family, status int, code, message, requestID string) []byte {
	if !strings.HasPrefix(message, "authpool:") {
		message = "authpool: " + message
	}
	switch f {
	case Anthropic:
		dst = append(dst, `{"type":"error","error":{"type":`...)
		dst = appendString(dst, anthropicType(status))
		dst = append(dst, `,"message":`...)
		dst = appendString(dst, message)
		dst = append(dst, '}')
		if requestID != "" {
			dst = append(dst, `,"request_id":`...)
			dst = appendString(dst, requestID)
		}
		return append(dst, '}')
	case Gemini:
		dst = append(dst, `{"error":{"code":`...)
		dst = strconv.AppendInt(dst, int64(status), 10)
		dst = append(dst, `,"message":`...)
		dst = appendString(dst, message)
		dst = append(dst, `,"status":`...)
		dst = appendString(dst, googleStatus(status))
		return append(dst, "}}"...)
	case Bedrock, Cohere:
		return appendOnly(dst, "message", message)
	case Ollama:
		return appendOnly(dst, "error", message)
	case Voyage:
		return appendOnly(dst, "detail", message)
	case OpenAI, Azure:
	}
	typ, known := openAIType(status)
	if known != "" {
		code = known
	}
	dst = append(dst, `{"error":{"message":`...)
	dst = appendString(dst, message)
	dst = append(dst, `,"type":`...)
	dst = appendString(dst, typ)
	dst = append(dst, `,"param":null,"code":`...)
	dst = appendString(dst, code)
	return append(dst, "}}"...)
}

// UsageLimitBody appends the JSON body by which Codex knows that waiting makes
// no sense within a turn: it says when the limit ends, and does not repeat. Any
// other 429 it repeats (openai/codex, codex-rs/core/src/error.rs and
// api_bridge.rs). The message is made to start with `authpool:`.
func UsageLimitBody(dst []byte, message string, resets time.Time) []byte {
	if !strings.HasPrefix(message, "authpool:") {
		message = "authpool: " + message
	}
	dst = append(dst, `{"error":{"type":"usage_limit_reached","message":`...)
	dst = appendString(dst, message)
	dst = append(dst, `,"resets_at":`...)
	dst = strconv.AppendInt(dst, resets.Unix(), 10)
	return append(dst, "}}"...)
}

// ErrorEvent appends the data of the event by which OpenAI's Responses API ends
// a stream (openai-openapi, ResponseErrorEvent), for an error of authpool's own.
func ErrorEvent(dst []byte, status int, code, message string) []byte {
	dst = append(dst, `{"type":"error","code":`...)
	dst = appendCause(dst, status, code, message)
	return append(dst, `,"param":null,"sequence_number":0}`...)
}

// FailedResponse appends the data of the event by which the Responses API says
// that a response has failed (openai-openapi, ResponseFailedEvent), for an error
// of authpool's own.
func FailedResponse(dst []byte, id string, status int, code, message string) []byte {
	dst = append(dst, `{"type":"response.failed","sequence_number":0,"response":{"id":`...)
	dst = appendString(dst, id)
	dst = append(dst, `,"object":"response","status":"failed","output":[],"error":{"code":`...)
	dst = appendCause(dst, status, code, message)
	return append(dst, "}}}"...)
}

// appendCause appends the value of `code`, and the member `message`.
func appendCause(dst []byte, status int, code, message string) []byte {
	if _, known := openAIType(status); known != "" {
		code = known
	}
	if !strings.HasPrefix(message, "authpool:") {
		message = "authpool: " + message
	}
	dst = appendString(dst, code)
	dst = append(dst, `,"message":`...)
	return appendString(dst, message)
}

// appendOnly appends an object of one text.
func appendOnly(dst []byte, name, text string) []byte {
	dst = append(dst, '{')
	dst = appendString(dst, name)
	dst = append(dst, ':')
	dst = appendString(dst, text)
	return append(dst, '}')
}

// ErrorHeader is the header that an error of authpool's own carries for the
// family's SDKs beside its body; both are empty for families without one. AWS'
// SDKs find the kind of an error there and nowhere else.
func ErrorHeader(f Family, status int) (name, value string) {
	if f == Bedrock {
		return "x-amzn-ErrorType", bedrockType(status)
	}
	return "", ""
}

// bedrockType is the error type of a status (Bedrock Runtime's API reference).
func bedrockType(status int) string {
	switch status {
	case 401, 403:
		return "AccessDeniedException"
	case 404:
		return "ResourceNotFoundException"
	case 429:
		return "ThrottlingException"
	case 503:
		return "ServiceUnavailableException"
	}
	if status >= 500 {
		return "InternalServerException"
	}
	return "ValidationException"
}

// anthropicType is the error type of a status (anthropic-sdk-typescript
// shared.d.ts).
func anthropicType(status int) string {
	switch status {
	case 401:
		return "authentication_error"
	case 403:
		return "permission_error"
	case 404:
		return "not_found_error"
	case 413:
		return "request_too_large"
	case 429:
		return "rate_limit_error"
	case 503, 529:
		return "overloaded_error"
	case 504:
		return "timeout_error"
	}
	if status >= 500 {
		return "api_error"
	}
	return "invalid_request_error"
}

// openAIType is the error type of a status, and the code where there is one
// that clients look at.
func openAIType(status int) (typ, code string) {
	switch {
	case status == 401:
		return "invalid_request_error", "invalid_api_key"
	case status == 429:
		return "rate_limit_error", "rate_limit_exceeded"
	case status == 503:
		return "service_unavailable_error", "server_is_overloaded"
	case status >= 500:
		return "server_error", ""
	}
	return "invalid_request_error", ""
}

// googleStatus is the name of a status (google.rpc.Code).
func googleStatus(status int) string {
	switch status {
	case 401:
		return "UNAUTHENTICATED"
	case 403:
		return "PERMISSION_DENIED"
	case 404:
		return "NOT_FOUND"
	case 426:
		return "FAILED_PRECONDITION"
	case 429:
		return "RESOURCE_EXHAUSTED"
	case 502, 503:
		return "UNAVAILABLE"
	case 504:
		return "DEADLINE_EXCEEDED"
	}
	if status >= 500 {
		return "INTERNAL"
	}
	return "INVALID_ARGUMENT"
}

// appendString appends text as a JSON string. Bytes that are not UTF-8 become
// U+FFFD.
func appendString(dst []byte, text string) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < ' ' || r == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', digits[r>>4], digits[r&15])
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}
