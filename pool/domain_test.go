package pool_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
		eventually(t, inTime, "the key's limit is known to the other process", states(pools[1], pool.StateDisabled, pool.StateReady, pool.StateReady))
		late, _ := fleet(t, client, 1, pool.Options{}, subs...)
		if !states(late[0], pool.StateDisabled, pool.StateReady, pool.StateReady)() {
			t.Errorf("a process that starts later sees %+v", late[0].Status())
		}
		fields := client.HGetAll(t.Context(), "authpool:{a1}:state").Val()
		if fields["state"] != "disabled" || fields["reason"] != "spend_limit" || fields["cooldown_until"] == "" {
			t.Errorf("authpool:{a1}:state = %v", fields)
		}

		serve(t, pools[1], ask("s"), limited(2*time.Hour))
		eventually(t, inTime, "the domain's limit is known to the other process", states(pools[0], pool.StateCooling, pool.StateCooling, pool.StateReady))
		late, _ = fleet(t, client, 1, pool.Options{}, subs...)
		if !states(late[0], pool.StateCooling, pool.StateCooling, pool.StateReady)() {
			t.Errorf("a process that starts later sees %+v", late[0].Status())
		}
		if err := pools[0].Enable(t.Context(), "a2"); err != nil {
			t.Fatal(err)
		}
		eventually(t, inTime, "all of it is ended in the other process", states(pools[1], pool.StateReady, pool.StateReady, pool.StateReady))
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

// of is a verdict whose answer names an organisation.
func of(organisation string, v ratelimit.Verdict) ratelimit.Verdict {
	v.Organisation = []byte(organisation)
	return v
}

// only is the request's wish to be served by one of the subscriptions a, b and c.
func only(id string) func(*pool.Request) {
	return tried(slices.DeleteFunc([]string{"a", "b", "c"}, func(s string) bool { return s == id })...)
}

// domains are who shares limits with whom, as people see it.
func domains(p *pool.Pool) (list []string) {
	for _, s := range p.Status() {
		list = append(list, s.Domain)
	}
	return list
}

// What answers name is a domain, as if it were configured: also the very answer that
// closes it, and for what was closed before it was known.
func TestLearnedDomain(t *testing.T) {
	three := []pool.Subscription{sub("a"), sub("b", priority(1)), sub("c", priority(2))}
	for name, f := range map[string]func(t *testing.T, p *pool.Pool){
		"known before": func(t *testing.T, p *pool.Pool) {
			serve(t, p, ask("1", only("a")), of("org", ok))
			serve(t, p, ask("2", only("b")), of("org", ok))
			serve(t, p, ask("3"), of("org", limited(time.Hour)))
		},
		"named by the refusal": func(t *testing.T, p *pool.Pool) {
			serve(t, p, ask("1", only("b")), of("org", ok))
			serve(t, p, ask("2"), of("org", limited(time.Hour)))
		},
		"known afterwards": func(t *testing.T, p *pool.Pool) {
			serve(t, p, ask("1"), limited(time.Hour))
			serve(t, p, ask("2", only("b")), of("org", ok))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(pool.Options{}, three...)
				defer p.Close()
				held, err := p.Acquire(context.Background(), ask("0", only("a")))
				if err != nil {
					t.Fatal(err)
				}
				f(t, p)
				held.Verdict(of("org", ok))
				held.Done(usage.Tokens{})
				if id, _ := serve(t, p, ask("s"), ok); id != "c" {
					t.Errorf("with the organisation limited: %s, want c", id)
				}
				if got := domains(p); !slices.Equal(got, []string{"org", "org", ""}) {
					t.Errorf("domains %q", got)
				}
				// Its end is one for both, with one probe.
				pass(time.Hour + time.Minute)
				probe, err := p.Acquire(context.Background(), ask("t", only("b")))
				if err != nil {
					t.Fatal(err)
				}
				if u := unavailable(t, p, ask("u", only("a"))); u.FirstSubscription != "a" {
					t.Errorf("%+v", u)
				}
				probe.Verdict(of("org", ok))
				probe.Done(usage.Tokens{})
				serve(t, p, ask("u", only("a")), of("org", ok))
			})
		})
	}
}

// What is one key's alone stays its own in a learned domain.
func TestLearnedDomainAndALimitOfOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("a"), sub("b", priority(1)), sub("c", priority(2)))
		defer p.Close()
		serve(t, p, ask("1", only("b")), of("org", ok))
		serve(t, p, ask("2"), of("org", spent(time.Hour)))
		if id, _ := serve(t, p, ask("s"), of("org", ok)); id != "b" {
			t.Errorf("after a limit of one key: %s, want b of the same organisation", id)
		}
	})
}

// A key of another organisation takes its subscription there, and leaves behind what
// the former one has used up.
func TestSubscriptionOfAnotherOrganisation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("a"), sub("b", priority(1)), sub("c", priority(2)))
		defer p.Close()
		for _, id := range []string{"a", "b"} {
			serve(t, p, ask("1", only(id)), of("org-1", ok))
		}
		serve(t, p, ask("2", only("c")), of("org-2", ok))
		late, err := p.Acquire(context.Background(), ask("3", only("b")))
		if err != nil {
			t.Fatal(err)
		}
		serve(t, p, ask("4"), of("org-1", limited(time.Hour)))
		late.Verdict(of("org-2", ok)) // its key was replaced
		late.Done(usage.Tokens{})
		if got := domains(p); !slices.Equal(got, []string{"org-1", "org-2", "org-2"}) {
			t.Errorf("domains %q", got)
		}
		if id, _ := serve(t, p, ask("s"), of("org-2", ok)); id != "b" {
			t.Errorf("%s, want b, which has left the limited organisation", id)
		}
		serve(t, p, ask("s"), of("org-2", limited(time.Hour)))
		if u := unavailable(t, p, ask("t")); u.Count != 3 {
			t.Errorf("%+v, want all three closed", u)
		}
	})
}

