package proxy

import (
	"errors"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
)

// brake refuses a request that costs something when its session or its agent has
// used up what it may use within an hour.
func (ex *exchange) brake() *refusal {
	if !ex.costs() {
		return nil
	}
	err := ex.s.deps.Pool.Brake(ex.provider.Name, ex.agent, ex.info.Session.ID)
	if over, ok := errors.AsType[*pool.BrakeError](err); ok {
		return &refusal{
			status: fasthttp.StatusTooManyRequests, code: codeBrake, message: over.Error(),
			wait: over.Wait, resets: over.Until, codex: ex.isCodex(),
		}
	}
	return nil
}
