package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
)

// agent is the program of that name, which stories run as agents are run:
//
//	agent turn [HOST]     takes a turn with the base URL of the environment, or
//	                      at HOST, and prints the status and who served
//	agent env NAME...     prints variables, those that are not set as "NAME is not set"
//	agent args ARG...     prints its arguments
//	agent exit N          exits with N
//	agent kill            is killed
//	agent orphan FILE     kills who runs it, takes a turn, and tells whether FILE
//	                      is locked then
//	agent wait FILE       makes FILE, waits for a signal and exits with 3
func agent() int {
	code, err := runAgent(os.Args[1], os.Args[2:])
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return code
}

func runAgent(what string, args []string) (int, error) {
	switch what {
	case "turn":
		return 0, takeTurn(args)
	case "env":
		for _, name := range args {
			if value, ok := os.LookupEnv(name); ok {
				fmt.Printf("%s=%s\n", name, value) //nolint:forbidigo // a program of its own
			} else {
				fmt.Printf("%s is not set\n", name) //nolint:forbidigo // likewise
			}
		}
		return 0, nil
	case "args":
		fmt.Println(strings.Join(args, " ")) //nolint:forbidigo // likewise
		return 0, nil
	case "exit":
		return strconv.Atoi(args[0])
	case "kill":
		return 0, syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "orphan":
		parent := os.Getppid()
		if err := syscall.Kill(parent, syscall.SIGKILL); err != nil {
			return 0, err
		}
		for os.Getppid() == parent {
			runtime.Gosched()
		}
		f, err := os.Open(args[0])
		if err != nil {
			return 0, err
		}
		defer f.Close()                                                 // read only
		fmt.Println(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)) //nolint:forbidigo // a program of its own
		return 0, takeTurn(nil)
	case "wait":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		if err := os.WriteFile(args[0], fmt.Appendf(nil, "run by pid=%d\n", os.Getppid()), 0o600); err != nil {
			return 0, err
		}
		fmt.Println("got", <-signals) //nolint:forbidigo // likewise
		return 3, nil
	default:
		return 0, errors.New("no such way to be run")
	}
}

// fakeClaude is a program called claude, for the doctor to look at. FAKE says what is wrong
// with it: it goes past the proxy, trusts no authority of ours, or asks for no stream.
func fakeClaude() int {
	if os.Getenv("FAKE") == "broken" {
		_, _ = fmt.Fprintln(os.Stderr, "fake: no toolchain")
		return exitFailed
	}
	if slices.Contains(os.Args, "--version") {
		fmt.Println("1.2.3 (no Claude Code)") //nolint:forbidigo // a program of its own
		return exitDone
	}
	base, stream, transport := os.Getenv("ANTHROPIC_BASE_URL"), true, &http.Transport{Proxy: http.ProxyFromEnvironment}
	switch os.Getenv("FAKE") {
	case "direct":
		transport.Proxy = nil
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no way out") }
	case "distrust":
		transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	case "whole":
		stream = false
	}
	if base == "" {
		base = "https://api.anthropic.com"
	}
	if err := fakeTurn(&http.Client{Transport: transport}, base, stream); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "fake:", err)
		return exitFailed
	}
	return exitDone
}

