package redisdb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrAway is in the error of a command that found out that the Redis that it is for
// is away: the whole, or the node of a cluster that serves its key. From then on all
// such commands return it at once. Work that can wait is kept by its owner until
// OnUp tells.
var ErrAway = errors.New("redis is away")

// patience is the shortest wait that proves anything about Redis: a caller that
// came with less than this before its deadline learned only that it was late.
const patience = 10 * time.Millisecond

// gates are all gates of a DB: one, or in a cluster one for each node, so that a
// lost node takes nothing with it but its own slots.
type gates struct {
	refused  atomic.Uint64 // commands that met a shut gate
	failures atomic.Uint64 // times that one was shut
	healthy  atomic.Bool   // a gate that counts is open

	mu    sync.Mutex
	count []*gate          // those that count for health: the one, or those of a cluster's masters
	nodes map[string]*gate // of a cluster, by address
	shut  []*gate          // shut since the prober last looked
	tell  chan struct{}    // holds one: there is something in shut
}

func newGates() *gates {
	return &gates{nodes: map[string]*gate{}, tell: make(chan struct{}, 1)}
}

// only returns the one gate of a Redis that is no cluster. It is shut.
func (gs *gates) only() *gate {
	g := &gate{gates: gs}
	gs.count = []*gate{g}
	return g
}

// node returns the gate of a cluster's node; a new one is open, since its node is
// in use from now on.
func (gs *gates) node(addr string) *gate {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.nodes[addr]
	if g == nil {
		g = &gate{gates: gs, addr: addr}
		g.up.Store(true)
		gs.nodes[addr] = g
	}
	return g
}

// open opens g.
func (gs *gates) open(g *gate) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g.up.Store(true)
	gs.judge()
}

// close shuts all gates that count, for good.
func (gs *gates) close() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, g := range gs.count {
		g.up.Store(false)
	}
	gs.judge()
}

// masters says which nodes of a cluster count for health and which belong to it at
// all. Gates of others are opened and forgotten: a node that has left is not waited
// for, and if it is met again, its gate is shut again.
func (gs *gates) masters(count []string, belong func(addr string) bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.count = gs.count[:0]
	for addr, g := range gs.nodes {
		switch {
		case slices.Contains(count, addr):
			gs.count = append(gs.count, g)
		case !belong(addr):
			g.up.Store(true)
			delete(gs.nodes, addr)
		}
	}
	gs.judge()
}

// judge decides about health. Its caller holds mu.
func (gs *gates) judge() {
	gs.healthy.Store(slices.ContainsFunc(gs.count, func(g *gate) bool { return g.up.Load() }))
}

// await has the prober look after a gate that has never been open.
func (gs *gates) await(g *gate, cause error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.tellOf(g, cause)
}

// tellOf tells the prober of a gate that is shut. Its caller holds mu.
func (gs *gates) tellOf(g *gate, cause error) {
	g.cause = cause
	gs.shut = append(gs.shut, g)
	poke(gs.tell)
}

// away returns how many gates that count are shut.
func (gs *gates) away() (n int) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, g := range gs.count {
		if !g.up.Load() {
			n++
		}
	}
	return n
}

// takeShut returns the gates that were shut since the last call.
func (gs *gates) takeShut() []*gate {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	shut := gs.shut
	gs.shut = nil
	return shut
}

// gate is the hook that every command for one server passes. It is open while the
// server answers; the first failure shuts it, and only the prober opens it again.
type gate struct {
	gates *gates
	addr  string // of a cluster's node, else empty
	up    atomic.Bool

	cause error // what shut it; gates.mu guards it

	// Of the prober's one goroutine that looks after it while it is shut.
	retry  time.Duration
	opened time.Time
}

// trip shuts the gate. Only the failure that did it is told to the prober.
func (g *gate) trip(err error) {
	gs := g.gates
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if !g.up.CompareAndSwap(true, false) {
		return
	}
	gs.failures.Add(1)
	gs.judge()
	gs.tellOf(g, err)
}

// judge shuts the gate if err, which a call begun at start met, says that Redis
// is away. It returns the error for the caller.
func (g *gate) judge(ctx context.Context, err error, start time.Time) error {
	if err == nil || !away(ctx, err, time.Since(start)) {
		return err
	}
	g.trip(err)
	return fmt.Errorf("%w: %w", ErrAway, err)
}

// ProcessHook implements redis.Hook for single commands.
func (g *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !g.up.Load() {
			g.gates.refused.Add(1)
			cmd.SetErr(ErrAway)
			return ErrAway
		}
		start := time.Now()
		return g.judge(ctx, next(ctx, cmd), start)
	}
}

// ProcessPipelineHook implements redis.Hook for pipelines.
func (g *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !g.up.Load() {
			g.gates.refused.Add(uint64(len(cmds)))
			for _, cmd := range cmds {
				cmd.SetErr(ErrAway)
			}
			return ErrAway
		}
		start := time.Now()
		return g.judge(ctx, next(ctx, cmds), start)
	}
}

// DialHook implements redis.Hook. The pool dials in the background, so a failed
// dial is seen here even when its caller has left.
func (g *gate) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		start := time.Now()
		conn, err := next(ctx, network, addr)
		_ = g.judge(ctx, err, start) // whose command it is for judges its own error
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
	if isElsewhere(answer) {
		return false
	}
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

// isElsewhere tells whether a node of a cluster says that a key's slot is with
// another node, or with none. The node itself is well then: it looks whether it can
// work at all before it looks where the slot is.
func isElsewhere(answer error) bool {
	_, moved := redis.IsMovedError(answer)
	_, ask := redis.IsAskError(answer)
	return moved || ask || redis.HasErrorPrefix(answer, "CLUSTERDOWN Hash slot not served")
}
