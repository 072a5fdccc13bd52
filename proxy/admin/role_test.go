package admin_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/admin"
)

func TestViewerReadsOnly(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	f := func(method, path string, status int) {
		t.Helper()
		a := get(t, base+path, func(r *http.Request) {
			r.Method = method
			r.Header.Set("Authorization", "Bearer "+viewer)
		})
		if a.status != status {
			t.Errorf("%s %s: got %d %s", method, path, a.status, a.body)
		}
		if status == http.StatusForbidden && !strings.Contains(a.body, `"code":"role_too_low"`) {
			t.Errorf("%s %s: got %s", method, path, a.body)
		}
	}
	f("GET", admin.StatusPath, 200)
	f("HEAD", admin.StatusPath, 200)
	f("GET", admin.UsagePath, 200)
	f("GET", admin.RequestsPath, 200)
	if len(src.refused) > 0 {
		t.Errorf("refused: %q", src.refused)
	}
	f("POST", admin.SubscriptionPath("team-a")+"/enable", 403)
	f("POST", admin.NotificationsTestPath, 403)
	if len(src.calls)+len(src.notified) > 0 {
		t.Errorf("enabled %q, notified %q", src.calls, src.notified)
	}
	if want := []admin.Code{"127.0.0.1 role_too_low", "127.0.0.1 role_too_low"}; !slices.Equal(src.refused, want) {
		t.Errorf("told of %q, want %q", src.refused, want)
	}
}

// What tells of people is for who may change it.
func TestViewerLearnsNothingOfPeople(t *testing.T) {
	src := &sources{}
	src.list = []admin.SubscriptionRecord{{ID: "team-a", Email: "ops@example.com", Note: "ask Ann"}}
	base := start(t, src, nil)
	for _, path := range []string{admin.SubscriptionsPath, admin.SubscriptionPath("team-a")} {
		a := get(t, base+path, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+viewer) })
		if a.status != 200 || !strings.Contains(a.body, "team-a") || strings.Contains(a.body, "example.com") || strings.Contains(a.body, "Ann") {
			t.Errorf("%s, a viewer: %d %s", path, a.status, a.body)
		}
		if a := get(t, base+path, nil); !strings.Contains(a.body, "ops@example.com") || !strings.Contains(a.body, "ask Ann") {
			t.Errorf("%s, an operator: %s", path, a.body)
		}
	}
}

// TestEveryErrorIsAProblem of RFC 9457, whoever finds it.
func TestEveryErrorIsAProblem(t *testing.T) {
	base := start(t, &sources{}, nil)
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	move := admin.SessionPath(admin.SessionName{Provider: "anthropic", Agent: "default", Session: "s"}) + "/move"
	send := func(body, kind string) func(*http.Request) {
		return func(r *http.Request) { setBody(r, body, kind) }
	}
	f := func(method, path string, edit func(*http.Request), status int, code admin.Code, allow string) {
		t.Helper()
		a := get(t, base+path, func(r *http.Request) {
			r.Method = method
			if edit != nil {
				edit(r)
			}
		})
		var p admin.Problem
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			t.Fatalf("%s %s: %d %q: %v", method, path, a.status, a.body, err)
		}
		if a.head.Get("Content-Type") != "application/problem+json" || a.status != status || p.Status != status ||
			p.Code != code || p.Type != "urn:authpool:problem:"+string(code) || p.Title != http.StatusText(status) || p.Detail == "" {
			t.Errorf("%s %s: got %d %+v", method, path, a.status, p)
		}
		if got := a.head.Get("Allow"); got != allow {
			t.Errorf("%s %s: allows %q, want %q", method, path, got, allow)
		}
		if !slices.Contains(admin.Codes(), p.Code) {
			t.Errorf("%s is not listed", p.Code)
		}
	}
	f("GET", admin.UsagePath+"?by=colour", nil, 400, admin.CodeInvalid, "")
	f("POST", move, send("{}", "application/json"), 400, admin.CodeInvalid, "")
	f("POST", move, send(`{"subscription":"a"} 1`, "application/json"), 400, admin.CodeInvalid, "")
	f("POST", move, send(`{"to":"a"}`, "application/json"), 400, admin.CodeInvalid, "")
	f("POST", move, header("If-Match", `"1"`), 400, admin.CodeInvalid, "")
	f("PATCH", admin.AgentPath("ci"), header("If-Match", "1"), 400, admin.CodeInvalid, "")
	f("GET", admin.StatusPath, header("Authorization", "Bearer apo_x"), 401, admin.CodeToken, "")
	f("POST", move, header("Authorization", "Bearer "+viewer), 403, admin.CodeRole, "")
	f("GET", admin.StatusPath, header("Origin", "https://evil.example"), 403, admin.CodeBrowser, "")
	f("GET", admin.StatusPath, func(r *http.Request) { r.Host = "evil.example" }, 403, admin.CodeHost, "")
	f("GET", "/api/v1/nothing", nil, 404, admin.CodeNoOperation, "")
	f("GET", "/", nil, 404, admin.CodeNoOperation, "")
	f("GET", admin.RequestPath("0199d1c4-2f63-7c1e-9f0a-5d1f4c3b2a10"), nil, 404, admin.CodeNotFound, "")
	f("DELETE", admin.StatusPath, nil, 405, admin.CodeMethod, "GET, HEAD")
	f("GET", admin.SubscriptionPath("team-a")+"/enable", nil, 405, admin.CodeMethod, "POST")
	f("POST", "/healthz", nil, 405, admin.CodeMethod, "GET, HEAD")
	f("PUT", "/metrics", header("Authorization", ""), 405, admin.CodeMethod, "GET, HEAD")
	f("BREW", move, nil, 405, admin.CodeMethod, "POST")
	f("GET", admin.StatusPath, send("x", "text/plain"), 413, admin.CodeTooLarge, "")
	f("POST", move, send(`{"subscription":"`+strings.Repeat("a", 256<<10)+`"}`, "application/json"), 413, admin.CodeTooLarge, "")
	f("POST", move, send(`{"subscription":"a"}`+strings.Repeat(" ", 256<<10), "application/json"), 413, admin.CodeTooLarge, "")
	f("POST", move, send("{}", "text/plain"), 415, admin.CodeMediaType, "")
	f("POST", move, send("{}", ""), 415, admin.CodeMediaType, "")
}
