package pool_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// heard collects what a pool tells.
type heard struct {
	t      *testing.T
	events <-chan event.Event
	stop   func()
}

func hear(t *testing.T, opts pool.Options, subs ...pool.Subscription) (*pool.Pool, *heard) {
	t.Helper()
	opts.Events = new(event.Bus)
	h := &heard{t: t}
	h.events, h.stop = opts.Events.Subscribe("test", 100)
	return start(opts, subs...), h
}

// are the events since the last call, as "kind subscription model reason".
func (h *heard) are(want ...string) (all []event.Event) {
	h.t.Helper()
	synctest.Wait()
	var got []string
	for len(h.events) > 0 {
		e := <-h.events
		all = append(all, e)
		words := []string{string(e.Kind), e.Subscription, e.Model, e.Window, e.Reason}
		got = append(got, strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " "))
		if e.Provider != "anthropic" || e.Text == "" || e.Time.IsZero() {
			h.t.Errorf("an event lacks something: %+v", e)
		}
	}
	if !slices.Equal(got, want) {
		h.t.Errorf("told\n%q, want\n%q", got, want)
	}
	return all
}

func TestEventsOfALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, h := hear(t, pool.Options{CacheWarm: 24 * time.Hour}, sub("one"), sub("two"))
		defer p.Close()
		defer h.stop()
		serve(t, p, ask("s", tried("two")), ok)
		h.are()
		serve(t, p, ask("s", tried("two")), limited(time.Hour))
		all := h.are("subscription.limited one throttled")
		if e := all[0]; e.Agent != "a" || e.Session != "s" || time.Until(e.Until) != time.Hour {
			t.Errorf("whose and until when: %+v", e)
		}
		pass(time.Hour)
		serve(t, p, ask("s", tried("two")), limited(time.Hour)) // the probe: it is not over
		h.are("subscription.limited one throttled")
		pass(time.Hour)
		serve(t, p, ask("s", tried("two")), ok)
		h.are("subscription.recovered one")
		serve(t, p, ask("s", tried("two")), ok)
		h.are()

		model := limited(time.Hour)
		model.Scope = ratelimit.ScopeModel
		serve(t, p, ask("s", tried("two")), model)
		h.are("subscription.limited one claude-x throttled")
		pass(time.Hour)
		serve(t, p, ask("s", tried("two")), ok)
		h.are("subscription.recovered one claude-x")

		quota := ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonCredit, Scope: ratelimit.ScopeSubscription, Wait: -1}
		serve(t, p, ask("s", tried("two")), quota)
		h.are("subscription.disabled one credit")
		if err := p.Enable(context.Background(), "one"); err != nil {
			t.Fatal(err)
		}
		h.are("subscription.enabled one")
	})
}

// A limit that comes behind the beginning of an answer is told, too.
func TestEventOfALateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, h := hear(t, pool.Options{}, sub("one"))
		defer p.Close()
		defer h.stop()
		l, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		l.Verdict(ok)
		l.Late(limited(time.Hour))
		l.Done(usage.Tokens{})
		h.are("subscription.limited one throttled")
	})
}

func TestEventsOfABreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, h := hear(t, pool.Options{}, sub("one"), sub("two"))
		defer p.Close()
		defer h.stop()
		for p.Status()[0].Breaker == "closed" {
			serve(t, p, ask("s", tried("two")), failed())
		}
		pass(2 * time.Second)
		h.are("subscription.broken one breaker")
		pass(time.Minute)
		h.are()
		serve(t, p, ask("s", tried("two")), ok)
		pass(2 * time.Second)
		h.are("subscription.recovered one breaker")
	})
}

func TestEventsOfACredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &key{secret: "sk-old"}
		p, h := hear(t, pool.Options{}, sub("one", func(s *pool.Subscription) { s.Credential = k }))
		defer p.Close()
		defer h.stop()
		refused := ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonCredential, Scope: ratelimit.ScopeSubscription, Wait: -1}
		serve(t, p, ask("s"), refused)
		h.are("credential.failing one credential")
		k.set("sk-new", nil)
		pass(5 * time.Second)
		h.are("credential.restored one credential")
		k.set("", errors.New("no such file sk-secret"))
		l, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = l.Credential(context.Background())
		l.Done(usage.Tokens{})
		if all := h.are("credential.failing one credential_unreadable"); strings.Contains(fmt.Sprint(all), "sk-") {
			t.Errorf("a secret shows in %+v", all)
		}
		pass(5 * time.Second)
		k.set("sk-new", nil)
		pass(5 * time.Second)
		h.are("credential.restored one credential_unreadable")
	})
}

