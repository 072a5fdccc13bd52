package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
)

// NotificationsTestPath is what `authpool notifications test` posts to, without a
// body. Its parameters, both optional, are event (what is pretended to have happened)
// and target (the index of the only one that is to be told).
const NotificationsTestPath = "/api/v1/notifications/test"

// NotificationTest is how a test went for one target; NotificationsTestPath answers
// with a list of them, in the order of the configuration.
type NotificationTest struct {
	Target int    `json:"target"`  // its index in the configuration
	Host   string `json:"host"`    // of its URL; the rest is a secret
	OK     bool   `json:"ok"`      // it was accepted
	Status int    `json:"status"`  // of the answer; 0: there was none
	Error  string `json:"error"`   // one sentence; "" when it was accepted
	TookMS int64  `json:"took_ms"` // milliseconds
}

// Notifier sends test notifications. It must be safe for concurrent use.
type Notifier interface {
	// TestNotifications tells the target of that index, or all when it is negative, of
	// the event; "": one that says it is a test. An error that is a RefusedError is the
	// operator's own.
	TestNotifications(ctx context.Context, event string, target int) ([]NotificationTest, error)
}

func (s *Server) testNotifications(w http.ResponseWriter, r *http.Request) {
	values := r.URL.Query()
	for name := range values {
		if !slices.Contains([]string{"event", "target"}, name) {
			problem(w, http.StatusBadRequest, fmt.Sprintf("unknown parameter %q: allowed are event and target", name))
			return
		}
	}
	target := -1
	if text := values.Get("target"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			problem(w, http.StatusBadRequest, fmt.Sprintf("target: %q is no index, which is 0 for the first of notifications", text))
			return
		}
		target = n
	}
	ctx, cancel := context.WithTimeout(r.Context(), sourceTimeout)
	defer cancel()
	results, err := s.notify.TestNotifications(ctx, values.Get("event"), target)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		problem(w, refused.Status, refused.Error())
		return
	}
	if err != nil {
		s.fail(w, "cannot test notifications", err)
		return
	}
	s.log.Info("an operator has tested notifications", "targets", len(results))
	writeJSON(w, results)
}
