package provider

import "github.com/authpool/authpool/ratelimit"

// Attempt is what has become of a request so far.
type Attempt struct {
	// Content says that content of the answer has gone to the agent.
	Content bool
	// Failures is how often this request was already sent again after a failure
	// of the provider or of the network.
	Failures int
}

// Repeatable tells whether a request whose attempt ended with v may be sent
// again on another subscription. What was refused has had no
// effect and may; after a failure the provider may already have done, and
// billed, the work, so that this is allowed once, and only where a second
// effect does no harm.
func Repeatable(v ratelimit.Verdict, c *Call, a Attempt) bool {
	if a.Content {
		return false
	}
	switch v.Signal {
	case ratelimit.Limited:
		return v.Reason != ratelimit.ReasonRequest
	case ratelimit.Quota:
		return true
	case ratelimit.Auth:
		// What one request may not do is for its agent to know.
		return v.Scope != ratelimit.ScopeRequest
	case ratelimit.ServerError, ratelimit.Overloaded, ratelimit.Network:
		switch {
		case a.Failures > 0, c.RetryCount > 0:
			return false // the agent repeats too; both would multiply
		case v.Reason == ratelimit.ReasonConnect:
			return true // nothing was sent
		case v.Reason == ratelimit.ReasonTimeout, v.Reason == ratelimit.ReasonTLS:
			return false // it may be at work; it would be the same elsewhere
		}
		return !c.Unsafe
	default:
		return false
	}
}
