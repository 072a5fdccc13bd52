package pool

import (
	"testing"
	"time"
)

// All of a fleet together read Redis at a bounded rate; a small one reads as often as
// it likes.
func TestLargeFleetsPollLess(t *testing.T) {
	for _, test := range []struct {
		processes, subscriptions int
		want                     time.Duration
	}{{0, 500, 30 * time.Second}, {4, 10, 30 * time.Second}, {100, 300, 30 * time.Second}, {1000, 300, 5 * time.Minute}, {10_000, 5000, 10 * time.Minute}} {
		p := &Pool{}
		p.view.Store(&view{members: make([]*member, test.subscriptions)})
		k := &keeper{pool: p, processes: test.processes}
		if got := k.among(30 * time.Second); got != test.want {
			t.Errorf("%d processes, %d subscriptions: every %v, want %v", test.processes, test.subscriptions, got, test.want)
		}
	}
}
