package pool_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// health is a Redis that a test declares away.
type health struct{ away atomic.Bool }

func (h *health) Healthy() bool { return !h.away.Load() }

// fleet returns n pools of the same subscriptions on one Redis; they end with
// the test.
func fleet(t *testing.T, client redis.UniversalClient, n int, opts pool.Options, subs ...pool.Subscription) ([]*pool.Pool, *health) {
	t.Helper()
	h := &health{}
	pools := make([]*pool.Pool, n)
	for i := range pools {
		pools[i] = startWith(opts, patient{store.New(client, client, h, "authpool")}, subs...)
		t.Cleanup(pools[i].Close)
	}
	return pools, h
}

// patient waits for Redis also for longer than a request does: on a slow machine
// requests would else do without, as they should.
type patient struct{ pool.Bindings }

func (p patient) Lookup(ctx context.Context, session string) (string, error) {
	return p.Bindings.Lookup(context.WithoutCancel(ctx), session)
}

func (p patient) Reserve(ctx context.Context, sub, session string, most int, hold time.Duration) (store.Place, error) {
	return p.Bindings.Reserve(context.WithoutCancel(ctx), sub, session, most, hold)
}

func (p patient) Bind(ctx context.Context, session, expect, sub, parent string, affinity time.Duration) (string, error) {
	return p.Bindings.Bind(context.WithoutCancel(ctx), session, expect, sub, parent, affinity)
}

func (p patient) Probe(ctx context.Context, probe store.Probe) (store.Proof, error) {
	return p.Bindings.Probe(context.WithoutCancel(ctx), probe)
}

func (p patient) Owners(ctx context.Context, ids []string) ([]store.Resource, error) {
	return p.Bindings.Owners(context.WithoutCancel(ctx), ids)
}

// inTime is enough for whatever will come, also on a slow machine and when a hint was
// lost, which the next reading of all states makes good: 40 seconds.
const inTime = 2 * time.Minute

// eventually waits for what another goroutine brings about.
func eventually(t *testing.T, within time.Duration, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(within)
	defer end.Stop()
	for !f() {
		select {
		case <-end.C:
			t.Fatalf("not within %v: %s", within, what)
		case <-tick.C:
		}
	}
}

// Parallel first requests of a session make one binding, in whichever processes they
// are; unless Redis is slower than they wait for it, when each does without.
func TestFleetBindsOneSessionToOneSubscription(t *testing.T) {
	const bindingWait = 50 * time.Millisecond
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		var subs []pool.Subscription
		for i := range 5 {
			subs = append(subs, sub(fmt.Sprint("s", i)))
		}
		pools, _ := fleet(t, client, 2, pool.Options{}, subs...)
		for round := range 20 {
			name := fmt.Sprint("session-", round)
			var mu sync.Mutex
			seen := map[string]bool{}
			slow := false
			var wg sync.WaitGroup
			for i := range 10 {
				wg.Go(func() {
					begin := time.Now()
					l, err := pools[i%2].Acquire(context.Background(), ask(name))
					if err != nil {
						t.Error(err)
						return
					}
					took := time.Since(begin)
					l.Verdict(ok)
					l.Done(usage.Tokens{Input: 1})
					mu.Lock()
					defer mu.Unlock()
					seen[l.Subscription().ID] = true
					slow = slow || took >= bindingWait
				})
			}
			wg.Wait()
			if len(seen) != 1 && !slow {
				t.Fatalf("session %s was served by %v, want one subscription", name, seen)
			}
			eventually(t, inTime, "the binding is in Redis", func() bool {
				bound, err := client.HGet(context.Background(), "authpool:session:{anthropic/a/"+name+"}", "subscription").Result()
				if err == nil && !seen[bound] {
					t.Fatalf("Redis binds it to %q, served was by %v", bound, seen)
				}
				return err == nil
			})
		}
	})
}