// What the configuration says wins, and those it says nothing of go with it; the
// operator is told once where answers say otherwise.
func TestConfiguredDomainsWin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		p := pool.New(pool.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))},
			[]pool.Subscription{sub("a", domain("x")), sub("b", domain("x")), sub("c", domain("y")), sub("d")}, nil)
		p.Start(context.Background())
		defer p.Close()
		all := []string{"a", "b", "c", "d"}
		say := func(id, organisation string) {
			t.Helper()
			rest := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == id })
			serve(t, p, ask(id, tried(rest...)), of(organisation, ok))
		}
		told := func(text string) int { return strings.Count(log.String(), text) }
		say("d", "org-1")
		if got := domains(p); !slices.Equal(got, []string{"x", "x", "y", "org-1"}) {
			t.Errorf("domains %q", got)
		}
		say("a", "org-1")
		if got := domains(p); !slices.Equal(got, []string{"x", "x", "y", "x"}) {
			t.Errorf("domains %q, want d where its organisation is", got)
		}
		if log.Len() > 0 {
			t.Errorf("it was said: %s", log.String())
		}
		for range 3 {
			say("b", "org-1")
			say("b", "org-2")
			say("c", "org-1")
		}
		if told("the subscriptions of one domain are of two organisations") != 1 || told("two domains are one organisation") != 1 {
			t.Errorf("it was said: %s", log.String())
		}
		if got := domains(p); !slices.Equal(got, []string{"x", "x", "y", "x"}) {
			t.Errorf("domains %q, want what is configured", got)
		}
	})
}

// State that only an organisation understands stays in it, on any of its keys.
func TestPinnedStaysInItsLearnedDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("a"), sub("b", priority(2)), sub("c", priority(1)))
		defer p.Close()
		serve(t, p, ask("other", only("b")), of("org", ok))
		serve(t, p, ask("s"), of("org", ok))
		if id, _ := serve(t, p, ask("s", pinned, tried("a")), ok); id != "b" {
			t.Errorf("repeated on %s, want b of the same organisation", id)
		}
		if u := unavailable(t, p, ask("s", pinned, tried("a", "b"))); u.Count != 2 {
			t.Errorf("%+v, want two that fit", u)
		}
	})
}

// Names of providers that are no organisations change nothing.
func TestOrganisationThatIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{}, sub("a"))
		defer p.Close()
		for _, name := range []string{"", "two words", "umlaut-ä", strings.Repeat("x", 129)} {
			serve(t, p, ask("s"), of(name, ok))
			if got := domains(p); got[0] != "" {
				t.Errorf("%q is a domain", got[0])
			}
		}
	})
}

// What one process learns is known to the others, closes for them, and is there
// for those that start later, also after Redis has lost it.
func TestFleetSharesLearnedDomains(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		subs := []pool.Subscription{sub("a"), sub("b", priority(1)), sub("c", priority(2))}
		pools, _ := fleet(t, client, 2, pool.Options{}, subs...)
		want := []string{"org", "org", ""}
		serve(t, pools[0], ask("1", only("a")), of("org", ok))
		serve(t, pools[1], ask("2", only("b")), of("org", ok))
		for i, p := range pools {
			eventually(t, inTime, fmt.Sprintf("process %d knows of both", i), func() bool { return slices.Equal(domains(p), want) })
		}
		serve(t, pools[0], ask("s"), of("org", limited(time.Hour)))
		eventually(t, inTime, "the other process knows that both are closed", func() bool {
			s := pools[1].Status()
			return s[0].State == pool.StateCooling && s[1].State == pool.StateCooling
		})
		if id, _ := serve(t, pools[1], ask("t"), ok); id != "c" {
			t.Errorf("the other process uses %s, want c", id)
		}
		late, _ := fleet(t, client, 1, pool.Options{}, subs...)
		if got := domains(late[0]); !slices.Equal(got, want) {
			t.Errorf("domains of a process that starts later: %q", got)
		}
		if s := late[0].Status()[1]; s.State != pool.StateCooling {
			t.Errorf("a process that starts later sees b %s", s.State)
		}
	})
}

// Redis may lose what the fleet knows: who knows it tells it again.
func TestFleetTellsOrganisationsAgain(t *testing.T) {
	together(t, 2, pool.Options{}, func(t *testing.T, fleet []*sidecar) {
		serve(t, fleet[0].pool, ask("s"), of("org", ok))
		pass(time.Second)
		if got := domains(fleet[1].pool); got[0] != "org" {
			t.Fatalf("domain %q", got[0])
		}
		key := "authpool:{a}:organisation"
		fleet[0].client.Del(context.Background(), key)
		pass(time.Minute)
		if got := fleet[0].client.HGet(context.Background(), key, "organisation").Val(); got != "org" {
			t.Errorf("after a minute Redis has %q", got)
		}
	}, sub("a"))
}
