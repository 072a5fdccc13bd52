package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/authpool/authpool/bench/simulator"
)

// binary is the authpool that the tests run.
var binary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) } //nolint:forbidigo // this is a main

func testMain(m *testing.M) int {
	if provider := os.Getenv(asClient); provider != "" {
		if err := goClient(context.Background(), provider); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("", "authpool-e2e-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "authpool")
	build := exec.Command("go", "build", "-o", binary, "github.com/authpool/authpool/cmd/authpool")
	if out, err := build.CombinedOutput(); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "cannot build authpool: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if err := errors.Join(os.RemoveAll(dir), goleak.Find()); err != nil && code == 0 {
		_, _ = fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// patience is how long something that must happen may take on a busy machine.
const patience = time.Minute

// eventually tries again until check succeeds.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	if err := within(patience, check); err != nil {
		t.Fatal(err)
	}
}

// within tries again until check succeeds or d has passed; then it returns check's last error.
func within(d time.Duration, check func() error) error {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return fmt.Errorf("after %s: %w", d, err)
		}
	}
}

// ports are the addresses that were given out, so that two programs that start at once never get the same.
var ports struct {
	sync.Mutex
	given map[string]bool
}

// freeAddress is below the ports that systems give to connections by themselves: one of those could be another
// connection's own by the time that a program listens there. It is above those that the stories of cmd/authpool take,
// which run at the same time.
func freeAddress(t *testing.T) string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = make(map[string]bool)
	}
	for range 1000 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(30_700+rand.IntN(2_000)))
		if ports.given[address] {
			continue
		}
		ln, err := net.Listen("tcp", address)
		if err != nil {
			continue // it is somebody's
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		ports.given[address] = true
		return address
	}
	t.Fatal("no port is free")
	return ""
}

// provider is the simulator as the tests use it.
type provider struct {
	*simulator.Simulator
	url string
}

// startProvider starts a simulator. At the end of the test nothing that is watched may have arrived, and no
// credential but the one that was injected.
func startProvider(t *testing.T, o simulator.Options) *provider {
	t.Helper()
	s, err := simulator.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
		for _, a := range s.Arrivals() {
			if len(a.Foreign)+len(a.Watched) > 0 {
				t.Errorf("%s %s reached the provider with credentials of others in %v, watched strings in %v", a.Method, a.Path, a.Foreign, a.Watched)
			}
		}
	})
	return &provider{s, "http://" + ln.Addr().String()}
}

// subscription is one of the pool.
type subscription struct{ id, provider, key string }

// pairs are two subscriptions for each provider.
var pairs = []subscription{
	{"claude-a", simulator.Anthropic, "sk-ant-api03-pool-a"},
	{"claude-b", simulator.Anthropic, "sk-ant-api03-pool-b"},
	{"gpt-a", simulator.OpenAI, "sk-proj-pool-a"},
	{"gpt-b", simulator.OpenAI, "sk-proj-pool-b"},
}

func keysOf(subs []subscription) (keys []simulator.Key) {
	for _, s := range subs {
		keys = append(keys, simulator.Key{Key: s.key, Provider: s.provider})
	}
	return keys
}

// options say how to start authpool.
type options struct {
	subscriptions []subscription
	upstream      string // the provider's URL
	state         string // state folder; empty: a new one
	redis         string // URL of a real Redis; empty: embedded
	providers     string // lines of the config about them; empty: Anthropic and OpenAI at upstream
	extra         string // more lines of the config
	// limits are of the subscriptions that have any, by id, as YAML.
	limits map[string]string
}

// authpool is a running `authpool serve`.
type authpool struct {
	url, admin, redis, state string
	config                   string // the file
	// token is the agents' token.
	token string

	cmd    *exec.Cmd
	log    *logBuffer
	exited chan struct{} // closed when cmd has ended
	err    error         // of cmd, valid then
}

// startAuthpool starts authpool and waits until it is ready. It is stopped at the end of the test if it still runs,
// and must then end well.
func startAuthpool(t *testing.T, o options) *authpool {
	t.Helper()
	a := launchAuthpool(t, o)
	eventually(t, func() error {
		select {
		case <-a.exited:
			t.Fatalf("authpool did not start: %v", a.err)
		default:
		}
		status, body, err := get("http://"+a.admin+"/readyz", "")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz: %d %s", status, body)
		}
		return err
	})
	token, err := os.ReadFile(filepath.Join(a.state, "agent.token"))
	if err != nil {
		t.Fatal(err)
	}
	a.token = strings.TrimSpace(string(token))
	return a
}

