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

// TestForetoldLimitsRefuseNobody: what a provider's headers say is left keeps a
// request waiting, but no agent is told of a limit that the provider has not met:
// one request at a time finds out.
func TestForetoldLimitsRefuseNobody(t *testing.T) {
	for _, wait := range []time.Duration{0, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			p := start(pool.Options{Wait: wait}, sub("one"))
			defer p.Close()
			// All is used up for half a minute, says an answer.
			empty := ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{
				{Name: "requests", Kind: "bucket", Utilization: 1, Size: 10, Left: 0, Seen: time.Now(), Reset: time.Now().Add(30 * time.Second)},
			}}
			serve(t, p, ask("s"), empty)
			begin := time.Now()
			l, err := p.Acquire(context.Background(), ask("s"))
			if err != nil {
				t.Fatalf("after %s: %v", time.Since(begin), err)
			}
			if took := time.Since(begin); wait == 0 && took != 0 || took > 4*time.Second {
				t.Errorf("with a wait of %s it took %s", wait, took) // one comes every three seconds
			}
			if wait > 0 {
				l.Verdict(ok)
				l.Done(usage.Tokens{})
				return
			}
			// One has dared, and others would only be refused with it.
			if u := unavailable(t, p, ask("other")); u.Reason != pool.ReasonRate || u.Wait <= 0 || u.Wait > 30*time.Second {
				t.Errorf("%+v", u)
			}
			l.Verdict(ok)
			l.Done(usage.Tokens{})
			serve(t, p, ask("other"), ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeModel, Wait: 20 * time.Second})
			if u := unavailable(t, p, ask("other")); u.Reason != string(ratelimit.ReasonThrottled) {
				t.Errorf("it was refused, and then: %+v", u)
			}
		})
	}
}
