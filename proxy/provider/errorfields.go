package provider

import (
	"strconv"
	"strings"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// The places at which an error's body says what is wrong, in the shapes of all
// families: Anthropic's and OpenAI's `error` object, Google's with `details`
// (in a list when a stream was asked for without SSE), and the flat ones of
// Cohere, Mistral, xAI and Amazon.
const (
	errType = iota
	errCode
	errMessage
	errStatus
	errDetailCode
	errReason
	errRetryDelay
	errQuotaID
	errLimitSource
	errUpstream
	errReasons
	errResetsAt
	errResetsIn
	errText
	errTopCode
	errTopType
	errTopMessage
	errTopMessage2
	errDetail
	errAmazon
	errPlaces // how many
)

var errorPaths = jsonscan.MustCompile(errorPlaces("")...).Limit(errMessage, 2<<10).Limit(errTopMessage, 2<<10)

// errorListPaths are the same places inside a list.
var errorListPaths = jsonscan.MustCompile(errorPlaces("[].")...).Limit(errMessage, 2<<10).Limit(errTopMessage, 2<<10)

func errorPlaces(in string) []string {
	places := [errPlaces]string{
		errType:        "error.type",
		errCode:        "error.code",
		errMessage:     "error.message",
		errStatus:      "error.status",
		errDetailCode:  "error.details.error_code",
		errReason:      "error.details[].reason",
		errRetryDelay:  "error.details[].retryDelay",
		errQuotaID:     "error.details[].violations[].quotaId",
		errLimitSource: "error.metadata.limit_source",
		errUpstream:    "error.metadata.provider_name",
		errReasons:     "error.metadata.reasons",
		errResetsAt:    "error.resets_at",
		errResetsIn:    "error.resets_in_seconds",
		errText:        "error",
		errTopCode:     "code",
		errTopType:     "error_type",
		errTopMessage:  "message",
		errTopMessage2: "Message",
		errDetail:      "detail",
		errAmazon:      "__type",
	}
	for i := range places {
		places[i] = in + places[i]
	}
	return places[:]
}

// errorFields are what an error's body says. Texts are cut to their beginning.
type errorFields struct {
	typ, code, message string
	status             string // Google's name of the status, Azure's number
	detail             string // Anthropic's error_code
	reason             string // Google's
	retryDelay         string
	quotaIDs           string // all of them, one a line
	limitSource        string // OpenRouter's
	upstream           string // OpenRouter's provider_name
	moderated          bool   // OpenRouter names reasons for a refusal
	resetsAt, resetsIn string // Codex
}

// readError reads an error's body, as far as it is there.
func (f *errorFields) readError(body []byte) {
	paths := errorPaths
	for _, c := range body {
		if c == '[' {
			paths = errorListPaths
		}
		if c > ' ' {
			break
		}
	}
	var s jsonscan.Scanner
	s.Reset(paths, f)
	s.Write(body)
}

// readFailure takes over an error that came inside a stream.
func (f *errorFields) readFailure(in *Failure) {
	// What Google names its status by is the type there.
	f.typ, f.status, f.code, f.message = in.Type, in.Type, in.Code, in.Message
	if in.ResetsAt > 0 {
		f.resetsAt = strconv.FormatInt(in.ResetsAt, 10)
	}
	d := in.Details
	if d == nil {
		return
	}
	f.reason, f.retryDelay, f.quotaIDs = d.Reason, d.RetryDelay, d.QuotaIDs
	f.limitSource, f.upstream, f.moderated = d.LimitSource, d.Upstream, d.Moderated
	if d.ResetsIn > 0 {
		f.resetsIn = strconv.FormatInt(d.ResetsIn, 10)
	}
}

// Found implements jsonscan.Handler.
func (f *errorFields) Found(v *jsonscan.Value) {
	if v.Path == errReasons && v.Kind == jsonscan.ArrayBegin {
		f.moderated = true
	}
	if v.Kind != jsonscan.String && v.Kind != jsonscan.Number {
		return
	}
	text := string(jsonscan.Unquote(nil, v.Raw))
	switch v.Path {
	case errType:
		f.typ = text
	case errCode:
		f.code = text
	case errMessage, errText:
		f.message = text
	case errStatus:
		f.status = text
	case errDetailCode:
		f.detail = text
	case errReason:
		f.reason = text
	case errRetryDelay:
		f.retryDelay = text
	case errQuotaID:
		f.quotaIDs += text + "\n"
	case errLimitSource:
		f.limitSource = text
	case errUpstream:
		f.upstream = text
	case errResetsAt:
		f.resetsAt = text
	case errResetsIn:
		f.resetsIn = text
	case errTopCode:
		f.code = or(f.code, text)
	case errTopType:
		f.typ = or(f.typ, text)
	case errTopMessage, errTopMessage2, errDetail:
		f.message = or(f.message, text)
	case errAmazon:
		f.typ = or(f.typ, text)
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// says tells whether the message holds text, which is in lower case.
func (f *errorFields) says(text string) bool {
	return strings.Contains(strings.ToLower(f.message), text)
}

// begins tells whether the message begins with text, which is in lower case.
func (f *errorFields) begins(text string) bool {
	return len(f.message) >= len(text) && strings.EqualFold(f.message[:len(text)], text)
}

// is tells whether type, code or error_code is one of names.
func (f *errorFields) is(names ...string) bool {
	for _, name := range names {
		if f.typ == name || f.code == name || f.detail == name || f.reason == name {
			return true
		}
	}
	return false
}

// exception tells whether the error is one of Amazon's exceptions. Their names
// begin in lower case in streams, and can stand between a namespace and a URL:
// "com.amazon.coral.service#ThrottlingException:http://…".
func (f *errorFields) exception(names ...string) bool {
	got := f.typ
	if _, name, ok := strings.Cut(got, "#"); ok {
		got = name
	}
	got, _, _ = strings.Cut(got, ":")
	for _, name := range names {
		if strings.EqualFold(got, name) {
			return true
		}
	}
	return false
}
