package notify

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"

	"github.com/authpool/authpool/pool/event"
)

const (
	// quietTime is how long the same is not told again. What happened meanwhile is
	// told once at its end, as it was last.
	quietTime = 5 * time.Minute
	// kindEvery and kindBurst bound what is told of one kind and subscription,
	// whichever model it is about.
	kindEvery = time.Minute
	kindBurst = 10
	// subjectsMost bounds what is remembered; models come from agents.
	subjectsMost = 4096
)

// told is an event that is to be told, and how often the same happened since it was
// told before.
type told struct {
	Event    event.Event
	Repeated int
}

// subject is what makes two events the same.
type subject struct {
	kind                                  event.Kind
	provider, subscription, model, window string
}

type kindOf struct {
	kind                   event.Kind
	provider, subscription string
}

// quiet decides what is told now, later, or not at all. It is not safe for
// concurrent use.
type quiet struct {
	subjects map[subject]*said
	kinds    map[kindOf]*rate.Limiter // as many as kinds times subscriptions
}

// said is when a subject was told last, and what happened since.
type said struct {
	at   time.Time
	held *told
}

func newQuiet() *quiet {
	return &quiet{subjects: map[subject]*said{}, kinds: map[kindOf]*rate.Limiter{}}
}

// admit tells whether e is to be told now; else it is held, or dropped where there is
// no room.
func (q *quiet) admit(now time.Time, e event.Event) bool {
	key := subject{e.Kind, e.Provider, e.Subscription, e.Model, e.Window}
	s := q.subjects[key]
	if s == nil {
		if len(q.subjects) >= subjectsMost {
			unheard.Inc()
			return false
		}
		s = &said{at: now}
		q.subjects[key] = s
		if q.limiter(e).AllowN(now, 1) {
			return true
		}
	} else if s.held == nil && now.Sub(s.at) >= quietTime && q.limiter(e).AllowN(now, 1) {
		s.at = now
		return true
	}
	if s.held == nil {
		s.held = &told{Event: e}
		return false
	}
	merged.Inc()
	s.held.Event = e
	s.held.Repeated++
	return false
}

func (q *quiet) limiter(e event.Event) *rate.Limiter {
	key := kindOf{e.Kind, e.Provider, e.Subscription}
	l := q.kinds[key]
	if l == nil {
		l = rate.NewLimiter(rate.Every(kindEvery), kindBurst)
		q.kinds[key] = l
	}
	return l
}

// next is when due has something to do.
func (q *quiet) next() (at time.Time, ok bool) {
	for _, s := range q.subjects {
		if end := s.at.Add(quietTime); !ok || end.Before(at) {
			at, ok = end, true
		}
	}
	return at, ok
}

// due returns what was held for long enough, in the order in which it happened, and
// forgets what has not happened again.
func (q *quiet) due(now time.Time) []told {
	var out []told
	for _, key := range q.inOrder() {
		s := q.subjects[key]
		switch {
		case now.Sub(s.at) < quietTime:
		case s.held == nil:
			delete(q.subjects, key)
		case q.limiter(s.held.Event).AllowN(now, 1):
			out = append(out, *s.held)
			s.at, s.held = now, nil
		default:
			s.at = now // its kind was told too often: later
		}
	}
	return out
}

// rest returns all that is held.
func (q *quiet) rest() []told {
	var out []told
	for _, key := range q.inOrder() {
		if s := q.subjects[key]; s.held != nil {
			out = append(out, *s.held)
			s.held = nil
		}
	}
	return out
}

// inOrder are the subjects, what is held in the order in which it happened.
func (q *quiet) inOrder() []subject {
	keys := make([]subject, 0, len(q.subjects))
	for key := range q.subjects {
		keys = append(keys, key)
	}
	when := func(key subject) time.Time {
		if s := q.subjects[key]; s.held != nil {
			return s.held.Event.Time
		}
		return time.Time{}
	}
	slices.SortFunc(keys, func(a, b subject) int { return when(a).Compare(when(b)) })
	return keys
}

var (
	merged = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_notifications_merged_total",
		Help: "Events that were not told one by one, because the same was told within the last minutes.",
	})
	unheard = promauto.NewCounter(prometheus.CounterOpts{
		Name: "authpool_notifications_unheard_total",
		Help: "Events that were not told, because too many different ones happened within minutes.",
	})
)
