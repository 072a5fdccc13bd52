package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed record_put.lua
	recordPutSource string
	recordPutScript = redis.NewScript(recordPutSource)

	//go:embed record_remove.lua
	recordRemoveSource string
	recordRemoveScript = redis.NewScript(recordRemoveSource)

	//go:embed records.lua
	recordsSource string
	recordsScript = redis.NewScript(recordsSource)
)

// Errors of Records.Put and Records.Remove.
var (
	ErrVersion  = errors.New("there is another version")
	ErrNoRecord = errors.New("there is no such record")
	ErrFull     = errors.New("there is no room for one more")
)

// maxRecords bounds what every process keeps in memory of one kind.
const maxRecords = 10_000

// Record is what operators keep of one thing; Text is of the package alone that keeps
// this kind.
type Record struct {
	ID      string
	Version int64 // one more with every change; the first is above those of records that were removed
	Text    string
}

// Records are all records of one kind, in one key.
type Records struct {
	store *Store
	kind  string // the key's name, and that of the news
}

// Put writes the record over the one that has its version, 0 for one that there is not,
// and returns the version that it has then. The errors are ErrVersion and ErrFull. It
// survives authpool when there is no error, and may be repeated after any.
func (r *Records) Put(ctx context.Context, one Record) (version int64, err error) {
	done, err := recordPutScript.Run(ctx, r.store.durable, []string{r.key()},
		one.ID, one.Version, one.Text, maxRecords, r.store.channel(), r.kind).Int64()
	switch {
	case err == nil && done == 0:
		err = ErrVersion
	case err == nil && done < 0:
		err = ErrFull
	}
	if err != nil {
		return 0, fmt.Errorf("cannot write the record of %q: %w", one.ID, err)
	}
	return done, nil
}

// Remove removes a record that has the version, 0 for any. The errors are ErrVersion
// and ErrNoRecord; the latter may also mean that an earlier call, whose answer was
// lost, has removed it.
func (r *Records) Remove(ctx context.Context, id string, version int64) error {
	if strings.HasPrefix(id, ":") { // what the key holds beside its records
		return fmt.Errorf("cannot remove the record of %q: %w", id, ErrNoRecord)
	}
	done, err := recordRemoveScript.Run(ctx, r.store.durable, []string{r.key()}, id, version, r.store.channel(), r.kind).Int64()
	switch {
	case err == nil && done == 0:
		err = ErrVersion
	case err == nil && done < 0:
		err = ErrNoRecord
	}
	if err != nil {
		return fmt.Errorf("cannot remove the record of %q: %w", id, err)
	}
	return nil
}

// List returns all records, in no order, and the state that they are in. Where that is
// known, there is nothing to read: changed is false.
func (r *Records) List(ctx context.Context, known string) (list []Record, state string, changed bool, err error) {
	reply, err := recordsScript.Run(ctx, r.store.client, []string{r.key()}, known).StringSlice()
	if err == nil && len(reply)%2 != 1 {
		err = fmt.Errorf("%w: %d values", errReply, len(reply))
	}
	if err != nil {
		return nil, known, false, fmt.Errorf("cannot read what operators have done: %w", err)
	}
	if reply[0] == known {
		return nil, known, false, nil
	}
	for i := 1; i < len(reply); i += 2 {
		digits, text, _ := strings.Cut(reply[i+1], " ")
		version, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			return nil, known, false, fmt.Errorf("cannot read what operators have done: the record of %q has no version", reply[i])
		}
		list = append(list, Record{ID: reply[i], Version: version, Text: text})
	}
	return list, reply[0], true, nil
}

func (r *Records) key() string { return r.store.prefix + ":" + r.kind }

const (
	kindAgents  = "agents"
	kindManaged = "managed"
)

// AgentRecords are the records of agents.
func (s *Store) AgentRecords() *Records { return &Records{s, kindAgents} }

// ManagedRecords are the records of subscriptions that are managed at run time.
func (s *Store) ManagedRecords() *Records { return &Records{s, kindManaged} }
