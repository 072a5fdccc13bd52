// Package seal keeps what lies in Redis from whoever reads Redis: secrets and what
// tells of people are encrypted and bound to what they are for (AEAD, by Tink:
// AES-256-GCM).
//
// Start at Open. A Keyset is a Tink keyset in JSON: of several keys the primary one
// seals, and each opens what it has sealed, so that keys can be rotated while older
// texts are still there. What a text is for (For) is authenticated with it: a sealed
// text that was copied to another record, or whose record was changed to send the
// secret elsewhere, does not open.
package seal

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/authpool/authpool/pool/credential"
)

// For is what a sealed text is for.
type For struct {
	Subscription string   // its id
	Provider     string   // whose credential it is
	Scheme       string   // in which form it is sent
	Hosts        []string // host:port to which it may be sent, in any order
	What         string   // what the text is, such as credential
}

// associated is the form in which it is authenticated: no two that differ look the
// same.
func (f For) associated() []byte {
	hosts := slices.Sorted(slices.Values(f.Hosts))
	out := []byte("authpool sealed 1")
	for _, part := range append([]string{f.What, f.Subscription, f.Provider, f.Scheme}, slices.Compact(hosts)...) {
		out = fmt.Appendf(out, "\n%d:%s", len(part), part)
	}
	return out
}

// Keyset seals and opens. It is immutable and safe for concurrent use.
type Keyset struct {
	handle *keyset.Handle
	aead   tink.AEAD
}

// ErrKeyset is in the error of a keyset that cannot be used.
var ErrKeyset = errors.New("it is no keyset: want a Tink keyset in JSON, such as \"authpool keys new\" prints")

// ErrNotOpened is in the error of a text that does not open.
var ErrNotOpened = errors.New("it does not open with this keyset: the keyset is another one, or the record was changed by somebody else than authpool")

// New returns a keyset with one new key.
func New() (*Keyset, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("cannot make a keyset: %w", err)
	}
	return of(handle)
}

// Open reads a keyset. The error is ErrKeyset, without a word of what was read.
func Open(text credential.Secret) (*Keyset, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(strings.NewReader(text.Reveal())))
	if err != nil {
		return nil, ErrKeyset // the cause may quote keys
	}
	k, err := of(handle)
	if err != nil {
		return nil, ErrKeyset
	}
	return k, nil
}

func of(handle *keyset.Handle) (*Keyset, error) {
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("cannot use the keyset: %w", err)
	}
	return &Keyset{handle, primitive}, nil
}

// Text is the keyset as Open reads it.
func (k *Keyset) Text() (credential.Secret, error) {
	var out bytes.Buffer
	if err := insecurecleartextkeyset.Write(k.handle, keyset.NewJSONWriter(&out)); err != nil {
		return credential.Secret{}, fmt.Errorf("cannot write the keyset: %w", err)
	}
	return credential.NewSecret(out.String()), nil
}

// Rotated returns a keyset with one more key, which seals from then on.
func (k *Keyset) Rotated() (*Keyset, error) {
	manager := keyset.NewManagerFromHandle(k.handle)
	id, err := manager.Add(aead.AES256GCMKeyTemplate())
	if err == nil {
		err = manager.SetPrimary(id)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot add a key: %w", err)
	}
	handle, err := manager.Handle()
	if err != nil {
		return nil, fmt.Errorf("cannot add a key: %w", err)
	}
	return of(handle)
}

// Keys is how many keys there are.
func (k *Keyset) Keys() int { return k.handle.Len() }

// Seal seals a text.
func (k *Keyset) Seal(text []byte, what For) (string, error) {
	sealed, err := k.aead.Encrypt(text, what.associated())
	if err != nil {
		return "", fmt.Errorf("cannot seal the %s of subscription %s: %w", what.What, what.Subscription, err)
	}
	return base64.RawStdEncoding.EncodeToString(sealed), nil
}

// Open opens what Seal has sealed for the same. The error is ErrNotOpened.
func (k *Keyset) Open(sealed string, what For) ([]byte, error) {
	raw, err := base64.RawStdEncoding.DecodeString(sealed)
	if err == nil {
		var text []byte
		if text, err = k.aead.Decrypt(raw, what.associated()); err == nil {
			return text, nil
		}
	}
	return nil, fmt.Errorf("the %s of subscription %s: %w", what.What, what.Subscription, ErrNotOpened)
}

// Primary tells whether the primary key has sealed the text, so that no older one is
// needed for it.
func (k *Keyset) Primary(sealed string) bool {
	raw, err := base64.RawStdEncoding.DecodeString(sealed)
	if err != nil || len(raw) < 5 {
		return false
	}
	// Tink's prefix: a version byte of 1 and the key's id.
	id := k.handle.KeysetInfo().GetPrimaryKeyId()
	return raw[0] == 1 && uint32(raw[1])<<24|uint32(raw[2])<<16|uint32(raw[3])<<8|uint32(raw[4]) == id
}