func fakeTurn(client *http.Client, base string, stream bool) error {
	body := fmt.Sprintf(`{"model":"claude-sonnet-4-5","max_tokens":20,"stream":%t,"messages":[{"role":"user","content":"hello"}]}`, stream)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, base+"/v1/messages", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Authorization", "Bearer "+os.Getenv("ANTHROPIC_AUTH_TOKEN"))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func takeTurn(args []string) error {
	url := os.Getenv("ANTHROPIC_BASE_URL")
	if len(args) > 0 {
		url = args[0]
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url+"/v1/messages",
		strings.NewReader(`{"model":"claude-sonnet-4-5","max_tokens":20,"messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		return err
	}
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Authorization", "Bearer "+os.Getenv("ANTHROPIC_AUTH_TOKEN"))
	if url == os.Getenv("ANTHROPIC_BASE_URL") { // in proxy mode the user name of the proxy tells
		for header := range strings.SplitSeq(os.Getenv("ANTHROPIC_CUSTOM_HEADERS"), "\n") {
			if name, value, ok := strings.Cut(header, ": "); ok {
				req.Header.Set(name, value)
			}
		}
	}
	resp, err := http.DefaultClient.Do(req) //nolint:forbidigo // the story has a limit
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	_, err = fmt.Printf("%d by %s in session %s\n", resp.StatusCode, resp.Header.Get("X-Authpool-Subscription"), resp.Header.Get(sessionHeader)) //nolint:forbidigo // a program of its own
	return err
}

// What clients need beside variables keeps what is there, and keeps the token off command
// lines.
func TestSetup(t *testing.T) {
	const token = "apa_canary"
	w := way{mode: modeBaseURL, base: "http://127.0.0.1:1", agent: "default", token: token, session: "s1"}
	f := func(environ []string, mode string, argv []string, wantArgv []string, wantEnv ...string) {
		t.Helper()
		w.mode = mode
		s, err := newSetup(&program{environ: environ}, w, argv)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.argv, wantArgv) {
			t.Errorf("%q: got %q, want %q", argv, s.argv, wantArgv)
		}
		if strings.Contains(strings.Join(s.argv, " "), token) {
			t.Errorf("%q: the token is on the command line: %q", argv, s.argv)
		}
		for _, want := range wantEnv {
			if name, absent := strings.CutPrefix(want, "no "); absent {
				if slices.ContainsFunc(s.environ, func(pair string) bool { return strings.HasPrefix(pair, name+"=") }) {
					t.Errorf("%q has %s", argv, name)
				}
				continue
			}
			if !slices.Contains(s.environ, want) {
				t.Errorf("%q has no %q but %q", argv, want, s.environ)
			}
		}
	}
	f(nil, modeBaseURL, []string{"node", "x.mjs"}, []string{"node", "x.mjs"},
		"ANTHROPIC_CUSTOM_HEADERS=X-Authpool-Session: s1", "OPENAI_CUSTOM_HEADERS=X-Authpool-Session: s1",
		"ANTHROPIC_API_KEY="+token+".s1", "OPENAI_BASE_URL=http://127.0.0.1:1/v1")
	f([]string{"ANTHROPIC_CUSTOM_HEADERS=X-Team: a\nX-Authpool-Session: old\n", "ANTHROPIC_API_KEY=sk-ant-own", "ANTHROPIC_API_KEY_2=sk-ant-two", "PATH=/bin"},
		modeBaseURL, []string{"/opt/bin/claude", "-p", "hi"}, []string{"/opt/bin/claude", "-p", "hi"},
		"ANTHROPIC_CUSTOM_HEADERS=X-Authpool-Session: s1\nX-Team: a", "ANTHROPIC_AUTH_TOKEN="+token+".s1", "PATH=/bin",
		"no ANTHROPIC_API_KEY", "no ANTHROPIC_API_KEY_2")
	f([]string{"OPENAI_API_BASE=https://elsewhere.example.com/v1"}, modeBaseURL, []string{"python3", "x.py"}, []string{"python3", "x.py"},
		"OPENAI_BASE_URL=http://127.0.0.1:1/v1", "OPENAI_API_BASE=http://127.0.0.1:1/v1")
	f([]string{"OPENAI_API_BASE=https://elsewhere.example.com/v1"}, modeProxy, []string{"python3", "x.py"}, []string{"python3", "x.py"}, "no OPENAI_API_BASE")
	codex := func(base string) []string {
		return []string{
			"codex", "-c", `model_provider="authpool"`, "-c", `model_providers.authpool.name="authpool"`,
			"-c", `model_providers.authpool.base_url="` + base + `"`, "-c", `model_providers.authpool.env_key="OPENAI_API_KEY"`,
			"-c", `model_providers.authpool.wire_api="responses"`,
			"-c", `model_providers.authpool.env_http_headers={"X-Authpool-Session"="AUTHPOOL_RUN_SESSION"}`, "exec", "hi",
		}
	}
	f(nil, modeBaseURL, []string{"codex", "exec", "hi"}, codex("http://127.0.0.1:1/v1"), "AUTHPOOL_RUN_SESSION=s1")
	f(nil, modeProxy, []string{"codex", "exec", "hi"}, codex("https://api.openai.com/v1"), "HTTPS_PROXY=http://s1:"+token+"@127.0.0.1:1")
	f([]string{`OPENCODE_CONFIG_CONTENT={"theme":"x","provider":{"openai":{"options":{"timeout":5}}}}`}, modeBaseURL, []string{"opencode"}, []string{"opencode"},
		`OPENCODE_CONFIG_CONTENT={"provider":{"anthropic":{"options":{"apiKey":"{env:ANTHROPIC_API_KEY}","baseURL":"http://127.0.0.1:1/v1","headers":{"X-Authpool-Session":"s1"}}},`+
			`"google":{"options":{"apiKey":"{env:GEMINI_API_KEY}","baseURL":"http://127.0.0.1:1/v1beta","headers":{"X-Authpool-Session":"s1"}}},`+
			`"openai":{"options":{"apiKey":"{env:OPENAI_API_KEY}","baseURL":"http://127.0.0.1:1/v1","headers":{"X-Authpool-Session":"s1"},"timeout":5}}},"theme":"x"}`)
	home := t.TempDir()
	gemini := func(settings, mode, want string) {
		t.Helper()
		if err := os.MkdirAll(home+"/.gemini", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(home+"/.gemini/settings.json", []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		w.mode = mode
		s, err := newSetup(&program{environ: []string{"HOME=" + home}}, w, []string{"gemini"})
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s in mode %s: got %v, want %q", settings, mode, err, want)
		case err == nil && !slices.Contains(s.environ, "GEMINI_CLI_TRUST_WORKSPACE=true"):
			t.Errorf("%s in mode %s: it cannot start where it cannot ask", settings, mode)
		}
	}
	gemini(`{}`, modeProxy, "")
	gemini(`{}`, modeBaseURL, "use --mode proxy")
	gemini(`{"security":{"auth":{"selectedType":"gemini-api-key"}}}`, modeBaseURL, "")
	gemini(`{"security":{"auth":{"selectedType":"gemini-api-key"}}}`, modeProxy, "")
	gemini(`{"security":{"auth":{"selectedType":"oauth-personal"}}}`, modeProxy, `choose "Use Gemini API Key" at its /auth`)
	cloud := func(mode, want string, environ ...string) {
		t.Helper()
		w.mode = mode
		_, err := newSetup(&program{environ: environ}, w, []string{"claude"})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("claude with %q in mode %s: got %v, want %q", environ, mode, err, want)
		}
	}
	cloud(modeBaseURL, "with CLAUDE_CODE_USE_BEDROCK it asks a cloud, past authpool: unset that, or use --mode proxy", "CLAUDE_CODE_USE_BEDROCK=1")
	cloud(modeBaseURL, "with CLAUDE_CODE_USE_VERTEX, CLAUDE_CODE_USE_FOUNDRY it", "CLAUDE_CODE_USE_FOUNDRY= Yes ", "CLAUDE_CODE_USE_VERTEX=TRUE")
	cloud(modeBaseURL, "", "CLAUDE_CODE_USE_BEDROCK=0", "CLAUDE_CODE_USE_VERTEX=", "CLAUDE_CODE_USE_FOUNDRY=false")
	cloud(modeBaseURL, "", "CLAUDE_CODE_USE_BEDROCK=1", "ANTHROPIC_BEDROCK_BASE_URL="+w.base+"/bedrock")
	cloud(modeBaseURL, "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_BEDROCK=1", "ANTHROPIC_BEDROCK_BASE_URL="+w.base+"0/bedrock")
	cloud(modeProxy, "", "CLAUDE_CODE_USE_BEDROCK=1")
	if _, err := newSetup(&program{environ: []string{"OPENCODE_CONFIG_CONTENT=[]"}}, w, []string{"opencode"}); err == nil {
		t.Error("a config that cannot be read is thrown away")
	}
}

// A signal that comes before the command is started ends what is done for it, and the
// run, as a shell's status tells.
func TestSignalBeforeTheCommand(t *testing.T) {
	signals := make(chan os.Signal, 1)
	err := unless(t.Context(), signals, func(ctx context.Context) error {
		signals <- syscall.SIGINT
		<-ctx.Done()
		return ctx.Err()
	})
	if status, ok := errors.AsType[exitStatusError](err); !ok || status != 128+2 {
		t.Errorf("got %v", err)
	}
	if err := unless(t.Context(), signals, func(ctx context.Context) error { return ctx.Err() }); err != nil {
		t.Errorf("without one: %v", err)
	}
}

// A run that comes while the serve of another one starts waits for it: that has the state
// folder, and does not answer yet.
func TestRunWaitsForAServeThatStarts(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) *os.File {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	write(statedir.AdminTokenFile, "apo_x\n")
	if ok, err := flock(write("lock", strconv.Itoa(os.Getpid())+"\n"), unix.LOCK_EX); !ok {
		t.Fatal(err)
	}
	serve, err := openHold(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = serve.f.Close() }()
	// What has the address of the config is asked first, and the serve is there then.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		if err := serve.note(&background{PID: os.Getpid(), Base: "http://127.0.0.1:1", Admin: "127.0.0.1:2"}); err != nil {
			t.Error(err)
		}
	}))
	defer other.Close()
	cfg := &config.Config{}
	cfg.Admin.Listen = other.Listener.Addr().String()
	s, err := (&program{}).findServe(t.Context(), nil, nil, cfg, dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.base != "http://127.0.0.1:1" {
		t.Errorf("it found %s", s.base)
	}
	// While one looks for its serve another waits.
	end, err := s.hold.turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := serve.turn(ended); err == nil {
		t.Error("two look for a serve at once")
	}
	end()
	if end, err = serve.turn(t.Context()); err != nil {
		t.Fatal(err)
	}
	end()
	if err := s.hold.f.Close(); err != nil {
		t.Error(err)
	}
}

// In proxy mode the session stands in the proxy's URL, for clients that send no header.
func TestProxySession(t *testing.T) {
	c, err := openClinic(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	p := &program{environ: os.Environ()}
	w, err := c.way(p, modeProxy, "story-9")
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSetup(p, w, []string{"agent", "turn", "https://api.anthropic.com"})
	if err != nil {
		t.Fatal(err)
	}
	out, code, err := runBounded(t.Context(), patient{}, s, t.TempDir())
	if want := "200 by anthropic in session story-9\n"; code != 0 || string(out) != want {
		t.Errorf("got %q, exit %d, %v; want %q", out, code, err, want)
	}
	for _, a := range c.sim.Arrivals() {
		if a.Key != clinicKey || len(a.Foreign) > 0 {
			t.Errorf("%s arrived with the key %q and %q", a.Path, a.Key, a.Foreign)
		}
	}
}
