package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// slowly makes a stream of some four seconds.
var slowly = []string{"X-Simulate", "tokens-80-slow-50"}

// begin sends a request and reads its answer up to the first content.
func begin(t *testing.T, req *http.Request) (*http.Response, *bufio.Reader) {
	t.Helper()
	resp, err := roundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	r := bufio.NewReader(resp.Body)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%s, then %v before any content", resp.Status, err)
		}
		if strings.Contains(line, "text_delta") || strings.Contains(line, `"delta":{"content"`) {
			return resp, r
		}
	}
}

func TestSIGTERMInMidStreamDrains(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	state := filepath.Join(t.TempDir(), "state")
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, state: state})
	_, stream := begin(t, a.ask(t, "/v1/messages", message("first", true), slowly...))
	_, chat := begin(t, a.ask(t, "/v1/chat/completions", `{"model":"gpt-4.1","stream":true,"messages":[{"role":"user","content":"hello"}]}`, slowly...))
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		status, _, err := get("http://"+a.admin+"/readyz", "")
		if err == nil && status == http.StatusServiceUnavailable {
			return nil
		}
		select {
		case <-a.exited:
			return nil
		default:
			return fmt.Errorf("/readyz: %d %w", status, err)
		}
	})
	eventually(t, func() error {
		c, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
		if err == nil {
			_ = c.Close()
			return fmt.Errorf("new connections are still taken")
		}
		return nil
	})
	rest, err := io.ReadAll(stream)
	if err != nil || !strings.Contains(string(rest), "event: message_stop") {
		t.Errorf("the Messages stream ended with %v after %d bytes", err, len(rest))
	}
	rest, err = io.ReadAll(chat)
	if err != nil || !strings.HasSuffix(string(rest), "data: [DONE]\n\n") {
		t.Errorf("the chat stream ended with %v after %d bytes", err, len(rest))
	}
	a.waitEnd(t)
	if a.err != nil {
		t.Errorf("authpool ended with %v, want exit 0", a.err)
	}
	for _, e := range p.Ledger() {
		if !e.Finished {
			t.Errorf("the provider could not finish %+v", e)
		}
	}
	b := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, state: state})
	b.expectLedger(t, p, pairs)
	rows, err := b.usage(t, "subscription")
	if err != nil {
		t.Fatal(err)
	}
	for id, row := range rows {
		if row.Estimated != 0 {
			t.Errorf("%s: %d estimated, though every answer ended", id, row.Estimated)
		}
	}
}

func TestSIGKILLInMidStreamLosesNothing(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	state := filepath.Join(t.TempDir(), "state")
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, state: state})
	for i := range 5 {
		if status, body, err := do(a.ask(t, "/v1/messages", message(fmt.Sprint("whole ", i), i%2 == 0))); err != nil || status != http.StatusOK {
			t.Fatal(status, body, err)
		}
	}
	_, stream := begin(t, a.ask(t, "/v1/messages", message("cut", true), slowly...))
	a.kill(t)
	if rest, err := io.ReadAll(stream); strings.Contains(string(rest), "message_stop") {
		t.Fatalf("the stream ended by itself: %v", err)
	}
	b := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, state: state})
	var finished, cut counts
	for _, e := range p.Ledger() {
		if e.Finished {
			finished = finished.plus(billed(e))
		} else {
			cut = cut.plus(billed(e))
		}
	}
	if finished.Requests != 5 || cut.Requests != 1 {
		t.Fatalf("the provider finished %d and was cut at %d", finished.Requests, cut.Requests)
	}
	eventually(t, func() error {
		var sum counts
		var estimated int64
		rows, err := b.usage(t, "subscription")
		if err != nil {
			return err
		}
		for _, row := range rows {
			sum = sum.plus(row.counts())
			estimated += row.Estimated
		}
		// How much the cut answer had said is only known roughly; everything else is exact.
		low, high := finished.Output, finished.Output+max(cut.Output, 1)
		if sum.Requests != 6 || estimated != 1 || sum.Input != finished.Input+cut.Input || sum.Output < low || sum.Output > high {
			return fmt.Errorf("counted %+v with %d estimated; the provider finished %+v and had sent %+v of the cut one", sum, estimated, finished, cut)
		}
		return nil
	})
}

func TestLeavingAgentEndsTheUpstreamCall(t *testing.T) {
	t.Parallel()
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
	for _, kind := range []simulator.Kind{simulator.Silent, simulator.SilentHead} {
		if err := p.Inject(simulator.Injection{Fault: simulator.Fault{Kind: kind}}); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.ask(t, "/v1/messages", message("hello", true)).Write(c); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if n := p.InFlight(); n != 1 {
				return fmt.Errorf("%s: %d requests in flight at the provider", kind, n)
			}
			return nil
		})
		if kind == simulator.Silent { // its head and first events are there
			if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := within(time.Second, func() error {
			if n := p.InFlight(); n != 0 {
				return fmt.Errorf("%s: %d requests in flight at the provider though the agent has left", kind, n)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}
