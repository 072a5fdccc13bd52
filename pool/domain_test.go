package pool_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// spent is a limit of one key or project: `openai-project-limit`.
func spent(wait time.Duration) ratelimit.Verdict {
	return ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonSpendLimit, Scope: ratelimit.ScopeSubscription, Wait: wait}
}

// What one key has used up leaves the others of its organisation alone.
func TestALimitOfOneKeyClosesItAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("a1", domain("org")), sub("a2", domain("org"), priority(1)), sub("b", priority(2)))
		defer p.Close()
		if id, _ := serve(t, p, ask("s"), spent(time.Hour)); id != "a1" {
			t.Fatal(id)
		}
		if id, _ := serve(t, p, ask("s"), ok); id != "a2" {
			t.Errorf("after a limit of one key: %s, want the other one of the domain", id)
		}
		for i, want := range []pool.State{pool.StateDisabled, pool.StateReady, pool.StateReady} {
			if s := p.Status()[i]; s.State != want || s.CooldownUntil.IsZero() != (want == pool.StateReady) {
				t.Errorf("%s is %s until %v, want %s", s.ID, s.State, s.CooldownUntil, want)
			}
		}
		// Its domain's limit closes both, and lasts less long.
		serve(t, p, ask("s"), limited(time.Minute))
		if id, _ := serve(t, p, ask("t"), ok); id != "b" {
			t.Errorf("after a limit of the organisation: %s, want b", id)
		}
		until := time.Now().Add(time.Hour)
		if s := p.Status()[0]; s.CooldownUntil.Before(until) {
			t.Errorf("%s until %v, want the later of the two", s.State, time.Until(s.CooldownUntil))
		}
		pass(2 * time.Minute)
		if id, _ := serve(t, p, ask("u"), ok); id != "a2" {
			t.Errorf("after the organisation's limit: %s, want a2", id)
		}
		// Who enables one ends both.
		if err := p.Enable(context.Background(), "a2"); err != nil {
			t.Fatal(err)
		}
		if id, _ := serve(t, p, ask("v"), ok); id != "a1" {
			t.Errorf("after the domain was enabled: %s, want a1", id)
		}
	})
}

// Other processes tell a limit of one key from its domain's, those too that start
// later.
func TestFleetTellsALimitOfOneKeyFromItsDomains(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		subs := []pool.Subscription{sub("a1", domain("org")), sub("a2", domain("org"), priority(1)), sub("b", priority(2))}
		pools, _ := fleet(t, client, 2, pool.Options{}, subs...)
		states := func(p *pool.Pool, want ...pool.State) func() bool {
			return func() bool {
				for i, s := range p.Status() {
					if s.State != want[i] {
						return false
					}
				}
				return true
			}
		}
		serve(t, pools[0], ask("s"), spent(time.Hour))
		eventually(t, 20*time.Second, "the key's limit is known to the other process", states(pools[1], pool.StateDisabled, pool.StateReady, pool.StateReady))
		late, _ := fleet(t, client, 1, pool.Options{}, subs...)
		if !states(late[0], pool.StateDisabled, pool.StateReady, pool.StateReady)() {
			t.Errorf("a process that starts later sees %+v", late[0].Status())
		}
		fields := client.HGetAll(t.Context(), "authpool:{a1}:state").Val()
		if fields["state"] != "disabled" || fields["reason"] != "spend_limit" || fields["cooldown_until"] == "" {
			t.Errorf("authpool:{a1}:state = %v", fields)
		}

		serve(t, pools[1], ask("s"), limited(2*time.Hour))
		eventually(t, 20*time.Second, "the domain's limit is known to the other process", states(pools[0], pool.StateCooling, pool.StateCooling, pool.StateReady))
		late, _ = fleet(t, client, 1, pool.Options{}, subs...)
		if !states(late[0], pool.StateCooling, pool.StateCooling, pool.StateReady)() {
			t.Errorf("a process that starts later sees %+v", late[0].Status())
		}
		if err := pools[0].Enable(t.Context(), "a2"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "all of it is ended in the other process", states(pools[1], pool.StateReady, pool.StateReady, pool.StateReady))
	})
}

// together runs f with n processes of a fleet on one Redis, on a test's clock.
func together(t *testing.T, n int, opts pool.Options, f func(t *testing.T, fleet []*sidecar), subs ...pool.Subscription) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mini := miniredis.NewMiniRedis()
		defer mini.Close()
		stop := make(chan struct{})
		var clock sync.WaitGroup
		clock.Go(func() { run(mini, 24*time.Hour, stop) })
		defer clock.Wait()
		defer close(stop)
		var fleet []*sidecar
		for range n {
			fleet = append(fleet, newSidecar(mini, opts, subs...))
		}
		defer func() {
			for _, s := range fleet {
				s.close()
			}
		}()
		f(t, fleet)
	})
}

// Once in a fleet it is found out whether a limit of one key is over, and once for
// each cooldown of a domain, whoever of it met it.
func TestOneProbeForEachClosure(t *testing.T) {
	for name, one := range map[string]struct {
		scope ratelimit.Scope
		on    string // who meets it
	}{
		"one key":                   {ratelimit.ScopeSubscription, "a2"},
		"the domain":                {ratelimit.ScopeDomain, "a2"},
		"the domain, its first one": {ratelimit.ScopeDomain, "a1"},
	} {
		t.Run(name, func(t *testing.T) {
			other := map[string]string{"a1": "a2", "a2": "a1"}[one.on]
			together(t, 2, pool.Options{Wait: 20 * time.Second}, func(t *testing.T, fleet []*sidecar) {
				// The second cooldown is not taken for the first, which is over.
				for round := range 2 {
					serve(t, fleet[0].pool, ask("s", tried(other)), ratelimit.Verdict{
						Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: one.scope, Wait: 10 * time.Second,
					})
					pass(11 * time.Second)
					probe, err := fleet[0].pool.Acquire(t.Context(), ask("s", tried(other)))
					if err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
					if l, err := fleet[1].pool.Acquire(ctx, ask("t", tried(other))); err == nil {
						t.Errorf("round %d: %s is lent to another process while one probes", round, l.Subscription().ID)
						l.Done(usage.Tokens{})
					}
					cancel()
					probe.Verdict(ok)
					probe.Done(usage.Tokens{})
					begin := time.Now()
					serve(t, fleet[1].pool, ask("t", tried(other)), ok)
					if waited := time.Since(begin); waited > time.Second {
						t.Errorf("round %d: the other process hears of the success after %v", round, waited)
					}
					pass(10 * time.Second)
				}
			}, sub("a1", domain("org")), sub("a2", domain("org")))
		})
	}
}
