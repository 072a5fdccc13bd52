package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// SessionsPath answers with a SessionList. Its parameters, all optional, are
// provider, agent, session and subscription: those that are named have to be equal.
// Below it is each session by its provider, agent and id (SessionPath).
const SessionsPath = "/api/v1/sessions"

// RebalancePath takes a Rebalance and answers with what came of it.
const RebalancePath = SessionsPath + "/rebalance"

// SessionPath is the path of one session.
func SessionPath(name SessionName) string {
	return SessionsPath + "/" + url.PathEscape(name.Provider) + "/" + url.PathEscape(name.Agent) + "/" + url.PathEscape(name.Session)
}

// SessionName names a session.
type SessionName struct {
	Session  string `json:"session"`
	Agent    string `json:"agent"`
	Provider string `json:"provider"`
}

// String writes the name for people, who read the agent first.
func (n SessionName) String() string { return n.Provider + "/" + n.Agent + "/" + n.Session }

// Session is a conversation that sticks to a subscription.
type Session struct {
	SessionName
	Subscription string     `json:"subscription"`
	Since        time.Time  `json:"since"`     // it sticks there
	Last         time.Time  `json:"last"`      // it was used; where another sidecar knows better, within a part of sessions.idle_timeout
	Parent       string     `json:"parent"`    // session of the agent that started it; "" for none
	Expires      *time.Time `json:"expires"`   // its place, unless it is used; null: it is idle and has none
	InFlight     int        `json:"in_flight"` // requests under way at the sidecar that was asked
	Hour         Hour       `json:"hour"`
	Over         string     `json:"over"` // requests, tokens or cost: the limit of sessions.brake that it has used up; "" for none
}

// Hour is what was used within the last hour at the sidecar that was asked.
type Hour struct {
	Requests int64   `json:"requests"`
	Tokens   int64   `json:"tokens"`
	CostUSD  NanoUSD `json:"cost_usd"`
}

// SessionList is the sessions that are not idle, by agent and id.
type SessionList struct {
	Sessions []Session `json:"sessions"`
	Whole    bool      `json:"whole"` // false: Redis is away, these are those of the sidecar that was asked
}

// SessionQuery says which sessions are wanted; an empty field is any. With both Agent
// and Session, idle ones are found too.
type SessionQuery struct{ Provider, Agent, Session, Subscription string }

// MoveSession is what is posted to have a session moved.
type MoveSession struct {
	Subscription string `json:"subscription"` // where it is to be
}

// SessionMoved says where a session was and is.
type SessionMoved struct {
	SessionName
	From         string `json:"from"` // as subscription where it was there already
	Subscription string `json:"subscription"`
}

// SessionReleased says where a session was.
type SessionReleased struct {
	SessionName
	From string `json:"from"`
}

// Rebalance is what is posted to have sessions moved to where they are better off; no
// body says the same as an empty one.
type Rebalance struct {
	DryRun bool `json:"dry_run"` // only tell which
}

// Rebalanced is the moves, in the order in which they were made.
type Rebalanced struct {
	Moves  []RebalancedMove `json:"moves"`
	Failed int              `json:"failed"` // of them
	Whole  bool             `json:"whole"`  // false: Redis is away, the plan is by what the sidecar that was asked knows
	Wait   int64            `json:"wait_s"` // until more are allowed, when that kept some from being made
}

// RebalancedMove is one move.
type RebalancedMove struct {
	SessionName
	From         string `json:"from"`
	Subscription string `json:"subscription"` // where it is to be
	Why          string `json:"why"`          // closed: its subscription cannot serve; uneven: it is cold, and another is less crowded
	CacheTokens  int64  `json:"cache_tokens"` // read from its prompt cache in the last 5 minutes, which is lost
	Error        string `json:"error"`        // why it was not moved; "" for none
}

