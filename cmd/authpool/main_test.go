package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the golden parts of the stories")

// TestMain makes this test binary also the program that the stories run, and a
// small HTTP client for them (see fetch).
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"authpool": main,
		"fetch":    fetch,
		"webhook":  webhook,
		"agent":    func() { os.Exit(agent()) },
		"claude":   func() { os.Exit(fakeClaude()) },
	})
}

// TestStories runs testdata/*.txtar: each is what a user does at a shell, with
// the real program. Besides testscript's own commands there are
//
//	addresses NAME...      puts a free loopback address into each variable
//	failed CMD...          runs a program that must exit with 1
//	wrong CMD...           runs a program that must exit with 2
//	await URL [STATUS]     waits until URL answers with STATUS (200)
//	awaitline FILE REGEXP  waits until a line of FILE matches
//	signal NAME LOG        sends HUP or TERM to the serve that wrote LOG, or to
//	                       the run of the agent that wrote it
//	insist LOG             sends TERM to it again and again until it has ended
//	fill FILE...           puts the values of variables in the place of $NAME
//	agent HOW...           is run as agents are (see agent); claude is another
//	                       such (see fakeClaude). Both are in the folder $BIN
//	exits N CMD...         runs a program that must exit with N
//	webhook ADDRESS FILE   receives notifications (see webhook)
//	awaitusage REGEXP      waits until `authpool usage --json` matches
//	awaitexplained ID      waits until `authpool explain ID` knows that request,
//	                       which is a moment after its answer has ended
//	awaitsubscriptions ID  waits until `authpool subscriptions list` has no ID
//	capture NAME REGEXP    puts what the group of REGEXP matches on stderr into
//	                       a variable
//	fetch [-x PROXY] [-H H]... [-d BODY] URL
//	                       prints the status and the body of an answer as it
//	                       comes, and the X-Authpool headers on stderr; @FILE
//	                       is the content of a file
func TestStories(t *testing.T) {
	// Whoever runs the tests may ignore it, as nohup does, and run would do likewise.
	hangUps := make(chan os.Signal, 1)
	signal.Notify(hangUps, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangUps) })
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir+"/home")
			env.Setenv("AUTHPOOL_STATE_DIR", env.WorkDir+"/state")
			bin, _, _ := strings.Cut(os.Getenv("PATH"), string(os.PathListSeparator))
			env.Setenv("BIN", bin)                    // the folder of these programs
			env.Setenv("GORACE", "atexit_sleep_ms=0") // under -race every program would sleep a second at its end
			return os.Mkdir(env.WorkDir+"/home", 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"addresses":          addresses,
			"await":              await,
			"awaitline":          awaitLine,
			"awaitusage":         awaitUsage,
			"awaitexplained":     awaitExplained,
			"awaitsubscriptions": awaitSubscriptions,
			"capture":            capture,
			"fill":               fill,
			"signal":             sendSignal,
			"insist":             insist,
			"exits":              exitsWith,
			"failed":             exits(exitFailed),
			"wrong":              exits(exitWrong),
		},
	})
}

func awaitSubscriptions(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: awaitsubscriptions ID")
	}
	if !eventually(func(context.Context) bool {
		return ts.Exec("authpool", "subscriptions", "list") == nil && !strings.Contains(ts.ReadFile("stdout"), args[0])
	}) {
		ts.Fatalf("%s is still there:\n%s", args[0], ts.ReadFile("stdout"))
	}
}

// awaitExplained leaves what explain has said to stdout and stderr.
func awaitExplained(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: awaitexplained ID")
	}
	if !eventually(func(context.Context) bool { return ts.Exec("authpool", "explain", args[0]) == nil }) {
		ts.Fatalf("request %s is not known: %s", args[0], ts.ReadFile("stderr"))
	}
}

// capture looks at what the last program has said.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture NAME REGEXP")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	match := pattern.FindStringSubmatch(ts.ReadFile("stderr"))
	if len(match) != 2 {
		ts.Fatalf("nothing on stderr matches %s:\n%s", args[1], ts.ReadFile("stderr"))
	}
	ts.Setenv(args[0], match[1])
}

// nextPort is where addresses looks on. Ports below those that systems give to
// outgoing connections stay free between being found and being listened on;
// stories run at the same time, and so may other test runs.
var nextPort = func() *atomic.Int32 {
	var port atomic.Int32
	port.Store(10000 + rand.Int32N(20000))
	return &port
}()

// addresses finds free loopback addresses, and tells their ports as NAME_PORT.
func addresses(ts *testscript.TestScript, neg bool, names []string) {
	if neg || len(names) == 0 {
		ts.Fatalf("usage: addresses NAME...")
	}
	for _, name := range names {
		for {
			address := fmt.Sprintf("127.0.0.1:%d", nextPort.Add(1))
			l, err := net.Listen("tcp", address)
			if err == nil {
				ts.Check(l.Close())
				ts.Setenv(name, address)
				ts.Setenv(name+"_PORT", strings.TrimPrefix(address, "127.0.0.1:"))
				break
			}
			if !errors.Is(err, syscall.EADDRINUSE) {
				ts.Fatalf("no free address: %v", err)
			}
		}
	}
}

