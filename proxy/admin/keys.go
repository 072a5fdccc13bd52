package admin

import (
	"context"
	"net/http"
)

// KeysRotatePath is what `authpool keys rotate` posts to, without a body.
const KeysRotatePath = "/api/v1/keys/rotate"

// KeysRotated is its answer.
type KeysRotated struct {
	Keys     int  `json:"keys"`     // in the keyset of sealed secrets now
	Added    bool `json:"added"`    // one of them is new; false where the keyset is not authpool's to write
	Resealed int  `json:"resealed"` // subscriptions whose secrets the newest key has sealed now
	// Failed are the subscriptions that stay as they were, with why; never null.
	Failed map[string]string `json:"failed"`
}

// Sealer keeps secrets sealed. It must be safe for concurrent use.
type Sealer interface {
	// RotateKeys adds a key and seals everything with it. An error that is a
	// RefusedError is the operator's own; any other means that Redis did not answer.
	RotateKeys(ctx context.Context) (KeysRotated, error)
}

func (s *Server) keysRoutes() []route {
	return []route{
		{"POST", KeysRotatePath, Operator, "Seal all secrets with a new key", nil, KeysRotated{}, s.rotateKeys},
	}
}

func (s *Server) rotateKeys(w http.ResponseWriter, r *http.Request) {
	carry(s, w, r, "the keys were not rotated, or not for all subscriptions", s.sealer.RotateKeys)
}
