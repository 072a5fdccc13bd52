package meter

import (
	"strconv"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// failurePlaces are the fields of an error object. Beside OpenAI's and
// Anthropic's: status_code is Groq's, resets_at and resets_in_seconds Codex',
// metadata OpenRouter's; a code that is a number, OpenRouter's and Google's,
// stands for the HTTP status. A status is Azure's number of that, or Google's
// name of it, whose details say which limit it was. They all are read in every
// dialect, since Google tells errors its own way in OpenAI's and Anthropic's, too.
var failurePlaces = []place{
	{"type", failKind},
	{"code", failCode},
	{"details.error_code", failDetail},
	{"message", failMessage},
	{"status_code", failStatus},
	{"status", failStatus},
	{"resets_at", failResets},
	{"resets_in_seconds", failResetsIn},
	{"details[].reason", failReason},
	{"details[].retryDelay", failDelay},
	{"details[].violations[].quotaId", failQuota},
	{"metadata.limit_source", failSource},
	{"metadata.provider_name", failUpstream},
	{"metadata.reasons", failModerated},
}

// failureAt returns the places of an error at path, as an object or as a text.
func failureAt(path string) []place {
	return append([]place{{path, failBegin}}, under(path, failurePlaces)...)
}

// readFailure reads a field of an error.
func (e *event) readFailure(s slot, v *jsonscan.Value) {
	f := &e.failure
	switch v.Kind {
	case jsonscan.ObjectBegin:
		e.failed = e.failed || s == failBegin
	case jsonscan.ArrayBegin:
		if s == failModerated {
			f.details().Moderated = true
		}
	case jsonscan.String:
		text := text(v)
		switch s {
		case failBegin:
			if text != "" {
				e.failed = true
				f.Message = text
			}
		case failKind:
			f.Type = text
		case failCode:
			if f.Code == "" {
				f.Code = text
			}
		case failDetail:
			f.Code = text
		case failMessage:
			f.Message = text
		case failStatus:
			if f.Type == "" {
				f.Type = text
			}
		case failReason:
			f.details().Reason = text
		case failDelay:
			f.details().RetryDelay = text
		case failQuota:
			if d := f.details(); len(d.QuotaIDs) < textLimit {
				d.QuotaIDs += text + "\n"
			}
		case failSource:
			f.details().LimitSource = text
		case failUpstream:
			f.details().Upstream = text
		default:
		}
	case jsonscan.Number:
		n, ok := number(v.Raw)
		if !ok {
			return
		}
		switch s {
		case failCode:
			f.Code = strconv.FormatInt(n, 10)
			f.Status = httpStatus(n, f.Status)
		case failStatus:
			f.Status = httpStatus(n, f.Status)
		case failResets:
			f.ResetsAt = n
		case failResetsIn:
			f.details().ResetsIn = n
		default:
		}
	default:
	}
}

// details are f's, made when the first of them is told: a meter has no room for
// what hardly any answer says.
func (f *Failure) details() *FailureDetails {
	if f.Details == nil {
		f.Details = new(FailureDetails)
	}
	return f.Details
}

// httpStatus returns n if it is the status of an error, else old.
func httpStatus(n int64, old int) int {
	if n >= 400 && n < 600 {
		return int(n)
	}
	return old
}

// text returns a string's text.
func text(v *jsonscan.Value) string {
	if v.Escaped {
		return string(jsonscan.Unquote(nil, v.Raw))
	}
	return string(v.Raw)
}

// fail takes over an error: it ends the answer.
func (m *Meter) fail(e *event) {
	m.failed, m.terminal = true, true
	m.failure = e.failure
}
