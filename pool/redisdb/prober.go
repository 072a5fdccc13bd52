package redisdb

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
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

// prober is the one goroutine that opens the gate. While the gate is shut it
// asks through a client of its own for each try, because the shared one refuses
// then; that also finds a moved master or a changed DNS entry afresh.
type prober struct {
	gate   *gate
	shared redis.UniversalClient
	plan   plan
	key    string
	logger *slog.Logger

	offset atomic.Int64 // Redis' clock minus ours, in ns

	mu   sync.Mutex
	onUp []func()

	cancel     context.CancelFunc
	first      chan struct{} // closed when the first try is over, the gate open if it went well
	closeFirst func()        // closes first, once
	done       chan struct{} // closed when run has ended
}

func startProber(g *gate, shared redis.UniversalClient, p plan, prefix string, logger *slog.Logger) *prober {
	ctx, cancel := context.WithCancel(context.Background())
	pr := &prober{
		gate: g, shared: shared, plan: p, key: prefix + ":probe", logger: logger,
		cancel: cancel, first: make(chan struct{}), done: make(chan struct{}),
	}
	pr.closeFirst = sync.OnceFunc(func() { close(pr.first) })
	go pr.run(ctx)
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
	<-p.done
}

func (p *prober) register(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onUp = append(p.onUp, f)
}

func (p *prober) run(ctx context.Context) {
	defer close(p.done)
	err := p.askAfresh(ctx)
	retry := firstRetry
	for ctx.Err() == nil {
		if err != nil {
			p.closeFirst()
			p.logger.Warn("Redis is away: traffic goes on from memory, usage waits in the journal", "error", err)
			retry = p.awaitBack(ctx, retry)
		} else {
			p.logger.Info("Redis answers")
		}
		since := time.Now()
		err = p.awaitShut(ctx)
		if time.Since(since) >= steady {
			retry = firstRetry
		}
	}
}

// awaitBack tries until Redis answers and returns the wait to begin with should
// it go away again at once.
func (p *prober) awaitBack(ctx context.Context, retry time.Duration) time.Duration {
	away := time.Now()
	for pause(ctx, jitter(retry)) {
		retry = min(2*retry, longestRetry)
		if p.askAfresh(ctx) == nil {
			p.logger.Info("Redis answers again", "away", time.Since(away).Round(time.Millisecond))
			return retry
		}
	}
	return retry
}

// awaitShut opens the gate, tells so, and keeps asking at the slow beat until the
// gate is shut. It returns what shut it.
func (p *prober) awaitShut(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.mu.Lock()
	onUp := slices.Clone(p.onUp) // those that register from now on see it up
	p.gate.up.Store(true)
	p.mu.Unlock()
	p.closeFirst()
	for _, f := range onUp {
		f()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-p.gate.shut:
			return err
		case <-time.After(jitter(beat)):
			// A failure goes through the gate's own judgement, like any command's.
			if err := p.ask(ctx, p.shared); err != nil && !errors.Is(err, ErrAway) {
				p.logger.Debug("Redis probe failed", "error", err)
			}
		}
	}
}

// askAfresh asks over a new connection.
func (p *prober) askAfresh(ctx context.Context) error {
	client := redis.NewUniversalClient(p.plan.universal())
	err := p.ask(ctx, client)
	return errors.Join(err, client.Close())
}

// ask reads Redis' clock and makes a write that changes nothing: an empty
// SETRANGE on a missing key creates no key, yet is refused by whatever refuses
// writes (a replica, a full memory, a failed save), which a PING is not.
func (p *prober) ask(ctx context.Context, client redis.UniversalClient) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var clock *redis.TimeCmd
	start := time.Now()
	_, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		clock = pipe.Time(ctx)
		pipe.SetRange(ctx, p.key, 0, "")
		return nil
	})
	if err != nil {
		return err
	}
	middle := start.Add(time.Since(start) / 2)
	p.offset.Store(int64(clock.Val().Sub(middle)))
	return nil
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
