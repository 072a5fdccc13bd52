package pool

import (
	"container/list"
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/authpool/authpool/pool/store"
)

// Resource is something at a provider that only the account which has it can
// serve: a file, a batch, a stored answer.
type Resource = store.Resource

// Made is a Resource that an answer has made or used.
type Made = store.Made

const (
	// knownResources is how many resources this process knows by heart.
	knownResources = 32 << 10
	// lateResources is how many may wait for Redis.
	lateResources = keeperTurn
)

// resources is what is known of account-bound resources: in memory what this
// process met last, in Redis what all have met until the time of each ends.
type resources struct {
	pool *Pool

	mu   sync.Mutex
	byID map[string]*list.Element
	used list.List       // of Resource, the last used first
	late map[string]Made // to be written when Redis can; by id
}

func newResources(p *Pool) *resources {
	return &resources{pool: p, byID: make(map[string]*list.Element), late: make(map[string]Made)}
}

// Learn remembers which subscriptions resources belong to: here at once, and for
// the fleet before it returns, if Redis answers within 50 ms. Else that is done as
// soon as it can be.
func (p *Pool) Learn(ctx context.Context, made []Made) {
	r := p.resources
	r.mu.Lock()
	for _, m := range made {
		r.keep(m.Resource)
	}
	r.mu.Unlock()
	if p.bindings == nil {
		return
	}
	if p.shared() {
		ctx, cancel := context.WithTimeout(ctx, bindingWait)
		defer cancel()
		if p.bindings.Own(ctx, made) == nil {
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range made {
		if _, waits := r.late[m.ID]; !waits && len(r.late) == lateResources {
			resourcesLost.Inc()
			continue
		}
		r.late[m.ID] = m
	}
}

// Owners returns those of the resources that somebody at provider is known to have,
// in the order of ids: with whose subscription and whose agent each is. It asks Redis
// only for ids that this process does not know, for 50 ms at most. Without an answer
// sure is false: one that is not among them may be somebody's all the same.
//
// The subscription may be one that is not configured any more: no other has the
// resource, and Acquire will say so.
func (p *Pool) Owners(ctx context.Context, provider string, ids []string) (owned []Resource, sure bool) {
	if len(ids) == 0 {
		return nil, true
	}
	r := p.resources
	found := make([]Resource, len(ids))
	var unknown []string
	r.mu.Lock()
	for i, id := range ids {
		if e := r.byID[id]; e != nil {
			r.used.MoveToFront(e)
			found[i] = e.Value.(Resource)
		} else {
			unknown = append(unknown, id)
		}
	}
	r.mu.Unlock()
	sure = len(unknown) == 0 || p.bindings == nil
	if len(unknown) > 0 && p.shared() {
		ctx, cancel := context.WithTimeout(ctx, bindingWait)
		defer cancel()
		// What came in spite of an error counts.
		told, err := p.bindings.Owners(ctx, unknown)
		sure = err == nil
		r.mu.Lock()
		for i, id := range ids {
			if found[i].ID != "" {
				continue
			}
			if told[0].Subscription != "" {
				found[i] = told[0]
				r.keep(Resource{ID: id, Subscription: told[0].Subscription, Agent: told[0].Agent})
			}
			told = told[1:]
		}
		r.mu.Unlock()
	}
	owned = found[:0]
	for _, one := range found {
		// Ids of different providers may be equal, as each makes its own.
		if m := p.member(one.Subscription); one.ID != "" && (m == nil || m.conf().Provider == provider) {
			owned = append(owned, one)
		}
	}
	return owned, sure
}

// keep puts one in front, under the lock. As in Redis, it stays its agent's.
func (r *resources) keep(one Resource) {
	if e := r.byID[one.ID]; e != nil {
		if known := e.Value.(Resource); known.Subscription != one.Subscription {
			e.Value = one
		}
		r.used.MoveToFront(e)
		return
	}
	if r.used.Len() == knownResources {
		last := r.used.Back()
		delete(r.byID, last.Value.(Resource).ID)
		r.used.Remove(last)
	}
	r.byID[one.ID] = r.used.PushFront(one)
}

// write brings Redis what it has missed. It is the keeper's.
func (r *resources) write(ctx context.Context) {
	r.mu.Lock()
	late := make([]Made, 0, min(len(r.late), keeperBatch))
	for _, m := range r.late {
		if len(late) == keeperBatch {
			break
		}
		late = append(late, m)
	}
	r.mu.Unlock()
	if len(late) == 0 || r.pool.bindings.Own(ctx, late) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range late {
		if r.late[m.ID] == m {
			delete(r.late, m.ID)
		}
	}
}

// owned words an error of Acquire for a request that only one subscription can
// serve.
func (r *Request) owned(err error) error {
	if r.Owner == "" {
		return err
	}
	switch e := err.(type) { //nolint:errorlint // Acquire makes them itself and wraps none
	case *UnavailableError:
		e.Owned = true
	case *NoSubscriptionError:
		return &UnavailableError{
			Provider: r.Provider, Model: r.Model, FirstSubscription: r.Owner, Owned: true, Reason: ReasonUnfit,
		}
	}
	return err
}

var resourcesLost = promauto.NewCounter(prometheus.CounterOpts{
	Name: "authpool_pool_resources_unshared_total",
	Help: "Account-bound resources that only this process knows, because Redis was away for too long.",
})
