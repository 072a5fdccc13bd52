package pool

import (
	"strings"
	"sync"

	"github.com/authpool/authpool/ratelimit"
)

// What is believed of a model that has not answered yet: four bytes of a body
// make a token, which is the providers' own rule of thumb for English text, and
// an answer has a few paragraphs.
const (
	firstTokensPerByte = 0.25
	firstOutput        = 500
)

const (
	// estimateWeight is the part of an estimate that one answer makes up.
	estimateWeight = 1.0 / 8
	// estimatesMost bounds the models that are remembered; agents name them.
	estimatesMost = 256
)

// meter has the tokens of the requests to come foretold from the answer on that
// tells of a limit per minute on tokens of which less than half is left.
func (g *group) meter(windows []ratelimit.Window) {
	for i := range windows {
		if w := &windows[i]; w.Kind == "bucket" && w.Name != "requests" && w.Left < w.Size/2 && !g.metered.Load() {
			g.metered.Store(true)
		}
	}
}

// estimates foretells the tokens of requests from the size of their bodies, model
// by model, as the answers teach. What a provider does not count against its
// limits, cached input above all, is not foretold either. It is safe for
// concurrent use.
type estimates struct {
	mu      sync.Mutex
	byModel map[string]*estimate
}

type estimate struct{ tokensPerByte, output float64 }

// of foretells a request's tokens.
func (e *estimates) of(model string, bytes int64) (input, output int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	known := e.byModel[model]
	if known == nil {
		known = &estimate{firstTokensPerByte, firstOutput}
	}
	return int64(float64(bytes) * known.tokensPerByte), int64(known.output)
}

// learn takes note of what a request came to. It keeps a copy of model.
func (e *estimates) learn(model string, bytes, input, output int64) {
	if bytes <= 0 {
		return
	}
	perByte := float64(max(input, 0)) / float64(bytes)
	out := float64(max(output, 0))
	e.mu.Lock()
	defer e.mu.Unlock()
	known := e.byModel[model]
	if known == nil {
		if len(e.byModel) >= estimatesMost {
			return
		}
		if e.byModel == nil {
			e.byModel = make(map[string]*estimate)
		}
		e.byModel[strings.Clone(model)] = &estimate{perByte, out}
		return
	}
	known.tokensPerByte += (perByte - known.tokensPerByte) * estimateWeight
	known.output += (out - known.output) * estimateWeight
}
