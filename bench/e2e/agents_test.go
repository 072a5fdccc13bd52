package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// The tests of this file run the real Claude Code and Codex, as a person would: each turn is a process of its own
// that goes on with the conversation of the one before. They need .ci/agents.

// agent is one of them.
type agent struct {
	name     string
	provider string
	path     string // of a turn's request
	program  string // below node_modules
	first    []string
	resume   []string // goes on with the conversation of first; both lack the prompt
	// read makes of a line of its output what it says.
	read func(line []byte, s *spoken) error
}

// spoken is what an agent says of a turn.
type spoken struct {
	session string
	text    string
	repeats int // it says that it tries again
	err     error
}

var agents = []agent{claude, codex}

var claude = agent{
	name: "claude-code", provider: simulator.Anthropic, path: "/v1/messages",
	program: "@anthropic-ai/claude-code/cli-wrapper.cjs",
	first:   []string{"--output-format", "stream-json", "--verbose", "-p"},
	resume:  []string{"--output-format", "stream-json", "--verbose", "-c", "-p"},
	read:    readClaude,
}

// codex sends back, from its second turn on, reasoning that only the organisation which made it can read.
var codex = agent{
	name: "codex", provider: simulator.OpenAI, path: "/v1/responses",
	program: "@openai/codex/bin/codex.js",
	first:   []string{"exec", "--skip-git-repo-check", "--json"},
	resume:  []string{"exec", "--skip-git-repo-check", "--json", "resume", "--last"},
	read:    readCodex,
}

