package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// serveSome sends n requests of different sessions, and fails when one is not answered well or waits for long.
func (a *authpool) serveSome(t *testing.T, name string, n int) {
	t.Helper()
	for i := range n {
		begin := time.Now()
		status, body, err := do(a.ask(t, "/v1/messages", message(fmt.Sprint(name, i), i%2 == 0), "X-Authpool-Session", fmt.Sprint(name, "-", i%7)))
		if err != nil || status != http.StatusOK {
			t.Fatalf("%s, request %d: %d %s %v", name, i, status, body, err)
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("%s, request %d took %s", name, i, took)
		}
	}
}

func TestRedisMayGoAndComeBack(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url()})
	a.serveSome(t, "before", 10)
	a.expectLedger(t, p, pairs)
	r.stop(t)
	a.serveSome(t, "before", 10) // sessions that are bound
	a.serveSome(t, "during", 20) // new ones
	if status, body, err := get("http://"+a.admin+"/readyz", ""); err != nil || status != http.StatusOK {
		t.Errorf("/readyz while Redis is away: %d %s %v", status, body, err)
	}
	r.start(t)
	a.serveSome(t, "after", 10)
	a.expectLedger(t, p, pairs)
}

func TestRedisThatLostItsDataIsFilledAgain(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url()})
	a.serveSome(t, "before", 10)
	a.expectLedger(t, p, pairs)
	r.stop(t)
	a.serveSome(t, "during", 5)
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	a.serveSome(t, "after", 5)
	a.expectLedger(t, p, pairs)
}

// A stop while Redis is away is a good one: what Redis has not counted waits in the journal, and is counted at the
// next start.
func TestStopWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url()})
	a.serveSome(t, "before", 3)
	a.expectLedger(t, p, pairs)
	r.stop(t)
	a.serveSome(t, "during", 3)
	a.terminate(t) // fails the test when the exit code is not 0
	if log := a.log.String(); !strings.Contains(log, "waits in the journal for the next start") {
		t.Errorf("the log does not tell what waits: %s", log)
	}
	r.start(t)
	b := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url(), state: a.state})
	b.expectLedger(t, p, pairs)
}
