package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// patient is a client, and a command by which it does something that shows whether it
// goes through authpool.
type patient struct {
	name    string
	argv    []string
	modes   []string
	version []string // arguments that have it tell its version
	// homes are variables that move its config and history into a folder of the visit.
	homes []string
	more  []variable
	reach bool // it only reaches a provider's host, and takes no turn
	plain bool // with the variables of env alone, without what run does for it
	own   bool // it is the operator's own command
	node  bool // it is node's to use a proxy, or not
}

// The question that is asked, and the model that answers.
const (
	askedModel = "claude-sonnet-4-5"
	askedURL   = "https://api.anthropic.com/v1/messages"
	askedBody  = `{"model":"` + askedModel + `","max_tokens":20,"stream":true,"messages":[{"role":"user","content":"hi"}]}`
)

// notThere is the exit code of a script whose library is missing.
const notThere = 77

// knownClients are those that are looked for on PATH.
func knownClients() []patient {
	both, proxied := []string{modeBaseURL, modeProxy}, []string{modeProxy}
	quiet := func(names ...string) []variable {
		var vars []variable
		for _, name := range names {
			vars = append(vars, variable{name: name, value: "1"})
		}
		return vars
	}
	script := `fetch((process.env.ANTHROPIC_BASE_URL||"https://api.anthropic.com")+"/v1/messages",{method:"POST",` +
		`headers:{"content-type":"application/json","anthropic-version":"2023-06-01","x-api-key":process.env.ANTHROPIC_API_KEY},body:` + "`" + askedBody + "`" + `})` +
		`.then(async r=>{for await(const c of r.body);process.exit(r.ok?0:1)}).catch(e=>{console.error(String(e.cause??e));process.exit(1)})`
	python := func(library, ask string) []string {
		return []string{"python3", "-c", "import sys\ntry:\n    import " + library + "\nexcept ImportError:\n    sys.exit(77)\n" +
			"url,body,head='" + askedURL + "',b'''" + askedBody + "''',{'content-type':'application/json','anthropic-version':'2023-06-01'}\n" + ask}
	}
	const host = "https://api.anthropic.com/authpool-doctor/"
	version := []string{"--version"}
	return []patient{
		{
			name: "claude", argv: []string{"claude", "-p", "hi"}, modes: both, version: version,
			homes: []string{"CLAUDE_CONFIG_DIR"}, more: quiet("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_AUTOUPDATER", "DISABLE_TELEMETRY", "DISABLE_ERROR_REPORTING"),
		},
		{
			name: "codex", argv: []string{"codex", "exec", "--skip-git-repo-check", "--json", "hi"}, modes: both, version: version,
			homes: []string{"CODEX_HOME"},
		},
		{
			// Its built-in provider begins with a WebSocket.
			name: "codex", argv: []string{"codex", "exec", "--skip-git-repo-check", "--json", "hi"}, modes: proxied, version: version,
			homes: []string{"CODEX_HOME"}, plain: true,
		},
		{
			name: "gemini", argv: []string{"gemini", "-m", "gemini-2.5-flash", "-p", "hi"}, modes: proxied, version: version,
			homes: []string{"GEMINI_CLI_HOME"},
		},
		{
			name: "opencode", argv: []string{"opencode", "run", "-m", "anthropic/" + askedModel, "hi"}, modes: both, version: version,
			homes: []string{"XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"}, more: quiet("OPENCODE_DISABLE_AUTOUPDATE"),
		},
		{
			name: "curl", argv: []string{"curl", "-sS", "-N", "--retry", "0", "-H", "content-type: application/json", "-H", "anthropic-version: 2023-06-01", "-d", askedBody, askedURL},
			modes: proxied, version: version,
		},
		{
			name: "git", argv: []string{"git", "ls-remote", host + "x.git"}, modes: proxied, version: version, reach: true,
			more: []variable{{name: "GIT_TERMINAL_PROMPT", value: "0"}},
		},
		{name: "node", argv: []string{"node", "-e", script}, modes: both, version: version, node: true},
		{
			name: "python urllib", argv: python("urllib.request", "r=urllib.request.urlopen(urllib.request.Request(url,body,head))\nfor line in r: pass\n"),
			modes: proxied, version: version,
		},
		{
			name: "python requests", argv: python("requests", "r=requests.post(url,data=body,headers=head,stream=True)\nfor c in r.iter_content(None): pass\n"),
			modes: proxied, version: version,
		},
		{
			name: "python httpx", argv: python("httpx", "with httpx.stream('POST',url,content=body,headers=head,timeout=20) as r:\n    for c in r.iter_bytes(): pass\n"),
			modes: proxied, version: version,
		},
		{
			name: "go", argv: []string{"go", "list", "-m", "doctor.example.com/x@v1.0.0"}, modes: proxied, version: []string{"version"}, reach: true,
			more: []variable{
				{name: "GOPROXY", value: strings.TrimSuffix(host, "/")},
				{name: "GOSUMDB", value: "off"},
				{name: "GOFLAGS", value: "-mod=mod"},
				{name: "GO111MODULE", value: "on"},
				{name: "GOTOOLCHAIN", value: "local"},
				{name: "GOWORK", value: "off"},
				{name: "GONOPROXY", value: "none"},
				{name: "GOPRIVATE", unset: true},
			},
		},
		{
			name: "cargo", argv: []string{"cargo", "search", "--index", "sparse+" + host, "x"}, modes: proxied, version: version, reach: true,
			more: []variable{{name: "CARGO_NET_RETRY", value: "0"}},
		},
		{
			name: "npm", argv: []string{"npm", "view", "authpool-doctor", "--registry", host, "--fetch-retries", "0"}, modes: proxied, version: version, reach: true,
		},
		{name: "deno", argv: []string{"deno", "eval", `import process from "node:process";` + script}, modes: both, version: version},
		{name: "bun", argv: []string{"bun", "-e", script}, modes: both, version: version},
	}
}

