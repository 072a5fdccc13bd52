package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// manage runs `authpool subscriptions` with a secret on standard input.
func (a *authpool) manage(t *testing.T, secret string, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"subscriptions"}, args...)
	cmd := exec.CommandContext(t.Context(), binary, append(args, "--admin", a.admin, "--state-dir", a.state)...)
	cmd.Stdin = strings.NewReader(secret + "\n")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("authpool %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out.String(), nil
}

func (a *authpool) managed(t *testing.T, secret string, args ...string) string {
	t.Helper()
	out, err := a.manage(t, secret, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTwoProcessesAreManagedAsOne has operators change the pool at one process, and
// agents use it at the other.
func TestTwoProcessesAreManagedAsOne(t *testing.T) {
	t.Parallel()
	const rotated = "sk-ant-api03-rotated"
	r := startRedis(t)
	extra := []subscription{{"late", simulator.Anthropic, "sk-ant-api03-late"}, {"late", simulator.Anthropic, rotated}}
	p := startProvider(t, simulator.Options{Keys: keysOf(append(slices.Clone(pairs), extra...))})
	keyset := filepath.Join(t.TempDir(), "keyset")
	text, err := exec.CommandContext(t.Context(), binary, "keys", "new").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyset, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var fleet []*authpool
	for range 2 {
		fleet = append(fleet, startAuthpool(t, options{
			subscriptions: pairs[:1], upstream: p.url, redis: r.url(),
			extra: fmt.Sprintf("sealing: {keyset: %q}\nsessions: {idle_timeout: 5s}\n", "file:"+keyset),
		}))
	}
	one, other := fleet[0], fleet[1]
	sends := 0
	ask := func(a *authpool, session string) served {
		sends++
		return a.send(a.ask(t, "/v1/messages", message(fmt.Sprint("turn ", sends), false), "X-Authpool-Session", session))
	}
	// soon waits until the other process shows what was done at the one.
	soon := func(what, id, want string) {
		t.Helper()
		began := time.Now()
		eventually(t, func() error {
			rows, _ := other.status(t)
			if got := rows[id].State; got != want {
				return fmt.Errorf("%s: %s is %q at the other process, want %q", what, id, got, want)
			}
			return nil
		})
		t.Logf("%s: seen by the other process within %s", what, time.Since(began).Round(time.Millisecond))
	}
	expect := func(what string, s served, want string) {
		t.Helper()
		if s.err != nil || s.status != http.StatusOK || s.subscription != want {
			t.Errorf("%s: %+v, want 200 by %s", what, s, want)
		}
	}

	one.managed(t, "sk-ant-api03-late", "add", "late", "--provider", "anthropic", "--priority", "0", "--email", "who@example.com", "--credential-stdin")
	soon("add", "late", "ready")
	expect("added", ask(other, "s1"), "late")

	// Who has read the same version at both: one of them changes it.
	var version struct{ Version int64 }
	if err := json.Unmarshal([]byte(one.managed(t, "", "enable", "late", "--json")), &version); err != nil {
		t.Fatal(err)
	}
	statuses := make([]int, 2)
	var both sync.WaitGroup
	for i, a := range fleet {
		token, err := os.ReadFile(filepath.Join(a.state, "admin.token"))
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+a.admin+"/api/v1/subscriptions/late/drain", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			req.URL.Path = "/api/v1/subscriptions/late/disable"
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		req.Header.Set("If-Match", fmt.Sprintf(`"%d"`, version.Version))
		both.Go(func() { statuses[i], _, _ = do(req) })
	}
	both.Wait()
	slices.Sort(statuses)
	if !slices.Equal(statuses, []int{200, 412}) {
		t.Errorf("two that change version %d: %v", version.Version, statuses)
	}
	one.managed(t, "", "enable", "late")
	soon("enable", "late", "ready")

	expect("enabled", ask(other, "s2"), "late")
	one.managed(t, "", "drain", "late")
	soon("drain", "late", "draining")
	expect("one that has a place, while it drains", ask(other, "s2"), "late")
	expect("a new one, while it drains", ask(other, "s3"), "claude-a")
	one.managed(t, "", "disable", "claude-a") // one of the file
	soon("disable", "claude-a", "disabled")
	one.managed(t, "", "enable", "late")
	soon("enable again", "late", "ready")
	expect("one whose subscription is disabled", ask(other, "s3"), "late")

	if err := p.Inject(simulator.Injection{Key: "sk-ant-api03-late", Fault: simulator.Fault{Kind: simulator.Status, Status: 401, Count: -1}}); err != nil {
		t.Fatal(err)
	}
	if s := ask(other, "s3"); s.status == http.StatusOK {
		t.Errorf("a secret that was revoked: %+v", s)
	}
	soon("revoked", "late", "disabled")
	one.managed(t, rotated, "rotate", "late", "--credential-stdin")
	soon("rotate", "late", "ready")
	expect("rotated", ask(other, "s3"), "late")

	for key, value := range dump(t, r.client(t)) {
		for _, secret := range []string{"sk-ant-api03-late", rotated, "who@example.com"} {
			if strings.Contains(key+value, secret) {
				t.Errorf("Redis has %q in %s", secret, key)
			}
		}
	}

	// It goes once its sessions are idle, for both, and whoever of them finds that.
	one.managed(t, "", "enable", "claude-a")
	soon("enable of the file's", "claude-a", "ready")
	one.managed(t, "", "remove", "late")
	soon("remove", "late", "draining")
	expect("one that has a place, while it is removed", ask(other, "s3"), "late")
	expect("a new one, while it is removed", ask(other, "s4"), "claude-a")
	one.terminate(t)
	soon("removed", "late", "")
	expect("one whose subscription is gone", ask(other, "s3"), "claude-a")
	if out := other.managed(t, "", "list"); strings.Contains(out, "late") {
		t.Errorf("the list still has it:\n%s", out)
	}
	for _, a := range fleet {
		if strings.Contains(a.log.String(), "sk-ant-api03") || strings.Contains(a.log.String(), "who@example.com") {
			t.Error("a secret is in the log")
		}
	}
}
