// Package ratelimit decides whether a subscription may be used, and until when
// not. It knows signals, tokens and time, and nothing of HTTP.
//
// Start at Verdict (what an answer meant), Gate (what follows from it for a
// subscription) and Provider (for all that ask the same provider).
package ratelimit

import "time"

// Signal is what an answer (or its absence) says about the subscription that
// served it. The names of String are the contract's.
type Signal uint8

// The signals, from good to bad.
const (
	OK          Signal = iota // served
	Limited                   // a rate limit or a usage window is used up
	Quota                     // paid credit or a spend limit is used up: waiting does not help soon
	Overloaded                // the provider has no capacity: no subscription's fault
	Auth                      // the credential was refused
	ClientError               // the request itself was wrong
	ServerError               // the provider failed
	Network                   // no (whole) answer came
)

var signalNames = [...]string{"ok", "limited", "quota", "overloaded", "auth", "client_error", "server_error", "network"}

// String returns the signal's name in the contract.
func (s Signal) String() string { return signalNames[s] }

// Scope is how far a Verdict reaches.
type Scope uint8

// The scopes, from narrow to wide. Limits belong to an account: those of a model,
// too, are shared by all subscriptions of a domain. What is one key's or one
// project's alone is ScopeSubscription.
const (
	ScopeRequest       Scope = iota // this request only: nothing is remembered
	ScopeModel                      // one model, for all subscriptions that share its account's limits
	ScopeSubscription               // this subscription alone: its key, project or workspace
	ScopeDomain                     // all subscriptions that share its account's limits
	ScopeProviderModel              // one model at the provider, whoever asks
	ScopeProvider                   // the whole provider
)

var scopeNames = [...]string{"request", "model", "subscription", "domain", "provider_model", "provider"}

// String returns the scope's name in the contract.
func (s Scope) String() string { return scopeNames[s] }

// Reason is the closed list of why a Signal was given; see the constants.
type Reason string

// The reasons. A reason belongs to one signal; the comment names it.
const (
	ReasonNone       Reason = ""            // ok
	ReasonWindow     Reason = "window"      // limited: a 5 h, weekly or monthly window is used up
	ReasonThrottled  Reason = "throttled"   // limited: the provider says how long
	ReasonBare       Reason = "bare"        // limited: nobody says how long
	ReasonRequest    Reason = "request"     // limited: this request alone is too large
	ReasonCredit     Reason = "credit"      // quota: paid credit is used up
	ReasonSpendLimit Reason = "spend_limit" // quota: the operator's own limit at the provider
	ReasonNoQuota    Reason = "no_quota"    // quota: the plan has nothing of this model
	ReasonCapacity   Reason = "capacity"    // overloaded
	ReasonCredential Reason = "credential"  // auth: key unknown, revoked or expired
	ReasonPermission Reason = "permission"  // auth or client_error: the credential may not do this
	ReasonEgress     Reason = "egress"      // auth or client_error: where the request comes from, whose it is or not
	ReasonRefused    Reason = "refused"     // client_error: the request is wrong
	ReasonNotFound   Reason = "not_found"   // client_error: resource or model unknown
	ReasonUpstream   Reason = "upstream"    // server_error
	ReasonConnect    Reason = "connect"     // network: no connection; nothing was sent
	ReasonReset      Reason = "reset"       // network: the connection broke
	ReasonTimeout    Reason = "timeout"     // network: no answer in time
	ReasonTLS        Reason = "tls"         // network: the certificate was not accepted
)

// Verdict is the classifier's answer for one attempt.
type Verdict struct {
	Signal Signal
	Reason Reason
	Scope  Scope
	// Wait is how long the scope stays closed, counted from the answer;
	// negative when the answer states no end.
	Wait time.Duration
	// Row names the row of the classifier's table that decided.
	Row string
	// Organisation is the provider's name of the account that the credential is of, as
	// the answer's headers tell it, also a good one's; empty when they do not. Its
	// bytes belong to the answer.
	Organisation []byte
	// Windows are the limit windows that the answer's headers tell, also on a
	// good answer. Often empty.
	Windows []Window
}

// Window is a provider's own view of one of its limits, as told in the headers
// of an answer.
type Window struct {
	Name        string    // "5h", "7d", "requests", "input_tokens", ...
	Kind        string    // "provider" for a usage window, "bucket" for a per-minute limit
	Utilization float64   // spent fraction, 0..1 and sometimes above
	Status      string    // "allowed", "allowed_warning", "rejected" or ""
	Reset       time.Time // zero when not told; of a bucket, when it is full
	Size, Left  float64   // of a bucket: what it holds when it is full, and now; zero when not told
	Seen        time.Time // when the answer was received
	// Claim is the provider's word for this window where it names it as the one
	// that decides ("five_hour"); else "".
	Claim string
}
