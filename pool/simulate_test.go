package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// The simulation: a fleet lives for a day on subscriptions with the limits that
// plans have, by every strategy and by two ways that need no pool. It prints the
// table of bench/poolsim, and fails where the pool is worse than it has to be.
//
// The pools, their scripts and their Redis (miniredis) are the real ones; time is a
// bubble's. What is not as in a process: the keepers have no goroutine, since a
// thousand that look four times a second whether there is something to do would take
// days. The simulation, which is inside the package for that, gives a keeper its turn
// where there is something, and counts the commands of the looks that it leaves out.

// fleetSize is how much is simulated.
type fleetSize struct {
	sidecars, sessions, subscriptions int
	requests                          int // of a session, in the mean
	lasts                             time.Duration
}

// smoke is what every run of the tests can afford.
var smoke = fleetSize{sidecars: 12, sessions: 400, subscriptions: 10, requests: 30, lasts: 24 * time.Hour}

// TestSimulatePool is what `make simulate-pool` runs, with AUTHPOOL_SIMULATE as
// "SIDECARS SESSIONS SUBSCRIPTIONS REQUESTS", the last of a session in the mean.
func TestSimulatePool(t *testing.T) {
	size := smoke
	if text := os.Getenv("AUTHPOOL_SIMULATE"); text != "" {
		if _, err := fmt.Sscan(text, &size.sidecars, &size.sessions, &size.subscriptions, &size.requests); err != nil {
			t.Fatalf("AUTHPOOL_SIMULATE=%q: want four numbers: sidecars, sessions, subscriptions, requests of a session: %v", text, err)
		}
		if min(size.sidecars, size.sessions, size.subscriptions, size.requests) < 1 {
			t.Fatalf("AUTHPOOL_SIMULATE=%q: want numbers above 0", text)
		}
	}
	days := []struct {
		name string
		by   func(*simFleet) chooser
	}{
		{"balanced", func(f *simFleet) chooser { return f.pools(StrategyBalanced) }},
		{"round_robin", func(f *simFleet) chooser { return f.pools(StrategyRoundRobin) }},
		{"priority", func(f *simFleet) chooser { return f.pools(StrategyPriority) }},
		{"each request in turn", func(f *simFleet) chooser { return f.simple(true) }},
		{"stay until full", func(f *simFleet) chooser { return f.simple(false) }},
	}
	rows := make([]outcome, len(days))
	t.Run("day", func(t *testing.T) {
		for i, d := range days {
			t.Run(d.name, func(t *testing.T) {
				t.Parallel()
				rows[i] = simulate(t, size, d.name, d.by)
			})
		}
	})
	var table strings.Builder
	fmt.Fprintf(&table, "%d sidecars, %d sessions of %d requests, %d subscriptions, %v\n\n",
		size.sidecars, size.sessions, size.requests, size.subscriptions, size.lasts)
	fmt.Fprintln(&table, "| who chooses | requests | refused | given up | limits met | moves | cache lost | Redis commands/request | took |")
	fmt.Fprintln(&table, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, o := range rows {
		fmt.Fprintln(&table, o.row())
	}
	t.Logf("\n%s", table.String())
	if path := os.Getenv("AUTHPOOL_SIMULATE_TABLE"); path != "" {
		if err := os.WriteFile(path, []byte(table.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pooled, simple := rows[:3], rows[3:]
	for _, o := range pooled {
		if o.capBroken > 0 {
			t.Errorf("%s: %d times more sessions held a place than limits.sessions allows", o.name, o.capBroken)
		}
		if o.astray > 0 {
			t.Errorf("%s: %d requests left a subscription that was theirs and could serve", o.name, o.astray)
		}
		if turns := simple[0]; o.cacheLost() > turns.cacheLost()/4 || o.refused > turns.refused {
			t.Errorf("%s refuses %d requests and loses %.4f of the prompts' caches, %s %d and %.4f",
				o.name, o.refused, o.cacheLost(), turns.name, turns.refused, turns.cacheLost())
		}
		for _, other := range simple {
			if o.met*2 > other.met {
				t.Errorf("%s sends %d requests into a limit, %s %d", o.name, o.met, other.name, other.met)
			}
		}
	}
}

// outcome is what a day came to.
type outcome struct {
	name                            string
	asked, served                   int // requests
	refused                         int // and those that were told of a limit
	givenUp                         int // sessions that did not come to their end for it
	met                             int // requests that a provider refused
	moves                           int // of sessions
	astray                          int // requests that were sent elsewhere though their subscription could serve
	prompts, lost                   float64
	commands, background, capBroken int64
	took                            time.Duration
	sessions                        int
}

func (o *outcome) cacheLost() float64 { return o.lost / max(o.prompts, 1) }

func (o *outcome) row() string {
	redis := "0"
	if o.commands > 0 {
		redis = fmt.Sprintf("%.3f + %.1f", float64(o.commands)/float64(o.asked), float64(o.background)/float64(o.asked))
	}
	return fmt.Sprintf("| %s | %d | %.2f %% | %.2f %% | %d | %d | %.0f M (%.2f %%) | %s | %v |", o.name, o.asked,
		100*float64(o.refused)/float64(max(o.asked, 1)), 100*float64(o.givenUp)/float64(max(o.sessions, 1)),
		o.met, o.moves, o.lost/1e6, 100*o.cacheLost(), redis, o.took.Round(time.Second))
}

// chooser says who serves a request; lease is nil where it needs none, and id below 0
// where nobody serves before the wait is over.
type chooser interface {
	choose(s *simSession, now time.Time) (id int, lease *Lease, wait time.Duration)
	// answered is told what the provider said.
	answered(s *simSession, id int, lease *Lease, v ratelimit.Verdict)
	// ended is told that the answer has come to its end.
	ended(s *simSession, lease *Lease, t usage.Tokens)
	// tick is called after each step.
	tick(now time.Time)
	close(o *outcome)
}

// simPlan is a subscription at its provider: a plan with a window of five hours that
// begins with its first request, one of a week, and a limit on requests per minute.
type simPlan struct {
	holds, holdsWeek float64 // units in a window
	spent, spentWeek float64
	end, endWeek     time.Time
	perMinute, left  float64
	filled           time.Time
	sessions         int // limits.sessions
}

const (
	simWindow = 5 * time.Hour
	simWeek   = 7 * 24 * time.Hour
	simStep   = 250 * time.Millisecond // how long a keeper lets things gather
	warm      = 5 * time.Minute        // how long a prompt's cache lives
)

func (a *simPlan) roll(now time.Time) {
	if !a.end.IsZero() && !now.Before(a.end) {
		a.end, a.spent = time.Time{}, 0
	}
	for !now.Before(a.endWeek) {
		a.endWeek, a.spentWeek = a.endWeek.Add(simWeek), 0
	}
	a.left = min(a.perMinute, a.left+now.Sub(a.filled).Minutes()*a.perMinute)
	a.filled = now
}

// could tells whether one more request would be served.
func (a *simPlan) could(now time.Time) bool {
	a.roll(now)
	return a.spent < a.holds && a.spentWeek < a.holdsWeek && a.left >= 1
}

// answer serves a request of so many units, or refuses it.
func (a *simPlan) answer(now time.Time, units float64) ratelimit.Verdict {
	could := a.could(now)
	if could {
		if a.end.IsZero() {
			a.end = now.Add(simWindow)
		}
		a.spent, a.spentWeek, a.left = a.spent+units, a.spentWeek+units, a.left-1
	}
	five := ratelimit.Window{Name: "5h", Kind: "provider", Utilization: a.spent / a.holds, Status: "allowed", Reset: a.end, Seen: now}
	week := ratelimit.Window{Name: "7d", Kind: "provider", Utilization: a.spentWeek / a.holdsWeek, Status: "allowed", Reset: a.endWeek, Seen: now}
	v := ratelimit.Verdict{Signal: ratelimit.OK}
	if !could {
		v = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonWindow, Scope: ratelimit.ScopeSubscription}
		switch {
		case a.spentWeek >= a.holdsWeek:
			v.Wait, week.Status = a.endWeek.Sub(now), "rejected"
		case a.spent >= a.holds:
			v.Wait, five.Status = a.end.Sub(now), "rejected"
		default:
			v.Reason, v.Scope = ratelimit.ReasonThrottled, ratelimit.ScopeModel
			v.Wait = time.Duration(math.Ceil((1-a.left)/a.perMinute*60)) * time.Second
		}
	}
	v.Windows = []ratelimit.Window{five, week}
	return v
}

// simCache is what a provider keeps of a session's prompt for one subscription.
type simCache struct {
	at   int
	size float64
	last time.Time
}

// simSession is one conversation of an agent: calls of tools that follow each other
// at once, and pauses of the human now and then.
type simSession struct {
	name    string
	request Request
	sidecar int
	left    int     // requests
	half    int     // at so many its agent starts anew behind another sidecar; 0: it does not
	prompt  float64 // tokens
	caches  []simCache
	home    int // who served it last, -1: nobody
	tries   int // since it was last served

	lease *Lease // of the request under way
	under bool
	spent usage.Tokens
}

// simFleet is one simulated day.
type simFleet struct {
	size     fleetSize
	random   *rand.Rand
	accounts []*simPlan
	outcome
	steps [][]*simSession // who does something, by step

	mini   *miniredis.Miniredis
	client *redis.Client
}

// simulate lets the fleet live for a day. It is the same day for everybody.
func simulate(t *testing.T, size fleetSize, name string, by func(*simFleet) chooser) outcome {
	t.Helper()
	began := time.Now()
	f := &simFleet{size: size, random: rand.New(rand.NewPCG(7, 7)), outcome: outcome{name: name}}
	synctest.Test(t, func(*testing.T) {
		f.mini = miniredis.NewMiniRedis()
		defer f.mini.Close()
		f.mini.SetTime(time.Now())
		f.people(time.Now())
		c := by(f)
		aged := time.Now()
		begin, idle := aged, true
		for step := range f.steps {
			if idle = idle && len(f.steps[step]) == 0; idle {
				continue
			}
			time.Sleep(time.Until(begin.Add(time.Duration(step) * simStep)))
			now := time.Now()
			f.mini.SetTime(now)
			if now.Sub(aged) >= time.Minute {
				f.mini.FastForward(now.Sub(aged)) // looks at every key
				aged = now
			}
			list := f.steps[step]
			f.steps[step] = nil
			for _, s := range list {
				f.act(c, s, step, now)
			}
			c.tick(now)
			idle = len(list) == 0 // what these did is heard of in the next step
		}
		c.close(&f.outcome)
	})
	f.took = time.Since(began)
	t.Log(f.row())
	return f.outcome
}

// people makes the accounts and the sessions. What all windows of five hours hold is
// just what is asked for in the busiest five hours.
func (f *simFleet) people(begin time.Time) {
	const units = 14_000 // of a request, about
	busiest := float64(f.size.sessions*f.size.requests) * units * 0.40
	shares := 0.0
	for i := range f.size.subscriptions {
		kind := []float64{1, 1, 1, 1, 1, 1, 5, 5, 5, 20}[i%10]
		shares += kind
		f.accounts = append(f.accounts, &simPlan{holds: kind, perMinute: 40 + 8*kind, sessions: int(8 + 4*kind)})
	}
	for _, a := range f.accounts {
		a.holds *= busiest / shares
		a.holdsWeek = 10 * a.holds
		a.spentWeek = a.holdsWeek * 0.85 * f.random.Float64()
		a.endWeek = begin.Add(time.Duration(f.random.Float64() * float64(simWeek)))
		a.left, a.filled = a.perMinute, begin
		// Places for all who are there at once in the busiest hour, and half as many more.
		a.sessions = max(2, int(math.Ceil(float64(a.sessions)*float64(f.size.sessions)/12_000/(float64(f.size.subscriptions)/100))))
	}
	f.steps = make([][]*simSession, int(f.size.lasts/simStep))
	f.sessions = f.size.sessions
	for i := range f.size.sessions {
		// Two thirds come in the ten hours of work.
		at := f.random.Float64()
		if f.random.Float64() < 0.45 {
			at = (8 + 10*(f.random.Float64()+f.random.Float64())/2) / 24
		}
		s := &simSession{name: fmt.Sprint("s", i), sidecar: f.random.IntN(f.size.sidecars), home: -1}
		s.left = 1 + int(f.random.ExpFloat64()*float64(f.size.requests-1))
		if f.random.IntN(20) == 0 {
			s.half = s.left / 2
		}
		s.prompt = 8_000 + 12_000*f.random.ExpFloat64()
		s.request = Request{Provider: "anthropic", Agent: fmt.Sprint("a", i%200), Session: s.name, Model: "claude-x"}
		f.at(int(at*float64(len(f.steps))), s)
	}
}

func (f *simFleet) at(step int, s *simSession) {
	if step < len(f.steps) {
		f.steps[step] = append(f.steps[step], s)
	}
}

func (f *simFleet) in(step int, d time.Duration, s *simSession) {
	f.at(step+1+int(d/simStep), s)
}

// act is what a session does in a step: its answer ends, or it asks.
func (f *simFleet) act(c chooser, s *simSession, step int, now time.Time) {
	if s.under {
		s.under = false
		c.ended(s, s.lease, s.spent)
		s.lease = nil
		if s.left--; s.left <= 0 {
			return
		}
		if s.left == s.half {
			s.sidecar = f.random.IntN(f.size.sidecars)
		}
		pause := f.random.ExpFloat64() * 4
		if f.random.IntN(15) == 0 {
			pause = f.random.ExpFloat64() * 180
		}
		f.in(step, time.Duration(pause*float64(time.Second)), s)
		return
	}
	f.asked++
	for range 3 {
		id, lease, wait := c.choose(s, now)
		if id < 0 {
			f.refuse(s, step, wait)
			return
		}
		a := f.accounts[id]
		tokens, units, lost := s.cost(id, now)
		v := a.answer(now, units)
		c.answered(s, id, lease, v)
		if v.Signal != ratelimit.OK {
			f.met++
			c.ended(s, lease, usage.Tokens{})
			continue
		}
		f.served++
		f.prompts += s.prompt
		f.lost += lost
		if s.home >= 0 && s.home != id {
			if home := f.accounts[s.home]; lease == nil || lease.Source() != SourceElsewhere {
				f.moves++
				if lease != nil && lease.Source() == SourceNew && home.could(now) {
					f.astray++
				}
			}
		}
		s.home, s.tries, s.under, s.lease, s.spent = id, 0, true, lease, tokens
		s.cached(id, now)
		f.in(step, time.Duration((2+8*f.random.Float64())*float64(time.Second)), s)
		return
	}
	f.refuse(s, step, time.Second)
}

// refuse tells the agent of a limit: it asks again, three times, where that is soon.
func (f *simFleet) refuse(s *simSession, step int, wait time.Duration) {
	f.refused++
	if s.tries++; s.tries > 3 || wait > 10*time.Minute {
		f.givenUp++
		return
	}
	f.in(step, max(wait, time.Second), s)
}

// cost is what the next request takes at a subscription: its tokens, the units of the
// plan, and how much of its prompt is lost to a cache that is elsewhere.
func (s *simSession) cost(id int, now time.Time) (t usage.Tokens, units, lost float64) {
	read, best := 0.0, 0.0
	for _, c := range s.caches {
		if now.Sub(c.last) < warm {
			best = max(best, c.size)
			if c.at == id {
				read = c.size
			}
		}
	}
	written, output := s.prompt-read, 300+s.prompt/200
	t = usage.Tokens{Input: 20, CacheRead: int64(read), CacheWrite5m: int64(written), Output: int64(output)}
	return t, 1.25*written + 0.1*read + 5*output, best - read
}

// cached notes that the prompt is kept for a subscription, and lets it grow.
func (s *simSession) cached(id int, now time.Time) {
	s.caches = slices.DeleteFunc(s.caches, func(c simCache) bool { return c.at == id || now.Sub(c.last) >= warm })
	s.caches = append(s.caches, simCache{at: id, size: s.prompt, last: now})
	s.prompt = min(s.prompt+1500, 160_000)
}

// simple is a fleet without a pool: each sidecar only knows which of its own requests
// were refused, and until when.
type simple struct {
	f      *simFleet
	turns  bool
	next   []int
	closed [][]time.Time
}

// simple takes the subscriptions in turn, a request each; or the first until it
// refuses, then the next.
func (f *simFleet) simple(turns bool) chooser {
	c := &simple{f: f, turns: turns, next: make([]int, f.size.sidecars), closed: make([][]time.Time, f.size.sidecars)}
	for i := range c.closed {
		c.closed[i] = make([]time.Time, f.size.subscriptions)
		if turns {
			c.next[i] = f.random.IntN(f.size.subscriptions)
		}
	}
	return c
}

func (c *simple) choose(s *simSession, now time.Time) (int, *Lease, time.Duration) {
	closed := c.closed[s.sidecar]
	first := time.Time{}
	for range closed {
		id := c.next[s.sidecar]
		if !now.Before(closed[id]) {
			if c.turns {
				c.next[s.sidecar] = (id + 1) % len(closed)
			}
			return id, nil, 0
		}
		if first.IsZero() || closed[id].Before(first) {
			first = closed[id]
		}
		c.next[s.sidecar] = (id + 1) % len(closed)
	}
	return -1, nil, first.Sub(now)
}

func (c *simple) answered(s *simSession, id int, _ *Lease, v ratelimit.Verdict) {
	if v.Signal != ratelimit.OK {
		c.closed[s.sidecar][id] = time.Now().Add(v.Wait)
	}
}

func (c *simple) ended(*simSession, *Lease, usage.Tokens) {}
func (c *simple) tick(time.Time)                          {}
func (c *simple) close(*outcome)                          {}

// pooled is the fleet with a pool in each sidecar.
type pooled struct {
	f     *simFleet
	pools []*Pool
	ids   map[string]int
	busy  []bool // has left something for its keeper
	due   []int

	commands atomic.Int64
	watch    context.CancelFunc
	watcher  sync.WaitGroup
	mu       sync.Mutex
	heard    []store.Event
	counted  time.Time

	states   map[string]store.State // of this very instant
	statesAt time.Time
}

// simKey is a credential that nobody looks at.
type simKey struct{}

func (simKey) Credential(context.Context) (credential.Credential, error) {
	return credential.Credential{Scheme: credential.APIKey, Secret: credential.NewSecret("sk")}, nil
}

func (k simKey) Refresh(ctx context.Context) (credential.Credential, error) { return k.Credential(ctx) }

// wellRedis is always there.
type wellRedis struct{}

func (wellRedis) Healthy() bool { return true }

// simBindings is the store, but for what all sidecars read in the same instant: the
// commands are counted for each, and sent once.
type simBindings struct {
	*store.Store
	c *pooled
}

func (b simBindings) States(ctx context.Context, subs []string) (list []store.State, err error) {
	if now := time.Now(); !now.Equal(b.c.statesAt) {
		b.c.statesAt = now
		clear(b.c.states)
	}
	before := b.c.commands.Load()
	for _, id := range subs {
		s, known := b.c.states[id]
		if !known {
			one, err := b.Store.States(ctx, []string{id})
			if err != nil {
				return nil, err
			}
			s = one[0]
			b.c.states[id] = s
		}
		list = append(list, s)
	}
	b.c.commands.Store(before + int64(len(subs)))
	return list, nil
}

// changed forgets what was read in this instant.
func (b simBindings) changed() { clear(b.c.states) }

func (b simBindings) Cool(ctx context.Context, list []store.Cooldown) error {
	b.changed()
	return b.Store.Cool(ctx, list)
}

func (b simBindings) Proved(ctx context.Context, list []store.Probed) error {
	b.changed()
	return b.Store.Proved(ctx, list)
}

func (b simBindings) Probe(ctx context.Context, p store.Probe) (store.Proof, error) {
	b.changed()
	return b.Store.Probe(ctx, p)
}

func (f *simFleet) pools(strategy Strategy) chooser {
	c := &pooled{f: f, ids: map[string]int{}, busy: make([]bool, f.size.sidecars), states: map[string]store.State{}, counted: time.Now()}
	f.client = redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Protocol: 2, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer:                   func(context.Context, string, string) (net.Conn, error) { return f.mini.Dial() },
	})
	f.client.AddHook(c)
	shared := store.New(f.client, f.client, wellRedis{}, "authpool")
	var subs []Subscription
	for i, a := range f.accounts {
		id := fmt.Sprintf("s%03d", i)
		c.ids[id] = i
		subs = append(subs, Subscription{ID: id, Provider: "anthropic", Credential: simKey{}, Limits: Limits{Sessions: a.sessions}})
	}
	opts := Options{Strategy: strategy, Sessions: 10_000, Logger: slog.New(slog.DiscardHandler)}
	for range f.size.sidecars {
		p := New(opts, subs, simBindings{shared, c})
		for _, m := range p.members() {
			m.gate.Among(f.size.sidecars)
		}
		c.pools = append(c.pools, p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.watch = cancel
	c.watcher.Go(func() {
		shared.Watch(ctx, func(e store.Event) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.heard = append(c.heard, e)
		})
	})
	synctest.Wait()
	c.heard = nil // the watch has begun
	return c
}

// DialHook implements redis.Hook.
func (c *pooled) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook counts commands.
func (c *pooled) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.commands.Add(1)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook counts commands.
func (c *pooled) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.commands.Add(int64(len(cmds)))
		return next(ctx, cmds)
	}
}

