package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/admin"
)

// Sessions implements admin.Sessions.
func (s *sources) Sessions(_ context.Context, q admin.SessionQuery) (admin.SessionList, error) {
	s.sessions = append(s.sessions, fmt.Sprintf("list %+v", q))
	if q.Session == "none" {
		return admin.SessionList{Whole: true}, s.err
	}
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	return admin.SessionList{Whole: true, Sessions: []admin.Session{{
		SessionName:  admin.SessionName{Session: "s", Agent: "default", Provider: "anthropic"},
		Subscription: "team-a", Since: at, Last: at, Hour: admin.Hour{Requests: 2, Tokens: 30, CostUSD: 4_000_000},
	}}}, s.err
}

// MoveSession implements admin.Sessions.
func (s *sources) MoveSession(_ context.Context, name admin.SessionName, to string) (admin.SessionMoved, error) {
	s.sessions = append(s.sessions, fmt.Sprintf("move %q to %q", name, to))
	return admin.SessionMoved{SessionName: name, From: "team-a", Subscription: to}, s.err
}

// ReleaseSession implements admin.Sessions.
func (s *sources) ReleaseSession(_ context.Context, name admin.SessionName) (admin.SessionReleased, error) {
	s.sessions = append(s.sessions, fmt.Sprintf("release %q", name))
	return admin.SessionReleased{SessionName: name, From: "team-a"}, s.err
}

// Rebalance implements admin.Sessions.
func (s *sources) Rebalance(_ context.Context, dryRun bool) (admin.Rebalanced, error) {
	s.sessions = append(s.sessions, fmt.Sprintf("rebalance %v", dryRun))
	return admin.Rebalanced{Moves: []admin.RebalancedMove{}, Wait: 3}, s.err
}

func TestSessions(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	f := func(method, path, body string, err error, status int, want string, asked ...string) {
		t.Helper()
		src.sessions, src.err = nil, err
		a := get(t, base+path, func(r *http.Request) {
			r.Method = method
			if body != "" {
				setBody(r, body, "application/json")
			}
		})
		if a.status != status || !strings.Contains(a.body, want) {
			t.Errorf("%s %s: got %d %s, want %d with %q", method, path, a.status, a.body, status, want)
		}
		if !slices.Equal(src.sessions, asked) {
			t.Errorf("%s %s: asked for %q, want %q", method, path, src.sessions, asked)
		}
	}
	const one = `{"session":"s","agent":"default","provider":"anthropic","subscription":"team-a","since":"2026-11-22T12:00:00Z","last":"2026-11-22T12:00:00Z","parent":"","expires":null,"in_flight":0,"hour":{"requests":2,"tokens":30,"cost_usd":"0.004"},"over":""}`
	s := admin.SessionPath(admin.SessionName{Session: "s", Agent: "default", Provider: "anthropic"})
	f("GET", admin.SessionsPath, "", nil, 200, `{"sessions":[`+one+`],"whole":true}`, "list {Provider: Agent: Session: Subscription:}")
	f("GET", admin.SessionsPath+"?session=none&agent=a&subscription=b&provider=c", "", nil, 200, `{"sessions":[],"whole":true}`, "list {Provider:c Agent:a Session:none Subscription:b}")
	f("GET", admin.SessionsPath+"?sesion=s", "", nil, 400, `unknown parameter \"sesion\"`)
	f("GET", admin.SessionsPath, "", errors.New("broken"), 503, "cannot list the sessions: broken", "list {Provider: Agent: Session: Subscription:}")
	f("GET", s, "", nil, 200, one, "list {Provider:anthropic Agent:default Session:s Subscription:}")
	f("GET", admin.SessionsPath+"/anthropic/default/none", "", nil, 404, "there is no session anthropic/default/none", "list {Provider:anthropic Agent:default Session:none Subscription:}")
	f("POST", s+"/move", `{"subscription":"team-b"}`, nil, 200, `{"session":"s","agent":"default","provider":"anthropic","from":"team-a","subscription":"team-b"}`, `move "anthropic/default/s" to "team-b"`)
	f("POST", s+"/move", `{"subscription":"team-b"}`, &admin.RefusedError{Status: 409, Err: errors.New("it is full")}, 409, "it is full", `move "anthropic/default/s" to "team-b"`)
	f("POST", s+"/move", `{"subscription":"team-b"}`, errors.New("away"), 503, "it is not known whether the session was moved: away", `move "anthropic/default/s" to "team-b"`)
	f("POST", s+"/move", `{}`, nil, 400, "subscription: is missing")
	f("POST", s+"/move", `{"to":"team-b"}`, nil, 400, "unknown field")
	f("POST", s+"/release", "", nil, 200, `{"session":"s","agent":"default","provider":"anthropic","from":"team-a"}`, `release "anthropic/default/s"`)
	f("POST", admin.RebalancePath, `{"dry_run":true}`, nil, 200, `{"moves":[],"failed":0,"whole":false,"wait_s":3}`, "rebalance true")
	f("POST", admin.RebalancePath, `{}`, errors.New("broken"), 503, "it is not known which sessions were moved: broken", "rebalance false")
	f("POST", admin.RebalancePath, "", nil, 200, `"moves":[]`, "rebalance false")
	f("POST", admin.RebalancePath, `{"dry":true}`, nil, 400, "dry")
	f("POST", admin.RebalancePath, `{"dry_run":`, nil, 400, "the body is not what is wanted: its JSON ends in the middle")
	f("POST", admin.RebalancePath, `{"dry_run":"x"}`, nil, 400, "the body is not what is wanted: dry_run: a JSON string does not fit here")
	f("POST", admin.RebalancePath, `[]`, nil, 400, "the body is not what is wanted: want a JSON object, not a JSON array")
	f("POST", admin.RebalancePath, ` `, nil, 400, "the body is not what is wanted: it is empty")
}
