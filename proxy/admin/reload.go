package admin

import (
	"context"
	"net/http"
)

// ReloadPath is what `authpool reload` posts to, without a body.
const ReloadPath = "/api/v1/reload"

// Reloaded is its answer: what was taken over of the config, which is nothing when it
// has not changed.
type Reloaded struct {
	Changed       []string              `json:"changed"`       // keys, such as sessions.strategy; never null
	Subscriptions ReloadedSubscriptions `json:"subscriptions"` // what came of it for them
}

// ReloadedSubscriptions are ids; none is null.
type ReloadedSubscriptions struct {
	Added   []string `json:"added"`
	Changed []string `json:"changed"`
	Removed []string `json:"removed"`
}

// Reloader reads the config again. It must be safe for concurrent use.
type Reloader interface {
	// Reload takes all of it over or nothing. An error that is a RefusedError says what
	// is wrong with it, or what cannot change without a restart.
	Reload(ctx context.Context) (Reloaded, error)
}

func (s *Server) reloadRoutes() []route {
	return []route{
		{"POST", ReloadPath, Operator, "Read the config again, and take it over", nil, Reloaded{}, s.reload},
	}
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	carry(s, w, r, "the config was not taken over", s.reloader.Reload)
}