func (c *pooled) stir(sidecar int) {
	if !c.busy[sidecar] {
		c.busy[sidecar] = true
		c.due = append(c.due, sidecar)
	}
}

func (c *pooled) choose(s *simSession, _ time.Time) (int, *Lease, time.Duration) {
	c.stir(s.sidecar)
	lease, err := c.pools[s.sidecar].Acquire(context.Background(), &s.request)
	if err != nil {
		wait := time.Hour
		if u, ok := errors.AsType[*UnavailableError](err); ok && !u.Until.IsZero() {
			wait = u.Wait
		}
		return -1, nil, wait
	}
	return c.ids[lease.Subscription().ID], lease, 0
}

func (c *pooled) answered(_ *simSession, _ int, lease *Lease, v ratelimit.Verdict) {
	lease.FirstByte(time.Second)
	lease.Verdict(v)
}

func (c *pooled) ended(s *simSession, lease *Lease, t usage.Tokens) {
	c.stir(s.sidecar)
	lease.Done(t)
}

// tick lets the sidecars hear what others did, and their keepers write what requests
// left. Nothing here has a share or an allowance to renew.
func (c *pooled) tick(now time.Time) {
	synctest.Wait() // what was published has come
	c.mu.Lock()
	heard := c.heard
	c.heard = nil
	c.mu.Unlock()
	heard = slices.CompactFunc(heard, func(a, b store.Event) bool { return a == b })
	for i, p := range c.pools {
		for _, e := range heard {
			p.keeper.hear(e)
			c.stir(i)
		}
	}
	slices.SortFunc(c.due, cmp.Compare)
	due := c.due
	c.due = nil
	for _, i := range due {
		c.busy[i] = false
		k := c.pools[i].keeper
		k.write(context.Background(), now)
		k.readStates(context.Background(), now)
	}
	if now.Sub(c.counted) >= c.among(countPoll) {
		c.count(now)
	}
}

