// Package event is what happens in a serve that an operator may want to hear of: a
// subscription is limited, a budget is nearly spent, Redis is lost. Who finds such a
// thing out emits an Event on the Bus, at once and without waiting for anybody; who
// wants to hear subscribes. An Event holds names and sentences, never a secret and
// nothing of a request's content.
//
// Start at Bus. The kinds are a closed list (Kinds), because configurations name
// them.
package event

import (
	"path"
	"slices"
	"time"
)

// Kind is what has happened, as a dotted name.
type Kind string

// The kinds. Each is emitted by the one process that found it out, so that a fleet
// tells of it once; budgets, windows, what credentials say of themselves and what
// concerns Redis or the journal are found out by each process for itself.
const (
	SubscriptionLimited   Kind = "subscription.limited"   // a limit was met: closed until a known time, as a whole or for a model
	SubscriptionDisabled  Kind = "subscription.disabled"  // its credit or quota is used up
	SubscriptionBroken    Kind = "subscription.broken"    // its breaker opened: answers fail
	SubscriptionRecovered Kind = "subscription.recovered" // a probe succeeded, or the breaker closed
	SubscriptionEnabled   Kind = "subscription.enabled"   // an operator ended its cooldowns

	Budget50      Kind = "budget.50" // per cent of a budget are spent
	Budget80      Kind = "budget.80"
	Budget95      Kind = "budget.95"
	Budget100     Kind = "budget.100"
	BudgetBurning Kind = "budget.burning" // a half-spent one will not last at the present rate

	Window50      Kind = "window.50" // per cent of a provider's usage window are spent
	Window80      Kind = "window.80"
	Window95      Kind = "window.95"
	Window100     Kind = "window.100"
	WindowBurning Kind = "window.burning"

	CredentialFailing  Kind = "credential.failing"  //nolint:gosec // the provider refuses it, or it cannot be read
	CredentialExpiring Kind = "credential.expiring" //nolint:gosec // by its own words it ends soon
	CredentialRestored Kind = "credential.restored" //nolint:gosec // another one is there

	ProviderOverloaded Kind = "provider.overloaded" // it has no capacity for a model
	ProviderDown       Kind = "provider.down"       // its base URL serves nobody
	ProviderEgress     Kind = "provider.egress"     // it refuses the address that requests come from
	ProviderRecovered  Kind = "provider.recovered"  // it serves again after being overloaded or down

	PoolExhausted Kind = "pool.exhausted" // a request found nobody who could serve; once a minute for a provider

	SessionMoved    Kind = "session.moved"    // it sticks to another subscription from now on
	SessionReleased Kind = "session.released" // an operator ended its binding

	RedisLost Kind = "redis.lost"
	RedisBack Kind = "redis.back"

	JournalFilling Kind = "journal.filling" // most of the room for usage is taken
	JournalFull    Kind = "journal.full"    // the usage of new answers is not recorded
	UsageWaiting   Kind = "usage.waiting"   // usage is not counted in Redis for a long time
	UsageDoubtful  Kind = "usage.doubtful"  // usage was or may be counted wrongly: lost, damaged, or another writer

	AuditFailing Kind = "audit.failing" // what happens cannot be written to the audit log

	NotificationsTest Kind = "notifications.test" // an operator wants to see that notifications arrive
)

var kinds = []Kind{
	SubscriptionLimited, SubscriptionDisabled, SubscriptionBroken, SubscriptionRecovered, SubscriptionEnabled,
	Budget50, Budget80, Budget95, Budget100, BudgetBurning,
	Window50, Window80, Window95, Window100, WindowBurning,
	CredentialFailing, CredentialExpiring, CredentialRestored,
	ProviderOverloaded, ProviderDown, ProviderEgress, ProviderRecovered,
	PoolExhausted, SessionMoved, SessionReleased, RedisLost, RedisBack, JournalFilling, JournalFull, UsageWaiting, UsageDoubtful, AuditFailing,
	NotificationsTest,
}

// Kinds returns all kinds, in the order in which people read them.
func Kinds() []Kind { return slices.Clone(kinds) }

// Matches tells whether the kind fits a glob, in which * is any run of characters,
// dots too. A glob is one of path.Match; a malformed one fits nothing.
func (k Kind) Matches(glob string) bool {
	ok, err := path.Match(glob, string(k))
	return ok && err == nil
}

// Event is one thing that happened. Empty fields do not apply.
type Event struct {
	Time         time.Time
	Kind         Kind
	Provider     string
	Subscription string
	Model        string
	Agent        string    // whose request showed it
	Session      string    // of that agent
	Window       string    // the budget's period, or the provider's name of its window
	Reason       string    // in one word, as in status and metrics
	Until        time.Time // when it is expected to be over
	Text         string    // one sentence for people, without a full stop
}
