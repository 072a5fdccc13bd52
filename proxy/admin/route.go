package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// Role is what a token of the admin address may do.
type Role uint8

// The roles, each with what the one before may do.
const (
	Viewer   Role = iota // reads
	Operator             // changes
)

// route is one operation of the API. The table of them (Server.routes) is what is
// served, what is documented, and what tests hold together.
type route struct {
	method, path string // of http.ServeMux, such as /api/v1/subscriptions/{id}
	role         Role   // who may
	summary      string // one line, in the imperative
	body         any    // a zero value of what a request's JSON is decoded into; nil: it has none
	answer       any    // a zero value of what is answered
	serve        http.HandlerFunc
}

// versioned tells whether the route is of one record that has a version.
func (r *route) versioned() bool {
	_, ok := r.answer.(Versioned)
	return ok && strings.Contains(r.path, "{")
}

// maxBody bounds the JSON of one request.
const maxBody = 256 << 10

// decode reads a request's JSON body into v. When it returns false, the request is
// answered.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		problem(w, http.StatusUnsupportedMediaType, "send JSON, with \"Content-Type: application/json\"")
		return false
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		switch _, more := d.Token(); {
		case errors.Is(more, io.EOF):
		case more != nil:
			err = more
		default:
			err = errors.New("there is more than one value")
		}
	}
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		problem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", large.Limit))
		return false
	}
	if err != nil {
		problem(w, http.StatusBadRequest, "the body is not what is wanted: "+wrongJSON(err))
		return false
	}
	return true
}

// wrongJSON says what is wrong with a body; encoding/json has no words for one that ends
// too early, and tells of one that does not fit by the names of our own types.
func wrongJSON(err error) string {
	misfit, odd := errors.AsType[*json.UnmarshalTypeError](err)
	switch {
	case odd && misfit.Field == "":
		return "want a JSON object, not a JSON " + misfit.Value
	case odd:
		return fmt.Sprintf("%s: a JSON %s does not fit here", misfit.Field, misfit.Value)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "its JSON ends in the middle"
	case errors.Is(err, io.EOF):
		return "it is empty"
	}
	return err.Error()
}

// carry does what an operator asked for within the time that there is, and answers
// with what came of it; failed says what it means that the store did not answer.
func carry[T any](s *Server, w http.ResponseWriter, r *http.Request, failed string, do func(context.Context) (T, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), sourceTimeout)
	defer cancel()
	done, err := do(ctx)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		problem(w, refused.Status, refused.Error())
		return
	}
	if err != nil {
		s.fail(w, failed, err)
		return
	}
	answer(w, done)
}
