// Package redisdb opens the Redis that authpool keeps its shared truth in, and
// knows at every moment whether it answers.
//
// One Open serves all four kinds: the embedded one (package embedded, inside the
// process), a single server, a master found through sentinels, and a cluster.
// Behind each is the same client type, so nothing above cares which it is.
//
// A remote Redis may be away at any time, at the start too. Its client therefore
// sits behind a gate (gate.go): the first command that fails because Redis is
// away shuts it, and from then on every command returns ErrAway without touching
// the network, until the prober (prober.go) has seen Redis take a write again.
// Callers ask Healthy to decide from memory, or simply handle the error; those
// that hold work back for Redis learn through OnUp when to send it.
//
// The package knows no keys and no scripts: these belong to ratelimit/usage and
// pool/store.
package redisdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/embedded"
)

// DB is an open Redis. Its methods are safe for concurrent use.
type DB struct {
	mode     Mode
	client   redis.UniversalClient
	durable  redis.UniversalClient // nil unless embedded
	gate     *gate
	prober   *prober         // nil when embedded
	embedded *embedded.Store // nil otherwise
	closed   atomic.Bool
}

// Open understands opts and returns the Redis they name. A wrong option is an
// error that names the config key; so are a snapshot that cannot be read and a
// listening address that cannot be had in embedded mode. A remote Redis that does
// not answer is none: the DB starts unhealthy and looks for it in the background.
// Open waits for the first answer, but not longer than a second or ctx.
func Open(ctx context.Context, opts Options) (*DB, error) {
	p, err := opts.plan()
	if err != nil {
		return nil, err
	}
	quietLibrary()
	if p.mode == Embedded {
		return openEmbedded(opts)
	}
	return openRemote(ctx, opts, p), nil
}

func openEmbedded(opts Options) (*DB, error) {
	store, err := embedded.Open(opts.Embedded)
	if err != nil {
		return nil, fmt.Errorf("cannot open the embedded Redis: %w", err)
	}
	p := plan{mode: Embedded, addrs: []string{"127.0.0.1:0"}} // a name would be looked up, even with a Dialer
	connect := func(dial func(context.Context) (net.Conn, error)) redis.UniversalClient {
		universal := p.universal()
		universal.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
		return redis.NewUniversalClient(universal)
	}
	db := &DB{mode: Embedded, client: connect(store.Dial), durable: connect(store.DialDurable), gate: newGate(), embedded: store}
	db.gate.up.Store(true)
	return db, nil
}

func openRemote(ctx context.Context, opts Options, p plan) *DB {
	logger := opts.Logger
	if logger == nil {
		logger = slog.Default()
	}
	prefix := opts.Prefix
	if prefix == "" {
		prefix = "authpool"
	}
	db := &DB{mode: p.mode, client: redis.NewUniversalClient(p.universal()), gate: newGate()}
	db.client.AddHook(db.gate)
	db.prober = startProber(db.gate, db.client, p, prefix, logger.With("redis", string(p.mode)))
	db.prober.awaitFirst(ctx)
	return db
}

// Client returns the one client that everybody shares. Do not close it.
func (db *DB) Client() redis.UniversalClient { return db.client }

// Durable returns the client for writes that somebody waits for, such as a new
// agent's token. With the embedded Redis its answers come when the write is on
// disk, see embedded.Store.DialDurable; to any other it is Client, since there its
// own settings decide. Do not close it.
func (db *DB) Durable() redis.UniversalClient {
	if db.durable == nil {
		return db.client
	}
	return db.durable
}

// Healthy tells in one atomic load whether Redis answered when last asked.
func (db *DB) Healthy() bool { return db.gate.up.Load() }

// Mode returns embedded, single, sentinel or cluster.
func (db *DB) Mode() string { return string(db.mode) }

// Offset is how far Redis' clock is ahead of this process' own, by the last
// measurement; the error is at most half a round trip. In a cluster it is that of
// one node: its nodes are taken to agree. It is zero until first measured, and in
// embedded mode.
func (db *DB) Offset() time.Duration {
	if db.prober == nil {
		return 0
	}
	return time.Duration(db.prober.offset.Load())
}

// OnUp has f called each time Redis comes (back) from being away after this
// call; for a Redis that never goes away, as the embedded one, that is never.
// Calls come one after another from one goroutine, which nothing else of the
// health check runs on meanwhile: f must return soon and must not call Close.
func (db *DB) OnUp(f func()) {
	if db.prober != nil {
		db.prober.register(f)
	}
}

// FrontAddr is where the embedded Redis listens for readers, nil when it does
// not or in another mode.
func (db *DB) FrontAddr() net.Addr {
	if db.embedded == nil {
		return nil
	}
	return db.embedded.FrontAddr()
}

// Saved is the time up to which every write is sure to survive this process:
// that of the embedded Redis' last snapshot, zero when there is none. For a
// remote Redis, whose own business durability is, ok is false.
func (db *DB) Saved() (at time.Time, ok bool) {
	if db.embedded == nil {
		return time.Time{}, false
	}
	return db.embedded.Saved(), true
}

// Save writes the embedded Redis' snapshot now and returns when it is on disk. In
// the other modes it does nothing.
func (db *DB) Save(ctx context.Context) error {
	if db.embedded == nil {
		return nil
	}
	return db.embedded.Save(ctx)
}

// Close ends the prober, the client and, after a last snapshot, the embedded
// Redis. Close it after everything that uses the client. A second call does
// nothing.
func (db *DB) Close(ctx context.Context) error {
	if !db.closed.CompareAndSwap(false, true) {
		return nil
	}
	if db.prober != nil {
		db.prober.close()
	}
	db.gate.up.Store(false)
	err := db.client.Close()
	if db.embedded != nil {
		err = errors.Join(err, db.durable.Close(), db.embedded.Close(ctx))
	}
	if err != nil {
		return fmt.Errorf("cannot close Redis: %w", err)
	}
	return nil
}
