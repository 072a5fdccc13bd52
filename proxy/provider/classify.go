package provider

import (
	"iter"
	"sync"
	"time"

	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/ratelimit"
)

// Answer is what Classify reads of a provider's answer.
type Answer struct {
	Provider string    // its name; a few rows are one provider's own
	Family   Family    // the provider's
	Endpoint *Endpoint // of the call; nil counts as a billable one
	Status   int
	// Headers yields the answer's headers, in any case; nil is none.
	Headers iter.Seq2[[]byte, []byte]
	// Body is the beginning of the decoded body, at most 64 KiB. It is needed
	// when Status is not 2xx; otherwise it is looked at only for an error that
	// is the whole answer.
	Body []byte
	// Failure is an error that came inside a stream; then Status is that of
	// the stream's head.
	Failure *Failure
	// Windows is memory for Verdict.Windows, to be used again, and Organisation for
	// Verdict.Organisation; may be nil.
	Windows      []ratelimit.Window
	Organisation []byte
}

// Failure is an error inside a stream, as its event tells it.
type Failure = meter.Failure

// Classify decides what an answer means for the subscription that got it. It is
// a pure function of its arguments; the first row of the table that matches
// decides, and Verdict.Row names it.
func Classify(a Answer, now time.Time) ratelimit.Verdict {
	s := allSigns.Get().(*signs)
	defer func() {
		*s = signs{}
		allSigns.Put(s)
	}()
	s.Answer, s.now = a, now
	if a.Headers != nil {
		for name, value := range a.Headers {
			s.read(name, value)
		}
	}
	windows := s.windows(a.Windows[:0], now)
	organisation := a.Organisation[:0]
	organisation = append(organisation, s.organisation...)
	switch {
	case a.Failure != nil:
		s.readFailure(a.Failure)
		s.Status = s.statusOfError()
	case a.Status < 400:
		is, _ := ErrorBegins(a.Body)
		if a.Status < 200 || a.Status > 299 || !is {
			return ratelimit.Verdict{Row: "ok", Windows: windows, Organisation: organisation}
		}
		s.readError(a.Body)
		s.Status = s.statusOfError()
	default:
		s.readError(a.Body)
		s.typ = or(s.typ, string(s.amazonType))
	}
	s.tell()
	for i := range rows {
		if rows[i].when(s) {
			v := rows[i].verdict
			v.Row = rows[i].name
			v.Windows, v.Organisation = windows, organisation
			v.Wait = -1
			if rows[i].end != nil {
				v.Wait = rows[i].end.wait(s)
			}
			if v.Reason == ratelimit.ReasonThrottled && v.Wait < 0 {
				v.Reason = ratelimit.ReasonBare
			}
			return v
		}
	}
	panic("BUG: the classifier's last row matches everything")
}

// allSigns are used again, because they are large and hold what they point to.
var allSigns = sync.Pool{New: func() any { return new(signs) }}

// signs are all that the rows look at.
type signs struct {
	Answer
	limits
	errorFields
	now time.Time

	told   time.Duration // how long the answer says to wait, in any of its ways
	isTold bool
}

// tell finds how long the answer says to wait, the surest
// place first: a header made for it, a limit's reset, the error's text.
func (s *signs) tell() {
	s.told, s.isTold = s.afterHeader(s.now)
	if !s.isTold {
		s.told, s.isTold = s.exhaustedWait(s.now, bucketLimit)
	}
	if !s.isTold {
		s.told, s.isTold = ParseWait(s.retryDelay, s.clock(s.now))
	}
	if !s.isTold {
		s.told, s.isTold = waitInText(s.message)
	}
	s.isTold = s.isTold && s.told > 0
}

// wait is what the answer says, or negative.
func (s *signs) wait() time.Duration {
	if s.isTold {
		return s.told
	}
	return -1
}

// ErrorBegins tells whether a body that came with 200 is an error and nothing
// else: an object whose first key is `error` and holds something (OpenRouter
// and Azure do that). known is false while too little of it is there to tell.
func ErrorBegins(body []byte) (is, known bool) {
	for _, want := range []byte("{\"error\":{") {
		for len(body) > 0 && body[0] <= ' ' {
			body = body[1:]
		}
		if len(body) == 0 || body[0] != want {
			return false, len(body) > 0
		}
		body = body[1:]
	}
	return true, true
}

// statusOfError finds the status that an error would have had, had it come
// before the answer began.
func (s *signs) statusOfError() int {
	if s.Failure != nil && s.Failure.Status >= 400 && s.Failure.Status < 600 {
		return s.Failure.Status
	}
	for _, text := range [...]string{s.code, s.status, s.typ} {
		if n, ok := intOf(text); ok && n >= 400 && n < 600 {
			return n
		}
	}
	for _, name := range [...]string{s.detail, s.code, s.typ, s.status} {
		if status, ok := statusOfName[name]; ok {
			return status
		}
	}
	return 500
}

// statusOfName are the statuses that errors with these types, codes and names
// have outside of streams (anthropic-sdk-typescript shared.d.ts; openai-node;
// openai/codex sse/responses.rs; google.rpc.Code; aws-sdk-go-v2 bedrockruntime).
var statusOfName = map[string]int{
	"invalid_request_error": 400,
	"authentication_error":  401,
	"billing_error":         402,
	"permission_error":      403,
	"not_found_error":       404,
	"request_too_large":     413,
	"rate_limit_error":      429,
	"api_error":             500,
	"timeout_error":         504,
	"overloaded_error":      529,

	"rate_limit_exceeded":           429,
	"inference_rate_limit_exceeded": 429, // Azure's Realtime API (openai/openai-python#2502)
	"tokens":                        429,
	"requests":                      429,
	"insufficient_quota":            429,
	"usage_limit_reached":           429,
	"usage_not_included":            429,
	"server_error":                  500,
	"server_is_overloaded":          503,
	"slow_down":                     503,
	"service_unavailable_error":     503,
	"invalid_api_key":               401,
	"model_not_found":               404,
	"context_length_exceeded":       400,
	"content_filter":                400,
	"invalid_prompt":                400,
	"tool_use_failed":               400,
	"invalid_encrypted_content":     400,
	"previous_response_not_found":   400,

	"INVALID_ARGUMENT":    400,
	"FAILED_PRECONDITION": 400,
	"UNAUTHENTICATED":     401,
	"PERMISSION_DENIED":   403,
	"NOT_FOUND":           404,
	"RESOURCE_EXHAUSTED":  429,
	"INTERNAL":            500,
	"UNAVAILABLE":         503,
	"DEADLINE_EXCEEDED":   504,

	"throttlingException":         429,
	"validationException":         400,
	"modelTimeoutException":       408,
	"modelStreamErrorException":   424,
	"internalServerException":     500,
	"serviceUnavailableException": 503,
}
