package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/redisdb/redistest"
)

// fleet is two authpools with a state folder each, on one Redis and in front of
// one simulated provider.
type fleet struct {
	*stage // the simulator; its service is the first of the two
	redis  *redistest.Server
	second *service
}

// fleetConfig is the config of both. The last four are put in: the simulator,
// Redis, the state folder, the subscriptions.
const fleetConfig = `
listen: 127.0.0.1:0
admin: {listen: 127.0.0.1:0}
agents: {auth: none}
intercept: {enabled: false}
providers:
  anthropic: {base_url: %s, allow_plaintext: true}
redis: {url: %s}
state_dir: %s
subscriptions:
%s
`

// startFleet runs one until the test ends.
func startFleet(t *testing.T, keys map[string]simulator.Key, subscriptions string) *fleet {
	t.Helper()
	f := &fleet{stage: &stage{keys: keys}, redis: redistest.NewServer(t)}
	if err := f.startSimulator(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.stage.close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	folder := t.TempDir()
	start := func(name string) *service {
		for subscription, key := range keys {
			t.Setenv("FLEET_"+strings.ToUpper(subscription), key.Key)
		}
		text := fmt.Sprintf(fleetConfig, f.simBase, f.redis.URL(), name, subscriptions)
		cfg, err := config.Parse(filepath.Join(folder, "authpool.yaml"), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		log := slog.New(slog.NewTextHandler(t.Output(), nil)).With("serve", name)
		s, err := newService(t.Context(), cfg, func(string) string { return "" }, log)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	f.service = start("first")
	f.second = start("second")
	t.Cleanup(func() {
		if err := f.second.shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return f
}

// ask lets an agent of s ask once and returns who served it.
func (f *fleet) ask(t *testing.T, s *service, session string) (subscription string) {
	t.Helper()
	body := `{"model":"claude-sonnet-4-5","max_tokens":20,"messages":[{"role":"user","content":"hello"}]}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.agentAddress()+"/v1/messages", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("X-Authpool-Session", session)
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !json.Valid(text) {
		t.Fatalf("got %s %s, %v", resp.Status, text, err)
	}
	return resp.Header.Get("X-Authpool-Subscription")
}

// inRedisAsBilled waits until both journals are in Redis and compares it with
// the ledger.
func (f *fleet) inRedisAsBilled(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	for _, s := range []*service{f.service, f.second} {
		if err := s.recorder.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	got, err := f.countedIn(t.Context(), f.redis.Client())
	if err != nil {
		t.Fatal(err)
	}
	for subscription, want := range f.billed() {
		if got[subscription] != want {
			t.Errorf("%s: Redis has %+v, the provider billed %+v", subscription, got[subscription], want)
		}
	}
}

const twoSubscriptions = `
  - {id: a, provider: anthropic, credential: {value: env:FLEET_A}}
  - {id: b, provider: anthropic, credential: {value: env:FLEET_B}}
`

// TestFleetAgreesOnSessions has each session's first requests come to both
// processes at the same time: it must get the same subscription from both.
func TestFleetAgreesOnSessions(t *testing.T) {
	f := startFleet(t, map[string]simulator.Key{
		"a": {Key: "sk-sim-a", Provider: simulator.Anthropic},
		"b": {Key: "sk-sim-b", Provider: simulator.Anthropic},
	}, twoSubscriptions)
	seen := map[string]int{}
	for i := range 20 {
		session := fmt.Sprintf("s%d", i)
		var got [4]string
		var asking sync.WaitGroup
		for j := range got {
			asking.Go(func() { got[j] = f.ask(t, []*service{f.service, f.second}[j%2], session) })
		}
		asking.Wait()
		for _, subscription := range got[1:] {
			if subscription != got[0] {
				t.Fatalf("session %s got %v", session, got)
			}
		}
		seen[got[0]]++
	}
	if len(seen) != 2 {
		t.Errorf("all sessions went to one subscription: %v", seen)
	}
	f.inRedisAsBilled(t)
}

// TestFleetSharesALimit lets one process meet a limit: the other must stop
// sending to that subscription within a second.
func TestFleetSharesALimit(t *testing.T) {
	f := startFleet(t, map[string]simulator.Key{
		"a": {Key: "sk-sim-a", Provider: simulator.Anthropic},
		"b": {Key: "sk-sim-b", Provider: simulator.Anthropic},
	}, `
  - {id: a, provider: anthropic, priority: 1, credential: {value: env:FLEET_A}}
  - {id: b, provider: anthropic, priority: 2, credential: {value: env:FLEET_B}}
`)
	if got := f.ask(t, f.second, "before"); got != "a" {
		t.Fatalf("before the limit %s served", got)
	}
	if err := f.sim.Inject(simulator.Injection{Key: "sk-sim-a", Fault: simulator.Fault{Kind: simulator.Window, RetryAfter: 3600, Count: -1}}); err != nil {
		t.Fatal(err)
	}
	if got := f.ask(t, f.service, "meets-it"); got != "b" {
		t.Fatalf("at the limit %s served", got)
	}
	met := time.Now()
	f.refusedBy(t, f.second, "a", time.Second)
	t.Logf("the other process knew after %s", time.Since(met))
	arrived := len(f.sim.Arrivals())
	if got := f.ask(t, f.second, "after"); got != "b" {
		t.Errorf("after the limit %s served", got)
	}
	if n := len(f.sim.Arrivals()) - arrived; n != 1 {
		t.Errorf("the other process sent %d requests for one: it tried the limited subscription", n)
	}
	f.inRedisAsBilled(t)
}

// refusedBy waits until s shows the subscription as cooling.
func (f *fleet) refusedBy(t *testing.T, s *service, subscription string, within time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond) // there is no event to wait for: this is what an operator sees
	defer tick.Stop()
	for {
		for _, status := range s.pool.Status() {
			if status.ID == subscription && status.State == "cooling" {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %s %s is still offered", within, subscription)
		case <-tick.C:
		}
	}
}

// TestFleetWithoutRedis stops Redis under traffic: agents notice nothing, and
// all usage arrives when Redis is back.
func TestFleetWithoutRedis(t *testing.T) {
	f := startFleet(t, map[string]simulator.Key{
		"a": {Key: "sk-sim-a", Provider: simulator.Anthropic},
		"b": {Key: "sk-sim-b", Provider: simulator.Anthropic},
	}, twoSubscriptions)
	home := map[string]string{}
	for i := range 5 {
		session := fmt.Sprintf("s%d", i)
		home[session] = f.ask(t, f.service, session)
	}
	f.redis.Stop()
	for i := range 10 { // five that are known and five that are new
		session := fmt.Sprintf("s%d", i)
		began := time.Now()
		got := f.ask(t, f.service, session)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a request took %s while Redis was away", took)
		}
		if want, known := home[session]; known && got != want {
			t.Errorf("session %s moved from %s to %s because Redis was away", session, want, got)
		}
		f.ask(t, f.second, session)
	}
	if f.service.recorder.Pending() == 0 {
		t.Error("nothing is pending: Redis was not away, so nothing was proved")
	}
	if err := f.service.ready(); err != nil {
		t.Errorf("not ready without Redis: %v", err)
	}
	f.redis.Start()
	f.inRedisAsBilled(t)
}
