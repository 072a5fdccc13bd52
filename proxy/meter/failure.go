package meter

import (
	"strconv"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// failurePlaces are the fields of an error object. Beside OpenAI's and
// Anthropic's: status_code is Groq's, status Azure's, resets_at Codex'; a code
// that is a number is OpenRouter's and stands for the HTTP status.
var failurePlaces = []place{
	{"type", failKind},
	{"code", failCode},
	{"details.error_code", failDetail},
	{"message", failMessage},
	{"status_code", failStatus},
	{"status", failStatus},
	{"resets_at", failResets},
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
		default:
		}
	default:
	}
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