// launchAuthpool does so without the wait.
func launchAuthpool(t *testing.T, o options) *authpool {
	t.Helper()
	if o.state == "" {
		o.state = filepath.Join(t.TempDir(), "state")
	}
	listen, admin := freeAddress(t), freeAddress(t)
	a := &authpool{url: "http://" + listen, admin: admin, state: o.state, log: new(logBuffer), exited: make(chan struct{})}
	var config strings.Builder
	fmt.Fprintf(&config, "listen: %s\nadmin: {listen: %q}\nstate_dir: %q\n", listen, admin, o.state)
	if o.redis == "" {
		a.redis = freeAddress(t)
		fmt.Fprintf(&config, "redis: {listen: %q}\n", a.redis)
	} else {
		fmt.Fprintf(&config, "redis: {url: %q}\n", o.redis)
	}
	config.WriteString("providers:\n")
	config.WriteString(o.providers)
	for _, name := range []string{simulator.Anthropic, simulator.OpenAI} {
		if o.providers != "" {
			break
		}
		fmt.Fprintf(&config, "  %s: {base_url: %q, allow_plaintext: true}\n", name, o.upstream)
	}
	env := os.Environ()
	config.WriteString("subscriptions:\n")
	for i, s := range o.subscriptions {
		fmt.Fprintf(&config, "  - {id: %s, provider: %s, credential: {type: api_key, value: \"env:E2E_KEY_%d\"}", s.id, s.provider, i)
		if l := o.limits[s.id]; l != "" {
			config.WriteString(", limits: " + l)
		}
		config.WriteString("}\n")
		env = append(env, fmt.Sprintf("E2E_KEY_%d=%s", i, s.key))
	}
	config.WriteString(o.extra)
	file := filepath.Join(t.TempDir(), "authpool.yaml")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	a.config = file
	a.cmd = exec.Command(binary, "serve", "-c", file)
	a.cmd.Env, a.cmd.Stdout, a.cmd.Stderr = env, a.log, a.log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		a.err = a.cmd.Wait()
		close(a.exited)
	}()
	t.Cleanup(func() {
		a.terminate(t)
		if t.Failed() {
			t.Logf("authpool on %s said:\n%s", listen, a.log)
		}
	})
	return a
}

// terminate sends SIGTERM if the process runs, and waits for its end, which must be a good one.
func (a *authpool) terminate(t *testing.T) {
	t.Helper()
	select {
	case <-a.exited:
		return
	default:
	}
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	a.waitEnd(t)
	if a.err != nil {
		t.Errorf("authpool ended with %v, want exit 0", a.err)
	}
}

// kill ends the process as a crash would.
func (a *authpool) kill(t *testing.T) {
	t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	a.waitEnd(t)
}

func (a *authpool) waitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-a.exited:
	case <-time.After(60 * time.Second):
		_ = a.cmd.Process.Kill()
		t.Errorf("authpool did not end within a minute")
		<-a.exited
	}
}

// logBuffer is what a process has said.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns all of it.
func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run runs a command of authpool against this process and returns what it prints.
func (a *authpool) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := a.try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try is run where the command may fail, as while Redis is away.
func (a *authpool) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "--admin", a.admin, "--state-dir", a.state)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("authpool %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), err
}

// counts is what was spent.
type counts struct {
	Requests, Input, Output, CacheRead, Write5m, Write1h int64
}

func (c counts) plus(d counts) counts {
	return counts{c.Requests + d.Requests, c.Input + d.Input, c.Output + d.Output, c.CacheRead + d.CacheRead, c.Write5m + d.Write5m, c.Write1h + d.Write1h}
}

// usageRow is a row of `authpool usage --json`.
type usageRow struct {
	Key          string
	Requests     int64
	Input        int64
	Output       int64
	CacheRead    int64 `json:"cache_read"`
	CacheWrite5m int64 `json:"cache_write_5m"`
	CacheWrite1h int64 `json:"cache_write_1h"`
	Estimated    int64
	Unpriced     int64
	Unknown      int64
}

func (r usageRow) counts() counts {
	return counts{r.Requests, r.Input, r.Output, r.CacheRead, r.CacheWrite5m, r.CacheWrite1h}
}

// usage returns the rows by key.
func (a *authpool) usage(t *testing.T, by string) (map[string]usageRow, error) {
	t.Helper()
	text, err := a.try(t, "usage", "--by", by, "--json")
	if err != nil {
		return nil, err
	}
	var list []usageRow
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]usageRow, len(list))
	for _, r := range list {
		rows[r.Key] = r
	}
	return rows, nil
}

// ledger sums what the provider billed, by subscription.
func (p *provider) ledger(subs []subscription, which func(simulator.Entry) bool) map[string]counts {
	ids := make(map[string]string, len(subs))
	for _, s := range subs {
		ids[s.key] = s.id
	}
	sums := make(map[string]counts)
	for _, e := range p.Ledger() {
		if which(e) {
			sums[ids[e.Key]] = sums[ids[e.Key]].plus(billed(e))
		}
	}
	return sums
}

func billed(e simulator.Entry) counts {
	return counts{1, e.Input, e.Output, e.CacheRead, e.CacheWrite5m, e.CacheWrite1h}
}

func all(simulator.Entry) bool { return true }

// expectLedger waits until authpool has counted exactly what the provider billed.
func (a *authpool) expectLedger(t *testing.T, p *provider, subs []subscription) {
	t.Helper()
	eventually(t, func() error {
		rows, err := a.usage(t, "subscription")
		if err != nil {
			return err
		}
		got := make(map[string]counts)
		for id, row := range rows {
			if row.Requests > 0 {
				got[id] = row.counts()
			}
		}
		if diff := cmp.Diff(p.ledger(subs, all), got); diff != "" {
			return fmt.Errorf("usage is not what the provider billed (-billed +counted):\n%s", diff)
		}
		return nil
	})
}

