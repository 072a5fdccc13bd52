package admin_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/explain"
)

func TestRequests(t *testing.T) {
	const (
		first  = "0199d1c4-2f61-7c1e-9f0a-5d1f4c3b2a10"
		second = "0199d1c4-2f62-7c1e-9f0a-5d1f4c3b2a10"
	)
	src := &sources{}
	base := start(t, src, nil)
	f := func(path string, status int, want string) {
		t.Helper()
		if a := get(t, base+path, nil); a.status != status || !strings.Contains(a.body, want) {
			t.Errorf("%s: got %d %s, want %d with %q", path, a.status, a.body, status, want)
		}
	}
	f(admin.RequestsPath, 200, "[]\n")
	var s explain.Story
	s.Choice(&pool.Request{Trace: &pool.Trace{Candidates: []pool.Candidate{{Subscription: "team-a", Obstacle: "cooling", Reason: "window"}}}}, nil, errors.New("nobody"))
	src.requests.Add(&explain.Request{ID: first, Start: noon, Agent: "default", Session: "s1", Status: 429, End: "refused"}, &s)
	src.requests.Add(&explain.Request{ID: second, Start: noon, Agent: "default", Session: "s2", Status: 200, End: "whole"}, new(explain.Story))

	golden(t, "request.json", get(t, base+admin.RequestPath(first), nil).body)
	f(admin.RequestPath("0199d1c4-2f63-7c1e-9f0a-5d1f4c3b2a10"), 404, "remembers the last 10000 requests that it has answered (in 8 MiB at most), and forgets them when it stops")
	f(admin.RequestPath("x/../y"), 400, "is no request id: an answer tells its own in X-Authpool-Request-Id")
	f(admin.RequestsPath+"?limit=0", 400, "limit: ")
	f(admin.RequestsPath+"?limit=1001", 400, "1 to 1000")
	f(admin.RequestsPath+"?status=4xx", 400, "is no HTTP status")
	f(admin.RequestsPath+"?agent=x", 400, "allowed are limit, session, subscription and status")

	list := func(query string, want ...string) {
		t.Helper()
		a := get(t, base+admin.RequestsPath+query, nil)
		var got []explain.Request
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != http.StatusOK || len(got) != len(want) {
			t.Fatalf("%s: %d %s, %v; want %v", query, a.status, a.body, err, want)
		}
		for i := range want {
			if got[i].ID != want[i] {
				t.Errorf("%s: %d is %s, want %s", query, i, got[i].ID, want[i])
			}
		}
	}
	list("", second, first)
	list("?limit=1", second)
	list("?status=429", first)
	list("?session=default/s1&limit=1000", first)
	list("?subscription=team-b")
}
