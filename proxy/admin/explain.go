package admin

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/google/uuid"

	"github.com/authpool/authpool/proxy/explain"
)

// RequestsPath lists the last requests, the newest first, as explain.Request. Its
// parameters, all optional, are limit, session (an id, or agent/id), subscription
// and status. A request is listed once its answer has ended.
const RequestsPath = "/api/v1/requests"

// RequestPath is one of them, by the id of X-Authpool-Request-Id.
func RequestPath(id string) string { return RequestsPath + "/" + url.PathEscape(id) }

// How many requests are listed: without a limit, and at most.
const (
	requestsListed = 20
	requestsMost   = 1000
)

// RequestSource remembers the last requests; *explain.Ring is one. It must be safe
// for concurrent use.
type RequestSource interface {
	Find(id string) (explain.Request, bool)
	Last(f explain.Filter) []explain.Request
}

func (s *Server) serveRequest(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if _, err := uuid.Parse(id); err != nil {
		problem(w, http.StatusBadRequest, fmt.Sprintf("%q is no request id: an answer tells its own in X-Authpool-Request-Id", id))
		return
	}
	found, ok := s.requests.Find(id)
	if !ok {
		problem(w, http.StatusNotFound, fmt.Sprintf("nothing is known of request %s: each serve remembers the last %d requests that it has answered (in %d MiB at most), and forgets them when it stops; one that is under way, or had no valid agent token, is not among them",
			id, explain.Most, explain.MostBytes>>20))
		return
	}
	writeJSON(w, found)
}

func (s *Server) serveRequests(w http.ResponseWriter, r *http.Request) {
	f, err := parseFilter(r.URL.Query())
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	writeJSON(w, s.requests.Last(f))
}

// parseFilter reads the parameters of RequestsPath.
func parseFilter(values url.Values) (explain.Filter, error) {
	f := explain.Filter{Limit: requestsListed, Session: values.Get("session"), Subscription: values.Get("subscription")}
	for name := range values {
		if !slices.Contains([]string{"limit", "session", "subscription", "status"}, name) {
			return f, fmt.Errorf("unknown parameter %q: allowed are limit, session, subscription and status", name)
		}
	}
	if text := values.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > requestsMost {
			return f, fmt.Errorf("limit: %q is no number from 1 to %d", text, requestsMost)
		}
		f.Limit = n
	}
	if text := values.Get("status"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 100 || n > 599 {
			return f, fmt.Errorf("status: %q is no HTTP status", text)
		}
		f.Status = n
	}
	return f, nil
}
