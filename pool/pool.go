// Package pool chooses which subscription serves a request, and lends it for
// the length of the answer. It never sees a request or an answer.
//
// Start at Pool.Acquire, which returns a Lease. A session sticks to the
// subscription that served it first; it moves only when that one cannot serve
// (see refusal.moves), or by Pool.Move. Who is best for a new session says a Strategy,
// and how good each is Factors.Rate.
//
// Everything is decided from memory. What the processes of a fleet have to
// agree on (who a session sticks to, places, shares of the concurrency, allowances
// of limits per minute, cooldowns, organisations) is written to and read from Redis
// by the keeper, off the request path. Only these wait for Redis, for bindingWait at
// most: the binding of a session that is new here, the one request that is to find
// out whether a cooldown is over, and what names or has made something account-bound
// (see Pool.Owners). Without Redis the pool goes on with what it knows. What is about
// a whole provider (see ratelimit.Provider) each process finds out for itself.
package pool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
)

// Options are the pool's settings; a zero field is its default, except Wait.
type Options struct {
	// Wait is how long a request may wait for a subscription to open; 0: not
	// at all.
	Wait time.Duration
	// Waiters bounds the requests that wait, for each provider. Default 1024.
	Waiters int
	// IdleTimeout is when a session that does nothing gives its place to
	// another. Default 30 minutes.
	IdleTimeout time.Duration
	// Affinity is how long the session's subscription is remembered after its
	// last use. Default 30 days.
	Affinity time.Duration
	// CacheWarm is how long after its last use a session is not moved to make the
	// loads even, for its prompt cache. Default 5 minutes.
	CacheWarm time.Duration
	// Sessions bounds the sessions that are remembered in memory. Default
	// 100,000.
	Sessions int
	// SpreadChildren places the sessions of sub-agents like any other; else
	// they begin where their parent is.
	SpreadChildren bool
	// SessionBrake and AgentBrake stop sessions and agents that run away.
	SessionBrake, AgentBrake Brake
	// Ledger tells what was counted of the subscriptions that have budgets, over
	// all processes; nil: nobody but this process spends.
	Ledger Ledger
	// Strategy says who gets new sessions. Default StrategyBalanced.
	Strategy Strategy
	// Health is by which subscriptions are rated.
	Health Health
	// Whole says that no other process uses the Redis of the bindings: all of
	// every limit is this process's.
	Whole bool
	// Events gets what an operator may want to hear of; nil: nobody does.
	Events *event.Bus
	// Logger gets what an operator should know of, such as a refused
	// credential. Default: slog.Default.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Waiters <= 0 {
		o.Waiters = 1024
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 30 * time.Minute
	}
	if o.Affinity <= 0 {
		o.Affinity = 720 * time.Hour
	}
	if o.CacheWarm <= 0 {
		o.CacheWarm = 5 * time.Minute
	}
	if o.Sessions <= 0 {
		o.Sessions = 100_000
	}
	if o.Strategy == "" {
		o.Strategy = StrategyBalanced
	}
	o.Health = o.Health.withDefaults()
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Bindings is what the pool shares with the other processes of a fleet;
// *store.Store is the one that does it in Redis.
type Bindings interface {
	// Healthy tells whether asking is worth the time; while it is false no
	// other method is called.
	Healthy() bool

	Lookup(ctx context.Context, session string) (sub string, err error)
	Reserve(ctx context.Context, sub, session string, most int, hold time.Duration) (store.Place, error)
	Extend(ctx context.Context, sub string, most int, holds []store.Hold) (scores []int64, count int64, err error)
	Release(ctx context.Context, sub, session string, score int64) error
	Bind(ctx context.Context, session, expect, sub, parent string, affinity time.Duration) (bound string, err error)
	Balance(ctx context.Context, b store.Balancing) (store.Balance, error)
	Keep(ctx context.Context, bindings []store.Binding, affinity time.Duration) ([]string, error)
	ReserveMoved(ctx context.Context, sub, session string, most int, hold time.Duration, fence int64) (store.Place, error)
	Fence(ctx context.Context, subs []string, fence int64) error
	Unbind(ctx context.Context, session string) (former string, err error)
	Stays(ctx context.Context, sessions []string) ([]store.Stay, error)
	Place(ctx context.Context, sub, session string) (store.Occupant, error)
	Places(ctx context.Context, sub string, f func(store.Occupant)) error
	Counts(ctx context.Context, subs []string) ([]int64, error)
	Shares(ctx context.Context, process string, requests []store.ShareRequest) ([]store.Share, error)
	DrawRates(ctx context.Context, process string, draws []store.RateDraw) []store.RateDrawn
	Cool(ctx context.Context, cooldowns []store.Cooldown) error
	States(ctx context.Context, subs []string) ([]store.State, error)
	Belong(ctx context.Context, list []store.Belonging) error
	Probe(ctx context.Context, p store.Probe) (store.Proof, error)
	Proved(ctx context.Context, list []store.Probed) error
	Enable(ctx context.Context, sub string) error
	Watch(ctx context.Context, f func(store.Event))
	Watchers(ctx context.Context) (int, error)
	Own(ctx context.Context, made []store.Made) error
	Owners(ctx context.Context, ids []string) ([]store.Resource, error)
}

