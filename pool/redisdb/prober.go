package redisdb

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// How often the prober asks. While Redis is up a slow beat finds out that it
// went away between commands, and measures the clock; while it is away the wait
// doubles from one to the other, each jittered down to its half so that a fleet
// does not come back in step.
const (
	beat         = 10 * time.Second
	firstRetry   = 100 * time.Millisecond
	longestRetry = 5 * time.Second
	// steady is how long Redis must stay up before the wait starts small again:
	// one that pings well and fails at work would else be tried ten times a second.
	steady       = 10 * time.Second
	probeTimeout = time.Second
)

// prober opens the gates. While a gate is shut it asks that server through a client
// of its own for each try, because the shared one refuses then; that also finds a
// moved master or a changed DNS entry afresh.
//
// It also notices that a server is not the one it was, though no command has failed:
// a replica that took over, or a restart. Such a server may lack the last writes.
type prober struct {
	gates  *gates
	shared redis.UniversalClient
	plan   plan
	key    string
	logger *slog.Logger

	offset atomic.Int64 // Redis' clock minus ours, in ns

	mu        sync.Mutex
	onUp      []func()
	owed      []func()          // to be called: those that were registered when Redis came up
	histories map[string]string // by a master's address, empty when not of a cluster: whose writes it has

	news    chan struct{} // holds one: something is owed
	hurry   chan struct{} // holds one: the beat is not to be waited for
	cancel  context.CancelFunc
	running sync.WaitGroup

	first      chan struct{} // closed when the first try is over, gates open if it went well
	closeFirst func()        // closes first, once
}

func startProber(gs *gates, shared redis.UniversalClient, p plan, prefix string, logger *slog.Logger) *prober {
	ctx, cancel := context.WithCancel(context.Background())
	pr := &prober{
		gates: gs, shared: shared, plan: p, key: prefix + ":probe", logger: logger,
		histories: map[string]string{}, news: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		cancel: cancel, first: make(chan struct{}),
	}
	pr.closeFirst = sync.OnceFunc(func() { close(pr.first) })
	pr.running.Go(func() { pr.run(ctx) })
	pr.running.Go(func() { pr.look(ctx) })
	return pr
}

// awaitFirst returns when the first try has ended, well or not, or ctx has.
func (p *prober) awaitFirst(ctx context.Context) {
	select {
	case <-p.first:
	case <-ctx.Done():
	}
}

// close ends the prober and waits for it.
func (p *prober) close() {
	p.cancel()
	p.running.Wait()
}

func (p *prober) register(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onUp = append(p.onUp, f)
}

// run has each gate that is shut looked after, and calls what OnUp was given.
func (p *prober) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.gates.tell:
			for _, g := range p.gates.takeShut() {
				p.running.Go(func() { p.bringBack(ctx, g) })
			}
		case <-p.news:
			p.mu.Lock()
			owed := p.owed
			p.owed = nil
			p.mu.Unlock()
			for _, f := range owed {
				f()
			}
		}
	}
}

