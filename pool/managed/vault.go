package managed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/seal"
)

// Private is what a record knows of people.
type Private struct {
	Email string `json:"email,omitempty"` // whose subscription it is
	Note  string `json:"note,omitempty"`
}

// Target is where a secret may go, which it is sealed for.
type Target struct {
	Provider string
	Scheme   credential.Scheme
	Hosts    []string // host:port of the provider as configured
}

func (t Target) seals(id, what string) seal.For {
	return seal.For{Subscription: id, Provider: t.Provider, Scheme: string(t.Scheme), Hosts: t.Hosts, What: what}
}

// The texts that a record has sealed.
const (
	sealsCredential = "credential"
	sealsPrivate    = "private note"
)

// Keys is where the keyset is.
type Keys struct {
	// Read gives its text; fs.ErrNotExist is in the error of one that there is not.
	Read func(ctx context.Context) (credential.Secret, error)
	// Write replaces it; nil: it is not authpool's to write.
	Write func(credential.Secret) error
	// Lock keeps other processes from writing until unlock; needed with Write.
	Lock func() (unlock func(), err error)
	// Make makes the first one, for the first secret; nil: somebody else has to.
	Make func(ctx context.Context) error
}

// Vault seals and opens secrets with a keyset. It is safe for concurrent use.
type Vault struct {
	source Keys

	mu   sync.Mutex
	text credential.Secret
	keys *seal.Keyset
	next time.Time // when the source is asked again
}

// NewVault returns a Vault. Nothing is read before it is needed.
func NewVault(source Keys) *Vault { return &Vault{source: source} }

// vaultRecheck is how old the keyset may be: another process may have rotated it.
const vaultRecheck = time.Second

// keyset returns the keyset as it is now.
func (v *Vault) keyset(ctx context.Context) (*seal.Keyset, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if v.keys != nil && now.Before(v.next) {
		return v.keys, nil
	}
	text, err := v.source.Read(ctx)
	if err != nil {
		if v.keys != nil {
			return v.keys, nil // what was read before still opens
		}
		return nil, fmt.Errorf("cannot read the keyset of sealed secrets: %w", err)
	}
	v.next = now.Add(vaultRecheck)
	if v.keys != nil && text == v.text {
		return v.keys, nil
	}
	keys, err := seal.Open(text)
	if err != nil {
		if v.keys != nil {
			return v.keys, nil
		}
		return nil, fmt.Errorf("cannot use the keyset of sealed secrets: %w", err)
	}
	v.keys, v.text = keys, text
	return keys, nil
}

// Check tells whether there is a keyset that can be used.
func (v *Vault) Check(ctx context.Context) error {
	_, err := v.keyset(ctx)
	return err
}

// Seal puts the secret and what is private into the record, for the target. The first
// keyset is made by it where that is to be.
func (v *Vault) Seal(ctx context.Context, r *Record, t Target, secret credential.Secret, private Private) error {
	keys, err := v.keyset(ctx)
	if v.source.Make != nil && errors.Is(err, fs.ErrNotExist) {
		if err = v.source.Make(ctx); err != nil {
			return fmt.Errorf("cannot make a keyset for sealed secrets: %w", err)
		}
		keys, err = v.keyset(ctx)
	}
	if err != nil {
		return err
	}
	sealed, err := keys.Seal([]byte(secret.Reveal()), t.seals(r.ID, sealsCredential))
	if err != nil {
		return err
	}
	hidden := ""
	if private != (Private{}) {
		text, err := json.Marshal(private)
		if err != nil {
			return fmt.Errorf("cannot seal the note of subscription %s: %w", r.ID, err)
		}
		if hidden, err = keys.Seal(text, t.seals(r.ID, sealsPrivate)); err != nil {
			return err
		}
	}
	r.Secret, r.Private = sealed, hidden
	return nil
}

// renewed is the keyset as its source gives it now.
func (v *Vault) renewed(ctx context.Context) (*seal.Keyset, error) {
	v.mu.Lock()
	v.next = time.Time{}
	v.mu.Unlock()
	return v.keyset(ctx)
}

// Open returns what is sealed in a record for the target. seal.ErrNotOpened is in the
// error of one that was sealed with another keyset, for another record or for another
// target.
func (v *Vault) Open(ctx context.Context, r *Record, t Target) (credential.Secret, Private, error) {
	keys, err := v.keyset(ctx)
	if err != nil {
		return credential.Secret{}, Private{}, err
	}
	secret, err := keys.Open(r.Secret, t.seals(r.ID, sealsCredential))
	if errors.Is(err, seal.ErrNotOpened) {
		// Another process may have rotated the keyset a moment ago.
		if keys, err = v.renewed(ctx); err != nil {
			return credential.Secret{}, Private{}, err
		}
		secret, err = keys.Open(r.Secret, t.seals(r.ID, sealsCredential))
	}
	if err != nil {
		return credential.Secret{}, Private{}, err
	}
	var private Private
	if r.Private != "" {
		text, err := keys.Open(r.Private, t.seals(r.ID, sealsPrivate))
		if err == nil {
			err = json.Unmarshal(text, &private)
		}
		if err != nil {
			return credential.Secret{}, Private{}, err
		}
	}
	return credential.NewSecret(string(secret)), private, nil
}