// among is how often each sidecar reads something of all subscriptions.
func (c *pooled) among(every time.Duration) time.Duration {
	k := c.pools[0].keeper
	k.processes = len(c.pools)
	return k.among(every)
}

// count brings every sidecar the number of places on the subscriptions that it has
// asked for some, as its keeper does from time to time, and checks it.
func (c *pooled) count(now time.Time) {
	minutes := now.Sub(c.counted).Minutes()
	c.counted = now
	counts := make([]int64, len(c.f.accounts))
	for id, i := range c.ids {
		places, _ := c.f.mini.SortedSet("authpool:{" + id + "}:sessions") // an error: nobody holds one
		for _, end := range places {
			if end > float64(now.UnixMilli()) {
				counts[i]++
			}
		}
	}
	asked := 0
	for _, p := range c.pools {
		for _, m := range p.members() {
			if m.count.Load() > 0 {
				asked++
				m.count.Store(counts[c.ids[m.conf().ID]])
			}
		}
	}
	for i, n := range counts {
		if n > int64(c.f.accounts[i].sessions) {
			c.f.capBroken++
		}
	}
	// These, and the looks at the states and for the number of sidecars.
	each := float64(len(counts))*time.Minute.Seconds()/c.among(statePoll).Seconds() + time.Minute.Seconds()/musterEvery.Seconds()
	c.f.background += int64(float64(asked) + minutes*float64(len(c.pools))*each)
}

func (c *pooled) close(o *outcome) {
	o.commands = c.commands.Load()
	c.watch()
	c.watcher.Wait()
	_ = c.f.client.Close()
	for _, p := range c.pools {
		p.Close()
	}
	time.Sleep(time.Second) // go-redis' goroutines find out
}
