// Package credential holds the only place where a provider's secret exists as
// text: the Secret, what kind it is, and where it is read from.
//
// Start at Credential. A Secret prints as a hint everywhere (fmt, slog, JSON,
// YAML); only Reveal gives its text, and only the proxy's header writer and the
// echo mask call it.
package credential

// Scheme says in which form a secret is put on the wire. Which header that is,
// the provider decides.
type Scheme string

// The schemes that can be configured.
const (
	APIKey Scheme = "api_key" // a long-lived key
	Bearer Scheme = "bearer"  // an access token, sent as Authorization: Bearer
)

// Credential is what a lease lends: one secret of one subscription.
type Credential struct {
	Scheme Scheme
	Secret Secret
}
