package admin

import "net/http"

// Problem is the body of every error of this API (RFC 9457,
// application/problem+json).
type Problem struct {
	Type   string `json:"type"` // names Code for those who compare types; not to be fetched
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"` // one sentence that says what to do
	Code   Code   `json:"code"`
}

// Code says for programs what is wrong; more than one may have the same status.
type Code string

// The codes, by their status.
const (
	CodeInvalid      Code = "invalid_request"        // 400
	CodeToken        Code = "token_missing_or_wrong" // 401
	CodeForbidden    Code = "forbidden"              // 403
	CodeRole         Code = "role_too_low"           // 403: the token may only read
	CodeBrowser      Code = "foreign_page"           // 403: another site's page sent this
	CodeHost         Code = "foreign_host"           // 403: the Host is not this machine's
	CodeNotFound     Code = "not_found"              // 404: no such record
	CodeNoOperation  Code = "no_such_operation"      // 404: no such path
	CodeMethod       Code = "method_not_allowed"     // 405: Allow names the methods of the path
	CodeConflict     Code = "conflict"               // 409
	CodeVersion      Code = "version_conflict"       // 412: the record is not as If-Match says
	CodeTooLarge     Code = "body_too_large"         // 413
	CodeMediaType    Code = "unsupported_media_type" // 415
	CodeImpossible   Code = "unprocessable"          // 422: understood, but not possible
	CodeTooMany      Code = "too_many_requests"      // 429
	CodeUnavailable  Code = "store_unavailable"      // 503: Redis did not answer
	CodeOtherProblem Code = "other"                  // whatever else
)

// Codes lists all of them.
func Codes() []Code {
	return []Code{
		CodeInvalid, CodeToken, CodeForbidden, CodeRole, CodeBrowser, CodeHost, CodeNotFound, CodeNoOperation, CodeMethod,
		CodeConflict, CodeVersion, CodeTooLarge, CodeMediaType, CodeImpossible, CodeTooMany, CodeUnavailable, CodeOtherProblem,
	}
}

// problemTypes begins the type of every problem, which Code ends.
const problemTypes = "urn:authpool:problem:"

const problemMedia = "application/problem+json"

// codeOf is the code of a status that says enough by itself.
func codeOf(status int) Code {
	switch status {
	case http.StatusBadRequest:
		return CodeInvalid
	case http.StatusUnauthorized:
		return CodeToken
	case http.StatusForbidden:
		return CodeForbidden
	case http.StatusNotFound:
		return CodeNotFound
	case http.StatusMethodNotAllowed:
		return CodeMethod
	case http.StatusConflict:
		return CodeConflict
	case http.StatusPreconditionFailed:
		return CodeVersion
	case http.StatusRequestEntityTooLarge:
		return CodeTooLarge
	case http.StatusUnsupportedMediaType:
		return CodeMediaType
	case http.StatusUnprocessableEntity:
		return CodeImpossible
	case http.StatusTooManyRequests:
		return CodeTooMany
	case http.StatusServiceUnavailable:
		return CodeUnavailable
	default:
		return CodeOtherProblem
	}
}

// problem answers with an error whose status says which one it is.
func problem(w http.ResponseWriter, status int, detail string) {
	coded(w, status, codeOf(status), detail)
}

// coded answers with an error that shares its status with others.
func coded(w http.ResponseWriter, status int, code Code, detail string) {
	write(w, status, problemMedia, Problem{
		Type: problemTypes + string(code), Title: http.StatusText(status), Status: status, Detail: detail, Code: code,
	})
}