// Pool lends subscriptions. It is safe for concurrent use.
type Pool struct {
	options                    atomic.Pointer[Options]
	bindings                   Bindings             // nil: this process is the whole fleet
	process                    string               // names this process in the shares
	view                       atomic.Pointer[view] // swapped by Apply alone
	applying                   sync.Mutex           // held by Apply
	sessions                   *sessions
	estimates                  estimates
	sessionBrakes, agentBrakes brakes
	keeper                     *keeper
	balance                    balance
	turns                      chan struct{} // of those who talk to Redis about bindings

	resources *resources
	arranging sync.Mutex         // held while members go to other domains
	departed  map[string]*member // those that Apply has removed, by id; arranging guards it

	closeOnce sync.Once
	closed    chan struct{}
}

// group is the subscriptions of one provider and those who wait for them.
type group struct {
	provider string
	all      atomic.Pointer[[]*member] // swapped by Apply alone
	metered  atomic.Bool               // one of them has limits on tokens: how many a request takes is worth a guess
	whole    *ratelimit.Provider
	queue    queue
	usual    latency       // of the answers of all members
	clock    atomic.Uint64 // of their turns

	// Guarded by Pool.arranging. A domain's name says nothing across providers: their
	// limits are their own.
	domains map[string]*domain
	warned  map[string]bool // of what the operator was told; bounded by the configured domains

	moving atomic.Int32 // of those who wait, how many have waited for others that move with them

	held atomic.Int32 // of those who wait, how many do for the provider as a whole

	exhausted atomic.Int64 // when it was last told that nobody can serve, in ns of the epoch
}

// New returns a pool of the subscriptions. bindings may be nil: then nothing is
// shared with other processes. Their ids must differ. Nothing runs until Start.
func New(opts Options, subs []Subscription, bindings Bindings) *Pool {
	p := &Pool{
		bindings: bindings,
		process:  newProcess(),
		turns:    make(chan struct{}, bindingTurns),
		closed:   make(chan struct{}),
		departed: make(map[string]*member),
	}
	opts = opts.withDefaults()
	p.options.Store(&opts)
	p.sessionBrakes = brakes{who: "session", shown: true, most: opts.Sessions, hours: make(map[sessionKey]*hour)}
	p.agentBrakes = brakes{who: "agent", most: opts.Sessions, hours: make(map[sessionKey]*hour)}
	p.sessionBrakes.limit.Store(&opts.SessionBrake)
	p.agentBrakes.limit.Store(&opts.AgentBrake)
	p.sessions = newSessions(opts.Sessions, opts.Affinity)
	p.view.Store(&view{})
	p.keeper = newKeeper(p)
	p.swap(subs, time.Now())
	p.resources = newResources(p)
	return p
}

// Configure takes other settings over, at once and for all requests from then on; who
// waits looks again. Those that only New can set stay what they are: Waiters, Sessions,
// Ledger, Whole, Events and Logger.
func (p *Pool) Configure(opts Options) {
	p.applying.Lock()
	defer p.applying.Unlock()
	before := p.opts()
	opts = opts.withDefaults()
	opts.Waiters, opts.Sessions, opts.Ledger = before.Waiters, before.Sessions, before.Ledger
	opts.Whole, opts.Events, opts.Logger = before.Whole, before.Events, before.Logger
	p.options.Store(&opts)
	p.sessionBrakes.limit.Store(&opts.SessionBrake)
	p.agentBrakes.limit.Store(&opts.AgentBrake)
	p.sessions.keep(opts.Affinity)
	if opts.IdleTimeout > before.IdleTimeout {
		p.holdLonger(time.Now())
	}
	for _, g := range p.groups() {
		g.queue.event()
	}
}

// holdLonger keeps places up to the idle time-out that is in force now: they would end
// by the former one before anybody looks after them.
func (p *Pool) holdLonger(now time.Time) {
	var held []*session
	p.sessions.each(func(s *session, last time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		bound := s.present()
		if bound == nil || !now.Before(s.slotUntil) {
			return
		}
		held = append(held, s)
		if p.bindings == nil {
			if s.inFlight > 0 {
				last = now
			}
			s.slotUntil = last.Add(p.opts().IdleTimeout)
			bound.extend(s.name, s.slotUntil)
		}
	})
	for _, s := range held {
		p.keeper.dirty(s)
	}
}

// opts are the settings as they are now.
func (p *Pool) opts() *Options { return p.options.Load() }

// newProcess is a random name: host names are not unique where it counts.
func newProcess() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // crypto/rand never fails
	return hex.EncodeToString(id[:])
}

// Start reads every credential once, reads the cooldowns that the fleet knows
// and what is spent of the budgets, and starts the goroutines that keep the pool
// in step with Redis and the credentials. ctx bounds only this call. Close stops
// them.
func (p *Pool) Start(ctx context.Context) {
	p.checkCredentials(ctx, true)
	p.readBudgets(ctx)
	p.keeper.start(ctx)
}

// Close stops the pool's goroutines and waits for them; who waits in Acquire
// gets ErrClosed. Leases stay valid and may still be settled.
func (p *Pool) Close() {
	p.closeOnce.Do(func() { close(p.closed) })
	p.keeper.stop()
}

// shared tells whether there is a fleet that can be asked now.
func (p *Pool) shared() bool { return p.bindings != nil && p.bindings.Healthy() }

// Whole tells whether the pool knows what all processes do: there are no others, or
// Redis is there to ask.
func (p *Pool) Whole() bool { return !p.alone() }

// alone tells whether there is a fleet that cannot be asked: then new sessions
// are placed where every process would place them.
func (p *Pool) alone() bool { return p.bindings != nil && !p.bindings.Healthy() }

// Ready tells whether at least one subscription is enabled: not switched off
// and not without an accepted credential. Cooldowns do not count.
func (p *Pool) Ready() bool {
	for _, m := range p.members() {
		if _, disabled := m.disabled(); !disabled {
			return true
		}
	}
	return false
}
