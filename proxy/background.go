package proxy

import (
	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit/usage"
)

// claim makes e the count of a background response, if r is of one. Every answer
// that tells what such a response has used has an event: the stream that was asked
// for with it, that stream resumed, and each poll after its end, by any agent and
// through any process. All claim the same item, a batch of one named by the
// response, so that the first of them is counted.
//
// Before its end a background response costs nothing here. The request that began
// it is taken back in the journal as soon as its answer says that it was accepted
// (see count), and a stream that is cut is not estimated, because the response goes
// on. An estimate with the claim would be counted in place of the exact number that
// the next poll tells, and one without it beside that number. The price: a response
// that nobody reads to its end, here, is counted nowhere. Who asks for one in the
// background comes back for it, as a rule.
func claim(e *usage.Event, r *meter.Result) {
	if r.Background != "" {
		e.Batch, e.Item = provider.CleanSession([]byte(r.Background)), r.Background
	}
}
