//go:build !race

package explain

import (
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
)

// A request that is noted and remembered allocates nothing.
func TestAllocations(t *testing.T) {
	var (
		g Ring
		s Story
	)
	wait := pool.Wait{For: time.Second, Until: time.Unix(1, 0)}
	candidates := []pool.Candidate{{Subscription: "a", Obstacle: "cooling", Until: time.Unix(1, 0)}, {Subscription: "b"}}
	req := &pool.Request{Trace: &pool.Trace{Candidates: candidates, Wait: wait}}
	turn := func() {
		r := Request{ID: id(1), Model: "m"}
		s.Reset()
		s.Choice(req, nil, nil)
		s.Attempt(0, time.Second, 429, ratelimit.Verdict{Signal: ratelimit.Limited, Wait: time.Second}, nil)
		s.Verdict(ratelimit.Verdict{Row: "ok"})
		g.Add(&r, &s)
	}
	for range 2 * Most {
		turn()
	}
	least := testing.AllocsPerRun(100, func() { _ = id(1) }) // what the test itself does
	if got := testing.AllocsPerRun(1000, turn); got > least {
		t.Errorf("%.1f allocations, of which %.1f are the test's", got, least)
	}
}
