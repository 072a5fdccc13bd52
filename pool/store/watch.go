package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Event is a hint that something changed. All fields empty: anything may have,
// because the connection is new.
type Event struct {
	// State is the subscription whose cooldowns changed.
	State string
	// Session has moved to Subscription.
	Session, Subscription string
	// Agents says that the records of agents changed, Managed that those of managed
	// subscriptions did.
	Agents, Managed bool
}

// Hear has f called for every event that Watch gets, until stop. f must not block.
func (s *Store) Hear(f func(Event)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard++
	id := s.heard
	s.hearers[id] = f
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.hearers, id)
	}
}

// tell tells those who hear.
func (s *Store) tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.hearers {
		f(e)
	}
}

const (
	// eventBuffer holds events while the receiver is busy; beyond it go-redis
	// drops them, which the receiver's slow poll makes good.
	eventBuffer = 1024
	// eventAlive is how often a silent connection is asked whether it lives.
	eventAlive = 3 * time.Second
)

// Watch calls f for every event until ctx ends, one at a time. Events can be
// lost while the connection is down; a new connection begins with an empty
// event.
func (s *Store) Watch(ctx context.Context, f func(Event)) {
	sub := s.client.Subscribe(ctx, s.channel())
	defer func() { _ = sub.Close() }() // nothing is to be saved of a subscription
	messages := sub.ChannelWithSubscriptions(
		redis.WithChannelSize(eventBuffer), redis.WithChannelHealthCheckInterval(eventAlive))
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-messages:
			if !ok {
				return
			}
			switch m := m.(type) {
			case *redis.Subscription:
				s.tell(Event{})
				f(Event{})
			case *redis.Message:
				e := parseEvent(m.Payload)
				s.tell(e)
				f(e)
			}
		}
	}
}

// Watchers is how many processes watch now, this one too.
func (s *Store) Watchers(ctx context.Context) (int, error) {
	var node redis.Cmdable = s.client
	if cluster, ok := s.client.(*redis.ClusterClient); ok { // all of them are on one node
		one, err := cluster.MasterForKey(ctx, s.channel())
		if err != nil {
			return 0, fmt.Errorf("cannot count the processes: %w", err)
		}
		node = one
	}
	counts, err := node.PubSubNumSub(ctx, s.channel()).Result()
	if err != nil {
		return 0, fmt.Errorf("cannot count the processes: %w", err)
	}
	return int(counts[s.channel()]), nil
}

// parseEvent reads what the scripts publish. What it does not understand, of a
// newer version perhaps, means that anything may have changed.
func parseEvent(payload string) Event {
	kind, rest, _ := strings.Cut(payload, " ")
	switch kind {
	case "state":
		return Event{State: rest}
	case kindAgents:
		return Event{Agents: true}
	case kindManaged:
		return Event{Managed: true}
	case "session":
		if sub, session, ok := strings.Cut(rest, " "); ok {
			return Event{Session: session, Subscription: sub}
		}
	}
	return Event{}
}
