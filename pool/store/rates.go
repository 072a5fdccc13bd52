package store

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/ratelimit"
)

var (
	//go:embed rates.lua
	ratesSource string
	ratesScript = redis.NewScript(ratesSource)
)

// RateDraw is what a process needs of one subscription's limits per minute.
type RateDraw struct {
	Subscription string
	ratelimit.Draw
}

// RateDrawn is the answer. Err is why there is none; the rest is zero then.
type RateDrawn struct {
	ratelimit.Drawn
	Err error
}

// DrawRates draws one process its allowances on many subscriptions, each for
// ratelimit.RateLease. The answers come in the order of the draws.
func (s *Store) DrawRates(ctx context.Context, process string, draws []RateDraw) []RateDrawn {
	calls := make([]call, len(draws))
	for i, d := range draws {
		args := append(make([]any, 0, 21), process, d.Seq, ms(ratelimit.RateLease))
		for k := range d.Limit {
			args = append(args, d.Limit[k], d.Spent[k], d.Debt[k], d.Keep[k], d.Need[k], d.Want[k])
		}
		calls[i] = call{[]string{s.subscriptionKey(d.Subscription, "rates")}, args}
	}
	drawn := make([]RateDrawn, len(draws))
	for i, cmd := range pipeline(ctx, s.client, ratesScript, calls) {
		reply, err := integers(cmd, 9)
		if err != nil {
			drawn[i].Err = fmt.Errorf("cannot draw from the rates of subscription %q: %w", draws[i].Subscription, err)
			continue
		}
		d := &drawn[i].Drawn
		d.Granted, d.Wait, d.Others = reply[0] == 1, fromMS(reply[1]), int(reply[2])
		for k := range d.Held {
			d.Held[k], d.Left[k] = reply[3+2*k], reply[4+2*k]
		}
	}
	return drawn
}
