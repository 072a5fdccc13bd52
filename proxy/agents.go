package proxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
)

// AnonymousAgent is the agent of every request when no token is asked for.
const AnonymousAgent = "anonymous"

// Agents knows which agent a token belongs to. It keeps hashes only, and is
// immutable and safe for concurrent use.
type Agents struct {
	open   bool
	tokens []agentToken
}

type agentToken struct {
	hash  [sha256.Size]byte
	agent string
}

// NoAgents asks for no token: everyone is AnonymousAgent.
func NoAgents() *Agents { return &Agents{open: true} }

// NewAgents takes tokens by agent id. A token is 256 bit random, so that its
// plain hash can't be guessed back.
func NewAgents(tokens map[string]string) *Agents {
	a := &Agents{}
	for agent, token := range tokens {
		a.tokens = append(a.tokens, agentToken{sha256.Sum256([]byte(token)), agent})
	}
	return a
}

// Errors of Identify.
var (
	errNoToken   = errors.New("no agent token")
	errBadToken  = errors.New("agent token not known")
	errTwoAgents = errors.New("tokens of two agents")
)

// Identify returns the agent to whom the valid ones among the candidate tokens
// belong. Candidates that are no agent's token (an agent's own dummy key, for
// instance) are passed over as long as one is valid.
func (a *Agents) Identify(candidates func(yield func([]byte) bool)) (string, error) {
	if a.open {
		return AnonymousAgent, nil
	}
	found, seen, two := "", false, false
	candidates(func(token []byte) bool {
		if len(token) == 0 {
			return true
		}
		seen = true
		hash := sha256.Sum256(token)
		for i := range a.tokens {
			if subtle.ConstantTimeCompare(hash[:], a.tokens[i].hash[:]) == 1 {
				two = two || found != "" && found != a.tokens[i].agent
				found = a.tokens[i].agent
			}
		}
		return true
	})
	switch {
	case two:
		return "", errTwoAgents
	case found != "":
		return found, nil
	case seen:
		return "", errBadToken
	}
	return "", errNoToken
}
