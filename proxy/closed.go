package proxy

import (
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

// codeOverloaded is told where a request was not sent because the provider has no
// capacity for its model.
const codeOverloaded = "overloaded"

// codeNotPermitted is told where no subscription may use the model.
const codeNotPermitted = "not_permitted"

// statusOverloaded is Anthropic's status for having no capacity (its error
// reference); the others say 503.
const statusOverloaded = 529

// closed makes r the provider's own kind of error where it is no limit that closes
// the subscriptions: the provider serves nobody, or permits the model to none.
func (r *refusal) closed(family provider.Family, reason string) {
	switch reason {
	case string(ratelimit.ReasonPermission):
		r.status, r.code = fasthttp.StatusForbidden, codeNotPermitted
	case pool.ReasonBreaker, pool.ReasonDown:
		r.status, r.code = fasthttp.StatusServiceUnavailable, codeUnavailable
	case string(ratelimit.ReasonCapacity):
		r.status, r.code = fasthttp.StatusServiceUnavailable, codeOverloaded
		if family == provider.Anthropic {
			r.status = statusOverloaded
		}
	}
}

// nextTry adds when the next request may go out to the provider's error that is
// shown, where the provider itself does not say.
func (r *refusal) nextTry(resp *fasthttp.Response) {
	if r.wait <= 0 {
		return
	}
	for name := range r.kept.head.All() {
		if equalFold(name, "retry-after") || equalFold(name, "retry-after-ms") {
			return
		}
	}
	resp.Header.Set("Retry-After", strconv.FormatInt(r.seconds(), 10))
	resp.Header.Set("retry-after-ms", strconv.FormatInt(max(1, r.wait.Milliseconds()), 10))
}
