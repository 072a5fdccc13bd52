package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/admin"
)

// get is one request of an agent; it returns the answer's status.
func (s *served) get(t *testing.T, path string) int {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(s.folder, "state", "agent.token"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.agents+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", strings.TrimSpace(string(token)))
	resp, err := asker.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

// reload has the config read again, which must have changed.
func (s *served) reload(t *testing.T, file, text string) {
	t.Helper()
	putFile(t, file, text)
	if status, body := s.call(t, "POST", admin.ReloadPath); status != 200 {
		t.Fatalf("reload: %d %s", status, body)
	}
}

// provide is a provider that answers everything.
func provide(t *testing.T) (base string) {
	t.Helper()
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"type":"message","id":"m","model":"m","content":[],"data":[],"usage":{"input_tokens":1,"output_tokens":1}}`)
	}))
	t.Cleanup(p.Close)
	return p.URL
}

// Isolation holds from the reload on that says so, and ends with one.
func TestReloadChangesIsolation(t *testing.T) {
	folder, base := t.TempDir(), provide(t)
	file := filepath.Join(folder, "authpool.yaml")
	putFile(t, file, reloadConfig(base, "agents: {isolation: shared}\n", "one"))
	s := startServe(t, folder, file)
	const list = "/anthropic/v1/files"
	if got := s.get(t, list); got != 200 {
		t.Errorf("shared: a list is answered with %d", got)
	}
	s.reload(t, file, reloadConfig(base, "agents: {isolation: strict}\n", "one"))
	if got := s.get(t, list); got != 403 && got != 404 {
		t.Errorf("strict: a list is answered with %d", got)
	}
	s.reload(t, file, reloadConfig(base, "agents: {isolation: shared}\n", "one"))
	if got := s.get(t, list); got != 200 {
		t.Errorf("shared again: a list is answered with %d", got)
	}
}

// A brake counts what was used before it was there, and lets go when it is gone.
func TestReloadChangesBrakes(t *testing.T) {
	folder, base := t.TempDir(), provide(t)
	file := filepath.Join(folder, "authpool.yaml")
	putFile(t, file, reloadConfig(base, "", "one"))
	s := startServe(t, folder, file)
	ask := func(when, want string) {
		t.Helper()
		if got := s.ask(t); !strings.Contains(got, want) {
			t.Errorf("%s: %s", when, got)
		}
	}
	const brake = "agents: {brake: {requests_per_hour: 2}}\n"
	ask("without a brake", `"id":"m"`)
	s.reload(t, file, reloadConfig(base, brake, "one"))
	// What is used is counted when an answer has ended, a moment after it is read.
	within(t, "the brake holds", func() bool {
		return strings.Contains(s.ask(t), "this agent has used up its limit of requests per hour")
	})
	ask("braked", "this agent has used up its limit of requests per hour")
	s.reload(t, file, reloadConfig(base, "agents: {brake: {requests_per_hour: 1000}}\n", "one"))
	ask("with a looser one", `"id":"m"`)
	s.reload(t, file, reloadConfig(base, brake, "one"))
	ask("with the tight one again", "this agent has used up its limit of requests per hour")
	s.reload(t, file, reloadConfig(base, "", "one"))
	ask("without one again", `"id":"m"`)
}

// Webhooks come and go: each hears while the config names it.
func TestReloadChangesNotifications(t *testing.T) {
	hooks := map[string]chan string{"first": make(chan string, 100), "second": make(chan string, 100)}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		select {
		case hooks[strings.TrimPrefix(r.URL.Path, "/")] <- string(body):
		default:
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer hook.Close()
	folder := t.TempDir()
	file := filepath.Join(folder, "authpool.yaml")
	said := func(names ...string) string {
		more := ""
		for _, name := range names {
			more += "  - {url: \"" + hook.URL + "/" + name + "\", secret: file:" + filepath.Join(folder, "one.key") + ", events: [subscription.*]}\n"
		}
		if more != "" {
			more = "notifications:\n" + more
		}
		return reloadConfig(nobody, more, "one")
	}
	putFile(t, file, said())
	s := startServe(t, folder, file)
	test := func(when string, want ...string) {
		t.Helper()
		status, body := s.call(t, "POST", admin.NotificationsTestPath)
		if want == nil {
			if status != 404 {
				t.Errorf("%s: %d %s", when, status, body)
			}
		} else if status != 200 || strings.Count(string(body), `"ok":true`) != len(want) {
			t.Errorf("%s: %d %s", when, status, body)
		}
		for name, heard := range hooks {
			select {
			case <-heard:
				if !slices.Contains(want, name) {
					t.Errorf("%s: the %s one has heard of it", when, name)
				}
			default:
				if slices.Contains(want, name) {
					t.Errorf("%s: the %s one has heard nothing", when, name)
				}
			}
		}
	}
	test("none")
	s.reload(t, file, said("first"))
	test("the first", "first")
	s.reload(t, file, said("first", "second"))
	test("both", "first", "second")
	s.reload(t, file, said("second"))
	test("the second", "second")
	s.reload(t, file, said())
	test("none again")
}

// The config is taken over while Redis is away, too.
func TestReloadWithoutRedis(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "authpool.yaml")
	said := func(ids ...string) string {
		return strings.Replace(reloadConfig(nobody, "", ids...), `redis: {listen: "off"}`, `redis: {url: "redis://127.0.0.1:1/0"}`, 1)
	}
	putFile(t, file, said("one"))
	s := startServe(t, folder, file)
	s.reload(t, file, said("one", "two"))
	if got := s.subscriptions(t); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("%q", got)
	}
	s.reload(t, file, said("two"))
	if got := s.subscriptions(t); !slices.Equal(got, []string{"two"}) {
		t.Errorf("%q", got)
	}
}
