// Package store keeps what the processes of a fleet have to agree on about
// subscriptions and sessions: which subscription a session sticks to, who holds
// a place on a subscription, who may have how many requests under way, and
// until when a subscription is closed. It is the only package of the pool that
// names a Redis key or command.
//
// Every change is one Lua script over the keys of one slot, with Redis' clock.
// A script that is run again with the same arguments, because its reply was
// lost, changes nothing more. Instants leave the store as durations from now,
// so that nobody compares two machines' clocks.
//
//	authpool:{SUB}:sessions       zset  <provider>/<agent>/<session> -> end of its place, epoch ms
//	authpool:{SUB}:fence          string  the highest fence that moved sessions there
//	authpool:{SUB}:slots          hash  <process> -> its share of limits.concurrent
//	authpool:{SUB}:rates          hash  requests, input, output -> the buckets of limits per minute,
//	                                    <process> -> what it holds of them
//	authpool:{SUB}:state          hash  state, reason, cooldown_until: for people, of the later one of
//	                                    cooldown_subscription  of it alone, and
//	                                    cooldown_domain        of all that share its limits; in both, state and reason too
//	                                    cooldown:<model>       for all that share its limits
//	                                    probe<…>               who finds out whether it is over, and until when
//	                                    opened<…>              when it was, the last turn on the ramp, how many had one, and who
//	                                    enabled                when an operator ended all of them
//	authpool:{SUB}:organisation   hash  organisation: that its provider's answers named, since
//	authpool:{SUB}:claim:<what>   string  one process of the fleet has told people of it
//	authpool:session:{<session>}  hash  subscription, since, last, parent; or released: when an operator
//	                                    ended the binding, for a while
//	authpool:resource:{<id>}      hash  subscription, agent
//	authpool:agents               hash  <agent> -> version and record, :state -> changes with every change,
//	                                    :last -> the highest version of one that was removed
//	authpool:rebalance            hash  who moves sessions on its own: process, fence, until; moves, began: how many since
//	authpool:managed              hash  <subscription> -> version and record, its secret sealed; :state likewise
//	authpool:audit:{<log>}        stream of <seq>-1 -> line: the copy of an audit log, by its key
//	authpool:events               channel that tells about changed states, moved sessions, changed agents and changed
//	                              subscriptions
package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb"
)

// ErrAway is in the error of a call that failed because Redis, or the node of a
// cluster that it is for, is away, and is known to be from now on.
var ErrAway = redisdb.ErrAway

// Health tells whether Redis is known to answer. While it is not, the pool asks
// nothing of the store.
type Health interface{ Healthy() bool }

// Store is the fleet's shared memory in one Redis. It is safe for concurrent
// use. Its methods obey their context and try once.
type Store struct {
	client  redis.UniversalClient
	durable redis.UniversalClient
	health  Health
	prefix  string

	mu      sync.Mutex
	heard   int // the last key of hearers
	hearers map[int]func(Event)
}

// New returns the Store under the prefix ("authpool" by default) of a Redis.
// durable is a client of the same Redis for writes that must survive authpool: it
// answers when they do. It may be client.
func New(client, durable redis.UniversalClient, health Health, prefix string) *Store {
	return &Store{client: client, durable: durable, health: health, prefix: prefix, hearers: map[int]func(Event){}}
}

// Healthy tells whether it is worth asking.
func (s *Store) Healthy() bool { return s.health.Healthy() }

func (s *Store) subscriptionKey(sub, what string) string {
	return s.prefix + ":{" + sub + "}:" + what
}

func (s *Store) sessionKey(session string) string {
	return s.prefix + ":session:{" + session + "}"
}

func (s *Store) channel() string { return s.prefix + ":events" }

// ms is a duration in whole milliseconds, rounded up: a wait is never shortened.
func ms(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

func fromMS(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// errReply is a reply that the scripts never give.
var errReply = errors.New("unexpected reply of a script")

// integers reads the reply of a script: a list of integers, at least n of them.
func integers(cmd *redis.Cmd, n int) ([]int64, error) {
	list, err := cmd.Int64Slice()
	if err != nil {
		return nil, err
	}
	if len(list) < n {
		return nil, fmt.Errorf("%w: %v", errReply, list)
	}
	return list, nil
}

// pipeline runs a script for every set of keys and arguments in one round trip.
// Results come in order, each with an error of its own: a node of a cluster may be
// away and the others not. Where a server does not know the script, all is sent once
// more with its text; to load it first would need every node.
func pipeline(ctx context.Context, client redis.UniversalClient, script *redis.Script, calls []call) []*redis.Cmd {
	send := func(run func(ctx context.Context, c redis.Scripter, keys []string, args ...any) *redis.Cmd) (out []*redis.Cmd, unknown bool) {
		out = make([]*redis.Cmd, len(calls))
		_, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i, c := range calls {
				out[i] = run(ctx, pipe, c.keys, c.args...)
			}
			return nil
		})
		for _, cmd := range out {
			if err != nil && cmd.Err() == nil && cmd.Val() == nil {
				cmd.SetErr(err) // there was no connection: nothing was sent
			}
			unknown = unknown || redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT")
		}
		return out, unknown
	}
	out, unknown := send(script.EvalSha)
	if unknown {
		out, _ = send(script.Eval)
	}
	return out
}

type call struct {
	keys []string
	args []any
}
