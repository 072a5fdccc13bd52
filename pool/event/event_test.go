package event_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/authpool/authpool/pool/event"
)

func TestGlobs(t *testing.T) {
	for _, c := range []struct {
		kind, glob string
		want       bool
	}{
		{"budget.80", "budget.80", true},
		{"budget.80", "budget.8", false},
		{"budget.80", "budget.*", true},
		{"budget.80", "*", true},
		{"budget.80", "*.80", true},
		{"budget.80", "b*t.*0", true},
		{"budget.80", "window.*", false},
		{"budget.80", "", false},
		{"budget.80", "budget.80*", true},
		{"budget.80", "**", true},
	} {
		if got := event.Kind(c.kind).Matches(c.glob); got != c.want {
			t.Errorf("%s matches %q: %t", c.kind, c.glob, got)
		}
	}
}

// TestKindsAreAll holds the list of kinds equal to the constants.
func TestKindsAreAll(t *testing.T) {
	source, err := os.ReadFile("event.go")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, k := range event.Kinds() {
		listed[string(k)] = true
	}
	constants := regexp.MustCompile(`Kind\s+= "([a-z0-9.]+)"`).FindAllSubmatch(source, -1)
	for _, c := range constants {
		if !listed[string(c[1])] {
			t.Errorf("Kinds lacks %s", c[1])
		}
	}
	if len(constants) != len(listed) || len(listed) < 20 {
		t.Errorf("%d constants, %d kinds", len(constants), len(listed))
	}
}

func TestBusNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bus event.Bus
		slow, stopSlow := bus.Subscribe("slow", 1)
		quick, stopQuick := bus.Subscribe("quick", 3)
		began := time.Now()
		for _, k := range []event.Kind{event.RedisLost, event.RedisBack, event.JournalFull} {
			bus.Emit(event.Event{Kind: k})
		}
		stopSlow()
		bus.Emit(event.Event{Kind: event.UsageWaiting}) // quick is full, slow has gone
		stopQuick()
		if all := kindsOf(slow); len(all) != 1 || all[0] != event.RedisLost {
			t.Errorf("the slow one got %v", all)
		}
		if all := kindsOf(quick); len(all) != 3 || all[2] != event.JournalFull {
			t.Errorf("the quick one got %v", all)
		}
		bus.Emit(event.Event{Kind: event.RedisBack}) // nobody is left
		if !time.Now().Equal(began) {
			t.Error("somebody waited")
		}
		var none *event.Bus
		none.Emit(event.Event{Kind: event.RedisBack})
	})
}

func TestEventsHaveATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bus event.Bus
		events, stop := bus.Subscribe("one", 2)
		defer stop()
		then := time.Now().Add(-time.Hour)
		bus.Emit(event.Event{Kind: event.RedisLost})
		bus.Emit(event.Event{Kind: event.RedisLost, Time: then})
		if e := <-events; !e.Time.Equal(time.Now()) {
			t.Errorf("an event happens at %v", e.Time)
		}
		if e := <-events; !e.Time.Equal(then) {
			t.Errorf("a dated event happened at %v", e.Time)
		}
	})
}

// Names come from agents, who may send anything.
func TestEventsAreCut(t *testing.T) {
	var bus event.Bus
	events, stop := bus.Subscribe("one", 1)
	defer stop()
	long := strings.Repeat("x", 255) + strings.Repeat("é", 5000)
	bus.Emit(event.Event{Kind: event.PoolExhausted, Model: long, Agent: long, Session: long, Text: long})
	e := <-events
	for name, text := range map[string]string{"model": e.Model, "agent": e.Agent, "session": e.Session, "text": e.Text} {
		if len(text) > 1100 || len(text) < 200 || !utf8.ValidString(text) || name != "text" && len(text) > 300 {
			t.Errorf("the %s has %d bytes, valid %t", name, len(text), utf8.ValidString(text))
		}
	}
}

func kindsOf(events <-chan event.Event) (all []event.Kind) {
	for e := range events {
		all = append(all, e.Kind)
	}
	return all
}
