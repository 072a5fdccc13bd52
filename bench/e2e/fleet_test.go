package e2e

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// served tells who answered a request, at which attempt.
type served struct {
	status                int
	subscription, attempt string
	err                   error
}

func (a *authpool) send(req *http.Request) served {
	resp, err := roundTrip(req)
	if err != nil {
		return served{err: err}
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return served{resp.StatusCode, resp.Header.Get("X-Authpool-Subscription"), resp.Header.Get("X-Authpool-Attempts"), err}
}

func TestTwoProcessesAreOnePool(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	fleet := []*authpool{
		startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url()}),
		startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url()}),
	}
	// One session, first seen by both at once, many times: one subscription.
	for session := range 5 {
		results := make([]served, 20)
		var requests sync.WaitGroup
		for i := range results {
			a := fleet[i%2]
			req := a.ask(t, "/v1/messages", message(fmt.Sprint("turn ", i), i%3 == 0), "X-Authpool-Session", fmt.Sprint("shared-", session))
			requests.Go(func() { results[i] = a.send(req) })
		}
		requests.Wait()
		for i, s := range results {
			if s.err != nil || s.status != http.StatusOK || s.subscription != results[0].subscription || s.subscription == "" {
				t.Errorf("session %d, request %d: %+v, want 200 by %q as the first", session, i, s, results[0].subscription)
			}
		}
	}
	// A limit that one process meets closes the subscription for the other.
	first := fleet[0].send(fleet[0].ask(t, "/v1/messages", message("hello", false), "X-Authpool-Session", "limited"))
	if first.status != http.StatusOK {
		t.Fatalf("%+v", first)
	}
	var key string
	for _, s := range pairs {
		if s.id == first.subscription {
			key = s.key
		}
	}
	if err := p.Inject(simulator.Injection{Key: key, Fault: simulator.Fault{Kind: simulator.Window, RetryAfter: 3600, Count: -1}}); err != nil {
		t.Fatal(err)
	}
	moved := fleet[0].send(fleet[0].ask(t, "/v1/messages", message("again", false), "X-Authpool-Session", "limited"))
	if moved.status != http.StatusOK || moved.subscription == first.subscription || moved.attempt != "2" {
		t.Errorf("after the limit: %+v, want 200 at the second attempt by another than %s", moved, first.subscription)
	}
	met := time.Now()
	if err := within(time.Second, func() error {
		rows, _ := fleet[1].status(t)
		if row := rows[first.subscription]; row.State != "cooling" || row.CooldownUntil == nil || time.Until(*row.CooldownUntil) < 50*time.Minute {
			return fmt.Errorf("the other process has %+v", row)
		}
		return nil
	}); err != nil {
		t.Errorf("a limit met by one process: %v", err)
	}
	t.Logf("the other process knew within %s", time.Since(met).Round(time.Millisecond))
	for i := range 10 {
		for _, session := range []string{"limited", fmt.Sprint("new-", i)} {
			s := fleet[1].send(fleet[1].ask(t, "/v1/messages", message("other", false), "X-Authpool-Session", session))
			if s.status != http.StatusOK || s.subscription != moved.subscription || s.attempt != "1" {
				t.Errorf("session %s at the other process: %+v, want 200 by %s at once", session, s, moved.subscription)
			}
		}
	}
	for _, a := range fleet {
		a.expectLedger(t, p, pairs)
	}
}
