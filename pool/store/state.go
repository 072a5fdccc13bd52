package store

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed cool.lua
	coolSource string
	coolScript = redis.NewScript(coolSource)

	//go:embed state.lua
	stateSource string
	stateScript = redis.NewScript(stateSource)
)

// modelField is what a model's cooldown is called in the hash, before its name.
const modelField = "cooldown:"

// Cooldown is until when a subscription, or one model on it, is not offered.
type Cooldown struct {
	Subscription string
	Model        string // empty: the whole subscription
	State        string // "cooling" or "disabled", of the whole
	Reason       string // of the whole
	Wait         time.Duration
}

// longCooldown is from when on a cooldown must survive authpool: it is cheaper to
// find a shorter one out again than to sync a disk for it.
const longCooldown = time.Minute

// Cool shares cooldowns with all processes. A cooldown that ends before the
// known one changes nothing. The long ones are safe when it returns.
func (s *Store) Cool(ctx context.Context, cooldowns []Cooldown) (err error) {
	var short, long []call
	for _, c := range cooldowns {
		made := call{
			[]string{s.subscriptionKey(c.Subscription, "state")},
			[]any{c.Model, ms(c.Wait), c.State, c.Reason, s.channel(), c.Subscription},
		}
		if c.Wait > longCooldown {
			long = append(long, made)
		} else {
			short = append(short, made)
		}
	}
	for _, part := range []struct {
		client redis.UniversalClient
		calls  []call
	}{{s.client, short}, {s.durable, long}} {
		if len(part.calls) == 0 {
			continue
		}
		for _, cmd := range pipeline(ctx, part.client, coolScript, part.calls) {
			if err == nil && cmd.Err() != nil {
				err = fmt.Errorf("cannot share %d cooldowns: %w", len(cooldowns), cmd.Err())
			}
		}
	}
	return err
}

// Cooldowns returns those of the given subscriptions that have not ended, their
// Wait counted from when Redis answered. With an error, which is that of the first,
// those of some subscriptions are missing.
func (s *Store) Cooldowns(ctx context.Context, subs []string) (list []Cooldown, err error) {
	calls := make([]call, len(subs))
	for i, sub := range subs {
		calls[i] = call{keys: []string{s.subscriptionKey(sub, "state")}}
	}
	for i, cmd := range pipeline(ctx, s.client, stateScript, calls) {
		reply, failed := cmd.StringSlice()
		if failed == nil && len(reply)%2 != 1 {
			failed = fmt.Errorf("%w: %q", errReply, reply)
		}
		if failed == nil {
			list = appendCooldowns(list, subs[i], reply)
		} else if err == nil {
			err = fmt.Errorf("cannot read the state of subscription %q: %w", subs[i], failed)
		}
	}
	return list, err
}

// appendCooldowns reads one reply of the script: Redis' time, then fields and
// values of the hash.
func appendCooldowns(out []Cooldown, sub string, reply []string) []Cooldown {
	now, _ := strconv.ParseInt(reply[0], 10, 64)
	whole := Cooldown{Subscription: sub}
	for i := 1; i+1 < len(reply); i += 2 {
		field, value := reply[i], reply[i+1]
		end, _ := strconv.ParseInt(value, 10, 64) // not an instant: 0, which has passed
		wait := fromMS(end - now)
		switch model, isModel := strings.CutPrefix(field, modelField); {
		case field == "state":
			whole.State = value
		case field == "reason":
			whole.Reason = value
		case field == "cooldown_until":
			whole.Wait = wait
		case isModel && wait > 0:
			out = append(out, Cooldown{Subscription: sub, Model: model, Wait: wait})
		}
	}
	if whole.Wait > 0 {
		out = append(out, whole)
	}
	return out
}
