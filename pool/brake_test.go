package pool_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit/usage"
)

// use makes one request and counts its answer.
func use(p *pool.Pool, agent, session string, cost int64, t usage.Tokens) error {
	if err := p.Brake("anthropic", agent, session); err != nil {
		return err
	}
	p.Count(&usage.Event{Provider: "anthropic", Agent: agent, Session: session, Subscription: "one", CostNanoUSD: cost, Tokens: t})
	return nil
}

func TestBrakeStopsWhatRunsAway(t *testing.T) {
	f := func(name string, opts pool.Options, who, what string) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(opts, sub("one"))
				defer p.Close()
				try := func(agent, session string) *pool.BrakeError {
					t.Helper()
					err := use(p, agent, session, 20, usage.Tokens{Input: 1, Output: 1, CacheRead: 8})
					var e *pool.BrakeError
					if err != nil && !errors.As(err, &e) {
						t.Fatal(err)
					}
					return e
				}
				pass(2 * time.Minute)
				for i := range 3 {
					if e := try("a", "s"); e != nil {
						t.Fatalf("request %d: %v", i, e)
					}
				}
				e := try("a", "s")
				if e == nil || e.Who != who || e.What != what || e.Wait != 58*time.Minute || !e.Until.Equal(time.Now().Add(e.Wait)) {
					t.Fatalf("the fourth request: %+v", e)
				}
				if e := try("a", "other"); (e != nil) != (who == "agent") {
					t.Errorf("another session of the agent: %v", e)
				}
				if e := try("b", "s"); e != nil {
					t.Errorf("another agent: %v", e)
				}
				pass(e.Wait - time.Millisecond)
				if e := try("a", "s"); e == nil {
					t.Error("it goes on too early")
				}
				pass(time.Millisecond)
				if e := try("a", "s"); e != nil {
					t.Errorf("an hour later: %v", e)
				}
			})
		})
	}
	f("requests of a session", pool.Options{SessionBrake: pool.Brake{Requests: 3}}, "session", "requests")
	f("tokens of a session", pool.Options{SessionBrake: pool.Brake{Tokens: 21}}, "session", "tokens")
	f("cost of a session", pool.Options{SessionBrake: pool.Brake{CostNanoUSD: 60, Requests: 100}}, "session", "cost")
	f("requests of an agent", pool.Options{AgentBrake: pool.Brake{Requests: 3}, SessionBrake: pool.Brake{Requests: 100}}, "agent", "requests")
	f("tokens of an agent", pool.Options{AgentBrake: pool.Brake{Tokens: 30}}, "agent", "tokens")
}

// TestBrakeKeepsTheHour: whoever goes on whenever he is let never makes more than
// the limit in an hour, less the step in which it moves on, and always may go on
// when he was told.
func TestBrakeKeepsTheHour(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limit := rapid.Int64Range(1, 10).Draw(rt, "limit")
		steps := rapid.SliceOfN(rapid.IntRange(0, 40), 1, 60).Draw(rt, "minutes before each request")
		synctest.Test(t, func(t *testing.T) {
			p := start(pool.Options{SessionBrake: pool.Brake{Requests: limit}}, sub("one"))
			defer p.Close()
			var made []time.Time
			for _, minutes := range steps {
				pass(time.Duration(minutes) * time.Minute)
				err := use(p, "a", "s", 0, usage.Tokens{})
				if e, over := errors.AsType[*pool.BrakeError](err); over {
					if e.Wait <= 0 || e.Wait > time.Hour {
						rt.Fatalf("refused for %v", e.Wait)
					}
					pass(e.Wait)
					err = use(p, "a", "s", 0, usage.Tokens{})
				}
				if err != nil {
					rt.Fatalf("refused again when the time had come: %v", err)
				}
				made = append(made, time.Now())
				if n := len(made) - int(limit) - 1; n >= 0 {
					if within := made[len(made)-1].Sub(made[n]); within < 55*time.Minute {
						rt.Fatalf("%d requests within %v", limit+1, within)
					}
				}
			}
		})
	})
}

// TestBrakeIsBounded: sessions without end take no memory without end, and their
// agent's brake holds.
func TestBrakeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Sessions: 10, SessionBrake: pool.Brake{Requests: 1}, AgentBrake: pool.Brake{Requests: 500}}, sub("one"))
		defer p.Close()
		for i := range 500 {
			if err := p.Brake("anthropic", "a", fmt.Sprint("s", i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Brake("anthropic", "a", "new"); err == nil {
			t.Error("the agent's 501st request was let through")
		}
	})
}
