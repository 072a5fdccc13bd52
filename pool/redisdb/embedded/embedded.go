// Package embedded is the Redis that authpool brings along: miniredis inside the
// process, made fit to be relied on.
//
// miniredis is meant for tests. What it lacks is added here, each in a file:
//   - nobody reaches it from outside. Its own reader of requests allocates what a
//     request announces, so it is given none: connections inside the process
//     (local.go) and those of the port for people (front.go) are read by resp.go,
//     which believes no length, and handed over as complete commands (dispatch.go);
//   - only commands whose effect on keys is known are taken (commands.go), and
//     none that block, so that one lock can put commands, expiry and snapshots in
//     one line;
//   - keys expire by a ticker (clock.go), because TTLs there stand still and its
//     own way of moving them walks every key at every access;
//   - it remembers no dead keys, because it is renewed now and then (renew.go);
//   - it survives the process by snapshots (image.go, snapshot.go), taken in slices
//     that hold no command up for long and yet show one moment, and what somebody
//     waits for by a log beside them (durable.go).
//
// It is made for one machine and up to 20,000 keys.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
)

// Options say what an embedded Redis keeps and who may read it.
type Options struct {
	// Snapshot is the path of the snapshot file; the one before is kept beside it
	// with ".1" at its end. Empty: nothing is read or kept.
	Snapshot string
	// Interval is the time between snapshots while something changes. Zero means
	// DefaultInterval.
	Interval time.Duration
	// Log keeps what is written over DialDurable between snapshots. It belongs to
	// Snapshot, and is ignored without. Nil: such writes are safe with the next
	// snapshot only.
	Log WriteLog
	// Listen is host:port of the read-only port for people. Empty or "off": none.
	Listen string
	// PasswordHash is the SHA-256 of the password that the port asks for. It must
	// be set when Listen is.
	PasswordHash [32]byte
	// Logger is told about snapshots that fail. Nil means slog.Default().
	Logger *slog.Logger
}

// DefaultInterval is the time between snapshots.
const DefaultInterval = 30 * time.Second

// Store is a running embedded Redis. Its methods are safe for concurrent use.
type Store struct {
	opts   Options
	logger *slog.Logger

	// mu is held while a command runs, the clock ticks or a slice of a snapshot is
	// taken: these never overlap. The fields below it belong to its holder.
	mu      sync.Mutex
	mini    *miniredis.Miniredis
	server  *server.Server
	calling *caller             // whose command runs, nil between commands
	dirty   map[string]struct{} // keys written since they were last copied into image
	flushed bool                // everything was deleted since then
	touched map[string]struct{} // keys that a durable command has written; nil outside of one
	extent  extent              // of the durable writes

	synced      atomic.Int64 // Log is on disk up to this number
	savedMissed atomic.Int64 // extent.missed as a snapshot on disk has it

	saving  sync.Mutex // held by the one snapshot under way; guards the four below
	image   map[string]record
	shown   extent // as it was when image was last brought up to date
	unsaved bool   // image is ahead of the file
	dead    int    // keys that ended since miniredis was started or renewed
	stats   stats

	front *front // nil without Listen

	conns   sync.Mutex // guards locals and closed
	locals  map[*local]struct{}
	closed  bool
	running sync.WaitGroup // connections, ticker and snapshotter
	stop    chan struct{}
	ended   atomic.Bool
}

// stats are what metrics tell.
type stats struct {
	savedAt  atomic.Int64 // Unix ns of the moment that the last snapshot shows
	keys     atomic.Int64 // in that snapshot
	bytes    atomic.Int64
	failures atomic.Uint64
}

// Open loads the snapshot, if there is one, and starts the store. A snapshot that
// is damaged is put aside for the one before it; if that cannot be used either,
// Open fails rather than begin empty, and says what to do. An address that is
// taken fails with the config key in the message.
func Open(opts Options) (*Store, error) {
	s := &Store{
		opts:   opts,
		logger: opts.Logger,
		dirty:  map[string]struct{}{},
		image:  map[string]record{},
		locals: map[*local]struct{}{},
		stop:   make(chan struct{}),
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	if s.opts.Interval <= 0 {
		s.opts.Interval = DefaultInterval
	}
	if s.opts.Snapshot == "" {
		s.opts.Log = nil
	}
	var err error
	if s.mini, err = newMini(); err != nil {
		return nil, err
	}
	s.server = s.mini.Server()
	s.server.SetPreHook(s.inspect)
	now := time.Now()
	if err := s.load(now); err != nil {
		s.mini.Close()
		return nil, err
	}
	if err := s.replay(now); err != nil {
		s.mini.Close()
		return nil, err
	}
	if listens(opts.Listen) {
		if s.front, err = listen(s, opts.Listen, opts.PasswordHash); err != nil {
			s.mini.Close()
			return nil, err
		}
	}
	s.running.Go(s.tick)
	if s.opts.Snapshot != "" {
		s.running.Go(s.saveRegularly)
	}
	return s, nil
}

// newMini starts a miniredis that listens nowhere. Only its Dial can do that, so
// one connection is made and thrown away.
func newMini() (*miniredis.Miniredis, error) {
	mini := miniredis.NewMiniRedis()
	conn, err := mini.Dial()
	if err != nil {
		return nil, fmt.Errorf("cannot start miniredis: %w", err)
	}
	return mini, conn.Close()
}

func listens(addr string) bool { return addr != "" && addr != "off" }

// FrontAddr is where the port for people listens, nil without one.
func (s *Store) FrontAddr() net.Addr {
	if s.front == nil {
		return nil
	}
	return s.front.listener.Addr()
}

// Close stops the port, ends all connections, takes a last snapshot and ends the
// store. A second call does nothing.
func (s *Store) Close(ctx context.Context) error {
	if !s.ended.CompareAndSwap(false, true) {
		return nil
	}
	var errs []error
	if s.front != nil {
		errs = append(errs, s.front.close())
	}
	close(s.stop)
	s.closeLocals()
	s.running.Wait()
	if s.opts.Snapshot != "" {
		errs = append(errs, s.Save(ctx))
	}
	s.mini.Close()
	return errors.Join(errs...)
}