func TestFleetKeepsTheCapOfSessions(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const most = 7
		pools, _ := fleet(t, client, 2, pool.Options{Wait: 2 * time.Second},
			sub("one", limits(pool.Limits{Sessions: most})), sub("two", limits(pool.Limits{Sessions: most})))
		var served atomic.Int64
		try := func(p *pool.Pool, name string) {
			l, err := p.Acquire(context.Background(), ask(name))
			var u *pool.UnavailableError
			switch {
			case err == nil:
				served.Add(1)
				l.Verdict(ok)
				l.Done(usage.Tokens{Input: 1})
			case !errors.As(err, &u) || u.Reason != pool.ReasonSessions || u.Until.IsZero():
				t.Error(err)
			}
		}
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() { try(pools[i%2], fmt.Sprint("s", i)) })
		}
		wg.Wait()
		if n := served.Load(); n == 0 || n > 2*most {
			t.Errorf("%d sessions are served, want some and %d at most", n, 2*most)
		}
		// The places that are left can be had.
		eventually(t, inTime, "all places are taken", func() bool {
			try(pools[0], fmt.Sprint("late-", served.Load()))
			return served.Load() >= 2*most
		})
		for _, id := range []string{"one", "two"} {
			if n := client.ZCard(context.Background(), "authpool:{"+id+"}:sessions").Val(); n != most {
				t.Errorf("%d places are taken on %s, want %d", n, id, most)
			}
		}
		if u := unavailable(t, pools[1], ask("one too many")); u.Reason != pool.ReasonSessions {
			t.Errorf("one session too many: %+v", u)
		}
	})
}

func TestFleetKeepsTheCapOfConcurrency(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const most = 8
		pools, _ := fleet(t, client, 2, pool.Options{Wait: 20 * time.Second}, sub("one", limits(pool.Limits{Concurrent: most})))
		var under, peak, served atomic.Int64
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				l, err := pools[i%2].Acquire(context.Background(), ask(fmt.Sprint("s", i)))
				if err != nil {
					t.Error(err)
					return
				}
				n := under.Add(1)
				for {
					p := peak.Load()
					if n <= p || peak.CompareAndSwap(p, n) {
						break
					}
				}
				served.Add(1)
				l.Verdict(ok)
				under.Add(-1)
				l.Done(usage.Tokens{Input: 1})
			})
		}
		wg.Wait()
		if served.Load() != 200 {
			t.Errorf("%d of 200 were served", served.Load())
		}
		if peak.Load() > most {
			t.Errorf("%d requests were under way at once, the limit is %d", peak.Load(), most)
		}
	})
}

// Who may not wait for a subscription still gets the share that nobody else has.
func TestFirstRequestGetsAShareWithoutWaiting(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 1, pool.Options{Wait: 0}, sub("one", limits(pool.Limits{Concurrent: 2})))
		serve(t, pools[0], ask("s"), ok)
	})
}

func TestLimitMetByOneProcessClosesForAll(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 2, pool.Options{}, sub("one"), sub("two", priority(1)))
		state := func(p *pool.Pool) pool.Status { return p.Status()[0] }

		serve(t, pools[0], ask("s"), ratelimit.Verdict{
			Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeModel, Wait: time.Hour,
		})
		eventually(t, inTime, "the model's cooldown is known to the other process", func() bool {
			until, ok := state(pools[1]).CooldownModels["claude-x"]
			return ok && time.Until(until) > 59*time.Minute && time.Until(until) <= time.Hour
		})
		if id, _ := serve(t, pools[1], ask("other"), ok); id != "two" {
			t.Errorf("the other process still uses %s", id)
		}
		if id, _ := serve(t, pools[1], ask("third", model("claude-y")), ok); id != "one" {
			t.Errorf("another model is served by %s, want one", id)
		}

		serve(t, pools[0], ask("third", model("claude-y")), ratelimit.Verdict{
			Signal: ratelimit.Quota, Reason: ratelimit.ReasonCredit, Scope: ratelimit.ScopeSubscription, Wait: -1,
		})
		eventually(t, inTime, "the used-up credit is known to the other process", func() bool {
			s := state(pools[1])
			return s.State == pool.StateDisabled && s.Reason == "credit" && time.Until(s.CooldownUntil) > 59*time.Minute
		})
		fields := client.HGetAll(context.Background(), "authpool:{one}:state").Val()
		if fields["state"] != "disabled" || fields["reason"] != "credit" || fields["cooldown_until"] == "" || fields["cooldown:claude-x"] == "" {
			t.Errorf("authpool:{one}:state = %v", fields)
		}

		// A process that starts later knows it from the beginning.
		late, _ := fleet(t, client, 1, pool.Options{}, sub("one"), sub("two", priority(1)))
		if s := state(late[0]); s.State != pool.StateDisabled {
			t.Errorf("a process that starts later sees %s", s.State)
		}
	})
}