// readClaude reads a line of `claude --output-format stream-json`.
func readClaude(line []byte, s *spoken) error {
	var e struct {
		Type, Subtype string
		Session       string `json:"session_id"`
		Result        string
		IsError       bool `json:"is_error"`
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	switch {
	case e.Type == "system" && e.Subtype == "api_retry":
		s.repeats++
	case e.Type == "result":
		s.session, s.text = e.Session, e.Result
		if e.IsError {
			s.err = errors.New(e.Result)
		}
	}
	return nil
}

// readCodex reads a line of `codex exec --json`.
func readCodex(line []byte, s *spoken) error {
	var e struct {
		Type    string
		Thread  string `json:"thread_id"`
		Message string
		Item    struct{ Type, Text string }
		Error   struct{ Message string }
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	switch e.Type {
	case "thread.started":
		s.session = e.Thread
	case "item.completed":
		if e.Item.Type == "agent_message" {
			s.text = e.Item.Text
		}
	case "error":
		if strings.HasPrefix(e.Message, "Reconnecting") {
			s.repeats++
		}
	case "turn.failed":
		s.err = errors.New(e.Error.Message)
	}
	return nil
}

// desk is where an agent works: behind an authpool, with a home of its own.
type desk struct {
	agent
	*authpool
	p         *provider
	home      string
	env       []string
	asked     func() []byte // body of the newest request that arrived at the provider
	good, bad int           // requests of the agent so far, by how they were answered
	arrivals  int           // that the provider has seen so far
	newThread bool
	limit     time.Duration // of a turn
}

// codexConfig is what the README tells users of Codex to write.
const codexConfig = `model_provider = "authpool"
[model_providers.authpool]
name = "authpool"
base_url = "%s/v1"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
`

// startDesk starts an authpool for an agent, with what `authpool env` prints and, for Codex, a config that has
// authpool's URL put in.
func startDesk(t *testing.T, g agent, config string) *desk {
	t.Helper()
	needAgents(t)
	d := &desk{agent: g, home: t.TempDir(), newThread: true, limit: time.Minute}
	d.p = startProvider(t, simulator.Options{Keys: keysOf(pairs), Watch: []string{"apa_"}})
	var front string
	front, d.asked = recorded(t, d.p)
	d.authpool = startAuthpool(t, options{subscriptions: pairs, upstream: front})
	for _, folder := range []string{"work", "codex"} {
		if err := os.Mkdir(filepath.Join(d.home, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.home, "codex", "config.toml"), fmt.Appendf(nil, config, d.url), 0o600); err != nil {
		t.Fatal(err)
	}
	d.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + d.home, "CODEX_HOME=" + filepath.Join(d.home, "codex"),
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "DISABLE_AUTOUPDATER=1",
	}
	out, err := exec.CommandContext(t.Context(), binary, "env", "--shell", "json",
		"--listen", strings.TrimPrefix(d.url, "http://"), "--state-dir", d.state).Output()
	if err != nil {
		t.Fatal(err)
	}
	var vars map[string]*string
	if err := json.Unmarshal(out, &vars); err != nil {
		t.Fatal(err)
	}
	for name, value := range vars {
		if value != nil {
			d.env = append(d.env, name+"="+*value)
		}
	}
	t.Cleanup(func() { d.expectNoCredential(t) })
	return d
}

// needAgents skips a test where the agents are not installed, or fails it where they must be.
func needAgents(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(agentFolder, "installed.json")); err != nil {
		if os.Getenv("AUTHPOOL_REQUIRE_AGENTS") != "" {
			t.Fatal("the agents are missing: make agents")
		}
		t.Skip("the agents are missing: make agents")
	}
}

// agentFolder is where .ci/agents installs.
const agentFolder = "../../.cache/agents"

// recorded puts a front before the provider that keeps the body of the newest request.
func recorded(t *testing.T, p *provider) (url string, newest func() []byte) {
	t.Helper()
	var mu sync.Mutex
	var last []byte
	handler := p.Handler()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		mu.Lock()
		last = body
		mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	return front.URL, func() []byte {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

// turn runs one turn and returns what the agent said of it. The agent must end well.
func (d *desk) turn(t *testing.T, prompt string) spoken {
	t.Helper()
	s, err := d.tryTurn(t, prompt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tryTurn is turn where the agent may fail.
func (d *desk) tryTurn(t *testing.T, prompt string) (spoken, error) {
	t.Helper()
	args := d.resume
	if d.newThread {
		args, d.newThread = d.first, false
	}
	ctx, cancel := context.WithTimeout(t.Context(), d.limit)
	defer cancel()
	script, err := filepath.Abs(filepath.Join(agentFolder, "node_modules", filepath.FromSlash(d.program)))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "node", append(append([]string{script}, args...), prompt)...)
	cmd.Dir, cmd.Env = filepath.Join(d.home, "work"), d.env
	// The scripts start the real programs, and pass signals on to them.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var s spoken
	lines := bufio.NewScanner(bytes.NewReader(stdout.Bytes()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := d.read(lines.Bytes(), &s); err != nil {
			t.Errorf("%s printed %q: %v", d.name, lines.Bytes(), err)
		}
	}
	if err = errors.Join(err, lines.Err(), s.err); err != nil {
		err = fmt.Errorf("%s: %w\n%s%s", d.name, err, stdout.Bytes(), stderr.Bytes())
	}
	for _, sub := range pairs {
		if bytes.Contains(stdout.Bytes(), []byte(sub.key)) || bytes.Contains(stderr.Bytes(), []byte(sub.key)) {
			t.Errorf("%s shows the credential of %s", d.name, sub.id)
		}
	}
	return s, err
}

// expectNoCredential fails the test when the agent has kept a credential.
func (d *desk) expectNoCredential(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(d.home, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		for _, sub := range pairs {
			if bytes.Contains(text, []byte(sub.key)) {
				t.Errorf("%s has kept the credential of %s in %s", d.name, sub.id, path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// expectRequests checks what came since the last call: how many requests the agent made that were answered well, and
// how many others, and how often the provider was asked.
func (d *desk) expectRequests(t *testing.T, good, bad, upstream int) []simulator.Arrival {
	t.Helper()
	d.good += good
	d.bad += bad
	eventually(t, func() error { // an answer is counted behind its last byte
		if good, bad := d.answered(t); good != d.good || bad != d.bad {
			return fmt.Errorf("%s made %d requests that were answered well and %d others so far, want %d and %d", d.name, good, bad, d.good, d.bad)
		}
		return nil
	})
	arrivals := d.p.Arrivals()[d.arrivals:]
	d.arrivals += len(arrivals)
	if len(arrivals) != upstream {
		t.Errorf("%s: the provider was asked %d times, want %d: %v", d.name, len(arrivals), upstream, arrivals)
	}
	for _, a := range arrivals {
		if a.Path != d.path {
			t.Errorf("%s asked for %s %s beside its turn", d.name, a.Method, a.Path)
		}
	}
	return arrivals
}

// expect is expectRequests, and checks that the agent has the whole of the provider's last answer.
func (d *desk) expect(t *testing.T, s spoken, good, bad, upstream int) []simulator.Arrival {
	t.Helper()
	arrivals := d.expectRequests(t, good, bad, upstream)
	if want := d.answerTo(t, d.asked(), arrivals[len(arrivals)-1].Key); strings.TrimSpace(s.text) != want || want == "" {
		t.Errorf("%s has the answer %q, the provider gave %q", d.name, s.text, want)
	}
	return arrivals
}

// answerTo is the text with which a simulator answers a body: it asks another one, without authpool, for JSON. The
// key's organisation must be able to read what the body has sealed.
func (d *desk) answerTo(t *testing.T, body []byte, key string) string {
	t.Helper()
	straight := startProvider(t, simulator.Options{})
	body = bytes.Replace(body, []byte(`"stream":true`), []byte(`"stream":false`), 1)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, straight.url+d.path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	_, text, err := do(req)
	if err != nil {
		t.Fatal(err)
	}
	type part struct{ Type, Text string }
	var answer struct {
		Content []part
		Output  []struct{ Content []part }
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	parts := answer.Content
	for _, item := range answer.Output {
		parts = append(parts, item.Content...)
	}
	text = ""
	for _, p := range parts {
		text += p.Text // a thought has none
	}
	return strings.TrimSpace(text)
}

// answered tells how many requests of agents were answered with 2xx, and with anything else.
func (d *desk) answered(t *testing.T) (good, bad int) {
	t.Helper()
	_, text, err := get("http://"+d.admin+"/metrics", "")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if !strings.HasPrefix(name, "authpool_requests_total{") {
			continue
		}
		var n int
		if _, err := fmt.Sscan(value, &n); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if strings.Contains(name, `code="2xx"`) {
			good += n
		} else {
			bad += n
		}
	}
	return good, bad
}

// expectCounted waits until authpool has counted what the provider billed for whole answers, all of it for the
// agent's session, and besides as many requests as were cut.
func (d *desk) expectCounted(t *testing.T, session string, cut int64) {
	t.Helper()
	var billedWhole counts
	for _, c := range d.p.ledger(pairs, func(e simulator.Entry) bool { return e.Finished }) {
		billedWhole = billedWhole.plus(c)
	}
	eventually(t, func() error {
		rows, err := d.usage(t, "session")
		if err != nil {
			return err
		}
		row := rows["default/"+session]
		got, want := row.counts(), billedWhole
		want.Requests += cut
		if cut > 0 && got.Input >= want.Input && got.Output >= want.Output { // what came of them counts, too
			want.Input, want.Output, want.CacheRead, want.Write5m, want.Write1h = got.Input, got.Output, got.CacheRead, got.Write5m, got.Write1h
		}
		if len(rows) != 1 || got != want || row.Estimated != cut {
			return fmt.Errorf("counted %+v, want %+v and %d estimated for session %s", rows, want, cut, session)
		}
		return nil
	})
}

// TestFaultsBehindAgents: whatever one subscription answers before content, the agent sees one good answer, and the
// provider is asked once more than without. What breaks behind content the agent repeats itself, once. The next turn
// goes where the conversation is understood, at once.
func TestFaultsBehindAgents(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		fault    simulator.Fault
		requests int   // of the agent
		cut      int64 // answers that count though they were not whole
		moves    bool  // the session must go to the other subscription
	}{
		{name: "429", fault: simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 600}, moves: true},
		{name: "429 without a time", fault: simulator.Fault{Kind: simulator.RateLimit}},
		{name: "used-up window", fault: simulator.Fault{Kind: simulator.Window, RetryAfter: 3600}, moves: true},
		{name: "overload", fault: simulator.Fault{Kind: simulator.Overloaded}},
		{name: "500", fault: simulator.Fault{Kind: simulator.Status, Status: http.StatusInternalServerError}},
		{name: "401", fault: simulator.Fault{Kind: simulator.Status, Status: http.StatusUnauthorized}, moves: true},
		{name: "error event", fault: simulator.Fault{Kind: simulator.ErrorEvent}},
		{name: "cut before content", fault: simulator.Fault{Kind: simulator.EarlyCut}, cut: 1},
		{name: "error event behind content", fault: simulator.Fault{Kind: simulator.LateErrorEvent}, requests: 2, cut: 1},
		{name: "cut behind content", fault: simulator.Fault{Kind: simulator.Cut}, requests: 2, cut: 1},
	} {
		for _, g := range agents {
			t.Run(tt.name+"/"+g.name, func(t *testing.T) {
				t.Parallel()
				d := startDesk(t, g, codexConfig)
				if err := d.p.Inject(simulator.Injection{Fault: tt.fault}); err != nil {
					t.Fatal(err)
				}
				s := d.turn(t, "What is a pool?")
				requests := cmp.Or(tt.requests, 1)
				if a := d.p.Arrivals(); tt.fault.Kind == simulator.LateErrorEvent && len(a) == 2 && a[0].Key != a[1].Key {
					// The error came together with the first content: authpool saw it in time, and asked another
					// subscription. What the agent repeats itself goes to that of its session.
					requests = 1
				}
				arrivals := d.expect(t, s, requests, 0, 2)
				if len(arrivals) == 2 && tt.moves && arrivals[0].Key == arrivals[1].Key {
					t.Errorf("%s was asked again", arrivals[0].Key)
				}
				if s.repeats > requests-1 {
					t.Errorf("%s says that it tried again %d times", d.name, s.repeats)
				}
				again := d.turn(t, "And what is a river?")
				d.expect(t, again, 1, 0, 1)
				if again.repeats != 0 || again.session != s.session || s.session == "" {
					t.Errorf("the second turn: %+v, the first: %+v", again, s)
				}
				d.expectCounted(t, s.session, tt.cut)
			})
		}
	}
}

// TestSealedConversationOfAgents: nobody but the organisation that began it could go on with Codex's conversation.
// What fails there before content goes to the agent, which tries again, and to nobody else.
func TestSealedConversationOfAgents(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fault simulator.Fault
		cut   int64 // answers that count though they were not whole
	}{
		{"overload", simulator.Fault{Kind: simulator.Overloaded}, 0},
		{"500", simulator.Fault{Kind: simulator.Status, Status: http.StatusInternalServerError}, 0},
		{"error event", simulator.Fault{Kind: simulator.ErrorEvent}, 0},
		{"cut before content", simulator.Fault{Kind: simulator.EarlyCut}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := startDesk(t, codex, codexConfig)
			begun := d.expect(t, d.turn(t, "What is a pool?"), 1, 0, 1)
			if err := d.p.Inject(simulator.Injection{Fault: tt.fault}); err != nil {
				t.Fatal(err)
			}
			s := d.turn(t, "And what is a river?")
			for _, a := range d.expect(t, s, 1, 1, 2) {
				if a.Key != begun[0].Key {
					t.Errorf("the conversation began at %s and was continued at %s", begun[0].Key, a.Key)
				}
			}
			d.expectCounted(t, s.session, tt.cut)
		})
	}
}

// TestLimitedConversationOfAgents: Claude Code's conversation goes on elsewhere, and stays there. Codex's cannot: it
// is told until when, and leaves it at that.
func TestLimitedConversationOfAgents(t *testing.T) {
	t.Parallel()
	limit := simulator.Injection{Fault: simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 600}}
	t.Run("claude-code", func(t *testing.T) {
		t.Parallel()
		d := startDesk(t, claude, codexConfig)
		d.expect(t, d.turn(t, "What is a pool?"), 1, 0, 1)
		if err := d.p.Inject(limit); err != nil {
			t.Fatal(err)
		}
		moved := d.expect(t, d.turn(t, "And what is a river?"), 1, 0, 2)
		s := d.turn(t, "And a lake?")
		if stays := d.expect(t, s, 1, 0, 1); stays[0].Key != moved[1].Key {
			t.Errorf("moved to %s, then served by %s", moved[1].Key, stays[0].Key)
		}
		d.expectCounted(t, s.session, 0)
	})
	t.Run("codex", func(t *testing.T) {
		t.Parallel()
		d := startDesk(t, codex, codexConfig)
		s := d.turn(t, "What is a pool?")
		d.expect(t, s, 1, 0, 1)
		if err := d.p.Inject(limit); err != nil {
			t.Fatal(err)
		}
		if _, err := d.tryTurn(t, "And what is a river?"); err == nil || !strings.Contains(err.Error(), "usage limit. Try again at") {
			t.Errorf("it says %v, not until when it is limited", err)
		}
		d.expectRequests(t, 0, 1, 1)
		d.expectCounted(t, s.session, 0)
	})
}

// TestAllLimitedBehindAgents: an agent does not notice that all are limited for a moment. When they are for long it is
// told at once, and does not try again and again.
func TestAllLimitedBehindAgents(t *testing.T) {
	t.Parallel()
	for _, g := range agents {
		t.Run("for a moment/"+g.name, func(t *testing.T) {
			t.Parallel()
			d := startDesk(t, g, codexConfig)
			if err := d.p.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 3, Count: 2}}); err != nil {
				t.Fatal(err)
			}
			s := d.turn(t, "What is a pool?")
			d.expect(t, s, 1, 0, 3)
			d.expectCounted(t, s.session, 0)
		})
		t.Run("for long/"+g.name, func(t *testing.T) {
			t.Parallel()
			d := startDesk(t, g, codexConfig)
			if err := d.p.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 600, Count: -1}}); err != nil {
				t.Fatal(err)
			}
			if s, err := d.tryTurn(t, "What is a pool?"); err == nil {
				t.Errorf("it takes %q for an answer", s.text)
			}
			d.expectRequests(t, 0, 1, 2)
		})
	}
}

