package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authpool/authpool/bench/simulator"
)

// TestStartWithoutRedisKeepsWhatOperatorsSaid: a process that starts while Redis is away
// goes on by what was last known: who was revoked stays so, what is disabled is not
// used, what was added serves. Once Redis is there, that counts.
func TestStartWithoutRedisKeepsWhatOperatorsSaid(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	late := subscription{"late", simulator.Anthropic, "sk-ant-api03-late"}
	p := startProvider(t, simulator.Options{Keys: keysOf(append([]subscription{late}, pairs...))})
	state := filepath.Join(t.TempDir(), "state")
	o := options{subscriptions: pairs[:1], upstream: p.url, redis: r.url(), state: state}
	a := startAuthpool(t, o)
	off := pairs[0].id
	create := func(name string) (token string) {
		return strings.TrimSpace(a.run(t, "agents", "create", name))
	}
	revoked, kept := create("revoked"), create("kept")
	a.run(t, "agents", "limit", "default", "--model", "claude-opus-*")
	a.managed(t, late.key, "add", "late", "--provider", "anthropic", "--credential-stdin")
	a.managed(t, "", "disable", off)
	a.run(t, "agents", "revoke", "revoked")
	a.terminate(t)
	for _, kind := range []string{"agents", "subscriptions"} {
		text, err := os.ReadFile(filepath.Join(state, "known."+kind))
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{revoked, kept, late.key} {
			if strings.Contains(string(text), secret) {
				t.Errorf("what is kept of %s holds a secret", kind)
			}
		}
	}
	r.stop(t)

	a = startAuthpool(t, o)
	ask := func(token string) served {
		return a.send(a.ask(t, "/v1/messages", message("hello", false), "X-Api-Key", token))
	}
	for range 3 {
		if s := ask(kept); s.err != nil || s.status != http.StatusOK || s.subscription != "late" {
			t.Errorf("an agent without Redis: %+v, want 200 by late", s)
		}
	}
	if s := ask(revoked); s.err != nil || s.status < 400 {
		t.Errorf("the revoked token without Redis: %+v", s)
	}
	if s := ask(a.token); s.err != nil || s.status != http.StatusForbidden {
		t.Errorf("the agent default, which may not use this model: %+v", s)
	}
	rows, _ := a.status(t)
	if got := rows[off].State; got != "disabled" {
		t.Errorf("%s is %s without Redis", off, got)
	}

	cmd := exec.CommandContext(t.Context(), binary, "sessions", "rebalance", "--dry-run", "--admin", a.admin, "--state-dir", a.state)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "this is by what the sidecar that was asked knows") {
		t.Errorf("a plan without Redis: %v, %s", err, out)
	}

	// What is true now is what Redis says, which another process may have changed.
	r.start(t)
	eventually(t, func() error {
		if _, err := a.manage(t, "", "enable", off); err != nil {
			return err
		}
		rows, _ := a.status(t)
		if got := rows[off].State; got != "ready" {
			return fmt.Errorf("%s is %s when Redis is back", off, got)
		}
		return nil
	})
	eventually(t, func() error {
		if s := ask(revoked); s.status != http.StatusUnauthorized {
			return fmt.Errorf("the revoked token when Redis is back: %+v", s)
		}
		return nil
	})
	if s := ask(kept); s.status != http.StatusOK {
		t.Errorf("an agent when Redis is back: %+v", s)
	}
}