// room makes a folder for one visit.
func (c *clinic) room() (folder string, remove func(), err error) {
	folder, err = os.MkdirTemp(c.folder, "visit-")
	if err != nil {
		return "", nil, fmt.Errorf("cannot make a temporary folder: %w", err)
	}
	return folder, func() { _ = os.RemoveAll(folder) }, nil // with the clinic's at the latest
}

// setup prepares a visit, as run and env would.
func (one patient) setup(p *program, c *clinic, mode, folder string) (*setup, error) {
	quiet := &program{environ: p.environ} // no terminal
	w, err := c.way(quiet, mode, "doctor")
	if err != nil {
		return nil, err
	}
	more := one.more
	for _, name := range one.homes {
		home := filepath.Join(folder, strings.ToLower(name))
		if err := os.Mkdir(home, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make a temporary folder: %w", err)
		}
		more = append(more, variable{name: name, value: home})
	}
	quiet.environ = environment(quiet.environ, more)
	if one.plain {
		w.session = ""
		return &setup{argv: one.argv, environ: environment(quiet.environ, w.variables(quiet))}, nil
	}
	return newSetup(quiet, w, one.argv)
}

// outputKept bounds what is kept of what a client says: the end of it.
const outputKept = 16 << 10

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if more := len(t.text) - outputKept; more > 0 {
		t.text = append(t.text[:0], t.text[more:]...)
	}
	return len(p), nil
}

// runBounded runs what was set up, in a process group of its own, which is killed as a whole
// at the limit. It returns the end of what it said and its exit code.
func runBounded(ctx context.Context, one patient, s *setup, folder string) (out []byte, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, visitLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.argv[0], s.argv[1:]...) //nolint:gosec // the operator's own commands
	cmd.Env = s.environ
	if !one.own {
		cmd.Dir = folder
	}
	said := &tail{}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if cmd.Process != nil {
		// What it has left behind has had its time. The group may be gone.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	code = -1
	if cmd.ProcessState != nil {
		code = cmd.ProcessState.ExitCode()
	}
	return said.text, code, err
}

// last is the last line of an output, in printable characters.
func last(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(out, nil))), "\n")
	line := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, lines[len(lines)-1])
	if runes := []rune(line); len(runes) > 200 {
		line = string(runes[:200]) + "…"
	}
	return line
}

var versionNumber = regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)

// versionOf is the version that a client tells; empty: none. runs is false when it cannot
// even tell that, as the cargo of a rustup that has no toolchain.
func (one patient) versionOf(ctx context.Context) (version string, runs bool) {
	if len(one.version) == 0 {
		return "", true
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, one.argv[0], one.version...) //nolint:gosec // of those above
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", false
	}
	return versionNumber.FindString(string(out)), true
}

// bypassFix is what to do about a client that does not use the proxy.
func (one patient) bypassFix(p *program) string {
	if host, by := bypassed(p); host != "" {
		return fmt.Sprintf("take %s out of NO_PROXY, which keeps %s from the proxy", by, host)
	}
	if one.node {
		return "this node ignores HTTPS_PROXY: use node 22.21, 24 or newer, or --mode base-url, which SDKs of providers know"
	}
	if one.own {
		return "it ignores HTTPS_PROXY: use --mode base-url, or give its HTTP client the proxy by hand"
	}
	return "it ignores HTTPS_PROXY: use --mode base-url"
}

// trustFix is what to do about a client that does not trust the authority.
func (one patient) trustFix() string {
	if one.own {
		return "have its HTTP client trust the file of \"authpool ca path\"; the variables that most read are in \"authpool env --mode proxy\""
	}
	return "something overrides the variables of \"authpool env --mode proxy\": look at its own config for a file of authorities"
}

// usualHosts are the hosts that clients of built-in providers reach most.
var usualHosts = []string{"api.anthropic.com", "api.openai.com", "generativelanguage.googleapis.com"}

// bypassed returns a provider's host that NO_PROXY keeps from the proxy, and its entry.
func bypassed(p *program) (host, by string) {
	for _, entry := range noProxyHosts(p) {
		pattern := strings.ToLower(strings.TrimPrefix(strings.TrimPrefix(entry, "*"), "."))
		if name, _, err := net.SplitHostPort(pattern); err == nil {
			pattern = name
		}
		for _, host := range usualHosts {
			if entry == "*" || host == pattern || pattern != "" && strings.HasSuffix(host, "."+pattern) {
				return host, entry
			}
		}
	}
	return "", ""
}
