package simulator_test

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// inProcess answers requests without a connection.
func inProcess(t *testing.T, o simulator.Options) (do func(path, body string, header ...string) *http.Response, s *simulator.Simulator) {
	t.Helper()
	s, err := simulator.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	h := s.Handler()
	return func(path, body string, header ...string) *http.Response {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, request(t, path, body, header...))
		return w.Result()
	}, s
}

func wantHeaders(t *testing.T, h http.Header, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := h.Get(name); got != value {
			t.Errorf("%s: %q, want %q", name, got, value)
		}
	}
}

func unix(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

// A subscription's windows are told on every answer, and refuse when one is full until that one resets.
func TestUsageWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		do, s := inProcess(t, simulator.Options{Keys: []simulator.Key{{
			Key: "k1", Provider: simulator.Anthropic, Windows: []simulator.UsageWindow{{Name: "5h", Tokens: 1}, {Name: "7d", Tokens: 1000000}},
		}}})
		begun := time.Now()
		fiveHours := begun.Add(5 * time.Hour)
		first := do("/v1/messages", messages)
		wantHeaders(t, first.Header, map[string]string{
			// The answer that fills a window passes, and says that the next will not.
			"Anthropic-Ratelimit-Unified-Status":               "rejected",
			"Anthropic-Ratelimit-Unified-Representative-Claim": "five_hour",
			"Anthropic-Ratelimit-Unified-Reset":                unix(fiveHours),
			"Anthropic-Ratelimit-Unified-5h-Reset":             unix(fiveHours),
			"Anthropic-Ratelimit-Unified-7d-Status":            "allowed",
			"Anthropic-Ratelimit-Unified-7d-Reset":             unix(begun.Add(7 * 24 * time.Hour)),
		})
		e := s.Ledger()[0]
		spent := e.Input + e.Output
		if got, _ := strconv.ParseFloat(first.Header.Get("Anthropic-Ratelimit-Unified-7d-Utilization"), 64); first.StatusCode != 200 || got != float64(spent)/1e6 {
			t.Errorf("%s with 7d utilization %v, want %d tokens of a million", first.Status, got, spent)
		}
		time.Sleep(5*time.Hour - time.Second)
		refused := do("/v1/messages", messages)
		wantHeaders(t, refused.Header, map[string]string{
			"Anthropic-Ratelimit-Unified-Status": "rejected", "Anthropic-Ratelimit-Unified-5h-Reset": unix(fiveHours), "Retry-After": "1",
		})
		if refused.StatusCode != http.StatusTooManyRequests {
			t.Errorf("in a full window: %s", refused.Status)
		}
		time.Sleep(time.Second)
		if again := do("/v1/messages", messages); again.StatusCode != 200 {
			t.Errorf("after the reset: %s", again.Status)
		}
		if n := len(s.Ledger()); n != 2 {
			t.Errorf("%d entries, want 2", n)
		}
	})
}

func TestCodexWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		do, _ := inProcess(t, simulator.Options{Keys: []simulator.Key{{
			Key: "k1", Provider: simulator.OpenAI, Windows: []simulator.UsageWindow{{Name: "7d", Tokens: 1}},
		}}})
		reset := unix(time.Now().Add(7 * 24 * time.Hour))
		if resp := do("/v1/chat/completions", chat); resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		refused := do("/v1/chat/completions", chat)
		wantHeaders(t, refused.Header, map[string]string{"X-Codex-Primary-Window-Minutes": "10080", "X-Codex-Primary-Reset-At": reset})
		if body := text(t, refused.Body); refused.StatusCode != 429 || !strings.Contains(body, "usage_limit_reached") || !strings.Contains(body, `"resets_at": `+reset) {
			t.Errorf("%s %s", refused.Status, body)
		}
	})
}

// Keys of one organisation share its limits and say so.
func TestOrganisation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := func(name, org string) simulator.Key {
			return simulator.Key{Key: name, Provider: simulator.Anthropic, RPM: 2, Organisation: org}
		}
		do, _ := inProcess(t, simulator.Options{Keys: []simulator.Key{key("k1", "acme"), key("k2", "acme"), key("k3", "other"), key("k4", "")}})
		as := func(key string) *http.Response { return do("/v1/messages", messages, "X-Api-Key", key) }
		for key, org := range map[string]string{"k1": "acme", "k2": "acme", "k3": "other"} {
			resp := as(key)
			wantHeaders(t, resp.Header, map[string]string{"Anthropic-Organization-Id": org})
			if resp.StatusCode != 200 {
				t.Errorf("%s: %s", key, resp.Status)
			}
		}
		for key, status := range map[string]int{"k1": 429, "k2": 429, "k3": 200, "k4": 200} {
			if resp := as(key); resp.StatusCode != status {
				t.Errorf("with acme's two requests of this minute spent %s gets %s, want %d", key, resp.Status, status)
			}
		}
	})
}

func TestWrongWindowsAndOrganisations(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		`[{key: a, provider: openai, windows: [{name: 1h, tokens: 5}]}]`:                                                               `windows[0]: name: "1h"`,
		`[{key: a, provider: openai, windows: [{name: 5h}]}]`:                                                                          "tokens: 0",
		`[{key: a, provider: openai, windows: [{name: 5h, tokens: 1}, {name: 5h, tokens: 2}]}]`:                                        "windows[1]: a second 5h",
		`[{key: a, provider: openai, rpm: 5, organisation: o}, {key: b, provider: openai, rpm: 6, organisation: o}]`:                   "keys[1]: organisation",
		`[{key: a, provider: openai, organisation: o, windows: [{name: 5h, tokens: 1}]}, {key: b, provider: openai, organisation: o}]`: "keys[1]: organisation",
	} {
		if _, err := simulator.ReadKeys(strings.NewReader(file)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}
