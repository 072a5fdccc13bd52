package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/upstream"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestMain(m *testing.M) {
	// fasthttp's worker pool has one goroutine that sees only at its next
	// wake-up, up to ten seconds later, that the pool was stopped.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

const testToken = "apa_test-token-of-the-default-agent"

// fakeUpstream is a provider that a test scripts. It speaks raw HTTP/1.1, so
// that tests see and send exact bytes.
type fakeUpstream struct {
	t    testing.TB
	ln   net.Listener
	wg   sync.WaitGroup
	stop chan struct{}
	once sync.Once
	serv func(c *upstreamConn)

	whole func(c net.Conn, br *bufio.Reader) // serves connections instead of serv, if there is one

	mu    sync.Mutex
	heads []string
	conns map[net.Conn]bool
}

// upstreamConn is one request as it arrived, and the connection to answer on.
type upstreamConn struct {
	net.Conn
	head string // request line and headers
	body string
	key  string // the credential it carried
	stop chan struct{}
}

func newUpstream(t testing.TB, serve func(c *upstreamConn)) *fakeUpstream {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newUpstreamAt(t, ln, serve)
}

// newUpstreamAt is newUpstream that listens at ln.
func newUpstreamAt(t testing.TB, ln net.Listener, serve func(c *upstreamConn)) *fakeUpstream {
	t.Helper()
	u := &fakeUpstream{t: t, ln: ln, serv: serve}
	u.start()
	return u
}

// start has u serve until the test ends.
func (u *fakeUpstream) start() {
	u.conns, u.stop = map[net.Conn]bool{}, make(chan struct{})
	u.wg.Add(1)
	go u.run()
	u.t.Cleanup(u.close)
}

func (u *fakeUpstream) url() string { return "http://" + u.ln.Addr().String() }

func (u *fakeUpstream) run() {
	defer u.wg.Done()
	for {
		c, err := u.ln.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.conns[c] = true
		u.mu.Unlock()
		u.wg.Add(1)
		go u.serveConn(c)
	}
}

func (u *fakeUpstream) serveConn(c net.Conn) {
	defer u.wg.Done()
	defer func() {
		u.mu.Lock()
		delete(u.conns, c)
		u.mu.Unlock()
		_ = c.Close()
	}()
	br := bufio.NewReader(c)
	if u.whole != nil {
		u.whole(c, br)
		return
	}
	var head strings.Builder
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		head.WriteString(line)
		if line == "\r\n" {
			break
		}
	}
	req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head.String()), br)))
	if err != nil {
		u.t.Errorf("upstream got a request that it cannot read: %v\n%s", err, head.String())
		return
	}
	body := make([]byte, max(0, int(req.ContentLength)))
	r := io.Reader(req.Body)
	if _, err := io.ReadFull(r, body); err != nil {
		return
	}
	key := req.Header.Get("x-api-key")
	if key == "" {
		key = strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
	}
	u.mu.Lock()
	u.heads = append(u.heads, head.String())
	u.mu.Unlock()
	u.serv(&upstreamConn{c, head.String(), string(body), key, u.stop})
	// One request a connection: http.ReadRequest may have buffered.
}

func (u *fakeUpstream) requests() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.heads...)
}

func (u *fakeUpstream) close() {
	u.once.Do(func() { close(u.stop) })
	_ = u.ln.Close()
	u.mu.Lock()
	for c := range u.conns {
		_ = c.Close()
	}
	u.mu.Unlock()
	u.wg.Wait()
}

func (c *upstreamConn) write(format string, args ...any) {
	if len(args) == 0 {
		_, _ = io.WriteString(c.Conn, format)
		return
	}
	_, _ = fmt.Fprintf(c.Conn, format, args...)
}

// wait waits for the test, or for its end.
func (c *upstreamConn) wait(ch <-chan struct{}) {
	select {
	case <-ch:
	case <-c.stop:
	}
}

