package agents

import (
	"errors"
	"testing"
	"time"
)

func TestRates(t *testing.T) {
	now := time.Unix(1e9, 0)
	e := &Entry{Agent: Agent{Rates: Rates{RequestsPerMinute: 12}}, account: new(account)}
	enter := func(at time.Duration, wait time.Duration) {
		t.Helper()
		err := e.Enter(now.Add(at))
		busy, ok := errors.AsType[*BusyError](err)
		switch {
		case err == nil:
			e.Leave()
			if wait != 0 {
				t.Errorf("at %v it was let in", at)
			}
		case !ok || busy.Wait != wait:
			t.Errorf("at %v: %v, %v", at, err, busy)
		}
	}
	enter(0, 0)
	enter(0, 0)
	enter(0, 5*time.Second)
	enter(time.Second, 4*time.Second) // what is refused costs nothing
	enter(5*time.Second, 0)
	enter(5*time.Second, 5*time.Second)
	enter(time.Minute, 0)
	enter(time.Minute, 0)
	enter(time.Minute, 5*time.Second)

	// Another limit, and others beside it.
	e.Rates = Rates{RequestsPerMinute: 6000, Concurrent: 2, Connections: 1}
	enter(2*time.Minute, 0)
	for range 2 {
		if e.Enter(now.Add(3*time.Minute)) != nil {
			t.Fatal("two at once are refused")
		}
	}
	enter(3*time.Minute, rateWait)
	e.Leave()
	enter(3*time.Minute, 0)
	if e.Connect() != nil || e.Connect() == nil {
		t.Error("one connection and no other is to be had")
	}
	e.Disconnect()
	if e.Connect() != nil {
		t.Error("a connection that has ended counts")
	}
	e.Rates = Rates{}
	for range 100 {
		if e.Enter(now) != nil || e.Connect() != nil {
			t.Fatal("who has no limit is limited")
		}
	}
}