// statusRow is a subscription of `authpool status --json`.
type statusRow struct {
	ID            string
	State         string
	Reason        string
	CooldownUntil *time.Time `json:"cooldown_until"`
	InFlight      int        `json:"in_flight"`
	Sessions      int
}

// status returns the subscriptions by id, and the number of events that wait for Redis.
func (a *authpool) status(t *testing.T) (map[string]statusRow, int) {
	t.Helper()
	var s struct {
		Subscriptions []statusRow
		Redis         struct {
			JournalPending int `json:"journal_pending"`
		}
	}
	if err := json.Unmarshal([]byte(a.run(t, "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]statusRow, len(s.Subscriptions))
	for _, r := range s.Subscriptions {
		rows[r.ID] = r
	}
	return rows, s.Redis.JournalPending
}

// front opens the embedded Redis as a person would: with the password of the state folder.
func (a *authpool) front(t *testing.T) *redis.Client {
	t.Helper()
	password, err := os.ReadFile(filepath.Join(a.state, "redis.password"))
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(&redis.Options{Addr: a.redis, Password: strings.TrimSpace(string(password)), Protocol: 2, DisableIdentity: true})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// dump returns every key of a Redis with all that is in it.
func dump(t *testing.T, c *redis.Client) map[string]string {
	t.Helper()
	ctx := t.Context()
	content := make(map[string]string)
	keys := c.Scan(ctx, 0, "*", 100).Iterator()
	for keys.Next(ctx) {
		key := keys.Val()
		kind, err := c.Type(ctx, key).Result()
		if err != nil {
			t.Fatal(err)
		}
		var value any
		switch kind {
		case "string":
			value, err = c.Get(ctx, key).Result()
		case "hash":
			value, err = c.HGetAll(ctx, key).Result()
		case "zset":
			value, err = c.ZRangeWithScores(ctx, key, 0, -1).Result()
		case "set":
			value, err = c.SMembers(ctx, key).Result()
		case "list":
			value, err = c.LRange(ctx, key, 0, -1).Result()
		case "none": // it has expired
		default:
			err = fmt.Errorf("%s is a %s, which this test cannot read", key, kind)
		}
		if err != nil {
			t.Fatal(err)
		}
		content[key] = fmt.Sprint(value)
	}
	if err := keys.Err(); err != nil {
		t.Fatal(err)
	}
	return content
}

// get asks with an optional bearer token, on a connection of its own.
func get(url, token string) (int, string, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return do(req)
}

// do sends a request on a connection of its own and reads the whole answer.
func do(req *http.Request) (int, string, error) {
	resp, err := roundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	return resp.StatusCode, b.String(), err
}

// roundTrip sends a request on a connection of its own, without asking for a coding of its own.
func roundTrip(req *http.Request) (*http.Response, error) {
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: patience}
	return transport.RoundTrip(req)
}

// ask makes a request of an agent; the header pairs come last and win.
func (a *authpool) ask(t *testing.T, path, body string, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if strings.HasPrefix(path, "/v1/messages") {
		req.Header.Set("X-Api-Key", a.token)
		req.Header.Set("Anthropic-Version", "2023-06-01")
	} else {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

// message is the body of a Messages request.
func message(text string, stream bool) string {
	return fmt.Sprintf(`{"model":"claude-haiku-4-5","max_tokens":4096,"stream":%t,"messages":[{"role":"user","content":%q}]}`, stream, text)
}

// startRedis starts a real Redis server that ends with the test.
func startRedis(t *testing.T) *redisServer {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("AUTHPOOL_REQUIRE_REDIS") != "" {
			t.Fatal("redis-server is not on PATH; run .ci/need redis-server")
		}
		t.Skip("redis-server is not on PATH")
	}
	r := &redisServer{program: program, address: freeAddress(t), dir: t.TempDir()}
	r.start(t)
	t.Cleanup(func() { r.stop(t) })
	return r
}

// redisServer is a Redis that can be stopped and started again with its data.
type redisServer struct {
	program, address, dir string
	cmd                   *exec.Cmd
}

func (r *redisServer) url() string { return "redis://" + r.address + "/0" }

func (r *redisServer) start(t *testing.T) {
	t.Helper()
	_, port, _ := net.SplitHostPort(r.address)
	r.cmd = exec.Command(r.program, "--bind", "127.0.0.1", "--port", port, "--dir", r.dir, "--appendonly", "yes", "--save", "")
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := r.client(t)
	eventually(t, func() error { return c.Ping(context.Background()).Err() })
}

func (r *redisServer) stop(t *testing.T) {
	t.Helper()
	if r.cmd == nil {
		return
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	_ = r.cmd.Wait() // Redis exits 0 or by the signal
	r.cmd = nil
}

func (r *redisServer) client(t *testing.T) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: r.address, DisableIdentity: true})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}
