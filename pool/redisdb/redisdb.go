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
// A cluster has a gate before each node. A lost node takes its own slots with it
// and nothing else: what lies there waits as if Redis were away, the rest goes on,
// and as soon as a replica has taken over the slots, or the node is back, all does.
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
	place    string
	client   redis.UniversalClient
	durable  redis.UniversalClient // nil unless embedded
	gates    *gates
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
	db := &DB{mode: Embedded, client: connect(store.Dial), durable: connect(store.DialDurable), gates: newGates(), embedded: store}
	db.gates.open(db.gates.only())
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
	db := &DB{mode: p.mode, place: p.place(prefix), gates: newGates()}
	if p.mode == Cluster {
		db.client = newCluster(p, db.gates)
	} else {
		db.client = redis.NewUniversalClient(p.universal())
		db.client.AddHook(db.gates.only())
	}
	db.prober = startProber(db.gates, db.client, p, prefix, logger.With("redis", string(p.mode)))
	db.prober.awaitFirst(ctx)
	return db
}

// newCluster returns a client of a cluster with a gate before each node. A gate
// before the whole would see an answer only after all of the library's own
// repetitions, and would shut off every node for one.
//
// The library's routing by the servers' own command tables is off, as it asks for
// them on the caller's time, for 5 s whatever the caller's deadline.
func newCluster(p plan, gs *gates) *redis.ClusterClient {
	opts := p.universal().Cluster()
	opts.DisableRoutingPolicies = true
	client := redis.NewClusterClient(opts)
	client.OnNewNode(func(node *redis.Client) { node.AddHook(gs.node(node.Options().Addr)) })
	return client
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

// Healthy tells in one atomic load whether Redis answered when last asked; in a
// cluster, whether a master did. Commands for one that did not return ErrAway at
// once, those for the others are sent.
func (db *DB) Healthy() bool { return db.gates.healthy.Load() }

// Mode returns embedded, single, sentinel or cluster.
func (db *DB) Mode() string { return string(db.mode) }

// Place tells this Redis, and the prefix of the keys in it, from others by where they
// are: what is kept outside of it names what it belongs to by that. It is empty for the
// embedded one.
func (db *DB) Place() string { return db.place }

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

// OnUp has f called each time that Redis, or a node of a cluster, comes (back) from
// being away after this call, or is found to be another server than before, as after
// a fail-over, or to have been restarted: its last writes may be missing. Within ten
// seconds that is noticed even if no command has failed. For the embedded Redis it
// is never. Calls come one after another, and several occasions may make one call: f
// must return soon and must not call Close.
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
	db.gates.close()
	err := db.client.Close()
	if db.embedded != nil {
		err = errors.Join(err, db.durable.Close(), db.embedded.Close(ctx))
	}
	if err != nil {
		return fmt.Errorf("cannot close Redis: %w", err)
	}
	return nil
}