// json answers with a JSON body.
func (c *upstreamConn) json(status int, extra, body string) {
	c.write("HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s",
		status, http.StatusText(status), extra, len(body), body)
}

// sse begins an event stream; each event is then one chunk.
func (c *upstreamConn) sse() {
	c.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
}

func (c *upstreamConn) chunk(s string) { c.write("%x\r\n%s\r\n", len(s), s) }
func (c *upstreamConn) last()          { c.write("0\r\n\r\n") }

// fakeRecorder keeps what it is given.
type fakeRecorder struct {
	mu     sync.Mutex
	opened []usage.Event
	events []usage.Event
	voided []string
	added  chan struct{} // one value for each Add
}

// lastOpened is what would be counted should authpool be killed now.
func (r *fakeRecorder) lastOpened() usage.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened[len(r.opened)-1]
}

func (r *fakeRecorder) Open(e usage.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened = append(r.opened, e)
	return nil
}

func (r *fakeRecorder) Add(e usage.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	r.added <- struct{}{}
	return nil
}

func (r *fakeRecorder) Void(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.voided = append(r.voided, id)
	return nil
}

func (r *fakeRecorder) all() []usage.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]usage.Event(nil), r.events...)
}

// noRecorder forgets.
type noRecorder struct{}

func (noRecorder) Open(usage.Event) error { return nil }
func (noRecorder) Add(usage.Event) error  { return nil }
func (noRecorder) Void(string) error      { return nil }

type noPrices struct{}

func (noPrices) Cost(string, string, usage.Tokens, usage.Service) (int64, bool) { return 0, false }
func (noPrices) Version() string                                                { return "none" }

type fixedKey string

func (k fixedKey) Credential(context.Context) (credential.Credential, error) {
	return credential.Credential{Scheme: credential.APIKey, Secret: credential.NewSecret(string(k))}, nil
}

func (k fixedKey) Refresh(ctx context.Context) (credential.Credential, error) {
	return k.Credential(ctx)
}

// rig is a Server in front of fake providers.
type rig struct {
	t        testing.TB
	server   *Server
	addr     string
	recorder *fakeRecorder
	pool     *pool.Pool
	log      *syncWriter
	served   chan error
	proxied  bool // requests go through CONNECT
}

type rigOptions struct {
	transport upstream.Options
	opts      Options
	pool      pool.Options
	agents    *Agents
	providers []provider.Options
	subs      []pool.Subscription
	listener  net.Listener
	quiet     bool        // log and record nothing
	deps      func(*Deps) // changes what the server works with
}

// key returns the credential of the nth subscription of a family.
func key(provider string, n int) string { return fmt.Sprintf("sk-%s-canary-%04d", provider, n) }

// newRig serves one anthropic and one openai provider, both at base, with n
// subscriptions each.
func newRig(t testing.TB, base string, n int, change ...func(*rigOptions)) *rig {
	t.Helper()
	o := rigOptions{
		opts: Options{
			BodyLimit: 64 << 20, HeaderLimit: 32 << 10, ReplayLimit: 32 << 20,
			Attempts: 3, Deadline: time.Minute, Hold: 2 * time.Second,
			Connections: 1 << 14, Head: time.Minute, Idle: time.Minute, WriteStall: time.Minute,
		},
		transport: upstream.Options{
			Connect: 2 * time.Second, FirstByte: time.Minute, Idle: time.Minute,
			KeepAlive: time.Minute, MaxIdle: 16, HeadLimit: 16 << 10,
		},
		agents: NewAgents(map[string]string{"default": testToken}),
		providers: []provider.Options{
			{Name: "anthropic", Family: provider.Anthropic, BaseURL: base, AllowPlaintext: true, AskUsage: true},
			{Name: "openai", Family: provider.OpenAI, BaseURL: base, AllowPlaintext: true, AskUsage: true},
		},
	}
	for _, p := range []string{"anthropic", "openai"} {
		for i := range n {
			o.subs = append(o.subs, pool.Subscription{
				ID: fmt.Sprintf("%s-%d", p, i+1), Provider: p, Priority: i + 1, Credential: fixedKey(key(p, i+1)),
			})
		}
	}
	for _, f := range change {
		f(&o)
	}
	reg, err := provider.NewRegistry(o.providers)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, recorder: &fakeRecorder{added: make(chan struct{}, 1024)}, log: &syncWriter{}, served: make(chan error, 1)}
	logger := slog.New(slog.NewTextHandler(r.log, nil))
	if o.quiet {
		logger = slog.New(slog.DiscardHandler)
	}
	o.pool.Logger = logger
	r.pool = pool.New(o.pool, o.subs, nil)
	r.pool.Start(context.Background())
	tr := upstream.New(o.transport)
	var recorder Recorder = r.recorder
	if o.quiet {
		recorder = noRecorder{}
	}
	deps := Deps{
		Providers: reg, Pool: r.pool, Agents: o.agents, Recorder: recorder, Prices: noPrices{}, Transport: tr, Log: logger,
	}
	if o.deps != nil {
		o.deps(&deps)
	}
	r.server = New(o.opts, deps)
	ln := o.listener
	if ln == nil {
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	r.addr = ln.Addr().String()
	go func() { r.served <- r.server.Serve(ln, nil) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = r.server.Shutdown(ctx)
		if err := <-r.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		r.pool.Close()
		tr.Close()
	})
	return r
}

