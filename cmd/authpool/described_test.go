package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/admin/admintest"
	"github.com/authpool/authpool/proxy/explain"
)

// TestServeAnswersAsItDescribes asks a running serve for its description, and for all
// else there is to read, with something in it.
func TestServeAnswersAsItDescribes(t *testing.T) {
	s := startFailover(t)
	base := "http://" + s.service.adminListener.Addr().String()
	var described *admintest.Description
	match := "" // If-Match, of who has seen a version
	ask := func(method, path, body string, want int) []byte {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.service.dir.AdminToken())
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		if match != "" {
			req.Header.Set("If-Match", match)
		}
		resp, err := asker.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want {
			t.Errorf("%s %s: got %d %s", method, path, resp.StatusCode, answer)
		}
		if described == nil {
			if described, err = admintest.Parse(answer); err != nil {
				t.Fatal(err)
			}
		}
		if err := described.Check(method, req.URL.Path, resp.StatusCode, resp.Header, answer); err != nil {
			t.Error(err)
		}
		return answer
	}
	ask("GET", admin.OpenAPIPath, "", 200)

	lists := 0
	for _, o := range described.Operations() {
		if o.Method == http.MethodGet && !strings.Contains(o.Path, "{") {
			lists++
			if body := ask("GET", o.Path, "", 200); bytes.Equal(bytes.TrimSpace(body), []byte("null")) {
				t.Errorf("%s answers null", o.Path)
			}
		}
	}
	if lists < 8 {
		t.Errorf("%d paths were asked", lists)
	}
	for _, by := range admin.Groupings() {
		ask("GET", admin.UsagePath+"?by="+string(by), "", 200)
	}

	var requests []explain.Request
	if err := json.Unmarshal(ask("GET", admin.RequestsPath+"?session=s1", "", 200), &requests); err != nil || len(requests) != 1 {
		t.Fatalf("%d requests, %v", len(requests), err)
	}
	ask("GET", admin.RequestPath(requests[0].ID), "", 200)
	one := admin.SessionPath(admin.SessionName{Provider: "anthropic", Agent: "default", Session: "s1"})
	ask("GET", one, "", 200)
	ask("GET", one+"x", "", 404)
	sub := admin.SubscriptionPath("team-a")
	ask("POST", sub+"/drain", "", 200)
	ask("POST", sub+"/enable", "", 200)
	ask("GET", sub, "", 200)
	ask("DELETE", sub, "", 409)
	ask("POST", sub+"/rotate", `{"credential":"sk-other"}`, 409)
	ask("POST", admin.SubscriptionPath("team-x")+"/enable", "", 404)
	ask("POST", admin.SubscriptionsPath, `{"id":"team:b","provider":"anthropic","credential":"sk-other"}`, 400)
	ask("POST", admin.SubscriptionsPath, `{"id":"team-c","provider":"anthropic","limits":{"sessions":4},"budgets":[{"window":"day","cost_usd":"2.5"}],"credential":"sk-other","note":"n"}`, 200)
	ask("GET", admin.SubscriptionsPath, "", 200)
	ask("POST", admin.SubscriptionPath("team-c")+"/disable", "", 200)
	ask("DELETE", admin.SubscriptionPath("team-c"), "", 200)
	ask("POST", one+"/move", `{"subscription":"team-a"}`, 200)
	ask("POST", one+"/move", `{"subscription":"team-x"}`, 404)
	ask("POST", one+"/release", "", 200)
	ask("POST", admin.RebalancePath, `{}`, 200)
	ask("POST", admin.RebalancePath, "", 200)
	ask("POST", admin.AgentsPath, `{"name":"ci","models":["claude-*"],"budgets":[{"window":"day","cost_usd":"1.5"}]}`, 200)
	ask("POST", admin.AgentsPath, `{"name":"ci"}`, 409)
	ask("GET", admin.AgentsPath, "", 200)
	ask("PATCH", admin.AgentPath("ci"), `{"expires":"2100-01-01T00:00:00Z"}`, 200)
	ask("GET", admin.AgentPath("ci"), "", 200)
	match = admin.ETag(1)
	if stale := ask("DELETE", admin.AgentPath("ci"), "", 412); !strings.Contains(string(stale), "at version 2") {
		t.Errorf("%s", stale)
	}
	match = admin.ETag(2)
	ask("DELETE", admin.AgentPath("ci"), "", 200)
	match = ""
	ask("DELETE", admin.AgentPath("ci"), "", 404)
	// Nor what has none yet, as no operator has changed it.
	match = admin.ETag(1)
	if stale := ask("PATCH", admin.AgentPath("default"), `{"models":["claude-*"]}`, 412); !strings.Contains(string(stale), "has no version") {
		t.Errorf("%s", stale)
	}
	match = ""
	// Who has seen a version changes no other one.
	managed := admin.SubscriptionPath("team-d")
	var added admin.SubscriptionRecord
	if err := json.Unmarshal(ask("POST", admin.SubscriptionsPath, `{"id":"team-d","provider":"anthropic","credential":"sk-sim-d"}`, 200), &added); err != nil {
		t.Fatal(err)
	}
	match = admin.ETag(added.Version)
	ask("POST", managed+"/drain", "", 200)
	ask("POST", managed+"/enable", "", 412)
	match = admin.ETag(added.Version + 1)
	ask("POST", managed+"/rotate", `{"credential":"sk-sim-e"}`, 200)
	ask("DELETE", managed, "", 412)
	match = ""
	ask("POST", managed+"/rotate", `{"credential":"sk-sim-f"}`, 200)
	ask("POST", admin.NotificationsTestPath, "", 404) // there are none
}
