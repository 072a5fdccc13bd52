package store

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed rebalance.lua
	rebalanceSource string
	rebalanceScript = redis.NewScript(rebalanceSource)
)

// Balancing is the wish to move sessions without being asked to.
type Balancing struct {
	Process string
	Hold    time.Duration // nobody else moves any for so long; another call does not prolong it
	Moves   int           // wanted
	Most    int           // moves of the fleet within Window
	Window  time.Duration
	Force   bool // though another process has the lease: its fence is the lower one then
}

// Balance is the answer to it.
type Balance struct {
	Fence int64         // for ReserveMoved and Fence; 0: there are no moves
	Moves int           // that may be made
	Wait  time.Duration // until there can be more
}

// Balance makes the process the only one of the fleet that moves sessions on its own.
// To call it again, because the reply was lost, may cost the moves of one call.
func (s *Store) Balance(ctx context.Context, b Balancing) (Balance, error) {
	reply, err := integers(rebalanceScript.Run(ctx, s.client, []string{s.prefix + ":rebalance"},
		b.Process, ms(b.Hold), b.Moves, b.Most, ms(b.Window), b.Force), 3)
	if err != nil {
		return Balance{}, fmt.Errorf("cannot lease the moving of sessions: %w", err)
	}
	return Balance{Fence: reply[0], Moves: int(reply[1]), Wait: fromMS(reply[2])}, nil
}
