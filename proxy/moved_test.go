package proxy

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/provider"
)

// While a request waits, its provider gets another address and its subscription
// another credential: neither address ever sees the other's credential, and the agent
// sees an answer.
func TestCredentialFollowsItsProvider(t *testing.T) {
	var mu sync.Mutex
	seen := map[string][]string{}
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	host := func(name string) *fakeUpstream {
		return newUpstream(t, func(c *upstreamConn) {
			mu.Lock()
			first := len(seen[name]) == 0 && name == "old"
			seen[name] = append(seen[name], c.key)
			mu.Unlock()
			if first {
				arrived <- struct{}{}
				<-release
			}
			c.json(200, "", answer)
		})
	}
	before, after := host("old"), host("new")
	describe := func(base, secret string) (provider.Options, pool.Subscription) {
		return provider.Options{Name: "anthropic", Family: provider.Anthropic, BaseURL: base, AllowPlaintext: true},
			pool.Subscription{ID: "team-a", Provider: "anthropic", Origin: base, Credential: fixedKey(secret), Limits: pool.Limits{Concurrent: 1}}
	}
	r := newRig(t, before.url(), 1, func(o *rigOptions) {
		p, s := describe(before.url(), "sk-of-the-old-one")
		o.providers, o.subs = []provider.Options{p}, []pool.Subscription{s}
		o.pool.Wait = time.Minute
	})
	var wg sync.WaitGroup
	ask := func() {
		if resp := r.send("POST", "/v1/messages", "Content-Type: application/json\r\n", message); resp.StatusCode != http.StatusOK {
			t.Errorf("the agent got %d", resp.StatusCode)
		}
	}
	wg.Go(ask)
	<-arrived
	wg.Go(ask) // it waits for the first one
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for waiting(t, "anthropic") == 0 {
		<-tick.C
	}
	p, s := describe(after.url(), "sk-of-the-new-one")
	registry, err := provider.NewRegistry([]provider.Options{p})
	if err != nil {
		t.Fatal(err)
	}
	r.server.Configure(r.server.opts, registry, noPrices{})
	r.pool.Apply([]pool.Subscription{s})
	close(release)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(seen["old"], []string{"sk-of-the-old-one"}) || !slices.Equal(seen["new"], []string{"sk-of-the-new-one"}) {
		t.Errorf("the credentials went to %v", seen)
	}
}

// waiting is how many requests wait for a subscription of the provider.
func waiting(t *testing.T, name string) float64 {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "authpool_pool_waiting" && m.GetLabel()[0].GetValue() == name {
				return m.GetGauge().GetValue()
			}
		}
	}
	return 0
}
