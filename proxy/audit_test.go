package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/audit"
)

// openAudit opens an audit log of its own for a test; read closes it and returns
// what was written about requests.
func openAudit(t testing.TB) (log *audit.Log, read func() []audit.Line) {
	t.Helper()
	dir := t.TempDir()
	log, err := audit.Open(audit.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return log, func() (lines []audit.Line) {
		t.Helper()
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		names, err := audit.List(dir)
		if err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		text, err := os.ReadFile(filepath.Join(dir, names[0]))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte("canary")) || bytes.Contains(text, []byte(testToken)) || bytes.Contains(text, []byte("wrong-token")) {
			t.Errorf("a secret is in the audit log: %s", text)
		}
		for raw := range bytes.Lines(text) {
			line, err := audit.ParseLine(raw)
			if err != nil {
				t.Fatal(err)
			}
			if line.Kind == audit.CredentialUsed || line.Kind == audit.CredentialEchoed || line.Kind == audit.RequestRefused {
				lines = append(lines, line)
			}
		}
		return lines
	}
}

// TestAudit: each session's use of a subscription is written down, also of one that
// then refused, and who was refused for what.
func TestAudit(t *testing.T) {
	log, read := openAudit(t)
	up := newUpstream(t, func(c *upstreamConn) {
		if c.key == key("anthropic", 1) {
			c.json(429, "retry-after: 3600\r\n", `{"type":"error","error":{"type":"rate_limit_error","message":"no"}}`)
			return
		}
		c.json(200, "", answer)
	})
	r := newRig(t, up.url(), 2, func(o *rigOptions) {
		o.pool.SessionBrake = pool.Brake{Requests: 2}
		o.deps = func(d *Deps) { d.Audit = log }
	})
	session := "Content-Type: application/json\r\nX-Authpool-Session: one\r\n"
	for _, want := range []int{200, 200, 429} { // the last is the brake's
		if got := r.send("POST", "/v1/messages", session, message).StatusCode; got != want {
			t.Fatalf("status %d, want %d", got, want)
		}
	}
	for path, want := range map[string]int{
		"/anthropic/v1/organizations/api_keys": 403,
		"/anthropic/v1/%2e%2e/messages":        400,
		"/nowhere":                             404, // says nothing about anybody's rights
	} {
		if got := r.send("GET", path, "", "").StatusCode; got != want {
			t.Fatalf("%s: status %d, want %d", path, got, want)
		}
	}
	for _, size := range []int{2, strangerBody + 1} { // the second is not even read
		c := r.dial()
		if _, err := fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: %s\r\nx-api-key: wrong-token\r\nContent-Length: %d\r\n\r\n{}", r.addr, size); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 401 {
			t.Fatal(resp, err)
		}
		_ = resp.Body.Close()
	}
	got := map[string]int{}
	for _, line := range read() {
		f := line.Fields
		if line.Kind == audit.RequestRefused && (f["request"] == "" || f["remote"] != "127.0.0.1") {
			t.Errorf("%+v", line)
		}
		got[strings.Join([]string{string(line.Kind), line.Actor, f["code"], f["provider"], f["session"], f["subscription"], f["count"]}, " ")]++
	}
	for what, n := range map[string]int{
		"credential.used default  anthropic one anthropic-1 ":  1,
		"credential.used default  anthropic one anthropic-2 ":  1,
		"request.refused default brake anthropic one  1":       1,
		"request.refused default forbidden_path anthropic   1": 1,
		"request.refused default bad_path    1":                1,
		"request.refused stranger unauthorized anthropic   1":  1,
		"request.refused stranger unauthorized    1":           1,
	} {
		if got[what] != n {
			t.Errorf("%q: %d times", what, got[what])
		}
		delete(got, what)
	}
	if len(got) != 0 {
		t.Errorf("also: %v", got)
	}
}
