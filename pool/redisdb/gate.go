package redisdb

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrAway is what every command returns at once while Redis is known to be
// away. Work that can wait is kept by its owner until OnUp tells.
var ErrAway = errors.New("redis is away")

// patience is the shortest wait that proves anything about Redis: a caller that
// came with less than this before its deadline learned only that it was late.
const patience = 10 * time.Millisecond

// gate is the hook that every command of the client passes. It is open while
// Redis answers; the first failure shuts it, and only the prober opens it again.
type gate struct {
	up       atomic.Bool
	refused  atomic.Uint64 // commands that met a shut gate
	failures atomic.Uint64 // times it was shut
	shut     chan error    // the failure that shut it, for the prober; holds one
}

func newGate() *gate { return &gate{shut: make(chan error, 1)} }

// trip shuts the gate. Only the failure that did it is told to the prober.
func (g *gate) trip(err error) {
	if g.up.CompareAndSwap(true, false) {
		g.failures.Add(1)
		g.shut <- err // never blocks: the prober empties it before it opens the gate
	}
}

// judge shuts the gate if err, which a call begun at start met, says that Redis
// is away.
func (g *gate) judge(ctx context.Context, err error, start time.Time) {
	if err != nil && away(ctx, err, time.Since(start)) {
		g.trip(err)
	}
}

// ProcessHook implements redis.Hook for single commands.
func (g *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !g.up.Load() {
			g.refused.Add(1)
			cmd.SetErr(ErrAway)
			return ErrAway
		}
		start := time.Now()
		err := next(ctx, cmd)
		g.judge(ctx, err, start)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook for pipelines.
func (g *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !g.up.Load() {
			g.refused.Add(uint64(len(cmds)))
			for _, cmd := range cmds {
				cmd.SetErr(ErrAway)
			}
			return ErrAway
		}
		start := time.Now()
		err := next(ctx, cmds)
		g.judge(ctx, err, start)
		return err
	}
}

// DialHook implements redis.Hook. The pool dials in the background, so a failed
// dial is seen here even when its caller has left.
func (g *gate) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		start := time.Now()
		conn, err := next(ctx, network, addr)
		g.judge(ctx, err, start)
		return conn, err
	}
}

// away tells whether err, met after waiting so long, means that Redis cannot
// serve. Answers about one command (a wrong type, an unknown script) do not, and
// neither does a caller that left by itself.
func away(ctx context.Context, err error, waited time.Duration) bool {
	switch {
	case errors.Is(err, redis.Nil), errors.Is(err, redis.ErrClosed), errors.Is(err, ErrAway),
		errors.Is(err, context.Canceled), errors.Is(ctx.Err(), context.Canceled):
		return false
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && waited < patience:
		return false
	}
	if answer := redis.Error(nil); errors.As(err, &answer) {
		return refusesWork(answer)
	}
	return true
}

// refusesWork tells whether an answer of Redis says that it takes no writes now,
// or not from us. A probe that only pings would be content with most of these,
// which is why the prober's command is a write.
func refusesWork(answer error) bool {
	for _, code := range [...]string{
		"LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "MISCONF", "OOM",
		"BUSY ", "NOREPLICAS", "NOAUTH", "WRONGPASS", "max number of clients reached",
	} {
		if redis.HasErrorPrefix(answer, code) {
			return true
		}
	}
	return false
}