// After a cooldown one request of the whole fleet finds out whether it is over, and
// its success opens for the others at once.
func TestOneProbeOfTheFleet(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 2, pool.Options{Wait: 5 * time.Second}, sub("one"))
		serve(t, pools[0], ask("s"), limited(800*time.Millisecond))
		eventually(t, inTime, "the limit is known to the other process", func() bool {
			// It may be over by then: the first request is the probe all the same.
			return pools[1].Status()[0].State != pool.StateReady
		})
		probe, err := pools[0].Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		if l, err := pools[1].Acquire(ctx, ask("t")); err == nil {
			t.Errorf("%s is lent to another process while one probes", l.Subscription().ID)
			l.Done(usage.Tokens{})
		}
		probe.Verdict(ok)
		defer probe.Done(usage.Tokens{})
		ctx, cancel = context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		l, err := pools[1].Acquire(ctx, ask("t"))
		if err != nil {
			t.Fatalf("the probe has succeeded, and the other process does not know: %v", err)
		}
		l.Verdict(ok)
		l.Done(usage.Tokens{})
	})
}

func TestFleetFollowsASessionThatMoved(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 2, pool.Options{}, sub("one"), sub("two"))
		home, _ := serve(t, pools[0], ask("s"), ok)
		if id, source := serve(t, pools[1], ask("s"), ok); id != home || source != pool.SourceBound {
			t.Fatalf("the other process: %s (%s), want %s (bound)", id, source, home)
		}
		// Broken in one process only: it moves the session, the other follows
		// though it could go on.
		for range 5 {
			serve(t, pools[0], ask("breaks it", func(r *pool.Request) { r.Tried = others(home) }), failed())
		}
		moved, source := serve(t, pools[0], ask("s"), ok)
		if moved == home || source != pool.SourceMoved {
			t.Fatalf("after the breaker opened: %s (%s), want it moved from %s", moved, source, home)
		}
		eventually(t, inTime, "the other process follows", func() bool {
			id, _ := serve(t, pools[1], ask("s"), ok)
			return id == moved
		})
		eventually(t, inTime, "the former place is given back", func() bool {
			return !members(client, home)["anthropic/a/s"] && members(client, moved)["anthropic/a/s"]
		})
	})
}

// others is every subscription of one and two but id.
func others(id string) []string {
	if id == "one" {
		return []string{"two"}
	}
	return []string{"one"}
}

// members are the sessions that hold a place.
func members(client redis.UniversalClient, sub string) map[string]bool {
	out := map[string]bool{}
	for _, name := range client.ZRange(context.Background(), "authpool:{"+sub+"}:sessions", 0, -1).Val() {
		out[name] = true
	}
	return out
}

