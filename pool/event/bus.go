package event

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Bus brings each event to all who have subscribed. Nobody who emits ever waits: what
// a subscriber has no room for is dropped for that one, and counted. The zero Bus is
// ready, and a nil one drops everything. It is safe for concurrent use.
type Bus struct {
	mu          sync.RWMutex
	subscribers []*subscriber
}

type subscriber struct {
	name   string
	events chan Event
}

// Subscribe returns the events from now on, of which room may wait to be received.
// name is the subscriber's in the metrics. stop ends the subscription and closes the
// channel, behind what waits there; it must be called once.
func (b *Bus) Subscribe(name string, room int) (events <-chan Event, stop func()) {
	s := &subscriber{name, make(chan Event, room)}
	dropped.WithLabelValues(name) // shows 0 from the start
	b.mu.Lock()
	b.subscribers = append(b.subscribers, s)
	b.mu.Unlock()
	return s.events, func() { b.remove(s) }
}

func (b *Bus) remove(s *subscriber) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, one := range b.subscribers {
		if one == s {
			b.subscribers = append(b.subscribers[:i:i], b.subscribers[i+1:]...)
			close(s.events)
			return
		}
	}
}

// Names and sentences are cut at these many bytes, because some come from agents.
const (
	nameMost = 256
	textMost = 1024
)

// clip cuts s, and leaves valid UTF-8.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "?")
}

// Emit tells all subscribers, without waiting for any. An event without a time
// happens now.
func (b *Bus) Emit(e Event) {
	if b == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Model, e.Agent, e.Session = clip(e.Model, nameMost), clip(e.Agent, nameMost), clip(e.Session, nameMost)
	e.Text = clip(e.Text, textMost)
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, s := range b.subscribers {
		select {
		case s.events <- e:
		default:
			dropped.WithLabelValues(s.name).Inc()
		}
	}
}

var dropped = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_events_dropped_total",
	Help: "Events that a subscriber (notifications, audit) had no room for.",
}, []string{"subscriber"})
