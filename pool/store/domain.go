package store

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed belong.lua
	belongSource string
	belongScript = redis.NewScript(belongSource)
)

// organisationKept is how long the organisation of a subscription is remembered
// that no process knows any more.
const organisationKept = 30 * 24 * time.Hour

// Belonging says which organisation a subscription is of.
type Belonging struct {
	Subscription string
	Organisation string
	// Configured says that the operator told with whom it shares its limits: what
	// closed them does not go with the organisation.
	Configured bool
}

// Belong tells all processes of organisations.
func (s *Store) Belong(ctx context.Context, list []Belonging) (err error) {
	calls := make([]call, len(list))
	for i, b := range list {
		forget := 1
		if b.Configured {
			forget = 0
		}
		calls[i] = call{
			[]string{s.subscriptionKey(b.Subscription, "organisation"), s.subscriptionKey(b.Subscription, "state")},
			[]any{b.Organisation, ms(organisationKept), forget, s.channel(), b.Subscription},
		}
	}
	for i, cmd := range pipeline(ctx, s.client, belongScript, calls) {
		if err == nil && cmd.Err() != nil {
			err = fmt.Errorf("cannot share the organisation of subscription %q: %w", list[i].Subscription, cmd.Err())
		}
	}
	return err
}
