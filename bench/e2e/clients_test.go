package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"

	"github.com/authpool/authpool/bench/simulator"
)

// The tests of this file put every client that we know behind authpool in both modes, configured by what
// `authpool env` prints or `authpool run` sets, and nothing else. The clients believe that they speak to the real
// hosts: authpool's way out is a proxy of the test that leads all of these to the simulator.

// hosts are where the clients send their requests by themselves.
var hosts = map[string]string{
	simulator.Anthropic: "api.anthropic.com",
	simulator.OpenAI:    "api.openai.com",
	simulator.Gemini:    "generativelanguage.googleapis.com",
	simulator.Bedrock:   "bedrock-runtime.us-east-1.amazonaws.com",
}

// four are one subscription for each of them.
var four = []subscription{
	{"claude", simulator.Anthropic, "sk-ant-api03-pool-a"},
	{"gpt", simulator.OpenAI, "sk-proj-pool-a"},
	{"gemini", simulator.Gemini, "AIza-pool-a"},
	{"bedrock", simulator.Bedrock, "bedrock-api-key-pool-a"},
}

// world is an authpool whose providers are all at their real names.
type world struct {
	*authpool
	p   *provider
	out *wayOut
}

func startWorld(t *testing.T) *world {
	t.Helper()
	w := &world{p: startProvider(t, simulator.Options{Keys: keysOf(four), Watch: []string{"apa_"}})}
	w.out = startWayOut(t, w.p.Handler())
	var providers strings.Builder
	for name, host := range hosts {
		fmt.Fprintf(&providers, "  %s: {base_url: \"https://%s\"}\n", name, host)
	}
	w.authpool = startAuthpool(t, options{
		subscriptions: four, providers: providers.String(),
		extra: fmt.Sprintf("egress: {proxy: %q, ca_file: %q}\n", w.out.url, w.out.ca),
	})
	return w
}

// wayOut is a forward proxy with the providers' hosts behind it.
type wayOut struct {
	url, ca string

	mu    sync.Mutex
	asked []string // what CONNECT named
}

func startWayOut(t *testing.T, handler http.Handler) *wayOut {
	t.Helper()
	config, authority := certificateFor(t, hosts)
	front := httptest.NewUnstartedServer(handler)
	front.TLS = config
	front.StartTLS()
	t.Cleanup(front.Close)
	o := &wayOut{ca: filepath.Join(t.TempDir(), "provider-ca.pem")}
	if err := os.WriteFile(o.ca, authority, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.url = "http://" + ln.Addr().String()
	var serving sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { o.lead(ctx, c, front.Listener.Addr().String()) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		cancel()
		serving.Wait()
	})
	return o
}

// lead answers one CONNECT, and joins the connection with another one.
func (o *wayOut) lead(ctx context.Context, c net.Conn, to string) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	o.mu.Lock()
	o.asked = append(o.asked, req.Host)
	o.mu.Unlock()
	there, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer there.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(there, br)
		_ = there.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(c, there)
	_ = c.Close()
	up.Wait()
}

