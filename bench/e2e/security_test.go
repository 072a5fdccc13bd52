package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// securityTests are what an attacker tries first, and the tests that see it refused.
var securityTests = []struct {
	attack string
	tests  map[string][]string // by file, from the project's folder
}{
	{"sealed records that changed places, or whose target was changed", map[string][]string{
		"bench/e2e/security_test.go": {"TestRecordsEditedInRedis"}, "pool/managed/managed_test.go": {"TestVault"},
		"cmd/authpool/roster_test.go": {"TestSealedSecretsStayWithTheirTarget"}, "pool/seal/seal_test.go": {"TestBoundToItsRecordAndTarget"},
	}},
	{"a truncated keyset", map[string][]string{"bench/e2e/security_test.go": {"TestRecordsEditedInRedis"}, "pool/seal/seal_test.go": {"TestDamage"}}},
	{"a replayed webhook", map[string][]string{"pool/notify/replay_test.go": {"TestReplayIsRefused"}}},
	{"token guessing", map[string][]string{"proxy/agents_test.go": {"TestGuessing", "TestGuessesAreBounded"}}},
	{"path traversal in ids", map[string][]string{"bench/e2e/security_test.go": {"TestStrangeIDs"}, "proxy/front_test.go": {"TestSplitTarget"}}},
	{"log injection", map[string][]string{"bench/e2e/security_test.go": {"TestLogInjection"}}},
	{"request smuggling and malformed requests", map[string][]string{
		"proxy/front_corpus_test.go": {"TestCorpus"}, "proxy/agentconn/listener_test.go": {"TestFraming"}, "proxy/traps_test.go": {"TestTrapSmuggledRequests"},
	}},
	{"connections that drip or say nothing", map[string][]string{
		"proxy/agentconn/traps_test.go": {"TestTrapStalledConnectionsEnd"}, "proxy/agentconn/places_test.go": {"TestPlaces"},
	}},
	{"an agent that does too much", map[string][]string{"proxy/rights_test.go": {"TestRatesOfAnAgent"}, "pool/agents/rate_test.go": {"TestRates"}}},
	{"another user at a unix socket", map[string][]string{"proxy/peer_test.go": {"TestAgentKnownByItsUser"}}},
	{"header injection", map[string][]string{
		"bench/e2e/security_test.go":  {"TestStrangeIDs"},
		"proxy/provider/head_test.go": {"TestHeadDropsWhatCouldEndAHeader", "TestHeadRefusesACredentialThatCouldEndAHeader"},
	}},
	{"ids of 10 MB", map[string][]string{"bench/e2e/security_test.go": {"TestHugeIDs"}}},
	{"another agent's things", map[string][]string{"proxy/isolation_test.go": {"TestIsolationKeepsAgentsFromOthersThings", "TestIsolationRefusesLists"}}},
	{"a viewer who changes something", map[string][]string{"bench/e2e/security_test.go": {"TestViewerChangesNothing"}}},
	{"secrets that leave", map[string][]string{"bench/e2e/secrets_test.go": {"TestNoSecretLeaves"}, "pool/credential/secret_test.go": {"TestNoEncoderPrintsASecret"}}},
}

func TestAttacksAreTested(t *testing.T) {
	for _, s := range securityTests {
		for file, names := range s.tests {
			text, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(file)))
			if err != nil {
				t.Errorf("%s: %v", s.attack, err)
				continue
			}
			for _, name := range names {
				if !regexp.MustCompile(`(?m)^func ` + name + `\(t \*testing\.T\)`).Match(text) {
					t.Errorf("%s: %s has no test %s", s.attack, file, name)
				}
			}
		}
	}
}

// admin asks the admin address.
func (a *authpool) asked(t *testing.T, tokenFile, method, path, body string) (status int, text string) {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(a.state, tokenFile))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+a.admin+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	status, text, _ = do(req)
	return status, text
}

