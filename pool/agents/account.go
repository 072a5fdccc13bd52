package agents

import (
	"fmt"
	"sync"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

// OverError says that an agent has used up a budget.
type OverError struct {
	Period usage.Period
	What   string // "requests", "tokens" or "cost"
	Until  time.Time
	Wait   time.Duration // Until counted from when the error was made
	// Busy says that the last requests of the budget are under way, and may come to
	// nothing: then Wait is short.
	Busy bool
}

// Error implements error with the sentence for the agent, without the "authpool: " in
// front.
func (e *OverError) Error() string {
	if e.Busy {
		return fmt.Sprintf("the last requests of this agent's budget for the %s are under way", e.Period)
	}
	return fmt.Sprintf("this agent has used up its budget of %s for the %s; the next one begins at %s",
		e.What, e.Period, e.Until.Format("2006-01-02 15:04 MST"))
}

// busyWait is when to ask again while the last requests are under way.
const busyWait = time.Second

// spending is an amount of all that a budget may limit.
type spending struct{ cost, tokens, requests int64 }

func (s spending) plus(o spending) spending {
	return spending{s.cost + o.cost, s.tokens + o.tokens, s.requests + o.requests}
}

func (s spending) minus(o spending) spending {
	return spending{s.cost - o.cost, s.tokens - o.tokens, s.requests - o.requests}
}

func spendingOf(c usage.Counts) spending {
	return spending{c.CostNanoUSD, c.Input + c.Output + c.CacheRead + c.CacheWrite5m + c.CacheWrite1h, c.Requests}
}

// sum is what was spent in one period: as the ledger last told, and what this process
// has counted since.
type sum struct {
	start, end time.Time
	told, own  spending
}

// account is what one agent has spent. It outlives changes of the agent's record, and
// is safe for concurrent use.
type account struct {
	mu   sync.Mutex
	sums [len(periods)]sum // in their order
	busy int64             // requests under way in this process
	last time.Time

	gate gate
}

// turn begins the periods whose former one is over.
func (a *account) turn(now time.Time) {
	for i := range a.sums {
		if s := &a.sums[i]; !now.Before(s.end) {
			*s = sum{}
			s.start, s.end = periods[i].Bounds(now, nil)
		}
	}
}

// count adds what this process has spent.
func (a *account) count(now time.Time, s spending) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn(now)
	for i := range a.sums {
		a.sums[i].own = a.sums[i].own.plus(s)
	}
}

// counted is what this process has counted and the ledger has not told of, by period,
// right before the ledger is asked.
func (a *account) counted(now time.Time) (own [len(periods)]spending) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn(now)
	for i := range a.sums {
		own[i] = a.sums[i].own
	}
	return own
}

// learn takes over what the ledger told of the period i that began at start. What was
// counted before it was asked is in it; what was counted since may be or not, and stays
// until the next reading: forgotten, it would be lost when Redis goes away before that.
func (a *account) learn(now time.Time, i int, start time.Time, told, before spending) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn(now)
	if s := &a.sums[i]; s.start.Equal(start) {
		s.told, s.own = told, s.own.minus(before)
	}
}

// begin counts a request in, unless one of the budgets has nothing left for it.
func (a *account) begin(now time.Time, budgets []Budget) *OverError {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn(now)
	var over *OverError
	for _, b := range budgets {
		s := &a.sums[indexOf(b.Period)]
		spent := s.told.plus(s.own)
		var what string
		switch {
		case b.Requests > 0 && spent.requests >= b.Requests:
			what = "requests"
		case b.Tokens > 0 && spent.tokens >= b.Tokens:
			what = "tokens"
		case b.CostNanoUSD > 0 && spent.cost >= b.CostNanoUSD:
			what = "cost"
		case b.Requests > 0 && spent.requests+a.busy >= b.Requests:
			if over == nil {
				over = &OverError{Period: b.Period, What: "requests", Until: now.Add(busyWait), Wait: busyWait, Busy: true}
			}
			continue
		default:
			continue
		}
		if over == nil || over.Until.Before(s.end) {
			over = &OverError{Period: b.Period, What: what, Until: s.end, Wait: s.end.Sub(now)}
		}
	}
	if over == nil {
		a.busy++
	}
	return over
}

func (a *account) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy--
}

// used notes that the agent was here.
func (a *account) used(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = now
}

// look tells what was spent in the period, when that ends, and when the agent was here
// last.
func (a *account) look(now time.Time, p usage.Period) (s spending, resets time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn(now)
	one := &a.sums[indexOf(p)]
	return one.told.plus(one.own), one.end
}

func (a *account) seen() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// indexOf is the place of a period in periods.
func indexOf(p usage.Period) int {
	for i, known := range periods {
		if known == p {
			return i
		}
	}
	panic("BUG: a budget of an agent for a " + string(p))
}
