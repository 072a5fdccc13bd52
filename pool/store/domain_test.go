package store_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/store"
)

// The organisation of a subscription is read with its state. What closed the former
// one goes with it, what closed the subscription alone stays.
func TestBelong(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		belong := func(organisation string, configured bool) {
			t.Helper()
			if err := s.Belong(ctx, []store.Belonging{{Subscription: "one", Organisation: organisation, Configured: configured}}); err != nil {
				t.Fatal(err)
			}
		}
		closures := func(want ...store.Closure) {
			t.Helper()
			list, err := cooldownsOf(s, "one")
			got := map[store.Closure]bool{}
			for _, c := range list {
				got[c.Closure] = true
			}
			if err != nil || len(got) != len(want) {
				t.Errorf("closed are %v, want %v; %v", list, want, err)
			}
			for _, c := range want {
				if !got[c] {
					t.Errorf("closed are %v, want %v", list, want)
				}
			}
		}
		if err := s.Cool(ctx, []store.Cooldown{
			{Subscription: "one", Closure: store.ClosesSubscription, State: "disabled", Reason: "spend_limit", Wait: time.Hour},
			{Subscription: "one", Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: 2 * time.Hour},
			{Subscription: "one", Closure: store.ModelClosure("m"), Wait: 3 * time.Hour},
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.Proved(ctx, []store.Probed{{Subscription: "one", Process: "a", Closures: []store.Closure{store.ModelClosure("n")}, Succeeded: true}}); err != nil {
			t.Fatal(err)
		}
		belong("org-1", false) // the first that is known: it is what was met
		closures(store.ClosesSubscription, store.ClosesDomain, store.ModelClosure("m"))
		states, err := s.States(ctx, []string{"none", "one"})
		if err != nil || len(states) != 2 || states[0].Organisation != "" || states[1].Organisation != "org-1" {
			t.Errorf("%+v, %v", states, err)
		}
		since := client.HGet(ctx, "authpool:{one}:organisation", "since").Val()
		belong("org-1", false)
		if again := client.HGet(ctx, "authpool:{one}:organisation", "since").Val(); again != since || since == "" {
			t.Errorf("of it since %s, then since %s", since, again)
		}
		belong("org-2", true) // with whom it shares, the configuration says
		closures(store.ClosesSubscription, store.ClosesDomain, store.ModelClosure("m"))
		belong("org-3", false)
		closures(store.ClosesSubscription)
		fields := client.HGetAll(ctx, "authpool:{one}:state").Val()
		if fields["reason"] != "spend_limit" || fields["state"] != "disabled" || fields["cooldown_until"] == "" || fields["opened:n"] != "" {
			t.Errorf("the state is %v", fields)
		}
		if ttl := client.PTTL(ctx, "authpool:{one}:organisation").Val(); ttl < 29*24*time.Hour {
			t.Errorf("the key expires in %v", ttl)
		}
	})
}

// A subscription's own cooldown and its domain's are apart; people see the later one.
func TestOwnCooldownBesideItsDomains(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, client redis.UniversalClient) {
		cool := func(c store.Closure, state, reason string, wait time.Duration) {
			t.Helper()
			if err := s.Cool(ctx, []store.Cooldown{{Subscription: "one", Closure: c, State: state, Reason: reason, Wait: wait}}); err != nil {
				t.Fatal(err)
			}
		}
		shown := func(state, reason string, wait time.Duration) {
			t.Helper()
			got := client.HGetAll(ctx, "authpool:{one}:state").Val()
			until, _ := strconv.ParseInt(got["cooldown_until"], 10, 64)
			if left := time.Until(time.UnixMilli(until)); got["state"] != state || got["reason"] != reason || left > wait || left < wait-10*time.Minute {
				t.Errorf("the state is %v, want %s %s for %v", got, state, reason, wait)
			}
		}
		cool(store.ClosesDomain, "cooling", "window", time.Hour)
		cool(store.ClosesSubscription, "disabled", "spend_limit", 3*time.Hour)
		shown("disabled", "spend_limit", 3*time.Hour)
		cool(store.ClosesDomain, "cooling", "throttled", 2*time.Hour)
		shown("disabled", "spend_limit", 3*time.Hour)
		list, err := cooldownsOf(s, "one")
		if err != nil || len(list) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, c := range list {
			want := store.Cooldown{Subscription: "one", Closure: store.ClosesDomain, State: "cooling", Reason: "throttled", Wait: 2 * time.Hour}
			if c.Closure == store.ClosesSubscription {
				want = store.Cooldown{Subscription: "one", Closure: c.Closure, State: "disabled", Reason: "spend_limit", Wait: 3 * time.Hour}
			}
			left := want.Wait - c.Wait
			if want.Wait = c.Wait; c != want || left < 0 || left > 10*time.Minute {
				t.Errorf("%+v, want %+v", c, want)
			}
		}
		cool(store.ClosesDomain, "cooling", "window", 4*time.Hour)
		shown("cooling", "window", 4*time.Hour)
	})
}
