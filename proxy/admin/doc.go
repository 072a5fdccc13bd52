// Package admin is authpool's second listener, for the operator and for
// machines that watch: /healthz, /readyz and /metrics are open, everything
// under /api/v1 needs a token, also on loopback: the operator's, or for what changes
// nothing, the viewer's.
//
// Start at Server. What the answers look like on the wire is in api.go, which
// is also what the command line decodes: `authpool status`, `authpool usage` and
// `authpool explain` are clients of this API and nothing else. The package asks its owner (cmd)
// for facts through small interfaces, StatusSource, UsageSource and RequestSource,
// and knows neither the pool nor Redis.
package admin
