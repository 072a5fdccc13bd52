package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed unbind.lua
	unbindSource string
	unbindScript = redis.NewScript(unbindSource)

	//go:embed fence.lua
	fenceSource string
	fenceScript = redis.NewScript(fenceSource)

	//go:embed stay.lua
	staySource string
	stayScript = redis.NewScript(staySource)

	//go:embed place.lua
	placeSource string
	placeScript = redis.NewScript(placeSource)

	//go:embed places.lua
	placesSource string
	placesScript = redis.NewScript(placesSource)
)

// ErrFenced is in the error of a move by one who is not the newest any more.
var ErrFenced = errors.New("somebody else moves sessions by now")

const (
	// fenceKept is how long a fence is remembered: far longer than one who has lost
	// its lease can go on without noticing.
	fenceKept = time.Hour
	// releasedKept is how long it is remembered that a session was released: by then
	// every process that is there has heard of it, or was not and has asked.
	releasedKept = 10 * time.Minute
)

// ReserveMoved is Reserve for a move. A fence above 0 is that of who moves: where a
// higher one was seen on the subscription, the error is ErrFenced.
func (s *Store) ReserveMoved(ctx context.Context, sub, session string, most int, hold time.Duration, fence int64) (Place, error) {
	if fence <= 0 {
		return s.Reserve(ctx, sub, session, most, hold)
	}
	reply, err := integers(reserveScript.Run(ctx, s.client,
		[]string{s.subscriptionKey(sub, "sessions"), s.subscriptionKey(sub, "fence")},
		session, most, ms(hold), fence, ms(fenceKept)), 4)
	if err == nil && reply[0] < 0 {
		err = ErrFenced
	}
	if err != nil {
		return Place{}, fmt.Errorf("cannot reserve a place on subscription %q: %w", sub, err)
	}
	return placeOf(reply), nil
}

// Fence keeps those whose fence is lower from moving sessions to the subscriptions.
// Who begins to move calls it first. Where one has seen a higher fence, the error is
// ErrFenced.
func (s *Store) Fence(ctx context.Context, subs []string, fence int64) (err error) {
	calls := make([]call, len(subs))
	for i, sub := range subs {
		calls[i] = call{[]string{s.subscriptionKey(sub, "fence")}, []any{fence, ms(fenceKept)}}
	}
	for i, cmd := range pipeline(ctx, s.client, fenceScript, calls) {
		highest, failed := cmd.Int64()
		if failed == nil && highest > fence {
			failed = ErrFenced
		}
		if failed != nil && err == nil {
			err = fmt.Errorf("cannot fence subscription %q: %w", subs[i], failed)
		}
	}
	return err
}

// Unbind ends a session's binding, and returns the subscription that it was bound
// to; empty: it was not. Others are told.
func (s *Store) Unbind(ctx context.Context, session string) (former string, err error) {
	former, err = unbindScript.Run(ctx, s.client, []string{s.sessionKey(session)}, ms(releasedKept), s.channel(), session).Text()
	if err != nil {
		return "", fmt.Errorf("cannot release session %q: %w", session, err)
	}
	return former, nil
}

// Stay is what Redis knows of a session's binding.
type Stay struct {
	Subscription string // empty: it is not bound
	Parent       string // the parent session's id, or empty
	// How long ago it was bound there, and it was last told to be in use, which is
	// not at every use.
	Since, Last time.Duration
}

// Stays returns the bindings of the sessions, in order. With an error, which is that
// of the first, some are missing: their Subscription is empty.
func (s *Store) Stays(ctx context.Context, sessions []string) (list []Stay, err error) {
	calls := make([]call, len(sessions))
	for i, session := range sessions {
		calls[i] = call{keys: []string{s.sessionKey(session)}}
	}
	list = make([]Stay, len(sessions))
	for i, cmd := range pipeline(ctx, s.client, stayScript, calls) {
		reply, failed := cmd.StringSlice()
		if failed == nil && len(reply) != 5 {
			failed = fmt.Errorf("%w: %q", errReply, reply)
		}
		if failed != nil {
			if err == nil {
				err = fmt.Errorf("cannot read the binding of session %q: %w", sessions[i], failed)
			}
			continue
		}
		ago := func(text string) time.Duration {
			now, _ := strconv.ParseInt(reply[0], 10, 64)
			then, wrong := strconv.ParseInt(text, 10, 64)
			if wrong != nil {
				return 0
			}
			return max(fromMS(now-then), 0)
		}
		list[i] = Stay{Subscription: reply[1], Since: ago(reply[2]), Last: ago(reply[3]), Parent: reply[4]}
	}
	return list, err
}

// Occupant is a session's place on a subscription.
type Occupant struct {
	Session string
	Left    time.Duration // until the place ends, unless it is extended; 0: it holds none
	Score   int64         // as in Place
}

// Place returns the session's place on the subscription.
func (s *Store) Place(ctx context.Context, sub, session string) (Occupant, error) {
	reply, err := integers(placeScript.Run(ctx, s.client, []string{s.subscriptionKey(sub, "sessions")}, session), 2)
	if err != nil {
		return Occupant{}, fmt.Errorf("cannot read a place on subscription %q: %w", sub, err)
	}
	return Occupant{Session: session, Left: fromMS(reply[0]), Score: reply[1]}, nil
}

// placesAtOnce is about how many places one script reads: no other command waits for
// long.
const placesAtOnce = 1000

// Places calls f for every session that holds a place on the subscription; for one
// that comes or is changed meanwhile perhaps not, or twice.
func (s *Store) Places(ctx context.Context, sub string, f func(Occupant)) error {
	for cursor := "0"; ; {
		reply, err := placesScript.Run(ctx, s.client, []string{s.subscriptionKey(sub, "sessions")}, cursor, placesAtOnce).StringSlice()
		if err == nil && len(reply)%3 != 1 {
			err = fmt.Errorf("%w: %d values", errReply, len(reply))
		}
		if err != nil {
			return fmt.Errorf("cannot read the places on subscription %q: %w", sub, err)
		}
		for i := 1; i < len(reply); i += 3 {
			left, _ := strconv.ParseInt(reply[i+1], 10, 64)
			score, _ := strconv.ParseInt(reply[i+2], 10, 64)
			f(Occupant{Session: reply[i], Left: fromMS(left), Score: score})
		}
		if cursor = reply[0]; cursor == "0" {
			return nil
		}
	}
}