// owe has those called who are registered now. Its caller holds mu, and opens what
// there is to open before it lets go: who registers later sees it open.
func (p *prober) owe() {
	p.owed = slices.Clone(p.onUp)
	poke(p.news)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// bringBack asks a server whose gate is shut until it answers.
func (p *prober) bringBack(ctx context.Context, g *gate) {
	p.gates.mu.Lock()
	cause := g.cause
	p.gates.mu.Unlock()
	logger := p.logger
	if g.addr != "" {
		logger = logger.With("node", g.addr)
	}
	logger.Warn("Redis is away: traffic goes on from memory, usage waits in the journal", "error", cause)
	away := time.Now()
	if g.retry == 0 || away.Sub(g.opened) >= steady {
		g.retry = firstRetry
	}
	for {
		if g.addr != "" {
			poke(p.hurry) // a replica may have taken over
		}
		if !pause(ctx, jitter(g.retry)) {
			return
		}
		if g.up.Load() {
			logger.Info("the node has left the cluster")
			return
		}
		g.retry = min(2*g.retry, longestRetry)
		if history, err := p.askAfresh(ctx, g.addr); err == nil {
			logger.Info("Redis answers again", "away", time.Since(away).Round(time.Millisecond))
			p.open(g, history)
			return
		}
	}
}

// open opens a gate and says so.
func (p *prober) open(g *gate, history string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g.opened = time.Now()
	if _, isMaster := p.histories[g.addr]; isMaster || g.addr == "" {
		p.histories[g.addr] = history
	}
	p.gates.open(g)
	p.owe()
}

// look asks at the slow beat, through the shared client and its gates: what fails is
// judged like any command. In a cluster it also looks who the masters are, at a quick
// beat while no master answers.
func (p *prober) look(ctx context.Context) {
	if err := p.begin(ctx); err != nil {
		p.logger.Warn("no node of the cluster answers", "error", err)
	}
	if p.gates.healthy.Load() {
		p.logger.Info("Redis answers")
	}
	p.closeFirst()
	retry := firstRetry
	for {
		wait := beat
		if p.plan.mode == Cluster && !p.gates.healthy.Load() {
			wait, retry = retry, min(2*retry, longestRetry)
		} else {
			retry = firstRetry
		}
		timer := time.NewTimer(jitter(wait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.hurry:
		case <-timer.C:
		}
		timer.Stop()
		if err := p.ask(ctx); err != nil && !errors.Is(err, ErrAway) {
			p.logger.Debug("Redis probe failed", "error", err)
		}
	}
}

// begin is the first look, which Open waits for: it takes no longer than one probe.
func (p *prober) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if p.plan.mode == Cluster {
		return p.askCluster(ctx)
	}
	g := p.gates.count[0]
	history, err := p.askAfresh(ctx, "")
	if err != nil {
		p.gates.await(g, err)
		return nil // it is told when it is looked after
	}
	p.open(g, history)
	return nil
}

// ask asks over the shared client.
func (p *prober) ask(ctx context.Context) error {
	if p.plan.mode == Cluster {
		return p.askCluster(ctx)
	}
	history, err := p.probe(ctx, p.shared)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.remember("", history) {
		p.logger.Info("Redis is another server than before, or was restarted")
		p.owe()
	}
	return nil
}

// askCluster asks every master and takes note of who they are. Each call has the
// shared client learn it anew, too.
func (p *prober) askCluster(ctx context.Context) error {
	cluster := p.shared.(*redis.ClusterClient)
	var mu sync.Mutex
	masters, all := map[string]string{}, slices.Clone(p.plan.addrs)
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		history, err := p.probe(ctx, node)
		mu.Lock()
		defer mu.Unlock()
		masters[node.Options().Addr] = history
		return err
	})
	if len(masters) == 0 {
		return err
	}
	err = errors.Join(err, cluster.ForEachShard(ctx, func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, node.Options().Addr)
		return nil
	}))

	p.mu.Lock()
	defer p.mu.Unlock()
	healthy, started := p.gates.healthy.Load(), len(p.histories) > 0
	p.gates.masters(slices.Collect(maps.Keys(masters)), func(addr string) bool { return slices.Contains(all, addr) })
	back := !healthy && p.gates.healthy.Load()
	for addr, history := range masters {
		_, known := p.histories[addr]
		if p.remember(addr, history) || started && !known {
			p.logger.Info("a node of Redis has taken slots over, or was restarted", "node", addr)
			back = true
		}
	}
	maps.DeleteFunc(p.histories, func(addr, _ string) bool { _, is := masters[addr]; return !is })
	if back {
		p.owe()
	}
	return err
}

// remember notes whose writes a server has, and tells whether it had others before.
// Its caller holds mu.
func (p *prober) remember(addr, history string) (changed bool) {
	was, known := p.histories[addr]
	if history != "" || !known {
		p.histories[addr] = history
	}
	return was != "" && history != "" && was != history
}

// askAfresh asks over a new connection: the node at addr, or without one whoever the
// options lead to.
func (p *prober) askAfresh(ctx context.Context, addr string) (history string, err error) {
	opts := p.plan.universal()
	if addr != "" {
		opts.Addrs, opts.IsClusterMode = []string{addr}, false
	}
	client := redis.NewUniversalClient(opts)
	history, err = p.probe(ctx, client)
	return history, errors.Join(err, client.Close())
}

// probe reads a server's clock and makes a write that changes nothing: an empty
// SETRANGE on a missing key creates no key, yet is refused by whatever refuses
// writes (a replica, a full memory, a failed save), which a PING is not. It returns
// the id that a server gives to the sequence of its writes, which becomes another
// when a replica takes over and when a server starts; empty if it does not tell.
func (p *prober) probe(ctx context.Context, client redis.UniversalClient) (history string, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	pipe := client.Pipeline()
	clock := pipe.Time(ctx)
	write := pipe.SetRange(ctx, p.key, 0, "")
	info := pipe.Info(ctx, "replication")
	start := time.Now()
	if _, err := pipe.Exec(ctx); err != nil && clock.Val().IsZero() {
		return "", err // also when the connection was refused, of which no command tells
	}
	if err := write.Err(); err != nil && (p.plan.mode != Cluster || !isElsewhere(err)) {
		return "", err
	}
	middle := start.Add(time.Since(start) / 2)
	p.offset.Store(int64(clock.Val().Sub(middle)))
	// Who may not ask for it does without.
	_, rest, _ := strings.Cut(info.Val(), "master_replid:")
	history, _, _ = strings.Cut(rest, "\r\n")
	return history, nil
}

// jitter spreads d evenly over its upper half.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// pause waits for d; it returns false as soon as ctx ends.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