// exits makes a command that runs a program and demands its exit code. What the
// program wrote can be looked at as after exec.
func exits(code int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) == 0 {
			ts.Fatalf("usage: failed|wrong PROGRAM [ARG...]")
		}
		err := ts.Exec(args[0], args[1:]...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != code {
			ts.Fatalf("%s: got %v, want exit status %d", strings.Join(args, " "), err, code)
		}
	}
}

func exitsWith(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits N PROGRAM [ARG...]")
	}
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	exits(code)(ts, neg, args[1:])
}

// awaitLimit is how long await waits for a program that starts or stops: far
// longer than it takes, also on a busy machine.
const awaitLimit = time.Minute

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 2 {
		ts.Fatalf("usage: await URL [STATUS]")
	}
	want := "200"
	if len(args) == 2 {
		want = args[1]
	}
	last := "no answer"
	if !eventually(func(ctx context.Context) bool {
		resp, err := ask(ctx, http.MethodGet, args[0], nil, "")
		if err != nil {
			return false
		}
		_ = resp.Body.Close() // its status was all that mattered
		last = resp.Status
		return strings.HasPrefix(last, want)
	}) {
		ts.Fatalf("%s does not answer %s but: %s", args[0], want, last)
	}
}

func awaitLine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: awaitline FILE REGEXP")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var text []byte
	if !eventually(func(context.Context) bool {
		text, err = os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && pattern.Match(text)
	}) {
		ts.Fatalf("no line of %s matches %s:\n%s", args[0], args[1], text)
	}
}

func awaitUsage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: awaitusage REGEXP")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	last := ""
	if !eventually(func(context.Context) bool {
		ts.Check(ts.Exec("authpool", "usage", "--json"))
		last = ts.ReadFile("stdout")
		return pattern.MatchString(last)
	}) {
		ts.Fatalf("usage does not match %s: %s", args[0], last)
	}
}

// eventually asks until the answer is yes or awaitLimit is over.
func eventually(yes func(context.Context) bool) bool {
	ctx, cancel := context.WithTimeout(context.Background(), awaitLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond) // another process cannot be waited for otherwise
	defer tick.Stop()
	for {
		if yes(ctx) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// pidLine is in the first line of a serve's log, and in what agent writes of who runs it.
var pidLine = regexp.MustCompile(` pid=([0-9]+)`)

// sendSignal is for the signals that testscript's kill does not know.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}
	if neg || len(args) != 2 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal HUP|TERM LOG")
	}
	ts.Check(syscall.Kill(loggedPID(ts, args[1]), signals[args[0]]))
}

// loggedPID is the number of the process that writes a log.
func loggedPID(ts *testscript.TestScript, log string) int {
	found := pidLine.FindStringSubmatch(ts.ReadFile(log))
	if found == nil {
		ts.Fatalf("%s tells no pid", log)
	}
	pid, err := strconv.Atoi(found[1])
	ts.Check(err)
	return pid
}

// insist asks a serve to end again and again, as the impatient do.
func insist(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: insist LOG")
	}
	pid := loggedPID(ts, args[0])
	if !eventually(func(context.Context) bool { return errors.Is(syscall.Kill(pid, syscall.SIGTERM), syscall.ESRCH) }) {
		ts.Fatalf("process %d goes on:\n%s", pid, ts.ReadFile(args[0]))
	}
}

func fill(ts *testscript.TestScript, neg bool, files []string) {
	if neg || len(files) == 0 {
		ts.Fatalf("usage: fill FILE...")
	}
	for _, file := range files {
		text := os.Expand(ts.ReadFile(file), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(text), 0o600))
	}
}

// headers is a flag that can be given several times.
type headers []string

func (h *headers) String() string { return strings.Join(*h, ", ") }

func (h *headers) Set(value string) error {
	*h = append(*h, value)
	return nil
}

// fetch is the program of that name.
func fetch() {
	if err := fetchTo(os.Stdout, os.Stderr); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailed)
	}
}

func fetchTo(out, notes io.Writer) error {
	var (
		head        headers
		body, proxy string
	)
	flag.Var(&head, "H", "header")
	flag.StringVar(&body, "d", "", "body of a POST")
	flag.StringVar(&proxy, "x", "", "URL of a proxy")
	flag.Parse()
	transport := &http.Transport{DisableKeepAlives: true}
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil {
			return err
		}
		transport.Proxy = http.ProxyURL(u)
	}
	if file, ok := strings.CutPrefix(body, "@"); ok {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		body = string(text)
	}
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	resp, err := askBy(context.Background(), transport, method, flag.Arg(0), head, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for name, values := range resp.Header {
		if strings.HasPrefix(name, "X-Authpool-") {
			_, _ = fmt.Fprintf(notes, "%s: %s\n", name, values[0])
		}
	}
	_, _ = fmt.Fprintln(out, resp.StatusCode)
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("\nanswer cut: %w", err)
	}
	return nil
}

func askBy(ctx context.Context, transport *http.Transport, method, target string, head headers, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for _, h := range head {
		name, value, ok := strings.Cut(h, ": ")
		if !ok {
			return nil, errors.New("-H wants \"Name: value\"")
		}
		req.Header.Add(name, value)
	}
	client := &http.Client{Transport: transport}
	return client.Do(req)
}

func ask(ctx context.Context, method, target string, head headers, body string) (*http.Response, error) {
	return askBy(ctx, &http.Transport{DisableKeepAlives: true}, method, target, head, body)
}
