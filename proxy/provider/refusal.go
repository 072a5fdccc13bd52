package provider

import "strconv"

// Refusal is an answer of authpool's own to a request that may not go to any
// provider. It is the type of every error that Route and Inspect return.
type Refusal struct { //nolint:errname // an answer before it is an error: callers write it
	Status  int    // of the answer
	Code    string // for X-Authpool-Error; one of the constants
	Message string // for a person; without the `authpool:` that ErrorBody puts before it
	Family  Family // in whose shape the answer is to be written
	// Endpoint is the manifest's row that says so; nil when none does.
	Endpoint *Endpoint
}

// The codes of refusals.
const (
	CodeNotFound       = "not_found"        // no route for this path
	CodeNoSuchProvider = "no_such_provider" // the route's provider is not declared
	CodeNoSubscription = "no_subscription"  // the provider has no subscription
	CodeBadPath        = "bad_path"         // upstreams could read the path differently
	CodeForbiddenPath  = "forbidden_path"   // administration, keys, billing, OAuth, secrets
	CodeUnknownPath    = "unknown_path"     // the host's path is none of the provider's API
	CodeLocal          = "answered_locally" // a path whose calls authpool answers itself
	CodeDuplicateField = "duplicate_field"  // the body names a field twice
	CodeUpgrade        = "upgrade_required" // no WebSocket that is relayed
	CodeBadCredential  = "bad_credential"   //nolint:gosec // a code: the credential cannot stand in a header
)

// Error implements error.
func (r *Refusal) Error() string { return strconv.Itoa(r.Status) + " " + r.Code + ": " + r.Message }
