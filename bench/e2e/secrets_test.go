package e2e

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authpool/authpool/bench/simulator"
)

// TestNoSecretLeaves sends traffic of every kind, with faults that provoke the provider and authpool to speak of
// credentials, and then looks for the pool's credentials everywhere that people and programs can look.
func TestNoSecretLeaves(t *testing.T) {
	t.Parallel()
	const dummy = "dummy-credential-of-the-agent"
	subs := []subscription{
		{"claude-a", simulator.Anthropic, "sk-ant-api03-CANARY1f6d0c2e9b7a"},
		{"claude-b", simulator.Anthropic, "sk-ant-api03-CANARY83e5a1d4c0f2"},
		{"gpt-a", simulator.OpenAI, "sk-proj-CANARY5b9e7d3f1a6c"},
		{"gpt-b", simulator.OpenAI, "sk-proj-CANARYc4a2e8f6b0d1"},
	}
	p := startProvider(t, simulator.Options{Keys: keysOf(subs), Watch: []string{"apa_", dummy}})
	a := startAuthpool(t, options{subscriptions: subs, upstream: p.url, extra: "log: {level: debug}\n"})

	const chat = `{"model":"gpt-4.1","messages":[{"role":"user","content":"hello"}]}`
	streamedChat := strings.Replace(chat, "{", `{"stream":true,`, 1)
	requests := []struct{ path, body string }{
		{"/v1/messages", message("hello", false)},
		{"/v1/messages", message("hello", true)},
		{"/v1/chat/completions", chat},
		{"/v1/chat/completions", streamedChat},
	}
	faults := []simulator.Fault{
		{Kind: simulator.EchoCredential},
		{Status: 400},
		{Status: 403},
		{Status: 500},
		{Kind: simulator.Overloaded},
		{Kind: simulator.RateLimit, RetryAfter: 1},
		{Kind: simulator.LateErrorEvent},
		{Kind: simulator.Cut},
		{Kind: simulator.Garbage},
		{Status: 401},
		{Kind: simulator.Quota},
	}
	places := make(map[string]string)
	record := func(name string, req *http.Request) {
		resp, err := roundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		defer resp.Body.Close()
		head, err := httputil.DumpResponse(resp, false)
		if err != nil {
			t.Error(err)
		}
		body := new(logBuffer)
		_ = resp.Write(body) // a cut answer ends early; what came is what is looked at
		places["the answer to "+name] = string(head) + body.String()
	}
	for i, r := range requests {
		// The agent's own credential goes along in every other place that may hold one.
		record(fmt.Sprintf("plain request %d", i), a.ask(t, r.path+"?key="+dummy, r.body, "X-Goog-Api-Key", dummy, "Cookie", "session="+dummy, "Api-Key", dummy))
		record(fmt.Sprintf("request %d with a wrong token", i), a.ask(t, r.path, r.body, "Authorization", "Bearer apa_wrong", "X-Api-Key", "apa_wrong"))
	}
	for _, f := range faults {
		for i, r := range requests {
			if err := p.Inject(simulator.Injection{Fault: f}); err != nil {
				t.Fatal(err)
			}
			record(fmt.Sprintf("request %d with fault %s %d", i, f.Kind, f.Status), a.ask(t, r.path, r.body, "X-Authpool-Session", fmt.Sprint(f.Kind, f.Status, i)))
			p.ClearFaults()
		}
	}
	eventually(t, func() error {
		if _, pending := a.status(t); pending > 0 {
			return fmt.Errorf("%d events wait for Redis", pending)
		}
		return nil
	})
	for key, value := range dump(t, a.front(t)) {
		places["Redis key "+key] = key + " " + value
	}
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"usage", "--json", "--by", "session"}, {"usage", "--by", "agent"}, {"usage", "--csv", "--by", "model"}} {
		places["authpool "+strings.Join(args, " ")] = a.run(t, args...)
	}
	for _, path := range []string{"/metrics", "/readyz", "/healthz", "/", "/api/v1/status", "/debug/vars"} {
		_, body, err := get("http://"+a.admin+path, "")
		if err != nil {
			t.Error(err)
		}
		places["GET "+path] = body
	}
	a.terminate(t)
	places["the log"] = a.log.String()

	tokens := []string{a.token}
	for _, file := range []string{"admin.token", "viewer.token", "redis.password"} {
		b, err := os.ReadFile(filepath.Join(a.state, file))
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, strings.TrimSpace(string(b)))
	}
	search := func(place, content string, secrets []string) {
		for i, s := range secrets {
			if strings.Contains(content, s) {
				t.Errorf("secret %d is in %s", i, place)
			}
		}
	}
	canaries := []string{dummy}
	for _, s := range subs {
		_, secret, _ := strings.Cut(s.key, "CANARY") // what comes before is no secret: providers show it
		canaries = append(canaries, secret)
	}
	for place, content := range places {
		search(place, content, canaries)
		search(place, content, tokens)
	}
	files := 0
	err := filepath.WalkDir(a.state, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files++
		search(path, string(b), canaries)
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("%d files in the state folder, %v", files, err)
	}
	if len(places) < 60 || !strings.Contains(places["authpool status"], "claude-a") || !strings.Contains(places["the log"], "gpt-b") {
		t.Errorf("looked at %d places only, or at empty ones", len(places))
	}
	for place, content := range places {
		if strings.Contains(place, "echo_credential") && !strings.Contains(content, "****") {
			t.Errorf("%s has no masked credential, so it proves nothing:\n%s", place, content)
		}
	}
}
