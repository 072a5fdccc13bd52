package pool_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/event"
)

// Two processes, each with sessions of its own on a subscription that is switched off:
// they take turns, never move more than 20 a minute together, go on when one of them
// dies, and come to rest.
func TestRebalanceByItselfInAFleet(t *testing.T) {
	const each = 40
	var bus event.Bus
	events, stop := bus.Subscribe("test", 1000)
	defer stop()
	opts := pool.Options{IdleTimeout: 2 * time.Hour, Events: &bus}
	together(t, 2, opts, func(t *testing.T, fleet []*sidecar) {
		for i, s := range fleet {
			for n := range each {
				serve(t, s.pool, ask(fmt.Sprintf("s%d-%d", i, n)), ok)
				pass(time.Second) // what is bound is written
			}
		}
		for _, s := range fleet {
			s.pool.Apply([]pool.Subscription{sub("a", off("gone")), sub("b", priority(1))})
		}
		moved := make(map[string]int)
		total := 0
		hear := func() int {
			for {
				select {
				case e := <-events:
					if e.Kind == event.SessionMoved {
						moved[e.Session]++
						total++
					}
				default:
					return total
				}
			}
		}
		var history []int
		for now := range 15 * 6 {
			pass(10 * time.Second)
			history = append(history, hear())
			if now >= 5 && history[now]-history[now-5] > 20 {
				t.Errorf("%d sessions were moved within 50 s: %v", history[now]-history[now-5], history)
			}
			if now == 12 {
				fleet[0].pool.Close() // it dies
			}
		}
		for session, n := range moved {
			if n > 1 {
				t.Errorf("%s was moved %d times", session, n)
			}
		}
		left := 0
		for n := range each {
			if moved[fmt.Sprintf("s1-%d", n)] == 0 {
				left++
			}
		}
		if left > 0 {
			t.Errorf("%d sessions of the process that lives were left: %v", left, history)
		}
	}, sub("a"), sub("b", priority(1)))
}
