// Package managed keeps what operators do with subscriptions at run time: those that
// they have added, with their secrets sealed, and what they have switched, also of
// those of the config file. It is in Redis, so that all sidecars of a fleet know it,
// each within a second.
//
// Start at Store. A Record changes as a whole and counts its versions: who changes one
// names the version that it has read, so that nobody writes over what another operator
// did meanwhile. Vault seals and opens the secrets.
package managed

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/authpool/authpool/pool/store"
)

// Switch is what an operator wants of a subscription.
type Switch string

// The switches.
const (
	Enabled  Switch = "enabled"
	Disabled Switch = "disabled" // never offered
	Draining Switch = "draining" // takes no new sessions
	Removing Switch = "removing" // draining, and gone once no session is on it
)

// Record is what is kept of one subscription.
type Record struct {
	ID      string `json:"-"`
	Version int64  `json:"-"` // one more with every change; 0: not kept yet
	Switch  Switch `json:"switch"`
	// Settings are what the subscription is, in the words of the config file and without
	// the credential's value; empty for a record that only switches one of the file.
	Settings json.RawMessage `json:"settings,omitempty"`
	// Secret and Private are sealed (see Vault): its credential, and what tells of people.
	Secret  string    `json:"secret,omitempty"`
	Private string    `json:"private,omitempty"`
	Created time.Time `json:"created"`
	Changed time.Time `json:"changed"`
	// Change is random: two that write the same at the same time are told apart by it.
	Change string `json:"change"`
	// Unreadable tells that what is kept was not written by this version of authpool, and
	// means nothing to it. It may be removed, but not changed: what it holds, such as a
	// secret, would be lost.
	Unreadable bool `json:"-"`
}

// Managed tells whether the record is a subscription of its own, not only a switch.
func (r *Record) Managed() bool { return len(r.Settings) > 0 }

// Errors of a Store.
var (
	ErrVersion  = store.ErrVersion // somebody else has changed it meanwhile
	ErrNotFound = store.ErrNoRecord
	ErrFull     = store.ErrFull

	ErrUnreadable = errors.New("another version of authpool has written it, and this one cannot read it")
)

// Records is where they are kept; *store.Records is it.
type Records interface {
	Put(ctx context.Context, one store.Record) (version int64, err error)
	Remove(ctx context.Context, id string, version int64) error
	List(ctx context.Context, known string) (list []store.Record, state string, changed bool, err error)
}

// Memory keeps the records for a start without Redis; *recall.File is one.
type Memory interface {
	Load() (list []store.Record, known time.Time, err error)
	Keep(list []store.Record)
	Flush()
	Close()
}

// Store keeps the records. It is safe for concurrent use.
type Store struct {
	records Records
	memory  Memory
	healthy func() bool
	news    chan struct{} // holds one: something may have changed

	mu    sync.Mutex
	state string   // of what was read last
	list  []Record // that
}

// New returns a store of what records hold; healthy tells whether they can be asked.
func New(records Records, memory Memory, healthy func() bool) *Store {
	return &Store{records: records, memory: memory, healthy: healthy, news: make(chan struct{}, 1)}
}

// List returns all records by id, as they are now.
func (s *Store) List(ctx context.Context) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, state, changed, err := s.records.List(ctx, s.state)
	if err != nil {
		return nil, err
	}
	if changed || s.list == nil {
		s.state, s.list = state, parse(list)
		s.memory.Keep(list)
	}
	return slices.Clone(s.list), nil
}

func parse(list []store.Record) []Record {
	records := make([]Record, 0, len(list))
	for _, one := range list {
		r := Record{}
		if err := json.Unmarshal([]byte(one.Text), &r); err != nil {
			// Of another version of authpool, perhaps: it is there, and serves nobody.
			r = Record{Switch: Disabled, Settings: json.RawMessage(`null`), Unreadable: true}
		}
		r.ID, r.Version = one.ID, one.Version
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b Record) int { return cmp.Compare(a.ID, b.ID) })
	return records
}

// Recall returns all records as they were last known to this process or to one before
// it on this machine, and since when: for the time until Redis is there.
func (s *Store) Recall() (list []Record, known time.Time, err error) {
	kept, known, err := s.memory.Load()
	if err != nil {
		return nil, time.Time{}, err
	}
	return parse(kept), known, nil
}

// Flush keeps for Recall what waits for that; it is to be called now and then.
func (s *Store) Flush() { s.memory.Flush() }

// Close keeps all that waits.
func (s *Store) Close() { s.memory.Close() }

// Put writes the record over the version that it has, 0 for one that there is not yet,
// and returns it with its next one. The error may be ErrVersion, ErrFull or
// ErrUnreadable; after any other it may have been written.
func (s *Store) Put(ctx context.Context, r Record) (Record, error) {
	if r.Unreadable {
		return Record{}, fmt.Errorf("cannot write subscription %q: %w", r.ID, ErrUnreadable)
	}
	if r.Created.IsZero() {
		r.Created = time.Now()
	}
	r.Created, r.Changed = r.Created.UTC().Truncate(time.Millisecond), time.Now().UTC().Truncate(time.Millisecond)
	r.Change = rand.Text()
	text, err := json.Marshal(r) //nolint:gosec // its secret is sealed
	if err != nil {
		return Record{}, fmt.Errorf("cannot write subscription %q: %w", r.ID, err)
	}
	if r.Version, err = s.records.Put(ctx, store.Record{ID: r.ID, Version: r.Version, Text: string(text)}); err != nil {
		return Record{}, err
	}
	return r, nil
}

// Remove removes a record that has the version.
func (s *Store) Remove(ctx context.Context, id string, version int64) error {
	return s.records.Remove(ctx, id, version)
}

// Heard has Watch look at once; it does not wait.
func (s *Store) Heard() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// watchEvery is how often it is looked for changes of which no news came. A look where
// nothing has changed reads one field.
const watchEvery = 10 * time.Second

// Watch calls f with all records whenever they may have changed, until ctx ends, one
// call at a time. An error is of a look that failed: what is known stays.
func (s *Store) Watch(ctx context.Context, f func([]Record, error)) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var again <-chan time.Time // soon after a look that failed
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.news:
		case <-tick.C:
		case <-again:
		}
		again = nil
		if !s.healthy() {
			continue
		}
		look, cancel := context.WithTimeout(ctx, watchTimeout)
		list, err := s.List(look)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil && !errors.Is(err, store.ErrAway) {
			again = time.After(watchAgain)
		}
		f(list, err)
	}
}

const (
	watchTimeout = 2 * time.Second // of one look
	watchAgain   = time.Second     // from one that failed to the next
)