// certificateFor is the TLS of a server that is all of the hosts, and the authority to trust for it.
func certificateFor(t *testing.T, hosts map[string]string) (config *tls.Config, authority []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	for _, host := range hosts {
		template.DNSNames = append(template.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// environment is what `authpool env` prints, beside a home and a path.
func (w *world) environment(t *testing.T, mode, home string) []string {
	t.Helper()
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	var vars map[string]*string
	text := w.run(t, "env", "--mode", mode, "--shell", "json", "-c", w.config)
	if err := json.Unmarshal([]byte(text), &vars); err != nil {
		t.Fatal(err)
	}
	for name, value := range vars {
		if value != nil {
			env = append(env, name+"="+*value)
		}
	}
	return env
}

// client is a program that makes some turns, in JSON and streamed.
type client struct {
	name     string
	provider string
	requests int64
	argv     []string
	dir      string
	answers  func(out []byte) ([]string, error)
}

// sdks are the clients that CI has.
func sdks(t *testing.T) []client {
	t.Helper()
	node := func(name, script, provider string, requests int64) client {
		return client{
			name: name, provider: provider, requests: requests, dir: "../../cmd/authpool/testdata/clients",
			argv: []string{"node", "--import", "./proxied.mjs", script}, answers: printed,
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	golang := func(name, provider string) client {
		return client{name: name, provider: provider, requests: 2, argv: []string{"env", asClient + "=" + provider, self}, answers: printed}
	}
	return []client{
		node("@anthropic-ai/sdk", "anthropic.mjs", simulator.Anthropic, 2),
		node("openai", "openai.mjs", simulator.OpenAI, 4),
		node("@google/genai", "google.mjs", simulator.Gemini, 2),
		node("@aws-sdk/client-bedrock-runtime", "bedrock.mjs", simulator.Bedrock, 2),
		golang("anthropic-sdk-go", simulator.Anthropic),
		golang("openai-go", simulator.OpenAI),
		{
			name: "curl", provider: simulator.Anthropic, requests: 1,
			argv: []string{"sh", "-c", `curl -sS --fail-with-body "${ANTHROPIC_BASE_URL:-https://api.anthropic.com}/v1/messages" ` +
				`-H "x-api-key: $ANTHROPIC_API_KEY" -H "anthropic-version: 2023-06-01" -H "content-type: application/json" -d '` + message("Say something short.", false) + `'`},
			answers: func(out []byte) ([]string, error) {
				var m struct{ Content []struct{ Text string } }
				if err := json.Unmarshal(out, &m); err != nil || len(m.Content) != 1 {
					return nil, fmt.Errorf("%s: %w", out, err)
				}
				return []string{m.Content[0].Text}, nil
			},
		},
	}
}

// printed reads what the scripts print.
func printed(out []byte) ([]string, error) {
	var p struct{ Answers []string }
	err := json.Unmarshal(out, &p)
	return p.Answers, err
}

// TestSDKs: every SDK makes its turns in both modes, is told what the provider says, and what it used is counted.
// Nothing of the agent's arrives at the provider, and nothing of the pool's at the agent.
func TestSDKs(t *testing.T) {
	w := startWorld(t)
	told := make(map[string][]string) // each is told the same in both modes
	for _, mode := range []string{"base-url", "proxy"} {
		for _, c := range sdks(t) {
			t.Run(mode+"/"+c.name, func(t *testing.T) {
				before, handshakes := len(w.p.Ledger()), w.handshakes(t)
				home := t.TempDir()
				cmd := exec.CommandContext(t.Context(), c.argv[0], c.argv[1:]...)
				cmd.Dir, cmd.Env = c.dir, w.environment(t, mode, home)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%v\n%s%s", err, out, stderr.Bytes())
				}
				for _, s := range four {
					for _, text := range [][]byte{out, stderr.Bytes(), []byte(strings.Join(cmd.Env, "\n"))} {
						if bytes.Contains(text, []byte(s.key)) {
							t.Errorf("the client has the credential of %s", s.id)
						}
					}
				}
				answers, err := c.answers(out)
				if err != nil || len(answers) == 0 || slices.Contains(answers, "") {
					t.Fatalf("it was answered %q, %v", answers, err)
				}
				if told[c.name] == nil {
					told[c.name] = answers
				} else if !slices.Equal(told[c.name], answers) {
					t.Errorf("it was answered %q, and %q in the other mode", answers, told[c.name])
				}
				billed := w.p.Ledger()[before:]
				if int64(len(billed)) != c.requests {
					t.Errorf("the provider was asked %d times, want %d", len(billed), c.requests)
				}
				if intercepted := w.handshakes(t) > handshakes; intercepted != (mode == "proxy") {
					t.Errorf("its TLS was opened: %t", intercepted)
				}
				w.expectLedger(t, w.p, four)
			})
		}
	}
	w.out.mu.Lock()
	defer w.out.mu.Unlock()
	for _, host := range hosts {
		if !slices.Contains(w.out.asked, host+":443") {
			t.Errorf("nobody was led to %s", host)
		}
	}
}

// handshakes counts the connections whose TLS authpool has opened.
func (w *world) handshakes(t *testing.T) (n float64) {
	t.Helper()
	_, text, err := get("http://"+w.admin+"/metrics", "")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, `authpool_intercepted_handshakes_total{result="ok"} `); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// asClient is a variable that has the test program be a client with a Go SDK, which takes all that it needs from
// its environment.
const asClient = "AUTHPOOL_E2E_CLIENT"

// goClient makes one turn in JSON and one streamed, and prints what it was answered.
func goClient(ctx context.Context, provider string) error {
	var answers []string
	switch provider {
	case simulator.Anthropic:
		c := anthropic.NewClient(anthropicoption.WithMaxRetries(0))
		ask := anthropic.MessageNewParams{
			Model: "claude-haiku-4-5", MaxTokens: 1000,
			Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("What is a pool?"))},
		}
		whole, err := c.Messages.New(ctx, ask)
		if err != nil {
			return err
		}
		var m anthropic.Message
		s := c.Messages.NewStreaming(ctx, ask)
		defer s.Close()
		for s.Next() {
			if err := m.Accumulate(s.Current()); err != nil {
				return err
			}
		}
		if err := s.Err(); err != nil {
			return err
		}
		answers = []string{whole.Content[0].Text, m.Content[0].Text}
	case simulator.OpenAI:
		c := openai.NewClient(openaioption.WithMaxRetries(0))
		whole, err := c.Chat.Completions.New(ctx, chatParams(false))
		if err != nil {
			return err
		}
		streamed, _, err := chatStream(ctx, c, chatParams(false))
		if err != nil {
			return err
		}
		answers = []string{whole.Choices[0].Message.Content, streamed.text}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string][]string{"answers": answers})
}

// agentsRun are the agents as a person starts them, behind `authpool run --`.
var agentsRun = []struct {
	name     string
	provider string
	program  string // below node_modules, since the links that npm makes want what its scripts install
	args     []string
	env      []string          // to keep it from what is no turn
	home     map[string]string // files there
}{
	{
		name: "claude", provider: simulator.Anthropic, program: "@anthropic-ai/claude-code/cli-wrapper.cjs",
		args: []string{"-p", "Say something short."},
		env:  []string{"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "DISABLE_AUTOUPDATER=1", "DISABLE_TELEMETRY=1"},
	},
	{
		name: "codex", provider: simulator.OpenAI, program: "@openai/codex/bin/codex.js",
		args: []string{"exec", "--skip-git-repo-check", "Say something short."},
	},
	{
		// A model that is named needs no other one to choose it.
		name: "gemini", provider: simulator.Gemini, program: "@google/gemini-cli/bundle/gemini.js",
		args: []string{"-m", "gemini-2.5-flash", "-p", "Say something short."}, env: []string{"GEMINI_CLI_TRUST_WORKSPACE=true"},
		home: map[string]string{".gemini/settings.json": `{"security": {"auth": {"selectedType": "gemini-api-key"}}}`},
	},
	{
		name: "opencode", provider: simulator.Anthropic, program: "opencode-" + runtime.GOOS + "-" + strings.Replace(runtime.GOARCH, "amd64", "x64", 1) + "/bin/opencode",
		args: []string{"run", "-m", "anthropic/claude-haiku-4-5", "Say something short."},
	},
}

// programs are a folder in which the agents have their names. Each leaves at home what it finds in its environment.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, g := range agentsRun {
		path, err := filepath.Abs(filepath.Join(agentFolder, "node_modules", filepath.FromSlash(g.program)))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "js") {
			path = "node " + path
		}
		if err := os.WriteFile(filepath.Join(dir, g.name), []byte("#!/bin/sh\nenv >\"$HOME/environment\"\nexec "+path+` "$@"`+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestAgentsRun: `authpool run` alone is enough for every agent in both modes.
func TestAgentsRun(t *testing.T) {
	needAgents(t)
	w := startWorld(t)
	bin := programs(t)
	for _, mode := range []string{"base-url", "proxy"} {
		for _, g := range agentsRun {
			t.Run(mode+"/"+g.name, func(t *testing.T) {
				before, home := len(w.p.Ledger()), t.TempDir()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				argv := append([]string{"run", "--mode", mode, "-c", w.config, "--session", g.name + "." + mode, "--", g.name}, g.args...)
				cmd := exec.CommandContext(ctx, binary, argv...)
				cmd.Dir = filepath.Join(home, "work")
				if err := os.Mkdir(cmd.Dir, 0o700); err != nil {
					t.Fatal(err)
				}
				for name, text := range g.home {
					if err := os.MkdirAll(filepath.Dir(filepath.Join(home, name)), 0o700); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				cmd.Env = append([]string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + home}, g.env...)
				for i, s := range four {
					cmd.Env = append(cmd.Env, fmt.Sprintf("E2E_KEY_%d=%s", i, s.key)) // as serve's config names them
				}
				cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
				cmd.WaitDelay = 10 * time.Second
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				if err := cmd.Run(); err != nil {
					t.Fatalf("%v\n%s%s", err, stdout.Bytes(), stderr.Bytes())
				}
				if len(bytes.TrimSpace(stdout.Bytes())) == 0 {
					t.Errorf("it said nothing: %s", stderr.Bytes())
				}
				for _, s := range four {
					if bytes.Contains(stdout.Bytes(), []byte(s.key)) || bytes.Contains(stderr.Bytes(), []byte(s.key)) || holds(t, home, s.key) {
						t.Errorf("the agent has the credential of %s", s.id)
					}
				}
				billed := w.p.Ledger()[before:]
				if !slices.ContainsFunc(billed, func(e simulator.Entry) bool { return e.Key == keyAt(g.provider) && e.Finished }) {
					t.Errorf("the provider was asked for %+v", billed)
				}
				t.Logf("%s: %s\n%s", g.name, bytes.TrimSpace(stdout.Bytes()), lastLine(stderr.Bytes()))
				w.expectLedger(t, w.p, four)
				w.expectSession(t, "default/"+g.name+"."+mode, billed)
			})
		}
	}
}

// holds tells whether a file below a folder has a text in it: at home are the environment of an agent, its logs
// and its conversations.
func holds(t *testing.T, folder, text string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		var content []byte
		if err == nil && e.Type().IsRegular() {
			content, err = os.ReadFile(path)
			found = found || bytes.Contains(content, []byte(text))
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // what it leaves running may still tidy up
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// expectSession checks that all that was billed was counted for one session.
func (w *world) expectSession(t *testing.T, session string, list []simulator.Entry) {
	t.Helper()
	var sum counts
	for _, e := range list {
		sum = sum.plus(billed(e))
	}
	rows, err := w.usage(t, "session")
	if err != nil {
		t.Fatal(err)
	}
	if got := rows[session].counts(); got != sum {
		t.Errorf("%s has %+v, the provider billed %+v; there are %v", session, got, sum, slices.Collect(maps.Keys(rows)))
	}
}

// keyAt is the credential of a provider's one subscription.
func keyAt(provider string) string {
	i := slices.IndexFunc(four, func(s subscription) bool { return s.provider == provider })
	return four[i].key
}

func lastLine(text []byte) []byte {
	text = bytes.TrimSpace(text)
	return text[bytes.LastIndexByte(text, '\n')+1:]
}
