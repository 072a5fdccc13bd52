package pool

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/authpool/authpool/pool/store"
)

const (
	keeperTick    = 250 * time.Millisecond
	keeperTimeout = 2 * time.Second // of one talk with Redis
	keeperBatch   = 100             // sessions or subscriptions in one talk
	keeperTurn    = 2000            // sessions in one turn, so that cooldowns do not wait behind them

	reservationRenew = 3 * time.Second
	statePoll        = 30 * time.Second // all states are read that often, give or take a third
	countPoll        = time.Minute
	fleetReads       = 1000             // that a fleet makes in a second of each kind
	longestPoll      = 10 * time.Minute // whatever its size
)

// keeper is the pool's talk with Redis off the request path: one goroutine that
// writes what requests left for it and reads what other processes did, and one
// that listens for their hints. (A third looks after credentials, which may
// take their time.) What it could not write stays with it until
// Redis answers; all of that is bounded by the sessions and subscriptions that
// the pool knows.
type keeper struct {
	pool *Pool
	kick chan struct{} // holds one: there is something to do at once

	mu      sync.Mutex
	changed []*session            // to be extended and kept; each is here once
	pending map[*session]struct{} // hold a reservation, and no answer has come
	cools   map[coolKey]coolValue // to be shared
	// organisations of subscriptions, by their id, that the others are to be told of.
	organisations map[string]string
	releases      []release           // places to be given back
	proofs        []store.Probed      // how probes went, to be told
	stale         map[string]struct{} // subscriptions whose state is to be read
	allStale      bool
	missed        bool // news of moved sessions may have been lost

	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Of the goroutine alone.
	healthy                         bool
	reserved, polled, counted, busy time.Time
	mustered                        time.Time
	processes                       int        // of the fleet, as last counted; 0: not yet
	back                            time.Time  // when Redis last came back
	recheck                         []*session // whether they have moved is to be asked
	pollEvery                       time.Duration
}

func newKeeper(p *Pool) *keeper {
	return &keeper{
		pool:    p,
		kick:    make(chan struct{}, 1),
		pending: make(map[*session]struct{}),
		cools:   make(map[coolKey]coolValue),

		organisations: make(map[string]string),
		stale:         make(map[string]struct{}),
	}
}

// start reads the fleet's cooldowns once, within ctx, and starts the goroutines.
func (k *keeper) start(ctx context.Context) {
	if k.pool.shared() {
		k.healthy = true
		k.allStale = true
		k.readStates(ctx, time.Now())
	}
	run, cancel := context.WithCancel(context.Background())
	k.cancel = cancel
	k.wg.Go(func() { k.run(run) })
	k.wg.Go(func() { k.pool.watchCredentials(run) })
	k.wg.Go(func() { k.pool.watchBudgets(run) })
	k.wg.Go(func() { k.pool.watchBalance(run) })
	if k.pool.bindings != nil {
		k.wg.Go(func() { k.pool.bindings.Watch(run, k.hear) })
	}
}

// stop ends the goroutines, after a last turn that leaves nothing unwritten if
// Redis is there.
func (k *keeper) stop() {
	if k.cancel == nil {
		return
	}
	k.cancel()
	k.wg.Wait()
	k.cancel = nil
}

// wake makes the keeper take its turn now.
func (k *keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

func (k *keeper) run(ctx context.Context) {
	period := keeperTick
	if k.pool.bindings == nil {
		period = k.pool.opts().IdleTimeout / 8 // nothing but extendBusy is to do
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-k.kick:
		}
		if ctx.Err() != nil { // whatever else there was to do: a turn would be cut off
			if k.pool.shared() {
				k.last(time.Now())
			}
			return
		}
		k.turn(ctx, time.Now())
	}
}

// last leaves nothing behind that another process would wait for.
func (k *keeper) last(now time.Time) {
	ctx := context.Background() // every talk has its own time-out
	k.write(ctx, now)
	// The places of sessions that have moved, as that has found.
	released, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	k.writeReleases(released)
	for _, m := range k.pool.members() {
		m.share.retire()
	}
	k.shares(ctx, now)
	k.rates(ctx, true)
}

// turn does what is due.
func (k *keeper) turn(ctx context.Context, now time.Time) {
	p := k.pool
	if now.Sub(k.busy) >= p.opts().IdleTimeout/4 {
		k.busy = now
		k.extendBusy(now)
	}
	healthy := p.shared()
	if healthy && !k.healthy { // back: much may have happened
		k.mu.Lock()
		k.allStale = true
		k.mu.Unlock()
		k.back = now
		k.readStates(ctx, now)
	}
	k.healthy = healthy
	if !healthy {
		return
	}
	k.write(ctx, now)
	k.recheckSessions(ctx)
	k.shares(ctx, now)
	k.rates(ctx, false)
	if now.Sub(k.polled) >= k.pollEvery {
		k.polled = now
		// A fleet must not ask in step.
		every := k.among(statePoll)
		k.pollEvery = every*2/3 + rand.N(every*2/3)
		k.mu.Lock()
		k.allStale = true
		k.mu.Unlock()
	}
	k.readStates(ctx, now)
	if !p.opts().Whole && now.Sub(k.mustered) >= musterEvery {
		k.mustered = now
		k.muster(ctx)
	}
	if now.Sub(k.counted) >= k.among(min(countPoll, p.opts().IdleTimeout/4)) {
		k.counted = now
		k.countUsed(ctx)
	}
}

// among is how often this process reads something of each subscription, if alone it
// would do so every so often: a large fleet does so less often, since all of it
// together is to leave Redis time for the requests. Changes are told by hints; that
// they are read is for those that got lost.
func (k *keeper) among(every time.Duration) time.Duration {
	reads := time.Duration(k.processes * len(k.pool.members()))
	return max(every, min(reads*time.Second/fleetReads, longestPoll))
}

// write sends what requests left behind.
func (k *keeper) write(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	k.writeOrganisations(ctx) // first: what closed a former one goes with it
	k.writeCools(ctx, now)
	k.writeProofs(ctx)
	k.writeReleases(ctx)
	k.writeSessions(ctx, now)
	k.pool.resources.write(ctx)
}

// hear takes the hint of another process.
func (k *keeper) hear(e store.Event) {
	switch {
	case e.Agents, e.Managed:
		return
	case e.Session != "":
		provider, rest, _ := strings.Cut(e.Session, "/")
		agent, id, _ := strings.Cut(rest, "/")
		s := k.pool.sessions.find(sessionKey{provider, agent, id})
		if s == nil || !s.differs(e.Subscription) {
			return
		}
		// The news may be old: the truth is asked for.
		k.check(s)
	case e.State != "":
		k.mu.Lock()
		if k.pool.member(e.State) != nil {
			k.stale[e.State] = struct{}{}
		}
		k.mu.Unlock()
	default:
		k.mu.Lock()
		k.allStale, k.missed = true, true
		k.mu.Unlock()
	}
	k.wake()
}
