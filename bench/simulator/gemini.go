package simulator

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"time"
)

// Gemini's endpoints, by the method behind the colon of their path.
const (
	geminiGenerate = "gemini generateContent"
	geminiStream   = "gemini streamGenerateContent alt=sse"
	geminiArray    = "gemini streamGenerateContent" // without alt=sse: one array that grows
	geminiCount    = "gemini countTokens"
)

// gemini finds the endpoint and the model, which stand in the path.
func (s *Simulator) gemini(w http.ResponseWriter, r *http.Request, q *request) {
	model, method, _ := strings.Cut(r.PathValue("call"), ":")
	q.model = model
	switch q.endpoint = Gemini + " " + method; q.endpoint {
	case geminiArray:
		if r.URL.Query().Get("alt") == "sse" {
			q.endpoint = geminiStream
		}
	case geminiGenerate, geminiCount:
	default:
		s.unknown(w, r, q)
		return
	}
	s.spend(w, r, q)
}

// geminiUsage is left out of chunks where it is empty, field by field, as the real one leaves out zeros.
func geminiUsage(u usage, output, thinking int64) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"promptTokenCount":%d`, u.prompt())
	if n := output - thinking; n > 0 {
		fmt.Fprintf(&b, `,"candidatesTokenCount":%d`, n)
	}
	if thinking > 0 {
		fmt.Fprintf(&b, `,"thoughtsTokenCount":%d`, thinking)
	}
	if u.cacheRead > 0 {
		fmt.Fprintf(&b, `,"cachedContentTokenCount":%d`, u.cacheRead)
	}
	fmt.Fprintf(&b, `,"totalTokenCount":%d,"promptTokensDetails":[{"modality":"TEXT","tokenCount":%d}]}`, u.prompt()+output, u.prompt())
	return b.String()
}

func (x *exchange) geminiFinish() string {
	if x.answer.cut {
		return "MAX_TOKENS"
	}
	return "STOP"
}

func (x *exchange) geminiTail(output, thinking int64) string {
	return fmt.Sprintf(`"usageMetadata":%s,"modelVersion":%s,"responseId":%s}`,
		geminiUsage(x.usage, output, thinking), quote(x.call.model), quote(x.openaiID("")))
}

// geminiThought is a part that holds the model's thinking.
func geminiThought(text string) string { return `{"text":` + quote(text) + `,"thought":true}` }

func geminiDocument(x *exchange) (before, after string) {
	before = `{"candidates":[{"content":{"parts":[`
	if x.call.thinking {
		before += geminiThought(strings.Join(thoughts, "")) + ","
	}
	end := `"}`
	if x.answer.tool {
		before += `{"functionCall":{"name":` + quote(x.call.tool) + `,"args":`
		end = `}}`
	} else {
		before += `{"text":"`
	}
	return before, fmt.Sprintf(`%s],"role":"model"},"finishReason":%q,"index":0}],%s`, end, x.geminiFinish(), x.geminiTail(x.usage.output, x.usage.thinking))
}

// geminiChunks yields the parts of a stream; each says what was used so far.
func geminiChunks(x *exchange) iter.Seq[event] {
	return func(yield func(event) bool) {
		var output, thinking int64
		send := func(part, finish string, tokens int64) bool {
			output += tokens
			return yield(event{
				data: fmt.Sprintf(`{"candidates":[{"content":{"parts":[%s],"role":"model"},%s"index":0}],%s`, part, finish, x.geminiTail(output, thinking)),
				// A part of empty text shows nothing.
				content: part != "", tokens: tokens, terminal: finish != "",
			})
		}
		if x.call.thinking {
			for _, text := range thoughts {
				thinking++
				if !send(geminiThought(text), "", 1) {
					return
				}
			}
		}
		if x.answer.tool { // it is never cut in pieces
			var args strings.Builder
			for p := range x.answer.pieces() {
				args.WriteString(p.text)
			}
			if !send(`{"functionCall":{"name":`+quote(x.call.tool)+`,"args":`+args.String()+`}}`, "", x.answer.tokens()) {
				return
			}
		} else {
			for p := range x.answer.pieces() {
				if !send(`{"text":`+quote(p.text)+`}`, "", p.tokens) {
					return
				}
			}
		}
		send("", fmt.Sprintf(`"finishReason":%q,`, x.geminiFinish()), 0)
	}
}

// geminiEvents is a stream of server-sent events, whose lines end in CR LF.
func geminiEvents(x *exchange) iter.Seq[event] {
	return func(yield func(event) bool) {
		for e := range geminiChunks(x) {
			e.raw = "data: " + e.data + "\r\n\r\n"
			if !yield(e) {
				return
			}
		}
	}
}

// geminiElements is the array.
func geminiElements(x *exchange) iter.Seq[event] {
	return func(yield func(event) bool) {
		open := "["
		for e := range geminiChunks(x) {
			e.raw = open + e.data
			open = ",\r\n"
			if e.terminal {
				e.raw += "]"
			}
			if !yield(e) {
				return
			}
		}
	}
}

const geminiBusy = `{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}`

func geminiErrorEvent(*exchange) event { return event{raw: "data: " + geminiBusy + "\r\n\r\n"} }

// geminiErrorElement is in its place: before the first content nothing opened the array.
func geminiErrorElement(x *exchange) event {
	if x.has(ErrorEvent) {
		return event{raw: "[" + geminiBusy + "]"}
	}
	return event{raw: ",\r\n" + geminiBusy + "]"}
}

func geminiCountDocument(c *call) string { return fmt.Sprintf(`{"totalTokens":%d}`, c.total()) }

// geminiBody writes a failure as google.rpc.Status.
func (f failure) geminiBody() string {
	details := ""
	if f.code != "" {
		details = fmt.Sprintf(`{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":%s,"domain":"googleapis.com"}`, quote(f.code))
	}
	details += f.extra
	if f.retry > 0 {
		if details != "" {
			details += ","
		}
		details += fmt.Sprintf(`{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"%ss"}`, seconds(f.retry))
	}
	if details != "" {
		details = `,"details":[` + details + `]`
	}
	return fmt.Sprintf(`{"error":{"code":%d,"message":%s,"status":%s%s}}`, f.status, quote(f.message), quote(f.kind), details)
}

// seconds writes a duration as protobuf does, without its unit.
func seconds(d time.Duration) string {
	b, _ := json.Marshal(d.Seconds()) // a number
	return string(b)
}

// geminiQuota is the answer to a project that is at a limit.
func geminiQuota(metric, quotaID, model string, limit int) failure {
	f := failureOf(Gemini, http.StatusTooManyRequests)
	f.message = fmt.Sprintf("You exceeded your current quota. Quota exceeded for metric: generativelanguage.googleapis.com/%s, limit: %d, model: %s", metric, limit, model)
	f.extra = fmt.Sprintf(`{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaMetric":"generativelanguage.googleapis.com/%s","quotaId":%q,"quotaDimensions":{"location":"global","model":%s},"quotaValue":"%d"}]}`,
		metric, quotaID, quote(model), limit)
	return f
}

var geminiFailures = map[int]failure{
	400: {kind: "INVALID_ARGUMENT", message: "Request contains an invalid argument."},
	401: {kind: "UNAUTHENTICATED", message: "Request had invalid authentication credentials."},
	403: {kind: "PERMISSION_DENIED", message: "The caller does not have permission"},
	404: {kind: "NOT_FOUND", message: "models/x is not found for API version v1beta, or is not supported for generateContent."},
	429: {kind: "RESOURCE_EXHAUSTED", message: "Resource has been exhausted (e.g. check quota)."},
	500: {kind: "INTERNAL", message: "An internal error has occurred."},
	503: {kind: "UNAVAILABLE", message: "The model is overloaded. Please try again later."},
	504: {kind: "DEADLINE_EXCEEDED", message: "The request timed out. Please try again."},
}
