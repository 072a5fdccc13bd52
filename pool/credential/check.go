package credential

import (
	"errors"
	"strings"
)

// Why a secret cannot be a provider's credential. The messages are shown to
// operators as the reason of a disabled subscription.
var (
	ErrAgentToken = errors.New("it is an agent token of authpool (apa_…), not a provider's credential: a provider would reject it, and the proxy would call itself")
	ErrAdminToken = errors.New("it is an admin token of authpool (apo_…), not a provider's credential: sending it to a provider would give authpool away")
	ErrCharacters = errors.New("it holds a space, a line break or another character that no credential has: perhaps a file with more than one line, or a copied comment")
)

// Check tells whether secret can be sent to a provider. A secret with a line
// break could smuggle header lines into the request, so nothing outside of
// visible ASCII passes.
func Check(secret Secret) error {
	text := secret.Reveal()
	switch {
	case strings.HasPrefix(text, "apa_"):
		return ErrAgentToken
	case strings.HasPrefix(text, "apo_"):
		return ErrAdminToken
	}
	for i := range len(text) {
		if c := text[i]; c <= ' ' || c >= 0x7f {
			return ErrCharacters
		}
	}
	return nil
}