func TestWithoutRedisProcessesAgreeAndRedisWinsAfterwards(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		var subs []pool.Subscription
		for i := range 4 {
			subs = append(subs, sub(fmt.Sprint("s", i)))
		}
		pools, h := fleet(t, client, 2, pool.Options{}, subs...)
		known, _ := serve(t, pools[0], ask("known"), ok)
		h.away.Store(true)
		if id, source := serve(t, pools[0], ask("known"), ok); id != known || source != pool.SourceBound {
			t.Errorf("a known session without Redis: %s (%s), want %s (bound)", id, source, known)
		}
		used := map[string]bool{}
		for i := range 40 {
			name := fmt.Sprint("new-", i)
			a, _ := serve(t, pools[0], ask(name), ok)
			b, _ := serve(t, pools[1], ask(name), ok)
			if a != b {
				t.Errorf("session %s: %s in one process, %s in the other", name, a, b)
			}
			used[a] = true
		}
		if len(used) != 4 {
			t.Errorf("40 sessions went to %v only", used)
		}

		// Another process has bound one of them elsewhere in Redis.
		was, _ := serve(t, pools[0], ask("new-0"), ok)
		elsewhere := "s0"
		if was == "s0" {
			elsewhere = "s1"
		}
		client.HSet(context.Background(), "authpool:session:{anthropic/a/new-0}", "subscription", elsewhere)
		h.away.Store(false)
		eventually(t, inTime, "the bindings are in Redis", func() bool {
			return len(client.Keys(context.Background(), "authpool:session:*").Val()) == 41
		})
		eventually(t, inTime, "the binding in Redis wins", func() bool {
			a, _ := serve(t, pools[0], ask("new-0"), ok)
			b, _ := serve(t, pools[1], ask("new-0"), ok)
			return a == elsewhere && b == elsewhere
		})
	})
}

func TestOrphanReservationEnds(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 1, pool.Options{}, sub("one", limits(pool.Limits{Sessions: 1})))
		// A process reserves a place and dies.
		orphan := store.New(client, client, &health{}, "authpool")
		place, err := orphan.Reserve(context.Background(), "one", "anthropic/a/orphan", 1, 500*time.Millisecond)
		if err != nil || !place.Granted || !place.Created {
			t.Fatalf("Reserve = %+v, %v", place, err)
		}
		u := unavailable(t, pools[0], ask("s"))
		if u.Reason != pool.ReasonSessions || u.Wait <= 0 || u.Wait > time.Second || u.FirstSubscription != "one" {
			t.Errorf("while the place is held: %+v", u)
		}
		eventually(t, inTime, "the place is free again", func() bool {
			l, err := pools[0].Acquire(context.Background(), ask("s"))
			if err != nil {
				return false
			}
			l.Verdict(ok)
			l.Done(usage.Tokens{})
			return true
		})
	})
}

func TestIdleSessionGivesItsPlaceAndKeepsItsPreference(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		cap1 := limits(pool.Limits{Sessions: 1})
		pools, _ := fleet(t, client, 1, pool.Options{IdleTimeout: 2500 * time.Millisecond}, sub("one", cap1), sub("two", cap1))
		p := pools[0]
		home, _ := serve(t, p, ask("first"), ok)
		eventually(t, inTime, "the place is taken", func() bool {
			return members(client, home)["anthropic/a/first"]
		})
		serve(t, p, ask("second"), ok)
		_ = unavailable(t, p, ask("third"))
		eventually(t, inTime, "the third session gets a place", func() bool {
			l, err := p.Acquire(context.Background(), ask("third", tried(others(home)...)))
			if err != nil {
				return false
			}
			l.Done(usage.Tokens{})
			return true
		})
	})
}

func TestKeysAreThoseOfTheContract(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 1, pool.Options{Wait: time.Second}, sub("one", limits(pool.Limits{Concurrent: 3})))
		serve(t, pools[0], ask("s", func(r *pool.Request) { r.Parent = "p" }), limited(time.Hour))
		eventually(t, inTime, "the cooldown is shared", func() bool {
			return client.Exists(context.Background(), "authpool:{one}:state").Val() == 1
		})
		for _, k := range client.Keys(context.Background(), "*").Val() {
			switch k {
			case "authpool:{one}:sessions", "authpool:{one}:state", "authpool:{one}:slots", "authpool:session:{anthropic/a/s}":
			default:
				t.Errorf("key %s is not in the contract", k)
			}
			if ttl := client.PTTL(context.Background(), k).Val(); ttl <= 0 {
				t.Errorf("key %s never expires", k)
			}
		}
		s := client.HGetAll(context.Background(), "authpool:session:{anthropic/a/s}").Val()
		if s["subscription"] != "one" || s["parent"] != "p" || len(s["since"]) != 13 || len(s["last"]) != 13 || len(s) != 4 {
			t.Errorf("the session's hash is %v", s)
		}
	})
}

