package pool

import (
	"errors"
	"fmt"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// ErrClosed is returned to those who wait in Acquire when the pool is closed.
var ErrClosed = errors.New("the pool is closed")

// ErrNoSubscription is what errors.Is finds in a NoSubscriptionError.
var ErrNoSubscription = errors.New("no subscription")

// NoSubscriptionError says that no subscription fits, whatever happens: the
// provider has none (Model is empty: answer 404), or none of those allows the
// model.
type NoSubscriptionError struct {
	Provider string
	Model    string // the model that none allows; empty: the provider has no subscription at all
}

// Error implements error.
func (e *NoSubscriptionError) Error() string {
	if e.Model == "" {
		return fmt.Sprintf("no subscription for provider %q", e.Provider)
	}
	return fmt.Sprintf("no subscription for provider %q allows the model %q", e.Provider, e.Model)
}

// Is makes errors.Is(err, ErrNoSubscription) true.
func (e *NoSubscriptionError) Is(target error) bool { return target == ErrNoSubscription }

// The reasons of an UnavailableError that are not reasons of an answer.
const (
	ReasonBreaker     = "breaker"     // its endpoint is broken
	ReasonDown        = "down"        // the provider's base URL serves nobody
	ReasonBudget      = "budget"      // a configured budget is used up
	ReasonRate        = "rate"        // a limit per minute is used up, a configured one or the provider's
	ReasonConcurrency = "concurrency" // limits.concurrent is reached
	ReasonSessions    = "sessions"    // limits.sessions is reached
	ReasonRemoved     = "removed"     // it is not in the pool any more
	ReasonDraining    = "draining"    // an operator lets it take no new sessions
	ReasonDisabled    = "disabled"    // switched off, or the credential is not accepted
	ReasonTried       = "tried"       // it has failed in this very request
	ReasonQueue       = "queue"       // too many requests are waiting already
	ReasonRamp        = "ramp"        // many sessions move there at once; of a Trace alone
	ReasonUnfit       = "unfit"       // the owner is not configured any more, or not for the model
)

// UnavailableError says that subscriptions fit, but none can serve in time. It
// carries what an honest answer needs.
type UnavailableError struct {
	Provider string
	Model    string
	Count    int // subscriptions that fit
	// Until is when the first of them is expected to open; zero when no time
	// will do it (all are disabled or were tried): then there is no Retry-After.
	Until time.Time
	// Wait is Until counted from when the error was made.
	Wait time.Duration
	// FirstSubscription is the one that opens first, or one of them where
	// nobody knows.
	FirstSubscription string
	// Reason is why that one is closed: a reason of package ratelimit or of
	// this package.
	Reason string
	// LastVerdict is what the last bad answer of that subscription said; nil
	// when it had none.
	LastVerdict *ratelimit.Verdict
	// Owned says that FirstSubscription alone could have served: it has what the
	// request names.
	Owned bool
}

// Error implements error with the sentence for the agent, without the
// "authpool: " in front.
func (e *UnavailableError) Error() string {
	if text, ok := e.whole(); ok {
		return text
	}
	if e.Owned {
		return e.owned()
	}
	who := fmt.Sprintf("all %d subscriptions", e.Count)
	are := "are"
	if e.Count == 1 {
		who, are = "the only subscription", "is"
	}
	what := e.Model
	if what == "" {
		what = "provider " + e.Provider
	}
	if e.Until.IsZero() {
		return fmt.Sprintf("%s for %s %s unavailable (%s: %s)", who, what, are, e.FirstSubscription, e.Reason)
	}
	switch ratelimit.Reason(e.Reason) {
	case ratelimit.ReasonCredit, ratelimit.ReasonSpendLimit, ratelimit.ReasonNoQuota:
		return fmt.Sprintf("%s for %s %s out of quota; tried again in %s (%s: %s)", who, what, are, roundWait(e.Wait), e.FirstSubscription, e.Reason)
	case ratelimit.ReasonPermission:
		return fmt.Sprintf("%s for %s %s not permitted to use it; tried again in %s (%s)", who, what, are, roundWait(e.Wait), e.FirstSubscription)
	default:
	}
	return fmt.Sprintf("%s for %s %s limited; first free in %s (%s)", who, what, are, roundWait(e.Wait), e.FirstSubscription)
}

// owned is Error for a request that only one subscription can serve.
func (e *UnavailableError) owned() string {
	who := fmt.Sprintf("subscription %q, which alone has what this request names,", e.FirstSubscription)
	switch {
	case e.Reason == ReasonUnfit:
		return who + " is not configured for it any more"
	case e.Until.IsZero():
		return fmt.Sprintf("%s is unavailable (%s)", who, e.Reason)
	}
	return fmt.Sprintf("%s is limited (%s); free in %s", who, e.Reason, roundWait(e.Wait))
}

// roundWait writes a wait the way people say it: 12m, 45s, 3h10m.
func roundWait(d time.Duration) string {
	switch {
	case d <= time.Second:
		return "1s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int64((d+time.Second-1)/time.Second))
	}
	m := int64((d + time.Minute - 1) / time.Minute)
	switch {
	case m < 120:
		return fmt.Sprintf("%dm", m)
	case m < 48*60:
		if m%60 == 0 {
			return fmt.Sprintf("%dh", m/60)
		}
		return fmt.Sprintf("%dh%dm", m/60, m%60)
	}
	return fmt.Sprintf("%dd%dh", m/(24*60), m/60%24)
}

// CredentialError says that a leased subscription's credential cannot be had.
// The subscription is disabled until it can; the request may be tried on
// another.
type CredentialError struct {
	Subscription string
	Err          error
}

// Error implements error.
func (e *CredentialError) Error() string {
	return fmt.Sprintf("cannot read the credential of subscription %q: %v", e.Subscription, e.Err)
}

// Unwrap returns the cause.
func (e *CredentialError) Unwrap() error { return e.Err }
