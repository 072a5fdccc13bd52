package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authpool/authpool/bench/simulator"
)

// What happens to a state folder: used twice, copied, put back, lost. Redis is a real one here, as the embedded one
// goes with the folder.

// copyFolder copies a state folder whose authpool has ended.
func copyFolder(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// said fails unless authpool has logged the text, or has not when want is false.
func (a *authpool) said(t *testing.T, text string, want bool) {
	t.Helper()
	if got := strings.Contains(a.log.String(), text); got != want {
		t.Errorf("logged %q: %t, want %t", text, got, want)
	}
}

// The alarms, as the log has them.
const (
	fenced   = "the journal folder was copied"
	restored = "it was restored from a copy"
	lost     = "usage is lost"
)

func TestTwoProcessesOnOneFolder(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	second := exec.CommandContext(ctx, binary, "serve", "--listen", freeAddress(t), "--admin", freeAddress(t), "--state-dir", a.state)
	out, err := second.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "another authpool is running with it") {
		t.Errorf("the second process: %v, %s", err, out)
	}
	a.serveSome(t, "on", 5)
	a.expectLedger(t, p, pairs)
}

func TestCopiedFolderIsFenced(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	o := options{subscriptions: pairs, upstream: p.url, redis: r.url(), state: filepath.Join(t.TempDir(), "state")}
	a := startAuthpool(t, o)
	a.serveSome(t, "before", 10)
	a.expectLedger(t, p, pairs)
	r.stop(t)
	a.serveSome(t, "pending", 10) // these are in both folders
	a.kill(t)
	copied := o
	copied.state = copyFolder(t, o.state)
	r.start(t)
	a = startAuthpool(t, o)
	a.serveSome(t, "original", 10)
	a.expectLedger(t, p, pairs)
	b := startAuthpool(t, copied)
	b.serveSome(t, "copy", 10)
	b.expectLedger(t, p, pairs)
	a.serveSome(t, "original again", 10)
	b.serveSome(t, "copy again", 10)
	a.expectLedger(t, p, pairs)
	// The copy lacks what the original has counted since, so that it is behind. It leaves the writer to the original.
	a.said(t, fenced, false)
	b.said(t, restored, true)
	for _, a := range []*authpool{a, b} {
		a.said(t, lost, false)
	}
}

// TestCopiesStartTogether: neither has anything that the other lacks when it starts. The one that is later with what it
// has counted, which most of the time is the original, leaves the writer to the other.
func TestCopiesStartTogether(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	o := options{subscriptions: pairs, upstream: p.url, redis: r.url(), state: filepath.Join(t.TempDir(), "state")}
	a := startAuthpool(t, o)
	r.stop(t)
	a.serveSome(t, "pending", 20)
	a.kill(t)
	copied := o
	copied.state = copyFolder(t, o.state)
	r.start(t)
	a = startAuthpool(t, o)
	a.expectLedger(t, p, pairs)
	b := startAuthpool(t, copied)
	for i := range 3 {
		a.serveSome(t, fmt.Sprint("original ", i), 7)
		b.serveSome(t, fmt.Sprint("copy ", i), 7)
	}
	b.expectLedger(t, p, pairs)
	b.said(t, fenced, !strings.Contains(a.log.String(), fenced))
	for _, a := range []*authpool{a, b} {
		a.said(t, restored, false)
		a.said(t, lost, false)
	}
}

func TestRestoredFolder(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	o := options{subscriptions: pairs, upstream: p.url, redis: r.url(), state: filepath.Join(t.TempDir(), "state")}
	a := startAuthpool(t, o)
	a.serveSome(t, "before", 10)
	a.expectLedger(t, p, pairs)
	a.kill(t)
	old := copyFolder(t, o.state)
	a = startAuthpool(t, o)
	a.serveSome(t, "since", 20)
	a.expectLedger(t, p, pairs)
	a.terminate(t)
	o.state = old
	a = startAuthpool(t, o)
	a.serveSome(t, "restored", 10)
	a.expectLedger(t, p, pairs)
	a.said(t, restored, true)
	a.said(t, fenced, false)
	a.said(t, lost, false)
}

func TestLostFolder(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	o := options{subscriptions: pairs, upstream: p.url, redis: r.url(), state: filepath.Join(t.TempDir(), "state")}
	a := startAuthpool(t, o)
	a.serveSome(t, "before", 10)
	a.terminate(t) // which brings everything to Redis
	if err := os.RemoveAll(o.state); err != nil {
		t.Fatal(err)
	}
	a = startAuthpool(t, o)
	a.serveSome(t, "after", 10)
	a.expectLedger(t, p, pairs)
	a.said(t, "usage alarm", false)
}

// TestLongCooldownSurvivesKill: the embedded Redis has no snapshot yet when authpool is killed.
func TestLongCooldownSurvivesKill(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	o := options{subscriptions: pairs, upstream: p.url, state: filepath.Join(t.TempDir(), "state")}
	a := startAuthpool(t, o)
	if err := p.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.Window, RetryAfter: 3600}}); err != nil {
		t.Fatal(err)
	}
	if status, body, err := do(a.ask(t, "/v1/messages", message("hello", false))); err != nil || status != http.StatusOK {
		t.Fatal(status, body, err)
	}
	until := func(a *authpool) (ends map[string]string) {
		t.Helper()
		ends = map[string]string{}
		front := a.front(t)
		eventually(t, func() error {
			for _, s := range pairs {
				end, err := front.HGet(t.Context(), "authpool:{"+s.id+"}:state", "cooldown_until").Result()
				if err == nil {
					ends[s.id] = end
				}
			}
			if len(ends) != 1 {
				return fmt.Errorf("cooldowns: %v", ends)
			}
			return nil
		})
		return ends
	}
	want := until(a)
	a.kill(t)
	if _, err := os.Stat(filepath.Join(o.state, "redis.snapshot")); err == nil {
		t.Fatal("there is a snapshot: the test proves nothing")
	}
	a = startAuthpool(t, o)
	if got := until(a); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after the restart %v, before it %v", got, want)
	}
	eventually(t, func() error {
		rows, _ := a.status(t)
		for id := range want {
			if rows[id].State != "cooling" {
				return fmt.Errorf("%s is %s", id, rows[id].State)
			}
		}
		return nil
	})
}
