package notify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/notify"
)

// TestMain has the certificate of httptest trusted, as by an operator's system.
func TestMain(m *testing.M) {
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	certificate := server.Certificate().Raw
	server.Close()
	folder, err := os.MkdirTemp("", "notify")
	if err != nil {
		panic(err)
	}
	file := filepath.Join(folder, "roots.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o600); err != nil {
		panic(err)
	}
	if err := os.Setenv("SSL_CERT_FILE", file); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(folder)
		os.Exit(code) //nolint:forbidigo // goleak asks for it
	}))
}

const (
	hookURL = "http://127.0.0.1:9/T0-secret-path"
	secret  = "whsec-secret-key"
)

// hook is the URL of a receiver in the same bubble.
func hook(globs ...string) notify.Target {
	return notify.Target{URL: hookURL, Secret: credential.NewSecret(secret), Events: globs, Format: notify.JSON}
}

// got is one notification as it came.
type got struct {
	notify.Message
	at   time.Time
	head http.Header
	body string
}

// receiver is a webhook without a network. answer, which a test may replace, writes
// its answers; 204 without it.
type receiver struct {
	conns  chan net.Conn
	server *http.Server

	mu     sync.Mutex
	answer http.HandlerFunc
	all    []got
}

func newReceiver() *receiver {
	r := &receiver{conns: make(chan net.Conn)}
	r.server = &http.Server{Handler: http.HandlerFunc(r.serve), ReadHeaderTimeout: time.Minute}
	go func() { _ = r.server.Serve(r) }()
	return r
}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	g := got{at: time.Now(), head: req.Header, body: string(body)}
	_ = json.Unmarshal(body, &g.Message)
	r.mu.Lock()
	r.all = append(r.all, g)
	answer := r.answer
	r.mu.Unlock()
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer(w, req)
}

func (r *receiver) answers(f http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = f
}

// status answers with one status.
func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// take returns what has come since the last call.
func (r *receiver) take() []got {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// Accept, Close and Addr make it its server's listener.
func (r *receiver) Accept() (net.Conn, error) {
	conn, ok := <-r.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (r *receiver) Close() error   { return nil }
func (r *receiver) Addr() net.Addr { return &net.TCPAddr{} }

func (r *receiver) stop() {
	close(r.conns)
	_ = r.server.Close()
}

func (r *receiver) dial(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case r.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run is a Notifier with its bus, and what it logs.
type run struct {
	*notify.Notifier

	bus  *event.Bus
	logs *lines
	t    *testing.T
}

type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func open(t *testing.T, folder string, r *receiver, targets ...notify.Target) *run {
	t.Helper()
	n := &run{bus: new(event.Bus), logs: new(lines), t: t}
	opts := notify.Options{Folder: folder, Logger: slog.New(slog.NewTextHandler(n.logs, nil)), Lookup: noLookup}
	if r != nil {
		opts.Dial = r.dial
	}
	var err error
	if n.Notifier, err = notify.Open(opts, targets, n.bus); err != nil {
		t.Fatal(err)
	}
	return n
}

func noLookup(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }

// close stops it, and looks for secrets in what it has logged.
func (n *run) close() {
	n.t.Helper()
	if err := n.Close(context.Background()); err != nil {
		n.t.Error(err)
	}
	if all := n.logs.String(); strings.Contains(all, "T0-secret") || strings.Contains(all, secret) {
		n.t.Errorf("a secret was logged:\n%s", all)
	}
}

func limited(sub string) event.Event {
	return event.Event{
		Kind: event.SubscriptionLimited, Provider: "anthropic", Subscription: sub, Reason: "window",
		Until: time.Now().Add(time.Hour), Text: "subscription " + sub + " is limited (window) for 1h",
	}
}

func subscriptions(all []got) (out []string) {
	for _, g := range all {
		out = append(out, g.Subscription)
	}
	return out
}
