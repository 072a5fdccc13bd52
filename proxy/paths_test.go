package proxy

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/proxy/provider"
)

// explained waits until what became of a request is told.
func (r *rig) explained(id string) explain.Request {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
		if told, ok := r.server.Explained().Find(id); ok {
			return told
		}
		if time.Now().After(end) {
			r.t.Fatalf("request %s is not remembered", id)
		}
	}
}

// What the path manifest does not send leaves authpool in no form: not as a request, not
// as a use of a subscription, not as usage. It is counted, and told to people.
func TestPathsThatAreNotSent(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1)
	for _, tt := range []struct {
		method, path, body string
		status             int
		code, end          string
		action             provider.Action
		endpoint, message  string
	}{
		{"POST", "/anthropic/api/event_logging/v2/batch", `{"events":["` + strings.Repeat("x", 264<<10) + `"]}`, 404, "answered_locally", "answered locally", provider.Local, "api/event_logging", "are answered by authpool itself"},
		{"GET", "/anthropic/api/claude_code/settings", "", 404, "answered_locally", "answered locally", provider.Local, "api/claude_code", "are answered by authpool itself"},
		{"GET", "/anthropic/api/frame/frames", "", 404, "unknown_path", "refused", provider.Unknown, "unknown", `authpool: \"/api/frame/frames\" is no known path of anthropic's API`},
		{"DELETE", "/anthropic/" + strings.Repeat("y", 5000), "", 404, "unknown_path", "refused", provider.Unknown, "unknown", "is no known path"},
		{"GET", "/anthropic/v1/organizations/users", "", 403, "forbidden_path", "refused", provider.Refuse, "organizations", "authpool: paths of administration"},
		{"POST", "/v1/oauth/token", `{"grant_type":"x"}`, 403, "forbidden_path", "refused", provider.Refuse, "oauth", "authpool: paths of administration"},
	} {
		name := "anthropic"
		if tt.endpoint == "oauth" {
			name = "" // by its path it is nobody's
		}
		counter := pathsWithheld.WithLabelValues(name, tt.action.String())
		before := value(t, counter)
		resp := r.send(tt.method, tt.path, "anthropic-version: 2023-06-01\r\n", tt.body)
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		text := string(body)
		if resp.StatusCode != tt.status || resp.Header.Get("X-Authpool-Error") != tt.code || resp.Header.Get("X-Authpool-Subscription") != "" ||
			!strings.HasPrefix(text, `{"type":"error","error":{"type":"`) || !strings.Contains(text, tt.message) || len(text) > 500 {
			t.Errorf("%s %s: %d %v %s", tt.method, tt.path, resp.StatusCode, resp.Header, text)
		}
		told := r.explained(resp.Header.Get("X-Authpool-Request-Id"))
		if told.End != tt.end || told.Endpoint != tt.endpoint || told.Action != tt.action.String() || told.Error != tt.code || len(told.Choices) > 0 || told.Subscription != "" {
			t.Errorf("%s %s: explained as %+v", tt.method, tt.path, told)
		}
		if after := value(t, counter); after != before+1 {
			t.Errorf("%s %s: counted %v times", tt.method, tt.path, after-before)
		}
	}
	if sent := up.requests(); len(sent) > 0 {
		t.Errorf("the provider was asked: %q", sent)
	}
	if events := r.recorder.all(); len(events) > 0 {
		t.Errorf("usage was counted: %+v", events)
	}
	// A stranger hears nothing of it.
	if resp := r.sendAs("apa_nobody", "GET", "/anthropic/api/claude_code/settings", "", ""); resp.StatusCode != 401 {
		t.Errorf("a stranger got %d", resp.StatusCode)
	}
	// What is sent tells its row, too.
	status, h, _ := r.post("/v1/messages", message)
	if told := r.explained(h.Get("X-Authpool-Request-Id")); status != 200 || told.Action != "inject" || told.Endpoint != "messages" {
		t.Errorf("%d: explained as %+v", status, told)
	}
}

// An operator's rules come and go while authpool serves.
func TestOperatorsRulesWhileServing(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", `{}`) })
	options := func(rules ...provider.PathRule) []provider.Options {
		return []provider.Options{{Name: "anthropic", Family: provider.Anthropic, BaseURL: up.url(), AllowPlaintext: true, Paths: rules}}
	}
	r := newRig(t, up.url(), 1, func(o *rigOptions) { o.providers = options() })
	ask := func(method, path string) (status, sent int) {
		t.Helper()
		before := len(up.requests())
		resp := r.send(method, path, "", "")
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, len(up.requests()) - before
	}
	configure := func(rules ...provider.PathRule) {
		t.Helper()
		registry, err := provider.NewRegistry(options(rules...))
		if err != nil {
			t.Fatal(err)
		}
		r.server.Configure(r.server.opts, registry, noPrices{})
	}
	for _, step := range []struct {
		rules  []provider.PathRule
		status map[string]int // 200 is the provider's
	}{
		{nil, map[string]int{"GET /api/claude_code/settings": 404, "GET /v1/skills": 200, "GET /v1/organizations/me": 403}},
		{[]provider.PathRule{
			{Path: "/api/claude_code/settings", Action: "free"}, {Path: "/v1/skills/**", Action: "refuse"}, {Path: "/v1/organizations/me", Methods: []string{"GET"}, Action: "inject"},
		}, map[string]int{"GET /api/claude_code/settings": 200, "GET /v1/skills": 403, "GET /v1/organizations/me": 200, "DELETE /v1/organizations/me": 403}},
		{[]provider.PathRule{{Path: "/v1/skills", Action: "local"}}, map[string]int{"GET /api/claude_code/settings": 404, "GET /v1/skills": 404, "GET /v1/organizations/me": 403}},
	} {
		configure(step.rules...)
		for request, want := range step.status {
			method, path, _ := strings.Cut(request, " ")
			status, sent := ask(method, "/anthropic"+path)
			if status != want || (sent == 1) != (want == 200) {
				t.Errorf("%v: %s: %d, sent %d times, want %d", step.rules, request, status, sent, want)
			}
		}
	}
	if events := r.recorder.all(); len(events) > 0 {
		t.Errorf("what is free was counted: %+v", events)
	}
}

// Behind CONNECT a path means what it means by base URL.
func TestPathsInside(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, up.url(), 1, intercepted(t, up))
	agent := http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: r.addr, User: url.UserPassword("my-session", testToken)}),
		TLSClientConfig: r.trusted(),
	}}
	defer agent.CloseIdleConnections()
	for path, want := range map[string]string{
		"/api/claude_code/policy_limits": "404 answered_locally", "/api/event_logging/v2/batch": "404 answered_locally", "/login": "404 unknown_path",
		"/anthropic/settings": "404 unknown_path", "/v1/%6frganizations/users": "403 forbidden_path", "/api/oauth/profile": "403 forbidden_path", "/v1/messages": "200 ",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://llm.example.test"+path, strings.NewReader(message))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := agent.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if got := fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("X-Authpool-Error")); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	if sent := up.requests(); len(sent) != 1 {
		t.Errorf("the provider was asked: %q", sent)
	}
}
