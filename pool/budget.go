package pool

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/ratelimit/usage"
)

const (
	// budgetEvery is how old what other processes have spent may be.
	budgetEvery = time.Second
	// budgetTimeout bounds one reading of it.
	budgetTimeout = 2 * time.Second
	// drainFrom is the spent part of a budget from which on the rest of it is kept
	// for the sessions that are there already.
	drainFrom = 0.8
)

// Budget is what a subscription may use within one period, over all processes;
// a limit of 0 is none. What is used is known when an answer has ended, so
// answers under way may take the cost and the tokens beyond the limit; the
// requests under way in this process are counted before they end.
type Budget struct {
	Period      usage.Period
	CostNanoUSD int64
	Tokens      int64 // of all kinds, as usage.Tokens.Total adds them up
	Requests    int64
}

// Ledger tells what was counted of subscriptions, by all processes. It is asked
// off the request path.
type Ledger interface {
	// InPeriods returns what was counted in the periods that hold now, in the
	// order of periods. All that Pool.Count was told before the call has to be
	// in it.
	InPeriods(ctx context.Context, now time.Time, periods []usage.PeriodOf) ([]usage.PeriodCounts, error)
}

// spending is an amount of all that a budget may limit.
type spending struct{ cost, tokens, requests int64 }

func (s spending) plus(o spending) spending {
	return spending{s.cost + o.cost, s.tokens + o.tokens, s.requests + o.requests}
}

func (s spending) minus(o spending) spending {
	return spending{s.cost - o.cost, s.tokens - o.tokens, s.requests - o.requests}
}

// account is one budget and what is spent of it: as the ledger last told, and
// what this process has counted since.
type account struct {
	limit      Budget
	start, end time.Time // of the period; zero: a block that has not begun
	told, own  spending
	level      int // the highest of levels that was made known in this period
	burn       burn
}

// turn begins the next period when the last one is over.
func (a *account) turn(now time.Time) {
	if now.Before(a.end) || a.end.IsZero() && a.limit.Period == usage.PeriodBlock {
		return
	}
	a.start, a.end = a.limit.Period.Bounds(now, nil)
	a.told, a.own, a.level, a.burn = spending{}, spending{}, 0, burn{}
}

// spent returns the spent part, above 1 when it is overspent. busy requests are
// under way.
func (a *account) spent(busy int) float64 {
	s, most := a.told.plus(a.own), 0.0
	for _, part := range [...]struct{ spent, limit int64 }{
		{s.cost, a.limit.CostNanoUSD}, {s.tokens, a.limit.Tokens}, {s.requests + int64(busy), a.limit.Requests},
	} {
		if part.limit > 0 {
			most = max(most, float64(part.spent)/float64(part.limit))
		}
	}
	return most
}

// budgets are the accounts of one subscription; all of them must be kept. It is
// safe for concurrent use. Without accounts it allows everything.
type budgets struct {
	mu       sync.Mutex
	accounts []account
}

func newBudgets(limits []Budget) *budgets {
	b := &budgets{accounts: make([]account, len(limits))}
	for i, limit := range limits {
		b.accounts[i].limit = limit
	}
	return b
}

// inherit has b, which nobody uses yet, go on with what is spent in the periods that both
// have: while Redis is away nobody else knows.
func (b *budgets) inherit(from *budgets) {
	from.mu.Lock()
	defer from.mu.Unlock()
	for i := range b.accounts {
		for j := range from.accounts {
			if a, was := &b.accounts[i], &from.accounts[j]; a.limit.Period == was.limit.Period {
				a.start, a.end, a.told, a.own = was.start, was.end, was.told, was.own
			}
		}
	}
}

// count adds what this process has spent. A block that has not begun begins with
// it; should another process know better, the ledger will tell.
func (b *budgets) count(now time.Time, s spending) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.accounts {
		a := &b.accounts[i]
		a.turn(now)
		if a.end.IsZero() {
			a.start = now.UTC().Truncate(time.Hour)
			a.end = a.start.Add(usage.BlockLength)
		}
		a.own = a.own.plus(s)
	}
}

// counted is what this process has counted of account i, and the ledger has not told of,
// right before that is asked.
func (b *budgets) counted(now time.Time, i int) counted {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := &b.accounts[i]
	a.turn(now)
	return counted{a.start, a.own}
}

// counted is what a process has counted of a period.
type counted struct {
	start time.Time
	own   spending
}