// TestOverloadOfAllBehindAgents: a provider that has no capacity for anybody is asked at most ten times in 25 seconds,
// in which Codex would ask it 30 times by itself.
func TestOverloadOfAllBehindAgents(t *testing.T) {
	t.Parallel()
	for _, g := range agents {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			d := startDesk(t, g, codexConfig)
			d.limit = 25 * time.Second
			if err := d.p.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.Status, Status: 529, Count: -1}}); err != nil {
				t.Fatal(err)
			}
			if s, err := d.tryTurn(t, "What is a pool?"); err == nil {
				t.Errorf("it takes %q for an answer", s.text)
			}
			if n := len(d.p.Arrivals()); n < 2 || n > 10 {
				t.Errorf("the provider was asked %d times, want 2 to 10: %s", n, keysAsked(d.p, 0))
			}
		})
	}
}

// TestWebSocketOfAgents: Codex's own provider speaks over a WebSocket, each turn of which is counted. A limit that it is
// told there has it come again on another socket, in the same turn.
func TestWebSocketOfAgents(t *testing.T) {
	t.Parallel()
	d := startDesk(t, codex, "openai_base_url = \"%s/v1\"\n")
	d.env = append(d.env, "CODEX_API_KEY="+d.token) // it does not read OPENAI_API_KEY then
	if err := d.p.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 600}}); err != nil {
		t.Fatal(err)
	}
	s := d.turn(t, "What is a pool?")
	if s.err != nil || s.text == "" {
		t.Fatalf("codex says %q, %v", s.text, s.err)
	}
	sockets := 0
	for _, a := range d.p.Arrivals() {
		if a.Path != d.path || a.Method != http.MethodGet {
			t.Errorf("%s %s reached the provider", a.Method, a.Path)
		}
		sockets++
	}
	if n := len(d.p.Ledger()); n != 1 || sockets != 2 {
		t.Errorf("%d turns on %d sockets, want 1 on 2", n, sockets)
	}
	d.expectLedger(t, d.p, pairs)
	rows, err := d.usage(t, "session")
	if err != nil {
		t.Fatal(err)
	}
	if r := rows["default/"+s.session]; r.Requests != 1 || r.Estimated+r.Unknown > 0 {
		t.Errorf("the session of codex used %+v of %+v", r, rows)
	}
}
