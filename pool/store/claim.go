package store

import (
	"context"
	"fmt"
	"time"
)

// Claim tells whether this call is the first of the fleet that claims the thing of a
// subscription, within keep. A name is of printable characters without spaces.
func (s *Store) Claim(ctx context.Context, sub, name string, keep time.Duration) (first bool, err error) {
	// One command, so that it is atomic. Who asks again because the reply was lost is
	// not the first: what was claimed is told once or not at all.
	first, err = s.client.SetNX(ctx, s.subscriptionKey(sub, "claim:"+name), "", max(keep, time.Millisecond)).Result()
	if err != nil {
		return false, fmt.Errorf("cannot claim %s of subscription %q: %w", name, sub, err)
	}
	return first, nil
}