// learn takes over what the ledger told of account i. What was counted before it was
// asked is in it; what was counted since may be or not, and stays until the next
// reading: forgotten, it would be lost when Redis goes away before that.
func (b *budgets) learn(now time.Time, i int, c usage.PeriodCounts, before counted) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := &b.accounts[i]
	a.turn(now)
	if a.start.Equal(before.start) { // else what was counted before went with its period
		a.own = a.own.minus(before.own)
	}
	if !c.Start.Equal(a.start) {
		if a.limit.Period != usage.PeriodBlock {
			return // the period has turned since it was asked
		}
		a.start, a.end, a.level, a.burn = c.Start, c.End, 0, burn{}
	}
	told := c.Amount()
	a.told = spending{told.CostNanoUSD, told.Tokens, told.Requests}
}

// spent is the spent part of the tightest budget, 0 without one; full tells that
// one of them is used up, and free when none is any more.
func (b *budgets) spent(now time.Time) (most float64, free time.Time, full bool) {
	if len(b.accounts) == 0 {
		return 0, time.Time{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.accounts {
		a := &b.accounts[i]
		a.turn(now)
		spent := a.spent(0)
		most = max(most, spent)
		if spent >= 1 {
			full = true
			if a.end.After(free) {
				free = a.end
			}
		}
	}
	return most, free, full
}

// refusal tells what the budgets have against one more request while busy are
// under way.
func (b *budgets) refusal(now time.Time, busy int) refusal {
	if _, free, full := b.spent(now); full {
		return refusal{obstacle: cooling, until: free, reason: ReasonBudget}
	}
	if len(b.accounts) == 0 {
		return refusal{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.accounts {
		if b.accounts[i].spent(busy) >= 1 {
			// What is under way may use up the last requests, or come to nothing.
			return refusal{obstacle: saturated, reason: ReasonBudget}
		}
	}
	return refusal{}
}

// drains tells whether new sessions go elsewhere while another subscription can
// serve them.
func (m *member) drains(now time.Time) bool {
	spent, _, _ := m.budgets.spent(now)
	opts := m.opts.Load()
	return spent >= opts.Strategy.drainFrom(opts.Health)
}

// levels are the spent parts, in per cent, that are made known when a budget or
// a provider's window reaches them: once in a period.
var levels = [...]int{50, 80, 95, 100}

// levelOf is the highest of levels that a spent part has reached; 0: none.
func levelOf(spent float64) int {
	reached := 0
	for _, level := range levels {
		if spent >= float64(level)/100 {
			reached = level
		}
	}
	return reached
}

// Count takes note of a counted event at once, for the brakes and for the
// budgets: the ledger tells of it a moment later. It is to be called before the event goes to the ledger.
// It is safe for concurrent use.
func (p *Pool) Count(e *usage.Event) {
	now := time.Now()
	p.brakeEvent(now, e)
	m := p.member(e.Subscription)
	if m == nil || len(m.budgets.accounts) == 0 {
		return
	}
	s := spending{cost: e.CostNanoUSD, tokens: e.Tokens.Total(), requests: 1}
	if e.Further {
		s.requests = 0
	}
	m.budgets.count(now, s)
}

// watchBudgets keeps what the pool knows of budgets at most a moment old.
func (p *Pool) watchBudgets(ctx context.Context) {
	tick := time.NewTicker(budgetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.readBudgets(ctx)
		now := time.Now()
		p.tellBudgets(now)
		p.tellWindows(now)
		p.tellBreakers()
	}
}

// readBudgets asks the ledger. While it does not answer, the last known amounts
// and what this process counts stay.
func (p *Pool) readBudgets(ctx context.Context) {
	if p.opts().Ledger == nil {
		return
	}
	var (
		periods []usage.PeriodOf
		before  []counted
	)
	members, asked := p.members(), time.Now()
	for _, m := range members {
		for i := range m.budgets.accounts {
			before = append(before, m.budgets.counted(asked, i))
			periods = append(periods, usage.PeriodOf{Subscription: m.conf().ID, Period: m.budgets.accounts[i].limit.Period})
		}
	}
	if len(periods) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, budgetTimeout)
	defer cancel()
	counts, err := p.opts().Ledger.InPeriods(ctx, asked, periods)
	if err != nil {
		if ctx.Err() == nil {
			p.opts().Logger.Debug("what other processes have spent is not known now", "error", err)
		}
		return
	}
	now := time.Now()
	for _, m := range members {
		_, _, wasFull := m.budgets.spent(now)
		for i := range m.budgets.accounts {
			m.budgets.learn(now, i, counts[0], before[0])
			counts, before = counts[1:], before[1:]
		}
		if _, _, full := m.budgets.spent(now); wasFull && !full {
			p.group(m.conf().Provider).queue.event()
		}
	}
}

// tellBudgets makes known which budgets have reached a level, and which will be
// used up before their end at the present rate.
func (p *Pool) tellBudgets(now time.Time) {
	for _, m := range p.members() {
		b := m.budgets
		b.mu.Lock()
		for i := range b.accounts {
			a := &b.accounts[i]
			a.turn(now)
			spent := a.spent(0)
			a.burn.note(now, spent)
			if at, burns := a.burn.alarm(now, spent, a.end); burns {
				budgetBurns.WithLabelValues(m.conf().ID, string(a.limit.Period)).Inc()
				p.tellBurns("budget", m, string(a.limit.Period), at, a.end)
				p.opts().Logger.Warn("a budget will not last", "subscription", m.conf().ID,
					"window", string(a.limit.Period), "spent_percent", int(spent*100), "empty", at, "resets", a.end)
			}
			level := levelOf(spent)
			if level <= a.level {
				continue
			}
			a.level = level
			budgetLevels.WithLabelValues(m.conf().ID, string(a.limit.Period), strconv.Itoa(level)).Inc()
			p.tellLevel("budget", m, string(a.limit.Period), level, a.end)
			p.opts().Logger.Warn("a budget has reached a level", "subscription", m.conf().ID,
				"window", string(a.limit.Period), "level_percent", level, "spent_percent", int(spent*100), "resets", a.end)
		}
		b.mu.Unlock()
	}
}

// tellWindows makes the same known of the providers' windows. Limits that refill within minutes reach them all the time, and are left out.
func (p *Pool) tellWindows(now time.Time) {
	for _, m := range p.members() {
		for _, w := range m.gate.Windows() {
			if w.Kind != "provider" {
				continue
			}
			spent := w.Spent(now)
			level, told := levelOf(spent), m.windowsTold[w.Name]
			if spent == 0 {
				delete(m.windowsTold, w.Name) // a new window has begun
				continue
			}
			if told == nil {
				told = new(windowTold)
				m.windowsTold[w.Name] = told
			}
			told.burn.note(now, spent)
			if at, burns := told.burn.alarm(now, spent, w.Reset); burns {
				windowBurns.WithLabelValues(m.conf().ID, w.Name).Inc()
				p.tellBurns("window", m, w.Name, at, w.Reset)
				p.opts().Logger.Warn("a usage window will not last", "subscription", m.conf().ID,
					"window", w.Name, "spent_percent", int(spent*100), "empty", at, "resets", w.Reset)
			}
			switch {
			case level == 0:
				*told = windowTold{burn: told.burn}
			case level > told.level:
				told.level = level
				windowLevels.WithLabelValues(m.conf().ID, w.Name, strconv.Itoa(level)).Inc()
				p.tellLevel("window", m, w.Name, level, w.Reset)
				p.opts().Logger.Warn("a usage window has reached a level", "subscription", m.conf().ID,
					"window", w.Name, "level_percent", level, "spent_percent", int(spent*100), "resets", w.Reset)
			}
		}
	}
}

// windowTold is what was made known of one window in its present period.
type windowTold struct {
	level int
	burn  burn
}

var windowLevels = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_window_levels_total",
	Help: "How often a usage window of a provider was seen to be spent to 50, 80, 95 or 100 per cent.",
}, []string{"subscription", "window", "percent"})

var budgetLevels = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_budget_levels_total",
	Help: "How often the spent part of a budget was seen to reach 50, 80, 95 or 100 per cent.",
}, []string{"subscription", "window", "percent"})

var budgetBurns = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_budget_burning_total",
	Help: "How often a half-spent budget was seen to be used up before its end at the rate of the last minutes; once in a period.",
}, []string{"subscription", "window"})

var windowBurns = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "authpool_window_burning_total",
	Help: "How often a half-spent usage window of a provider was seen to be used up before its reset at the rate of the last minutes; once in a period.",
}, []string{"subscription", "window"})