// A session that is bound costs no Redis: its requests are decided from memory. What
// the keeper says meanwhile depends on the time alone.
func TestBoundSessionAsksRedisNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
		s := newSidecar(mini, pool.Options{}, sub("one", limits(pool.Limits{Sessions: 10})))
		defer s.close()
		counter := &commands{}
		s.client.AddHook(counter)
		serve(t, s.pool, ask("s"), ok)
		before := counter.n.Load()
		const requests = 2000
		for range requests {
			serve(t, s.pool, ask("s"), ok)
			pass(10 * time.Millisecond)
		}
		if n := counter.n.Load() - before; n > requests/50 {
			t.Errorf("%d commands for %d requests of a bound session", n, requests)
		}
	})
}

// commands counts what is sent to Redis.
type commands struct{ n atomic.Int64 }

func (c *commands) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

func (c *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.n.Add(int64(len(cmds)))
		return next(ctx, cmds)
	}
}

// A Redis that says nothing delays a new session by the binding wait, and a
// bound one not at all.
func TestSilentRedisDelaysOnlyNewSessions(t *testing.T) {
	client := redistest.Mini(t)
	p := startWith(pool.Options{}, store.New(client, client, &health{}, "authpool"), sub("one"))
	t.Cleanup(p.Close)
	serve(t, p, ask("known"), ok)
	client.AddHook(silence{})
	begin := time.Now()
	for range 500 {
		serve(t, p, ask("known"), ok)
	}
	if took := time.Since(begin); took > 20*time.Second { // each would wait 50 ms
		t.Errorf("500 requests of a bound session took %v", took)
	}
	begin = time.Now()
	serve(t, p, ask("new"), ok)
	if took := time.Since(begin); took < 40*time.Millisecond || took > 20*time.Second {
		t.Errorf("a new session waited %v, want about 50ms", took)
	}
}

// silence is a Redis that never answers.
type silence struct{}

func (silence) DialHook(next redis.DialHook) redis.DialHook { return next }

func (silence) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, _ redis.Cmder) error { <-ctx.Done(); return ctx.Err() }
}

func (silence) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, _ []redis.Cmder) error { <-ctx.Done(); return ctx.Err() }
}

// Redis stops and comes back empty: sessions go on where they were, limits met
// meanwhile are shared afterwards, and what Redis lost is written again.
func TestRedisStopsAndComesBackEmpty(t *testing.T) {
	server := redistest.NewServer(t)
	var pools []*pool.Pool
	for range 2 {
		db, err := redisdb.Open(context.Background(), redisdb.Options{
			Addresses: []string{strings.TrimPrefix(server.URL(), "redis://")}, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close(context.Background()) })
		p := startWith(pool.Options{IdleTimeout: 40 * time.Second}, store.New(db.Client(), db.Durable(), db, "authpool"), sub("one"), sub("two"))
		t.Cleanup(p.Close)
		pools = append(pools, p)
	}
	home, _ := serve(t, pools[0], ask("s"), ok)
	server.Stop()
	begin := time.Now()
	for i := range 50 {
		if id, source := serve(t, pools[0], ask("s"), ok); id != home || source != pool.SourceBound {
			t.Fatalf("without Redis: %s (%s), want %s (bound)", id, source, home)
		}
		serve(t, pools[1], ask(fmt.Sprint("new-", i)), ok)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("100 requests without Redis took %v", took)
	}
	serve(t, pools[0], ask("limited", tried(others("one")...)), limited(time.Hour))
	server.Start()
	client := server.Client()
	client.FlushAll(context.Background())
	eventually(t, inTime, "the limit is known to the other process", func() bool {
		return pools[1].Status()[0].State == pool.StateCooling
	})
	eventually(t, inTime, "the new sessions are bound in Redis", func() bool {
		return client.HGet(context.Background(), "authpool:session:{anthropic/a/new-7}", "subscription").Val() != ""
	})
}