// syncWriter lets several goroutines write.
type syncWriter struct {
	mu sync.Mutex
	w  bytes.Buffer
}

func (w *syncWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

func (w *syncWriter) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.String()
}

// dial opens a raw connection to the rig.
func (r *rig) dial() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// send writes a request and reads the answer's head.
func (r *rig) send(method, path, headers, body string) *http.Response {
	r.t.Helper()
	return r.sendAs(testToken, method, path, headers, body)
}

// sendAs is send with another agent's token.
func (r *rig) sendAs(token, method, path, headers, body string) *http.Response {
	r.t.Helper()
	c, host := r.dial(), r.addr
	if r.proxied {
		host = hostOf(path)
		c = r.secured(c, host)
	}
	_, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n%sContent-Length: %d\r\n\r\n%s",
		method, path, host, token, headers, len(body), body)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	r.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// post sends a JSON body and returns status, headers and the answer's body.
func (r *rig) post(path, body string) (int, http.Header, string) {
	r.t.Helper()
	resp := r.send("POST", path, "Content-Type: application/json\r\n", body)
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("POST %s: %v (after %q)", path, err, b)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// waitEvents waits until n usage events were recorded.
func (r *rig) waitEvents(n int) []usage.Event {
	r.t.Helper()
	late := time.After(10 * time.Second)
	for len(r.recorder.all()) < n {
		select {
		case <-r.recorder.added:
		case <-late:
			r.t.Fatalf("%d usage events, want %d", len(r.recorder.all()), n)
		}
	}
	return r.recorder.all()
}

// Pieces of an Anthropic stream.
const (
	msgStart = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-sonnet-4-5\",\"content\":[],\"usage\":{\"input_tokens\":12,\"cache_read_input_tokens\":100,\"cache_creation_input_tokens\":0,\"output_tokens\":1}}}\n\n"
	msgPing  = "event: ping\ndata: {\"type\":\"ping\"}\n\n"
	msgBlock = "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
	msgHello = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n"
	msgDelta = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":7}}\n\n"
	msgStop  = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	msgError = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n"
	msgLimit = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"rate_limit_error\",\"message\":\"limited\"}}\n\n"
	message  = `{"model":"claude-sonnet-4-5","max_tokens":10,"messages":[{"role":"user","content":"hi"}]}`
	messageS = `{"model":"claude-sonnet-4-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"hi"}]}`
	answer   = `{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","usage":{"input_tokens":12,"cache_read_input_tokens":100,"cache_creation_input_tokens":0,"output_tokens":7}}`
	limited  = `{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your rate limit"},"request_id":"req_1"}`
	busy     = `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}`
)