// A credential that tells its own end is warned of before, once, and a new one is told of.
func TestEventsOfAnExpiringCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := func(life time.Duration) string {
			claims := fmt.Sprintf(`{"iat":%d,"exp":%d}`, time.Now().Unix(), time.Now().Add(life).Unix())
			return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
		}
		k := &key{secret: token(20 * time.Minute)}
		p, h := hear(t, pool.Options{}, sub("one", func(s *pool.Subscription) { s.Credential = k }), sub("two"))
		defer p.Close()
		defer h.stop()
		pass(18 * time.Minute)
		h.are()
		end := time.Now().Add(2 * time.Minute).UTC().Format(time.RFC3339)
		pass(65 * time.Second)
		if all := h.are("credential.expiring one credential_expiring"); len(all) == 1 && !strings.Contains(all[0].Text, "of subscription one ends at "+end) {
			t.Errorf("told %q, it ends at %s", all[0].Text, end)
		}
		pass(5 * time.Minute) // past its end: the provider may take it still
		serve(t, p, ask("s", tried("two")), ok)
		h.are()
		k.set(token(20*time.Minute), nil)
		pass(5 * time.Second)
		h.are("credential.restored one credential_expiring")
		k.set(token(10*time.Minute), nil)
		pass(5 * time.Second)
		h.are() // it had not come to a warning
		k.set(token(time.Second), nil)
		pass(5 * time.Second)
		h.are("credential.expiring one credential_expiring")
		k.set("sk-without-end", nil)
		pass(5 * time.Second)
		h.are("credential.restored one credential_expiring")
	})
}

func TestEventsOfAProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, h := hear(t, pool.Options{}, sub("one"))
		defer p.Close()
		defer h.stop()
		overload(t, p, -1)
		h.are("provider.overloaded claude-x overload")
		_ = unavailable(t, p, ask("s"))
		_ = unavailable(t, p, ask("s"))
		h.are("pool.exhausted claude-x capacity")
		pass(2 * time.Second)
		serve(t, p, ask("s"), ok)
		h.are("provider.recovered claude-x overload")
	})
}

// However many requests nobody can serve, it is told once a minute; and not for those
// who only have tried all, or want what one alone has.
func TestEventOfAnExhaustedPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, h := hear(t, pool.Options{}, sub("one"))
		defer p.Close()
		defer h.stop()
		_ = unavailable(t, p, ask("s", tried("one")))
		serve(t, p, ask("s"), limited(time.Hour))
		h.are("subscription.limited one throttled")
		_ = unavailable(t, p, ask("s", func(r *pool.Request) { r.Owner = "one" }))
		h.are()
		for range 119 {
			_ = unavailable(t, p, ask("s"))
			pass(time.Second)
		}
		all := h.are("pool.exhausted claude-x throttled", "pool.exhausted claude-x throttled")
		if e := all[0]; e.Agent != "a" || e.Session != "s" || time.Until(e.Until) <= 0 {
			t.Errorf("whose and until when: %+v", e)
		}
	})
}

func TestEventsOfBudgetsAndWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b books
		p, h := hear(t, pool.Options{Ledger: &b}, sub("one", budget(pool.Budget{Period: usage.PeriodDay, Requests: 100})))
		defer p.Close()
		defer h.stop()
		for _, n := range []int64{49, 50, 60, 96, 100} {
			b.set("one", usage.PeriodDay, usage.Counts{Requests: n})
			pass(3 * time.Second)
		}
		all := h.are("budget.50 one day", "budget.95 one day", "budget.100 one day")
		if e := all[0]; !e.Until.Equal(time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)) {
			t.Errorf("resets at %v", e.Until)
		}
		b.set("one", usage.PeriodDay, usage.Counts{})
		pass(3 * time.Second)
		told := ok
		told.Windows = []ratelimit.Window{{Name: "5h", Kind: "provider", Utilization: 0.81, Reset: time.Now().Add(time.Hour), Seen: time.Now()}}
		serve(t, p, ask("s"), told)
		pass(3 * time.Second)
		h.are("window.80 one 5h")
	})
}
