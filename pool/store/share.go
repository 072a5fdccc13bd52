package store

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// ShareLease is how long a share is held without being renewed.
const ShareLease = 10 * time.Second

var (
	//go:embed share.lua
	shareSource string
	shareScript = redis.NewScript(shareSource)
)

// ShareRequest is what a process needs of one subscription's limits.concurrent.
type ShareRequest struct {
	Subscription string
	Limit        int // over all processes
	InFlight     int // requests under way here: never taken away
	Want         int // what it could use now, those under way included; 0 gives the share up
}

// Share is what a process got for ShareLease. The shares of all processes
// together never exceed the limit.
type Share struct {
	// Granted is held for this process.
	Granted int
	// Target is up to where it may start requests. It is below Granted when
	// others want a part of it.
	Target int
}

// Shares renews the shares of one process on many subscriptions. The answers
// come in the order of the requests. Where a share could not be renewed, Granted is
// Unknown, and the error is that of the first.
func (s *Store) Shares(ctx context.Context, process string, requests []ShareRequest) (shares []Share, err error) {
	calls := make([]call, len(requests))
	for i, r := range requests {
		calls[i] = call{[]string{s.subscriptionKey(r.Subscription, "slots")}, []any{process, r.Limit, r.InFlight, r.Want, ms(ShareLease)}}
	}
	shares = make([]Share, len(requests))
	for i, cmd := range pipeline(ctx, s.client, shareScript, calls) {
		reply, failed := integers(cmd, 2)
		if failed != nil {
			shares[i].Granted = Unknown
			if err == nil {
				err = fmt.Errorf("cannot renew the share of subscription %q: %w", requests[i].Subscription, failed)
			}
			continue
		}
		shares[i] = Share{Granted: int(reply[0]), Target: int(reply[1])}
	}
	return shares, err
}
