package embedded

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"
)

// Between snapshots a store loses what was written since the last one, should the
// process die. For most of it that is right: usage comes back from its journal, and
// who sits where is found out anew. What somebody was told is done must not go that
// way. Such a write is made over a connection of DialDurable: before its answer is
// sent, the keys that it wrote are copied into the WriteLog, as they are then, and
// the log is synced. After a crash these copies are put over the snapshot.
//
// The log holds keys and not commands because a key says the same whenever it is
// read back: no clock, no script and no other write that was lost can make it come
// out differently. Each snapshot holds the number of the last entry that it shows,
// so that what it knows better is not put over it.

// WriteLog keeps the durable writes of a store until they are in a snapshot. It
// may forget those that are. usage.WriteLog is one.
type WriteLog interface {
	// Append adds an entry, waiting for nothing slower than the page cache, and
	// returns its number. Numbers have no hole.
	Append(entry []byte) (number int64, err error)
	// Sync returns when everything appended before the call is on disk.
	Sync() error
	// Replay calls visit for each entry whose number is above after, in order.
	// It is called once, before the first Append, whose numbers will be above
	// after as well.
	Replay(after int64, visit func(number int64, entry []byte) error) error
}

// DialDurable is Dial for writes that somebody waits for: an answer says that the
// write is on disk. An error may come although the write was done in memory; what
// it says is that the write may not survive. A command's keys are logged with all
// that is in them, so they should be small. Messages and the deletion of everything
// are refused. Without a WriteLog it is Dial.
func (s *Store) DialDurable(ctx context.Context) (net.Conn, error) {
	if s.opts.Log == nil {
		return s.Dial(ctx)
	}
	return s.dial(s.serveDurable)
}

// maxUnsent is how many bytes of answers wait for one sync.
const maxUnsent = 64 << 10

// serveDurable answers a durable connection. The commands that are sent together
// share one sync.
func (s *Store) serveDurable(l *local) {
	in := bufio.NewReader(l.conn)
	var out bytes.Buffer // answers that wait
	c := newCaller(&out)
	for waiting := 1; !c.peer.Closed(); waiting++ {
		args, err := readRequest(in, localLimits)
		if err != nil {
			return
		}
		seen := s.runDurable(c, args)
		if in.Buffered() > 0 && out.Len() < maxUnsent {
			continue
		}
		if err := s.makeSafe(seen); err != nil {
			out.Reset()
			for range waiting {
				c.peer.WriteError("ERR this write may be lost when authpool ends: " + err.Error())
			}
			c.peer.Flush()
		}
		if _, err := l.Write(out.Bytes()); err != nil {
			return
		}
		out.Reset()
		waiting = 0
	}
}

// extent is how far durable writes have come: what a command saw, and so what must
// be on disk before anybody is told of it.
type extent struct {
	logged int64 // number of the last entry in the log
	missed int64 // writes that the log did not take
}

// runDurable executes one command and logs what it wrote.
func (s *Store) runDurable(c *caller, args []string) extent {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touched = map[string]struct{}{}
	s.calling = c
	s.server.Dispatch(c.peer, args)
	s.calling = nil
	c.peer.Flush()
	if len(s.touched) > 0 {
		// Under the same lock as the command, so that the log has the writes in
		// their order.
		if number, err := s.opts.Log.Append(s.entry(s.touched)); err == nil {
			s.extent.logged = number
		} else {
			s.extent.missed++
		}
	}
	s.touched = nil
	return s.extent
}

// makeSafe returns when what a command saw is on disk.
func (s *Store) makeSafe(seen extent) error {
	if seen.missed <= s.savedMissed.Load() && s.syncLog(seen.logged) == nil {
		return nil
	}
	return s.Save(context.Background())
}

// syncLog returns when the log is on disk up to number.
func (s *Store) syncLog(number int64) error {
	for {
		synced := s.synced.Load()
		if number <= synced {
			return nil
		}
		if err := s.opts.Log.Sync(); err != nil {
			return err
		}
		if s.synced.CompareAndSwap(synced, number) {
			return nil
		}
	}
}

// gone stands in the place of a type in the record of a key that does not exist.
const gone = "none"

// entry copies keys as they are now. mu is held.
func (s *Store) entry(keys map[string]struct{}) []byte {
	var b []byte
	now := wallClock()
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if r, ok := s.copyKey(key, now); ok {
			b = append(b, r.encoded...)
		} else {
			b = appendRequest(b, gone, "0", key)
			b = appendRequest(b, "")
		}
	}
	return b
}

// replay puts the logged writes over the snapshot that was loaded.
func (s *Store) replay(now time.Time) error {
	if s.opts.Log == nil {
		return nil
	}
	first := s.extent.logged
	err := s.opts.Log.Replay(first, func(number int64, entry []byte) error {
		if number != s.extent.logged+1 {
			s.logger.Error("Writes to the embedded Redis are lost: the journal is damaged, or older than it was",
				"count", number-s.extent.logged-1)
		}
		s.extent.logged = number
		if err := s.putBack(entry, now); err != nil {
			return fmt.Errorf("entry %d: %w", number, err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot read the log of the embedded Redis: %w", err)
	}
	s.synced.Store(s.extent.logged)
	if n := s.extent.logged - first; n > 0 {
		s.logger.Info("Writes since the snapshot of the embedded Redis are back", "count", n)
	}
	return nil
}

// putBack makes keys what an entry of the log says.
func (s *Store) putBack(entry []byte, now time.Time) error {
	db := s.mini.DB(0)
	in := bufio.NewReader(bytes.NewReader(entry))
	for {
		if _, err := in.Peek(1); err != nil {
			return nil
		}
		k, err := readKey(in)
		if err != nil {
			return err
		}
		s.dirty[k.name] = struct{}{}
		db.Del(k.name)
		if k.kind == gone || k.over(now) {
			continue
		}
		if err := k.put(db, now); err != nil {
			return err
		}
	}
}
