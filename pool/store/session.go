package store

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed reserve.lua
	reserveSource string
	reserveScript = redis.NewScript(reserveSource)

	//go:embed extend.lua
	extendSource string
	extendScript = redis.NewScript(extendSource)

	//go:embed release.lua
	releaseSource string
	releaseScript = redis.NewScript(releaseSource)

	//go:embed bind.lua
	bindSource string
	bindScript = redis.NewScript(bindSource)
)

// Place is the answer to Reserve.
type Place struct {
	Granted bool
	// Created is true when the session held no place before: then giving it
	// back takes nothing from anybody else.
	Created bool
	Score   int64         // names this very state of the place, for Release
	Count   int64         // sessions that hold a place now
	Free    time.Duration // not granted: when the first place ends, unless it is extended
}

// Reserve takes a place on a subscription for a session, for the given time,
// or prolongs the one that it holds. It refuses a new place when most sessions
// hold one already; most 0 is no limit.
func (s *Store) Reserve(ctx context.Context, sub, session string, most int, hold time.Duration) (Place, error) {
	reply, err := integers(reserveScript.Run(ctx, s.client,
		[]string{s.subscriptionKey(sub, "sessions")}, session, most, ms(hold)), 4)
	if err != nil {
		return Place{}, fmt.Errorf("cannot reserve a place on subscription %q: %w", sub, err)
	}
	return placeOf(reply), nil
}

func placeOf(reply []int64) Place {
	return Place{
		Granted: reply[0] > 0,
		Created: reply[0] == 2,
		Score:   reply[1],
		Count:   reply[2],
		Free:    fromMS(reply[3]),
	}
}

// Hold asks that a session keeps its place for a time from now on.
type Hold struct {
	Session string
	For     time.Duration
}

// Extend prolongs the places of many sessions on one subscription; it never
// shortens one. A session whose place has ended gets a new one when there is
// room. The scores come in the order of the holds; 0 is a place that is lost.
// count is how many sessions hold a place afterwards.
func (s *Store) Extend(ctx context.Context, sub string, most int, holds []Hold) (scores []int64, count int64, err error) {
	args := make([]any, 0, 1+2*len(holds))
	args = append(args, most)
	for _, h := range holds {
		args = append(args, h.Session, ms(h.For))
	}
	reply, err := integers(extendScript.Run(ctx, s.client, []string{s.subscriptionKey(sub, "sessions")}, args...), 1+len(holds))
	if err != nil {
		return nil, 0, fmt.Errorf("cannot extend places on subscription %q: %w", sub, err)
	}
	return reply[1:], reply[0], nil
}

// Release gives a place back if nobody has changed it since the score was told.
func (s *Store) Release(ctx context.Context, sub, session string, score int64) error {
	err := releaseScript.Run(ctx, s.client, []string{s.subscriptionKey(sub, "sessions")}, session, score).Err()
	if err != nil {
		return fmt.Errorf("cannot release a place on subscription %q: %w", sub, err)
	}
	return nil
}

// Lookup returns the subscription that a session is bound to; empty when it is
// not, or was not used for the affinity.
func (s *Store) Lookup(ctx context.Context, session string) (sub string, err error) {
	sub, err = s.client.HGet(ctx, s.sessionKey(session), "subscription").Result()
	if err != nil && err != redis.Nil { //nolint:errorlint // go-redis returns Nil itself, never wrapped
		return "", fmt.Errorf("cannot look up session %q: %w", session, err)
	}
	return sub, nil
}

// Bind makes session stick to sub if it is bound to nobody or to expect (empty:
// nobody), and returns who it is bound to afterwards. The binding is forgotten
// when it is not used for the affinity. Others are told when it moves.
func (s *Store) Bind(ctx context.Context, session, expect, sub, parent string, affinity time.Duration) (bound string, err error) {
	bound, err = bindScript.Run(ctx, s.client, []string{s.sessionKey(session)}, s.bindArgs(session, expect, sub, parent, affinity, 0)...).Text()
	if err != nil {
		return "", fmt.Errorf("cannot bind session %q: %w", session, err)
	}
	return bound, nil
}

func (s *Store) bindArgs(session, expect, sub, parent string, affinity time.Duration, kept int) []any {
	return []any{expect, sub, parent, ms(affinity), s.channel(), session, kept}
}

// Released is what Keep tells of a session that an operator has released: it is not
// bound, and is not to be.
const Released = "-"

// Binding is a session and the subscription that it is believed to stick to.
type Binding struct{ Session, Subscription, Parent string }

// Keep marks bindings as used, writes those that Redis does not have, and
// returns for each, in order, the subscription that is bound in truth: another
// process may have moved the session, and its binding wins, or Released. Where that cannot be
// known, it is empty, and the error is that of the first.
func (s *Store) Keep(ctx context.Context, bindings []Binding, affinity time.Duration) (bound []string, err error) {
	calls := make([]call, len(bindings))
	for i, b := range bindings {
		calls[i] = call{[]string{s.sessionKey(b.Session)}, s.bindArgs(b.Session, "", b.Subscription, b.Parent, affinity, 1)}
	}
	bound = make([]string, len(bindings))
	for i, cmd := range pipeline(ctx, s.client, bindScript, calls) {
		text, failed := cmd.Text()
		if failed != nil && err == nil {
			err = fmt.Errorf("cannot keep the binding of session %q: %w", bindings[i].Session, failed)
		}
		bound[i] = text
	}
	return bound, err
}

// Unknown stands for a number that Redis could not be asked for.
const Unknown = -1

// Counts tells how many sessions hold a place on each subscription, in order. Where
// that cannot be known, it is Unknown, and the error is that of the first.
func (s *Store) Counts(ctx context.Context, subs []string) (counts []int64, err error) {
	calls := make([]call, len(subs))
	for i, sub := range subs {
		calls[i] = call{[]string{s.subscriptionKey(sub, "sessions")}, []any{0}}
	}
	counts = make([]int64, len(subs))
	for i, cmd := range pipeline(ctx, s.client, extendScript, calls) {
		reply, failed := integers(cmd, 1)
		if failed != nil {
			counts[i] = Unknown
			if err == nil {
				err = fmt.Errorf("cannot count the sessions of subscription %q: %w", subs[i], failed)
			}
			continue
		}
		counts[i] = reply[0]
	}
	return counts, err
}
