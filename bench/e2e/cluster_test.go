package e2e

import (
	"testing"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/pool/redisdb/redistest"
)

// While answers are counted a subscription's slot moves, a node is killed and its replica takes over without the last
// writes: in the end Redis has what the provider billed.
func TestUsageSurvivesAClustersLife(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, true)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: c.URL()})
	a.serveSome(t, "before", 10)
	a.expectLedger(t, p, pairs)

	key := "{" + pairs[0].id + "}"
	to := c.Nodes[0]
	if c.Owner(key) == to {
		to = c.Nodes[1]
	}
	c.Move(key, to, func(step int) {
		if step%8 == 0 {
			a.serveSome(t, "moving", 3)
		}
	})
	a.expectLedger(t, p, pairs)

	lost := 0
	if to == c.Nodes[1] {
		lost = 1
	}
	replica := c.Nodes[lost+3]
	replica.Pause()
	if err := to.Client().Do(t.Context(), "CLIENT", "KILL", "TYPE", "replica").Err(); err != nil {
		t.Fatal(err)
	}
	a.serveSome(t, "unreplicated", 10)
	a.expectLedger(t, p, pairs)
	to.Stop()
	a.serveSome(t, "lost", 10)
	replica.Resume()
	c.FailOver(lost)
	a.serveSome(t, "after", 10)
	a.expectLedger(t, p, pairs)
}

// The same for a master that sentinels name.
func TestUsageSurvivesASentinelsFailOver(t *testing.T) {
	t.Parallel()
	s := redistest.NewSentinels(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: s.URL()})
	a.serveSome(t, "before", 10)
	a.expectLedger(t, p, pairs)
	s.Replica.Pause()
	if err := s.Master.Client().Do(t.Context(), "CLIENT", "KILL", "TYPE", "replica").Err(); err != nil {
		t.Fatal(err)
	}
	a.serveSome(t, "unreplicated", 10)
	a.expectLedger(t, p, pairs)
	s.Master.Stop()
	a.serveSome(t, "lost", 10)
	s.Replica.Resume()
	s.FailOver()
	a.serveSome(t, "after", 10)
	a.expectLedger(t, p, pairs)
}