// Somebody who can write to Redis gains nothing by it: secrets that changed places, and
// one that is to go elsewhere, do not open; others serve on. So it is with a keyset that
// was cut off, which is left as it is.
func TestRecordsEditedInRedis(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	all := []subscription{{"one", simulator.Anthropic, "sk-ant-api03-number-one"}, {"two", simulator.Anthropic, "sk-ant-api03-number-two"}, {"three", simulator.OpenAI, "sk-proj-number-three"}}
	p := startProvider(t, simulator.Options{Keys: keysOf(append(all, pairs[0]))})
	keyset := filepath.Join(t.TempDir(), "keyset")
	text, err := exec.CommandContext(t.Context(), binary, "keys", "new").Output()
	if err != nil {
		t.Fatal(err)
	}
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(keyset, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	o := options{subscriptions: pairs[:1], upstream: p.url, redis: r.url(), extra: fmt.Sprintf("sealing: {keyset: %q}\n", "file:"+keyset)}
	a := startAuthpool(t, o)
	for _, s := range all {
		a.managed(t, s.key, "add", s.id, "--provider", s.provider, "--credential-stdin")
	}
	states := func(a *authpool, want map[string]string) {
		t.Helper()
		eventually(t, func() error {
			rows, _ := a.status(t)
			for id, state := range want {
				if rows[id].State != state {
					return fmt.Errorf("%s is %q, want %q", id, rows[id].State, state)
				}
			}
			return nil
		})
	}
	states(a, map[string]string{"one": "ready", "two": "ready", "three": "ready"})
	a.terminate(t)

	// Between two runs the secrets of one and two change places, and three is to be sent
	// to another provider.
	client := r.client(t)
	records := map[string]map[string]any{}
	for _, s := range all {
		raw, err := client.HGet(t.Context(), "authpool:managed", s.id).Result()
		_, record, _ := strings.Cut(raw, " ")
		fields := map[string]any{}
		if err != nil || json.Unmarshal([]byte(record), &fields) != nil {
			t.Fatal(raw, err)
		}
		records[s.id] = fields
	}
	one, two := records["one"], records["two"]
	one["secret"], two["secret"] = two["secret"], one["secret"]
	records["three"]["settings"].(map[string]any)["provider"] = "anthropic"
	for id, fields := range records {
		text, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		if err := client.HSet(t.Context(), "authpool:managed", id, "9 "+string(text), ":state", "9999999999999999").Err(); err != nil {
			t.Fatal(err)
		}
	}
	a = startAuthpool(t, o)
	states(a, map[string]string{"one": "disabled", "two": "disabled", "three": "disabled", "claude-a": "ready"})
	if s := a.send(a.ask(t, "/v1/messages", message("hi", false))); s.status != http.StatusOK || s.subscription != "claude-a" {
		t.Errorf("the one that nobody touched: %+v", s)
	}
	if out := a.managed(t, "", "list"); strings.Contains(out, "number-one") || strings.Contains(out, "number-two") {
		t.Errorf("the list is\n%s", out)
	}
	a.terminate(t)

	write(text[:len(text)/2])
	a = startAuthpool(t, o)
	states(a, map[string]string{"one": "disabled", "claude-a": "ready"})
	if _, err := a.manage(t, "sk-ant-api03-another", "add", "four", "--provider", "anthropic", "--credential-stdin"); err == nil || !strings.Contains(err.Error(), "keyset") {
		t.Errorf("a secret was sealed with half a keyset: %v", err)
	}
	if left, _ := os.ReadFile(keyset); !bytes.Equal(left, text[:len(text)/2]) {
		t.Error("the keyset was changed")
	}
	for _, arrival := range p.Arrivals() {
		if arrival.Key != pairs[0].key {
			t.Errorf("%s %s arrived with %s", arrival.Method, arrival.Path, arrival.Key)
		}
	}
}

// What no id can be is refused by whoever takes ids, and names no file.
func TestStrangeIDs(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
	for _, id := range []string{"../../etc/passwd", "..", "a/../b", "a\r\nX-Injected: 1", "a:b", "a b", "A", "", strings.Repeat("a", 64), "a\x00b", "{a}"} {
		for _, args := range [][]string{{"add", id, "--provider", "anthropic", "--credential-stdin"}, {"disable", id}, {"remove", id}, {"rotate", id, "--credential-stdin"}} {
			if out, err := a.manage(t, "sk-ant-api03-pool-c", args...); err == nil {
				t.Errorf("subscriptions %s %q: %s", args[0], id, out)
			}
		}
		cmd := exec.CommandContext(t.Context(), binary, "agents", "create", id, "--admin", a.admin, "--state-dir", a.state)
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("agents create %q: %s", id, out)
		}
	}
	// As they come over the wire: no path leads out of the API, and no header in.
	for _, path := range []string{"/api/v1/subscriptions/..%2f..%2fstatus", "/api/v1/subscriptions/%2e%2e/enable", "/api/v1/agents/..%2f..%2fx", "/api/v1/requests/..%2f..%2f..%2fetc%2fpasswd", "/api/v1/sessions/anthropic/default/..%2f..%2fx/move"} {
		method := http.MethodGet
		if strings.HasSuffix(path, "enable") || strings.HasSuffix(path, "move") {
			method = http.MethodPost
		}
		if status, text := a.asked(t, "admin.token", method, path, ""); status < 300 || status >= 500 {
			t.Errorf("%s %s: %d %s", method, path, status, text)
		}
	}
	for _, secret := range []string{"sk-ant-api03\r\nX-Injected: 1", "sk-ant api03", "sk-ant\x00"} {
		text, err := json.Marshal(map[string]string{"id": "injects", "provider": "anthropic", "credential": secret})
		if err != nil {
			t.Fatal(err)
		}
		if status, answer := a.asked(t, "admin.token", http.MethodPost, "/api/v1/subscriptions", string(text)); status != http.StatusBadRequest || strings.Contains(answer, "api03") {
			t.Errorf("the secret %q: %d %s", secret, status, answer)
		}
	}
}

