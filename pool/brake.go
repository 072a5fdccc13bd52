package pool

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/ratelimit/usage"
)

// Brake is what one session or one agent may use within an hour; 0 is no limit.
// It stops what runs away, and is no account: each process counts for itself.
// Tokens and cost are known when an answer has ended, so answers under way may
// take them beyond the limit.
type Brake struct {
	Requests    int64
	Tokens      int64 // of all kinds, as usage.Tokens.Total adds them up
	CostNanoUSD int64
}

// BrakeError says that a session or an agent has used up what it may use within
// an hour.
type BrakeError struct {
	Who   string // "session" or "agent"
	What  string // "requests", "tokens" or "cost"
	Until time.Time
	Wait  time.Duration // Until counted from when the error was made
}

// Error implements error with the sentence for the agent, without the
// "authpool: " in front.
func (e *BrakeError) Error() string {
	return fmt.Sprintf("this %s has used up its limit of %s per hour; it may go on in %s", e.Who, e.What, roundWait(e.Wait))
}

const (
	// brakeSlot is the step in which the last hour moves on.
	brakeSlot  = 5 * time.Minute
	brakeSlots = int64(time.Hour / brakeSlot)
)

// hour is what was used within the last hour, slot by slot; the one under way is
// the last of them.
type hour struct {
	slots [brakeSlots]spending
	last  int64 // number of the latest slot, counted from the epoch
}

// turn drops the slots that have left the hour.
func (h *hour) turn(now time.Time) {
	latest := now.UnixNano() / int64(brakeSlot)
	for n := max(h.last+1, latest-brakeSlots+1); n <= latest; n++ {
		h.slots[n%brakeSlots] = spending{}
	}
	h.last = max(h.last, latest)
}

func (h *hour) add(now time.Time, s spending) {
	h.turn(now)
	slot := &h.slots[h.last%brakeSlots]
	*slot = slot.plus(s)
}

// over tells which limit is used up, "" when none is, and when that ends.
func (h *hour) over(now time.Time, b Brake) (what string, until time.Time) {
	h.turn(now)
	for _, part := range [...]struct {
		name  string
		limit int64
		of    func(spending) int64
	}{
		{"requests", b.Requests, func(s spending) int64 { return s.requests }},
		{"tokens", b.Tokens, func(s spending) int64 { return s.tokens }},
		{"cost", b.CostNanoUSD, func(s spending) int64 { return s.cost }},
	} {
		if part.limit <= 0 {
			continue
		}
		sum := int64(0)
		for _, s := range h.slots {
			sum += part.of(s)
		}
		if sum < part.limit {
			continue
		}
		// It ends when enough of the oldest slots have left.
		n := h.last - brakeSlots + 1
		for ; n < h.last; n++ {
			if sum -= part.of(h.slots[n%brakeSlots]); sum < part.limit {
				break
			}
		}
		if end := time.Unix(0, (n+brakeSlots)*int64(brakeSlot)); end.After(until) {
			what, until = part.name, end
		}
	}
	return what, until
}

// brakes are the hours of all who have a brake of one kind. It is safe for
// concurrent use, and without a limit refuses nobody.
type brakes struct {
	who   string
	limit atomic.Pointer[Brake]
	shown bool // counts without a limit too, for people
	most  int  // of hours

	mu    sync.Mutex
	hours map[sessionKey]*hour
	swept time.Time
}

// over tells what keeps key from one more request.
func (b *brakes) over(now time.Time, key sessionKey) *BrakeError {
	if *b.limit.Load() == (Brake{}) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.hours[key]
	if h == nil {
		return nil
	}
	what, until := h.over(now, *b.limit.Load())
	if what == "" {
		return nil
	}
	braked.WithLabelValues(b.who, what).Inc()
	return &BrakeError{Who: b.who, What: what, Until: until, Wait: until.Sub(now)}
}

// look tells what key has used within the last hour, and which limit is used up.
func (b *brakes) look(now time.Time, key sessionKey) (Spent, string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.hours[key]
	if h == nil {
		return Spent{}, ""
	}
	what, _ := h.over(now, *b.limit.Load())
	var sum spending
	for _, s := range h.slots {
		sum = sum.plus(s)
	}
	return Spent{Requests: sum.requests, Tokens: sum.tokens, CostNanoUSD: sum.cost}, what
}

// add counts what key has used. It keeps a copy of key.
func (b *brakes) add(now time.Time, key sessionKey, s spending) {
	if *b.limit.Load() == (Brake{}) && !b.shown {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.hours[key]
	if h == nil {
		b.makeRoom(now)
		h = &hour{}
		b.hours[key.clone()] = h
	}
	h.add(now, s)
}

// makeRoom forgets who has used nothing for an hour, and where that does not
// help anybody: who makes that many sessions is held by the brake of its agent.
func (b *brakes) makeRoom(now time.Time) {
	if now.Sub(b.swept) >= brakeSlot {
		b.swept = now
		for key, h := range b.hours {
			if h.last+brakeSlots <= now.UnixNano()/int64(brakeSlot) {
				delete(b.hours, key)
			}
		}
	}
	for key := range b.hours {
		if len(b.hours) < b.most {
			return
		}
		delete(b.hours, key)
	}
}

// Brake counts a request that is about to be made, which has to be paid for, or
// refuses it, and then counts nothing: its session or its agent has used up its
// Brake. session may be empty. The error is a *BrakeError.
func (p *Pool) Brake(provider, agent, session string) error {
	now := time.Now()
	one := sessionKey{provider, agent, session}
	all := sessionKey{agent: agent}
	refused := p.agentBrakes.over(now, all)
	if session != "" {
		if e := p.sessionBrakes.over(now, one); e != nil && (refused == nil || refused.Until.Before(e.Until)) {
			refused = e
		}
	}
	if refused != nil {
		return refused
	}
	p.brakeCount(now, one, spending{requests: 1})
	return nil
}

// brakeCount counts for a session, unless it has no name, and for its agent.
func (p *Pool) brakeCount(now time.Time, key sessionKey, s spending) {
	if key.session != "" {
		p.sessionBrakes.add(now, key, s)
	}
	p.agentBrakes.add(now, sessionKey{agent: key.agent}, s)
}

// brakeEvent counts what an answer has used; its request was counted before.
func (p *Pool) brakeEvent(now time.Time, e *usage.Event) {
	p.brakeCount(now, sessionKey{e.Provider, e.Agent, e.Session}, spending{cost: e.CostNanoUSD, tokens: e.Tokens.Total()})
}

var braked = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_brake_refusals_total",
	Help: "Requests that were refused because their session or agent had used up what it may use within an hour.",
}, []string{"who", "limit"})
