package redisdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// answer is an error that Redis answered.
type answer string

func (a answer) Error() string { return string(a) }
func (answer) RedisError()     {}

func TestAway(t *testing.T) {
	ctx := t.Context()
	gone, cancel := context.WithCancel(ctx)
	cancel()
	late, cancel := context.WithDeadline(ctx, time.Unix(1, 0))
	defer cancel()
	long := time.Second
	tests := []struct {
		name   string
		ctx    context.Context
		err    error
		waited time.Duration
		want   bool
	}{
		{"no key", ctx, redis.Nil, long, false},
		{"wrong type", ctx, answer("WRONGTYPE Operation against a key"), long, false},
		{"script unknown", ctx, answer("NOSCRIPT No matching script"), long, false},
		{"moved", ctx, answer("MOVED 1 h:1"), long, false},
		{"group exists", ctx, answer("BUSYGROUP name exists"), long, false},
		{"loading", ctx, answer("LOADING Redis is loading the dataset in memory"), 0, true},
		{"replica", ctx, answer("READONLY You can't write against a read only replica."), 0, true},
		{"replica, in a script", ctx, fmt.Errorf("apply: %w", answer("READONLY You can't write")), 0, true},
		{"cluster down", ctx, answer("CLUSTERDOWN The cluster is down"), 0, true},
		{"full", ctx, answer("OOM command not allowed"), 0, true},
		{"cannot save", ctx, answer("MISCONF Redis is configured to save RDB snapshots"), 0, true},
		{"script hangs", ctx, answer("BUSY Redis is busy running a script"), 0, true},
		{"wrong password", ctx, answer("WRONGPASS invalid username-password pair"), 0, true},
		{"too many clients", ctx, answer("ERR max number of clients reached"), 0, true},
		{"refused", ctx, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, 0, true},
		{"closed by the server", ctx, io.EOF, 0, true},
		{"no connection free", ctx, redis.ErrPoolTimeout, long, true},
		{"own deadline", late, context.DeadlineExceeded, 50 * time.Millisecond, true},
		{"deadline over before it began", late, context.DeadlineExceeded, time.Millisecond, false},
		{"caller left", gone, context.Canceled, long, false},
		{"caller left, as the socket tells it", gone, io.EOF, long, false},
		{"own close", ctx, redis.ErrClosed, 0, false},
		{"shut already", ctx, ErrAway, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := away(tt.ctx, tt.err, tt.waited); got != tt.want {
				t.Errorf("away = %t", got)
			}
		})
	}
}

func TestGateRefusesWhileShut(t *testing.T) {
	gs := newGates()
	g := gs.only()
	gs.open(g)
	calls := 0
	process := g.ProcessHook(func(context.Context, redis.Cmder) error { calls++; return io.EOF })
	pipeline := g.ProcessPipelineHook(func(context.Context, []redis.Cmder) error { calls++; return nil })
	cmd := redis.NewStatusCmd(t.Context(), "ping")
	if err := process(t.Context(), cmd); !errors.Is(err, io.EOF) {
		t.Errorf("first call: %v", err)
	}
	if err := process(t.Context(), cmd); !errors.Is(err, ErrAway) || !errors.Is(cmd.Err(), ErrAway) {
		t.Errorf("second call: %v, %v", err, cmd.Err())
	}
	cmds := []redis.Cmder{redis.NewStatusCmd(t.Context(), "ping"), redis.NewStatusCmd(t.Context(), "ping")}
	if err := pipeline(t.Context(), cmds); !errors.Is(err, ErrAway) || !errors.Is(cmds[1].Err(), ErrAway) {
		t.Errorf("pipeline: %v, %v", err, cmds[1].Err())
	}
	if calls != 1 || gs.failures.Load() != 1 || gs.refused.Load() != 3 {
		t.Errorf("%d calls went out, %d failures, %d refused", calls, gs.failures.Load(), gs.refused.Load())
	}
}

func TestGateShutsOnFailedDial(t *testing.T) {
	gs := newGates()
	g := gs.only()
	gs.open(g)
	dial := g.DialHook(func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED })
	if _, err := dial(t.Context(), "tcp", "h:1"); err == nil || g.up.Load() {
		t.Errorf("dial: %v, up %t", err, g.up.Load())
	}
}