// Sessions knows and moves sessions. It must be safe for concurrent use. Errors that
// are a RefusedError are the operator's own; any other means that Redis did not
// answer.
type Sessions interface {
	Sessions(ctx context.Context, q SessionQuery) (SessionList, error)
	MoveSession(ctx context.Context, name SessionName, to string) (SessionMoved, error)
	ReleaseSession(ctx context.Context, name SessionName) (SessionReleased, error)
	Rebalance(ctx context.Context, dryRun bool) (Rebalanced, error)
}

func (s *Server) sessionRoutes() []route {
	const one = SessionsPath + "/{provider}/{agent}/{session}"
	return []route{
		{"GET", SessionsPath, Viewer, "List the sessions that are not idle", nil, SessionList{}, s.serveSessions},
		{"GET", one, Viewer, "Tell of one session, idle or not", nil, Session{}, s.serveSession},
		{"POST", one + "/move", Operator, "Have a session stick to another subscription", MoveSession{}, SessionMoved{}, s.moveSession},
		{"POST", one + "/release", Operator, "End a session's binding and free its place", nil, SessionReleased{}, s.releaseSession},
		{"POST", RebalancePath, Operator, "Move sessions to where they are better off", Rebalance{}, Rebalanced{}, s.rebalance},
	}
}

func (s *Server) serveSessions(w http.ResponseWriter, r *http.Request) {
	known := []string{"provider", "agent", "session", "subscription"}
	values := r.URL.Query()
	for name := range values {
		if !slices.Contains(known, name) {
			problem(w, http.StatusBadRequest, fmt.Sprintf("unknown parameter %q: allowed are %s", name, strings.Join(known, ", ")))
			return
		}
	}
	carry(s, w, r, "cannot list the sessions", func(ctx context.Context) (SessionList, error) {
		list, err := s.sessions.Sessions(ctx, SessionQuery{
			Provider: values.Get("provider"), Agent: values.Get("agent"),
			Session: values.Get("session"), Subscription: values.Get("subscription"),
		})
		if list.Sessions == nil {
			list.Sessions = []Session{}
		}
		return list, err
	})
}

func (s *Server) serveSession(w http.ResponseWriter, r *http.Request) {
	carry(s, w, r, "cannot tell of the session", func(ctx context.Context) (Session, error) {
		name := sessionName(r)
		list, err := s.sessions.Sessions(ctx, SessionQuery{Provider: name.Provider, Agent: name.Agent, Session: name.Session})
		if err != nil {
			return Session{}, err
		}
		if len(list.Sessions) == 0 {
			return Session{}, &RefusedError{http.StatusNotFound, fmt.Errorf("there is no session %s", name)}
		}
		return list.Sessions[0], nil
	})
}

func (s *Server) moveSession(w http.ResponseWriter, r *http.Request) {
	var body MoveSession
	if !decode(w, r, &body) {
		return
	}
	if body.Subscription == "" {
		problem(w, http.StatusBadRequest, "subscription: is missing: name the one that the session is to be moved to")
		return
	}
	carry(s, w, r, "it is not known whether the session was moved", func(ctx context.Context) (SessionMoved, error) {
		return s.sessions.MoveSession(ctx, sessionName(r), body.Subscription)
	})
}

func (s *Server) releaseSession(w http.ResponseWriter, r *http.Request) {
	carry(s, w, r, "it is not known whether the session was released", func(ctx context.Context) (SessionReleased, error) {
		return s.sessions.ReleaseSession(ctx, sessionName(r))
	})
}

func sessionName(r *http.Request) SessionName {
	return SessionName{Provider: r.PathValue("provider"), Agent: r.PathValue("agent"), Session: r.PathValue("session")}
}

func (s *Server) rebalance(w http.ResponseWriter, r *http.Request) {
	var body Rebalance
	if r.ContentLength != 0 && !decode(w, r, &body) {
		return
	}
	carry(s, w, r, "it is not known which sessions were moved", func(ctx context.Context) (Rebalanced, error) {
		return s.sessions.Rebalance(ctx, body.DryRun)
	})
}
