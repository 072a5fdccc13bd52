package pool_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

// crowded has six sessions on a, while b was switched off.
func crowded(t *testing.T, bindings pool.Bindings, opts pool.Options) *pool.Pool {
	t.Helper()
	p := pool.New(opts, []pool.Subscription{sub("a"), sub("b", off("not yet"))}, bindings)
	t.Cleanup(p.Close)
	for _, name := range []string{"s1", "s2", "s3", "s4", "s5", "s6"} {
		if id := servedBy(t, p, name); id != "a" {
			t.Fatalf("%s is on %s", name, id)
		}
	}
	p.Apply([]pool.Subscription{sub("a"), sub("b")})
	return p
}

func TestRebalanceMovesTheCold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := crowded(t, nil, pool.Options{CacheWarm: 5 * time.Minute})
		if plan := p.PlanRebalance(); len(plan) != 0 {
			t.Errorf("warm sessions are to move: %+v", plan)
		}
		time.Sleep(4 * time.Minute)
		servedBy(t, p, "s1") // stays warm
		time.Sleep(2 * time.Minute)
		plan := p.PlanRebalance()
		if len(plan) != 3 {
			t.Fatalf("plan %+v, want three of the six", plan)
		}
		done, wait, err := p.Rebalance(context.Background(), true)
		if err != nil || wait != 0 || len(done) != 3 {
			t.Fatalf("%+v, %v, %v", done, wait, err)
		}
		for i, one := range done {
			if one.Err != nil || one.PlannedMove != plan[i] || one.Session.Session == "s1" || one.Why != pool.WhyUneven {
				t.Errorf("%+v, planned %+v", one, plan[i])
			}
			if id := servedBy(t, p, one.Session.Session); id != "b" {
				t.Errorf("%s is served by %s", one.Session, id)
			}
		}
		if done, _, _ := p.Rebalance(context.Background(), true); len(done) != 0 {
			t.Errorf("once more: %+v", done)
		}
	})
}

func TestRebalanceKeepsTogetherWhatTheStrategyWantsSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := crowded(t, nil, pool.Options{Strategy: pool.StrategyPriority})
		time.Sleep(10 * time.Minute)
		if plan := p.PlanRebalance(); len(plan) != 0 {
			t.Errorf("%+v", plan)
		}
	})
}

func TestRebalanceKeepsSealedSessionsInTheirDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.Options{}, []pool.Subscription{sub("a"), sub("b", off("not yet"))}, nil)
		t.Cleanup(p.Close)
		for _, name := range []string{"s1", "s2", "s3", "s4"} {
			req := ask(name)
			req.Seals = true
			serve(t, p, req, ok)
		}
		p.Apply([]pool.Subscription{sub("a"), sub("b")})
		time.Sleep(10 * time.Minute)
		if plan := p.PlanRebalance(); len(plan) != 0 {
			t.Errorf("%+v", plan)
		}
	})
}

func TestRebalancePricesTheLostCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := crowded(t, nil, pool.Options{})
		for range 2 {
			l, err := p.Acquire(context.Background(), ask("s1"))
			if err != nil {
				t.Fatal(err)
			}
			l.Verdict(ok)
			l.Turn(usage.Tokens{CacheRead: 500}, true) // as on a WebSocket
			l.Done(usage.Tokens{CacheRead: 500})
			time.Sleep(time.Minute)
		}
		p.Apply([]pool.Subscription{sub("a", off("gone")), sub("b")})
		lost := func() (sum int64) {
			plan := p.PlanRebalance()
			if len(plan) != 6 || plan[5].CacheTokens > 0 && plan[5].Session.Session != "s1" {
				t.Fatalf("plan %+v, want all six, the dearest last", plan)
			}
			return plan[5].CacheTokens
		}
		if n := lost(); n != 2000 {
			t.Errorf("%d tokens are lost, want 2000", n)
		}
		time.Sleep(6 * time.Minute)
		if n := lost(); n != 0 {
			t.Errorf("%d tokens are lost after the cache has ended", n)
		}
	})
}

// broken cannot reserve a place for one of the sessions.
type broken struct {
	*store.Store
	session string
}

func (b broken) ReserveMoved(ctx context.Context, sub, session string, most int, hold time.Duration, fence int64) (store.Place, error) {
	if session == b.session {
		return store.Place{}, errors.New("broken")
	}
	return b.Store.ReserveMoved(ctx, sub, session, most, hold, fence)
}

func TestRebalanceInAFleet(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		s := store.New(client, client, &health{}, "authpool")
		opts := pool.Options{CacheWarm: time.Nanosecond, Whole: true}
		p := crowded(t, broken{s, "anthropic/a/s1"}, opts)
		ctx := context.Background()
		other := store.Balancing{Process: "other", Hold: time.Minute, Moves: 1, Most: 20, Window: time.Minute}
		lease, err := s.Balance(ctx, other)
		if err != nil {
			t.Fatal(err)
		}
		if done, wait, err := p.Rebalance(ctx, false); len(done) != 0 || wait <= 0 || err != nil {
			t.Errorf("while another process does it: %+v, %v, %v", done, wait, err)
		}
		counted := func(result string) float64 {
			return metric(t, "authpool_rebalance_moves_total", "result", result)
		}
		moved, failed := counted("moved"), counted("failed")
		done, _, err := p.Rebalance(ctx, true)
		if err != nil || len(done) != 3 {
			t.Fatalf("%+v, %v", done, err)
		}
		if m, f := counted("moved")-moved, counted("failed")-failed; m != 2 || f != 1 {
			t.Errorf("%v moves and %v failures are counted, want 2 and 1", m, f)
		}
		// One fails, and the rest goes on.
		for _, one := range done {
			name, want := one.Session.Session, "b"
			if name == "s1" {
				want = "a"
			}
			if (one.Err != nil) != (name == "s1") {
				t.Errorf("%s: %v", name, one.Err)
			}
			if id := servedBy(t, p, name); id != want {
				t.Errorf("%s is served by %s, want %s", name, id, want)
			}
		}
		// It does not stand in the others' way the next time.
		if again, _, err := p.Rebalance(ctx, true); err != nil || len(again) != 1 || again[0].Err != nil {
			t.Errorf("the next time: %+v, %v", again, err)
		}
		// Who had the lease before is shut out, wherever it moves one to.
		for _, one := range done {
			if one.Err != nil {
				continue
			}
			if _, err := p.Move(ctx, pool.Move{Session: one.Session, To: "a", Fence: lease.Fence}); !errors.Is(err, pool.ErrFenced) {
				t.Errorf("a move by the former one: %v", err)
			}
		}
	})
}

// metric sums a counter's values that have the label.
func metric(t *testing.T, name, label, value string) (sum float64) {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() == value {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}
