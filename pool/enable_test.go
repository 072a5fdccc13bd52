package pool_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestOperatorEndsCooldowns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one", domain("org")), sub("two", domain("org")), sub("three"))
		defer p.Close()
		serve(t, p, ask("a", tried("two", "three")), limited(time.Hour))
		serve(t, p, ask("b", tried("one", "two")), limited(time.Hour))
		if err := p.Enable(context.Background(), "none"); !errors.Is(err, pool.ErrNoSuchSubscription) {
			t.Errorf("an unknown subscription: %v", err)
		}
		if err := p.Enable(context.Background(), "two"); err != nil {
			t.Fatal(err)
		}
		for i, want := range []pool.State{pool.StateReady, pool.StateReady, pool.StateCooling} {
			if s := p.Status()[i]; s.State != want {
				t.Errorf("%s is %s (%s), want %s", s.ID, s.State, s.Reason, want)
			}
		}
		serve(t, p, ask("a", tried("two", "three")), ok)
	})
}

// What the configuration disables, and a credential that cannot be read, is not for
// the operator to open by hand.
func TestOperatorCannotEndEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unreadable := &key{err: errors.New("no such file")}
		p := start(pool.Options{},
			sub("one", func(s *pool.Subscription) { s.Disabled, s.Reason = true, "no scheme" }),
			sub("two", func(s *pool.Subscription) { s.Credential = unreadable }))
		defer p.Close()
		if err := p.Enable(context.Background(), "one"); !errors.Is(err, pool.ErrDisabledByConfig) {
			t.Errorf("disabled by the configuration: %v", err)
		}
		if err := p.Enable(context.Background(), "two"); err != nil {
			t.Error(err)
		}
		for _, s := range p.Status() {
			if s.State != pool.StateDisabled {
				t.Errorf("%s is %s", s.ID, s.State)
			}
		}
	})
}

// The operator may know that a refused credential is good by now.
func TestOperatorEndsARefusedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("one"))
		defer p.Close()
		refused := ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonCredential, Scope: ratelimit.ScopeSubscription, Wait: -1}
		serve(t, p, ask("a"), refused)
		_ = unavailable(t, p, ask("a"))
		if err := p.Enable(context.Background(), "one"); err != nil {
			t.Fatal(err)
		}
		serve(t, p, ask("a"), ok)
	})
}

// All processes hear of it within a second, and who is cut off when it is back.
func TestOperatorEndsCooldownsOfAFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mini := miniredis.NewMiniRedis()
		defer mini.Close()
		stop := make(chan struct{})
		var clock sync.WaitGroup
		clock.Go(func() { run(mini, 5*time.Minute, stop) })
		defer clock.Wait()
		defer close(stop)
		var fleet []*sidecar
		for range 3 {
			fleet = append(fleet, newSidecar(mini, pool.Options{}, sub("one")))
		}
		defer func() {
			for _, s := range fleet {
				s.close()
			}
		}()
		state := func(i int) pool.State { return fleet[i].pool.Status()[0].State }
		serve(t, fleet[0].pool, ask("s"), limited(time.Hour))
		time.Sleep(time.Second)
		for i := range fleet {
			if state(i) != pool.StateCooling {
				t.Errorf("process %d: %s, want cooling", i, state(i))
			}
		}
		fleet[2].partition(true)
		if err := fleet[2].pool.Enable(context.Background(), "one"); err == nil || state(2) != pool.StateReady {
			t.Errorf("without Redis: %v, %s; want it done here, and an error", err, state(2))
		}
		serve(t, fleet[2].pool, ask("s"), limited(time.Hour))
		time.Sleep(100 * time.Millisecond) // the server's clock goes in steps
		if err := fleet[0].pool.Enable(context.Background(), "one"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for i, want := range []pool.State{pool.StateReady, pool.StateReady, pool.StateCooling} {
			if state(i) != want {
				t.Errorf("process %d: %s, want %s", i, state(i), want)
			}
		}
		time.Sleep(20 * time.Minute)
		fleet[2].partition(false)
		time.Sleep(2 * time.Second)
		if state(2) != pool.StateReady {
			t.Errorf("back after 20 minutes: %s, want ready", state(2))
		}
		// What is met later counts.
		serve(t, fleet[1].pool, ask("s"), limited(time.Hour))
		time.Sleep(time.Second)
		for i := range fleet {
			if state(i) != pool.StateCooling {
				t.Errorf("process %d: %s, want cooling again", i, state(i))
			}
		}
		for _, s := range fleet {
			time.Sleep(time.Minute) // also not by a later look at the state
			if s.pool.Status()[0].State != pool.StateCooling {
				t.Error("an old word of an operator has ended a new cooldown")
			}
		}
	})
}

// The same over real Redis, and a cluster.
func TestOperatorEndsCooldownsInRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 2, pool.Options{}, sub("one", domain("org")), sub("two", domain("org")))
		serve(t, pools[0], ask("s", tried("two")), limited(time.Hour))
		eventually(t, inTime, "the limit is known to the other process", func() bool {
			return pools[1].Status()[1].State == pool.StateCooling
		})
		if err := pools[1].Enable(context.Background(), "two"); err != nil {
			t.Fatal(err)
		}
		eventually(t, inTime, "the first process hears of it", func() bool {
			return pools[0].Status()[0].State == pool.StateReady
		})
		serve(t, pools[0], ask("s"), ok)
	})
}

// renewed is a source that changes when it is renewed.
type renewed struct {
	key
	next string
}

func (r *renewed) Renew() { r.set(r.next, nil) }

// A secret that cannot be used is not just passed over for the one before it.
func TestStaleCredentialIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "key")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("sk-old")
		ref, err := credential.ParseRef("file:" + path)
		if err != nil {
			t.Fatal(err)
		}
		bus := &event.Bus{}
		events, stop := bus.Subscribe("test", 100)
		p := start(pool.Options{Events: bus}, sub("one", func(s *pool.Subscription) { s.Credential = credential.NewSource(ref, credential.APIKey) }))
		defer p.Close()
		serve(t, p, ask("s"), ok)
		pass(5 * time.Second)
		write("")
		pass(10 * time.Second)
		serve(t, p, ask("s"), ok) // by the old one
		write("sk-new")
		pass(5 * time.Second)
		stop()
		var told []string
		for e := range events {
			if e.Kind == event.CredentialFailing || e.Kind == event.CredentialRestored {
				told = append(told, fmt.Sprint(e.Kind, " ", e.Subscription, " ", e.Reason))
			}
		}
		if want := []string{"credential.failing one credential_stale", "credential.restored one credential_stale"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

// A source that has to be renewed is, with no request to wait for it, also while its
// subscription serves.
func TestSourcesAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewed{key: key{secret: "sk-old"}, next: "sk-new"}
		p := start(pool.Options{}, sub("one", func(s *pool.Subscription) { s.Credential = source }))
		defer p.Close()
		<-time.After(3 * time.Second)
		lease, err := p.Acquire(context.Background(), ask("a"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := lease.Credential(context.Background())
		if err != nil || c.Secret.Reveal() != "sk-new" {
			t.Errorf("%q, %v", c.Secret.Reveal(), err)
		}
		lease.Verdict(ok)
		lease.Done(usage.Tokens{})
	})
}