// Source lends the secret of one record. It implements pool.CredentialSource.
type Source struct {
	vault  *Vault
	record Record
	target Target

	mu   sync.Mutex
	last credential.Credential
	err  error
	next time.Time
}

// NewSource returns the source of a record's secret for a target; another version of
// the record needs another one.
func NewSource(v *Vault, r Record, t Target) *Source {
	return &Source{vault: v, record: r, target: t}
}

// Credential opens the secret at the first call, and then answers from memory. After an
// error it is tried again, not more often than once a second: the keyset may have been
// put right.
func (s *Source) Credential(ctx context.Context) (credential.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.last.Secret.Empty() || s.err != nil && now.Before(s.next) {
		return s.last, s.err
	}
	secret, _, err := s.vault.Open(ctx, &s.record, s.target)
	if err == nil {
		err = credential.Check(secret)
	}
	s.err, s.next = err, now.Add(vaultRecheck)
	if err != nil {
		return credential.Credential{}, err
	}
	s.last = credential.Credential{Scheme: s.target.Scheme, Secret: secret}
	return s.last, nil
}

// Refresh is Credential: a record's secret changes with its version only.
func (s *Source) Refresh(ctx context.Context) (credential.Credential, error) {
	return s.Credential(ctx)
}

// Rotated is what Rotate did.
type Rotated struct {
	Keys     int  // in the keyset now
	Added    bool // one of them is new
	Resealed int  // records whose secrets the newest key has sealed now
	// Failed are the records that were left as they were, with why: those whose secrets
	// do not open, and those that others changed all the time.
	Failed map[string]error
}

// Rotate adds a key to the keyset, where that is authpool's to write, and seals the
// secrets of every record with the newest one. target tells where a record's secret may
// go. Other processes read the keyset again before they open what it has sealed.
//
// An older key stays in the keyset: a record that did not open now may with it later.
func (v *Vault) Rotate(ctx context.Context, s *Store, target func(*Record) (Target, error)) (Rotated, error) {
	done := Rotated{Failed: map[string]error{}}
	if err := v.add(ctx, &done); err != nil {
		return done, err
	}
	keys, err := v.keyset(ctx)
	if err != nil {
		return done, err
	}
	done.Keys = keys.Keys()
	records, err := s.List(ctx)
	if err != nil {
		return done, err
	}
	for _, r := range records {
		if !r.Managed() || keys.Primary(r.Secret) && (r.Private == "" || keys.Primary(r.Private)) {
			continue
		}
		if err := v.reseal(ctx, s, r, target); err != nil {
			done.Failed[r.ID] = err
			continue
		}
		done.Resealed++
	}
	return done, nil
}

// add adds a key to the keyset, or takes over the one that somebody has added where it
// is not authpool's to write. Neither makes do with what was read before: nothing would be
// sealed anew, and nobody told.
func (v *Vault) add(ctx context.Context, done *Rotated) error {
	if v.source.Write != nil {
		unlock, err := v.source.Lock()
		if err != nil {
			return fmt.Errorf("cannot rotate the keyset: %w", err)
		}
		defer unlock()
	}
	// As it is now: written over, a key that another process has just added would be
	// lost, and with it what that has sealed.
	text, err := v.source.Read(ctx)
	if err != nil {
		return fmt.Errorf("cannot read the keyset of sealed secrets: %w", err)
	}
	keys, err := seal.Open(text)
	if err != nil {
		return fmt.Errorf("cannot use the keyset of sealed secrets: %w", err)
	}
	if v.source.Write != nil {
		if keys, err = keys.Rotated(); err != nil {
			return err
		}
		if text, err = keys.Text(); err != nil {
			return err
		}
		if err := v.source.Write(text); err != nil {
			return fmt.Errorf("cannot write the keyset: %w", err)
		}
		done.Added = true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys, v.text, v.next = keys, text, time.Now().Add(vaultRecheck)
	return nil
}

// resealTries is how often a record is tried that others change meanwhile.
const resealTries = 5

func (v *Vault) reseal(ctx context.Context, s *Store, r Record, target func(*Record) (Target, error)) error {
	for range resealTries {
		t, err := target(&r)
		if err != nil {
			return err
		}
		secret, private, err := v.Open(ctx, &r, t)
		if err != nil {
			return err
		}
		if err := v.Seal(ctx, &r, t, secret, private); err != nil {
			return err
		}
		_, err = s.Put(ctx, r)
		if !errors.Is(err, ErrVersion) {
			return err
		}
		records, err := s.List(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(records, func(one Record) bool { return one.ID == r.ID })
		if i < 0 {
			return nil // removed
		}
		r = records[i]
	}
	return ErrVersion
}
