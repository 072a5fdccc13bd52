package store

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed own.lua
	ownSource string
	ownScript = redis.NewScript(ownSource)
)

// Resource is something at a provider that only the account which has it can
// serve: a file, a batch, a stored answer.
type Resource struct {
	ID           string // as it stands in the key: cleaned by who found it
	Subscription string
	Agent        string // who had it made
}

// Made is a Resource that an answer has made or used.
type Made struct {
	Resource
	Keep time.Duration // how long it is remembered from now on
}

// longResource is from when on a resource must survive authpool: what a provider
// keeps that long is made seldom, unlike the answers of each turn.
const longResource = 31 * 24 * time.Hour

func (s *Store) resourceKey(id string) string { return s.prefix + ":resource:{" + id + "}" }

// Own records to which subscriptions resources belong. One that is known to belong
// to another is taken for a new one of the same name; one that is known keeps its
// agent. The ones kept for long are safe when it returns. Those of which the error,
// that of the first, cannot tell may be recorded or not: recording them again is
// harmless.
func (s *Store) Own(ctx context.Context, made []Made) (err error) {
	var short, long []call
	for _, m := range made {
		c := call{[]string{s.resourceKey(m.ID)}, []any{m.Subscription, m.Agent, ms(m.Keep)}}
		if m.Keep > longResource {
			long = append(long, c)
		} else {
			short = append(short, c)
		}
	}
	for _, part := range []struct {
		client redis.UniversalClient
		calls  []call
	}{{s.client, short}, {s.durable, long}} {
		if len(part.calls) == 0 {
			continue
		}
		for _, cmd := range pipeline(ctx, part.client, ownScript, part.calls) {
			if err == nil && cmd.Err() != nil {
				err = fmt.Errorf("cannot record %d account-bound resources: %w", len(made), cmd.Err())
			}
		}
	}
	return err
}

// Owners returns the resources of the given ids, in order, in one round trip. One
// that is not known has no Subscription. With an error, which is that of the first,
// some that are known look so too.
func (s *Store) Owners(ctx context.Context, ids []string) (list []Resource, err error) {
	list = make([]Resource, len(ids))
	replies := make([]*redis.SliceCmd, len(ids))
	_, failed := s.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, id := range ids {
			replies[i] = pipe.HMGet(ctx, s.resourceKey(id), "subscription", "agent")
		}
		return nil
	})
	for i, cmd := range replies {
		list[i].ID = ids[i]
		values, e := cmd.Result()
		if e == nil && len(values) == 0 {
			e = failed // there was no connection: nothing was sent
		}
		if e != nil {
			if err == nil {
				err = fmt.Errorf("cannot look up an account-bound resource: %w", e)
			}
			continue
		}
		list[i].Subscription, _ = values[0].(string)
		list[i].Agent, _ = values[1].(string)
	}
	return list, err
}