// Ids of ten megabytes are refused before they cost anything, are repeated nowhere, and
// do not harm who comes next.
func TestHugeIDs(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
	huge := strings.Repeat("h", 10<<20)
	admin, err := os.ReadFile(filepath.Join(a.state, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	operator := strings.TrimSpace(string(admin))
	for name, attack := range map[string]struct{ address, head, body string }{
		"a session's":          {a.url[len("http://"):], "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: " + a.token + "\r\nX-Authpool-Session: " + huge, ""},
		"a token":              {a.url[len("http://"):], "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: " + huge, ""},
		"in the path":          {a.url[len("http://"):], "GET /v1/files/file-" + huge + " HTTP/1.1\r\nHost: localhost\r\nx-api-key: " + a.token, ""},
		"in the admin's path":  {a.admin, "GET /api/v1/subscriptions/" + huge + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + operator, ""},
		"the admin's token":    {a.admin, "GET /api/v1/subscriptions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + huge, ""},
		"a subscription's":     {a.admin, "POST /api/v1/subscriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer " + operator, `{"id":"` + huge + `","provider":"anthropic","credential":"x"}`},
		"an agent's":           {a.admin, "POST /api/v1/agents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer " + operator, `{"name":"` + huge + `"}`},
		"where a session goes": {a.admin, "POST /api/v1/sessions/anthropic/default/s/move HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer " + operator, `{"subscription":"` + huge + `"}`},
	} {
		c, err := net.Dial("tcp", attack.address)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		answered := make(chan []byte, 1)
		go func() {
			text, _ := io.ReadAll(io.LimitReader(c, 1<<20)) // a reset is an answer, too
			answered <- text
		}()
		_, _ = fmt.Fprintf(c, "%s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", attack.head, len(attack.body), attack.body)
		text := <-answered
		_ = c.Close()
		if !regexp.MustCompile(`^(HTTP/1\.1 4\d\d |$)`).Match(text) || len(text) > 8<<10 {
			t.Errorf("%s: %d bytes: %.200s", name, len(text), text)
		}
	}
	if len(p.Arrivals()) > 0 {
		t.Errorf("the provider saw %v", p.Arrivals())
	}
	if n := len(a.log.String()); n > 64<<10 {
		t.Errorf("the log has %d bytes", n)
	}
	if s := a.send(a.ask(t, "/v1/messages", message("hi", false))); s.status != http.StatusOK {
		t.Errorf("who comes next: %+v", s)
	}
}

// Whatever agents and operators put into names, nobody can write a line of a log, of the
// audit log or of what the commands print, or command a terminal.
func TestLogInjection(t *testing.T) {
	t.Parallel()
	const forged = "level=ERROR msg=forged"
	evil := "x\n" + forged + "\r\n{\"seq\":1}\x1b[2J\u2028\u202e"
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
	body, err := json.Marshal(map[string]any{
		"model": evil, "max_tokens": 16, "metadata": map[string]string{"user_id": `{"session_id":"` + evil + `"}`},
		"messages": []map[string]string{{"role": "user", "content": "hi"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = a.send(a.ask(t, "/v1/messages", string(body)))
	_ = a.send(a.ask(t, "/v1/nothing%0a"+strings.ReplaceAll(forged, " ", "%20"), string(body)))
	for _, flag := range []string{"--email", "--note", "--domain", "--label", "--model"} {
		if out, err := a.manage(t, "sk-ant-api03-pool-c", "add", "noted", "--provider", "anthropic", flag, evil, "--credential-stdin"); err == nil {
			t.Errorf("%s: %s", flag, out)
		}
	}
	_, _ = a.manage(t, "", "disable", evil)
	_, _ = a.asked(t, "admin.token", http.MethodGet, "/api/v1/subscriptions/x%0a"+strings.ReplaceAll(forged, " ", "%20"), "")
	outputs := map[string]string{}
	for _, args := range [][]string{{"status"}, {"sessions", "list"}, {"subscriptions", "list"}, {"agents", "list"}, {"explain"}, {"usage", "--by", "model"}, {"usage", "--by", "session"}, {"usage", "--by", "model", "--csv"}} {
		cmd := exec.CommandContext(t.Context(), binary, append(args, "--admin", a.admin, "--state-dir", a.state)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v %s", args, err, out)
		}
		outputs[strings.Join(args, " ")] = string(out)
	}
	a.terminate(t)
	outputs["the log"] = a.log.String()
	audit, err := exec.CommandContext(t.Context(), binary, "audit", "tail", "-n", "1000", "--state-dir", a.state).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, audit)
	}
	outputs["the audit log"] = string(audit)
	if out, err := exec.CommandContext(t.Context(), binary, "audit", "verify", "--state-dir", a.state).CombinedOutput(); err != nil {
		t.Errorf("the audit log: %s", out)
	}
	for name, text := range outputs {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(strings.TrimSpace(line), "level=ERROR msg=forged") || strings.HasPrefix(line, `{"seq"`) || strings.ContainsAny(line, "\x1b\r\u2028\u202e") {
				t.Errorf("%s has the line %q", name, line)
			}
		}
	}
}

// A viewer's token changes nothing, by any operation that the API has.
func TestViewerChangesNothing(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
	_, text := a.asked(t, "viewer.token", http.MethodGet, "/api/v1/openapi.json", "")
	var doc struct {
		Paths map[string]map[string]any
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	changes := 0
	for path, operations := range doc.Paths {
		path = regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "claude-a")
		for method := range operations {
			method = strings.ToUpper(method)
			if method == http.MethodGet || method == "PARAMETERS" || !strings.HasPrefix(path, "/api/") {
				continue
			}
			changes++
			if status, text := a.asked(t, "viewer.token", method, path, ""); status != http.StatusForbidden {
				t.Errorf("%s %s: %d %s", method, path, status, text)
			}
		}
	}
	if changes < 12 {
		t.Errorf("the API has %d operations that change something", changes)
	}
	if rows, _ := a.status(t); rows["claude-a"].State != "ready" {
		t.Errorf("claude-a is %s", rows["claude-a"].State)
	}
}