// A session that was idle comes back: to its place if there is still one, else
// it moves.
func TestIdleSessionComesBackToALimitedSubscription(t *testing.T) {
	inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
		cap1, opts := limits(pool.Limits{Sessions: 1}), pool.Options{IdleTimeout: time.Minute}
		subs := []pool.Subscription{sub("one", cap1), sub("two", cap1, priority(1))}
		a, b := newSidecar(mini, opts, subs...), newSidecar(mini, opts, subs...)
		defer a.close()
		defer b.close()
		held := func() bool { return members(a.client, "one")["anthropic/a/s"] }
		serve(t, a.pool, ask("s"), ok)
		pass(50 * time.Second)
		if !held() {
			t.Error("its place has ended before the time-out")
		}
		pass(20 * time.Second)
		if id, source := serve(t, a.pool, ask("s"), ok); id != "one" || source != pool.SourceBound {
			t.Errorf("back: %s (%s), want one (bound)", id, source)
		}
		if !held() {
			t.Error("back, but without a place")
		}
		pass(70 * time.Second)
		if id, _ := serve(t, b.pool, ask("other"), ok); id != "one" {
			t.Errorf("the other process's session: %s, want one", id)
		}
		if id, source := serve(t, a.pool, ask("s"), ok); id != "two" || source != pool.SourceMoved {
			t.Errorf("back when the place is taken: %s (%s), want two (moved)", id, source)
		}
	})
}

// Three processes bind, move, and are limited at random. At every moment no
// subscription has more places taken than it allows, who is served where its
// session sticks holds a place there, and a session sticks to one subscription.
func TestFleetUnderRandomLoad(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const most, sessions, requests = 3, 14, 1500
		var subs []pool.Subscription
		for i := range 4 {
			subs = append(subs, sub(fmt.Sprint("s", i), limits(pool.Limits{Sessions: most, Concurrent: 6})))
		}
		pools, _ := fleet(t, client, 3, pool.Options{Wait: 3 * time.Second}, subs...)
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		var checked atomic.Int64
		enough := time.Now().Add(3 * time.Second) // unless the machine is slow
		var wg sync.WaitGroup
		for i := range 9 {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			wg.Go(func() {
				for n := checked.Load(); ctx.Err() == nil && n < requests && (n < requests/10 || time.Now().Before(enough)); n = checked.Load() {
					name := fmt.Sprint("x", random.IntN(sessions))
					lease, err := pools[i%len(pools)].Acquire(ctx, ask(name))
					if err != nil {
						continue // cooling, or full
					}
					id := lease.Subscription().ID
					if lease.Source() != pool.SourceElsewhere {
						held := client.ZScore(ctx, "authpool:{"+id+"}:sessions", "anthropic/a/"+name).Err() == nil
						bound := client.HGet(ctx, "authpool:session:{anthropic/a/"+name+"}", "subscription").Val()
						if bound == id && !held && ctx.Err() == nil {
							t.Errorf("session %s sticks to %s and was served there without a place", name, id)
						}
						checked.Add(1)
					}
					v := ok
					if random.IntN(100) == 0 {
						v = limited(2100 * time.Millisecond) // long enough to move
					}
					lease.Verdict(v)
					lease.Done(usage.Tokens{Input: 1})
					for _, s := range subs {
						if n := client.ZCard(ctx, "authpool:{"+s.ID+"}:sessions").Val(); n > most {
							t.Errorf("%d places are taken on %s, it allows %d", n, s.ID, most)
						}
					}
				}
			})
		}
		wg.Wait()
		if checked.Load() < requests/10 {
			t.Errorf("only %d requests were served where their session sticks", checked.Load())
		}
	})
}
