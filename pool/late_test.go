package pool_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// TestLimitBehindContent: a limit that an answer tells at its end counts as one
// that it begins with, but once.
func TestLimitBehindContent(t *testing.T) {
	overloaded := ratelimit.Verdict{Signal: ratelimit.Overloaded, Reason: ratelimit.ReasonCapacity, Scope: ratelimit.ScopeProviderModel, Wait: -1}
	for _, tt := range []struct {
		name   string
		settle func(l *pool.Lease)
		state  pool.State
	}{
		{"after content", func(l *pool.Lease) { l.Verdict(ok); l.Late(limited(time.Minute)); l.Done(usage.Tokens{}) }, pool.StateCooling},
		{"an overload", func(l *pool.Lease) { l.Verdict(ok); l.Late(overloaded); l.Done(usage.Tokens{}) }, pool.StateReady},
		{"a failure", func(l *pool.Lease) { l.Verdict(ok); l.Late(failed()); l.Done(usage.Tokens{}) }, pool.StateReady},
		{"after the end", func(l *pool.Lease) { l.Verdict(ok); l.Done(usage.Tokens{}); l.Late(limited(time.Minute)) }, pool.StateReady},
		{"without a verdict", func(l *pool.Lease) { l.Late(limited(time.Minute)); l.Done(usage.Tokens{}) }, pool.StateReady},
		{"after another verdict", func(l *pool.Lease) { l.Verdict(overloaded); l.Late(limited(time.Minute)); l.Done(usage.Tokens{}) }, pool.StateReady},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(pool.Options{}, sub("one"))
				defer p.Close()
				l, err := p.Acquire(context.Background(), ask("s"))
				if err != nil {
					t.Fatal(err)
				}
				tt.settle(l)
				if s := p.Status()[0]; s.State != tt.state || s.InFlight != 0 {
					t.Errorf("the subscription is %+v", s)
				}
				pass(time.Hour)
				serve(t, p, ask("s"), ok)
			})
		})
	}
}
