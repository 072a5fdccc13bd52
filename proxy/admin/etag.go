package admin

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// AnyVersion is the version that ifMatch tells of a request that has no If-Match, or
// "*": the change is to be made whatever the record is like.
const AnyVersion int64 = 0

// noVersion is one that no record has.
const noVersion int64 = -1

// Versioned is an answer that has a version. carry answers with it as ETag, which a
// later request names in If-Match so as to change only what its sender has seen.
type Versioned interface {
	// RecordVersion is 1 or more, 0 for what has no version.
	RecordVersion() int64
}

// ETag writes a version as If-Match wants it.
func ETag(version int64) string { return strconv.Quote(strconv.FormatInt(version, 10)) }

// StaleError is the answer to an If-Match that names another version of a record than
// there is; have is the one that there is, 0 where operators have not set anything.
func StaleError(what string, have int64) *RefusedError {
	err := fmt.Errorf("%s was changed meanwhile and is at version %d: read it again, and send its ETag as If-Match", what, have)
	if have == 0 {
		err = fmt.Errorf("%s has no version: no operator has changed it, or that was taken back; send no If-Match", what)
	}
	return &RefusedError{Status: http.StatusPreconditionFailed, Err: err}
}

// ifMatch reads the version that a request wants a record to have: AnyVersion where it
// names none. An entity tag that is not one of ours is one that no record has. When ok
// is false, the request is answered.
func ifMatch(w http.ResponseWriter, r *http.Request) (version int64, ok bool) {
	fields := r.Header.Values("If-Match")
	if len(fields) == 0 {
		return AnyVersion, true
	}
	text := strings.TrimSpace(fields[0])
	if text == "*" && len(fields) == 1 {
		return AnyVersion, true
	}
	tag, quoted := strings.CutPrefix(text, `"`)
	tag, closed := strings.CutSuffix(tag, `"`)
	switch {
	case len(fields) > 1 || strings.Contains(text, `",`):
		problem(w, http.StatusBadRequest, "If-Match: names several versions: send the one that you have read")
		return 0, false
	case strings.HasPrefix(text, `W/"`):
		return noVersion, true // a weak one never matches (RFC 9110, 13.1.1)
	case !quoted || !closed || strings.Contains(tag, `"`):
		problem(w, http.StatusBadRequest, "If-Match: is no entity tag: send the ETag of the record as it was answered, with its quotes, or *")
		return 0, false
	}
	version, err := strconv.ParseInt(tag, 10, 64)
	if err != nil || version < 1 || ETag(version) != text {
		return noVersion, true
	}
	return version, true
}

// answer sends what an operation came to, with its version where it has one. It is sent
// whatever If-None-Match says: the version is that of what operators have set, and what
// is told beside it, such as what was spent, changes without it.
func answer(w http.ResponseWriter, v any) {
	if versioned, ok := v.(Versioned); ok && versioned.RecordVersion() > 0 {
		w.Header().Set("ETag", ETag(versioned.RecordVersion()))
	}
	writeJSON(w, v)
}
