// Package admin is authpool's second listener, for the operator and for
// machines that watch: /healthz, /readyz and /metrics are open, everything
// under /api/v1 needs a token, also on loopback: the operator's, or for what changes
// nothing, the viewer's.
//
// Start at Server. Its table of routes is what is served, who may, and, with the Go
// types of bodies and answers, what OpenAPIPath describes; tests hold every answer to
// that description. What the answers look like on the wire is in api.go and beside each
// group of routes, which is also what the command line decodes: `authpool status`,
// `authpool usage` and the rest are clients of this API and nothing else. Every error is
// a Problem. A record that has a version is answered with it as ETag, and is changed
// only as it was seen where a request sends that back as If-Match.
//
// The package asks its owner (cmd) for facts through small interfaces, StatusSource,
// UsageSource and RequestSource, and knows neither the pool nor Redis. METRICS.md lists
// what /metrics tells.
package admin
