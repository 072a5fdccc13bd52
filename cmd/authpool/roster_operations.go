package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/managed"
	"github.com/authpool/authpool/proxy/admin"
)

// rosterTries is how often a change is tried that others come between, unless the
// operator has named the version that is to be changed.
const rosterTries = 5

// mostPrivate bounds e-mail and note, in bytes, and mostSecret a secret.
const (
	mostPrivate = 4 << 10
	mostSecret  = 64 << 10
)

func refuse(status int, format string, args ...any) error {
	return &admin.RefusedError{Status: status, Err: fmt.Errorf(format, args...)}
}

// Subscriptions implements admin.Roster. While Redis is away it tells what was last
// known.
func (r *roster) Subscriptions(ctx context.Context) ([]admin.SubscriptionRecord, error) {
	if r.shared.Healthy() {
		if err := r.read(ctx); err != nil {
			r.log.Warn("the subscriptions told may be old", "error", err)
		}
	}
	states := make(map[string]pool.Status)
	for _, s := range r.pool.Status() {
		states[s.ID] = s
	}
	var list []admin.SubscriptionRecord
	for _, e := range r.all() {
		one := r.told(ctx, e)
		if s, there := states[one.ID]; there && !one.Shadowed {
			one.State = string(s.State)
			if s.State == pool.StateDisabled && one.Reason == "" && one.Switch != admin.SwitchDisabled {
				one.Reason = fmt.Sprintf("it is out of use (%s): authpool status tells more", s.Reason)
			}
		}
		list = append(list, one)
	}
	slices.SortStableFunc(list, func(a, b admin.SubscriptionRecord) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// told is an entry for people: with what of its secret may be shown.
func (r *roster) told(ctx context.Context, e listed) admin.SubscriptionRecord {
	record := e.record
	if record.Source == admin.SourceFile {
		if c, err := e.sub.Credential.Credential(ctx); err == nil {
			record.Hint = c.Secret.Hint()
		}
		return record
	}
	target, err := r.target(&e.kept)
	if err != nil {
		return record // its Reason is known
	}
	secret, private, err := r.vault.Open(ctx, &e.kept, target)
	if err != nil {
		if record.Reason == "" {
			record.Reason = err.Error()
		}
		return record
	}
	record.Hint, record.Email, record.Note = secret.Hint(), private.Email, private.Note
	return record
}

// find is the entry that rules an id: as Redis has it now.
func (r *roster) find(ctx context.Context, id string) (listed, error) {
	if err := r.read(ctx); err != nil {
		return listed{}, err
	}
	return r.last(id)
}

// last is the same as was last known.
func (r *roster) last(id string) (listed, error) {
	for _, e := range r.all() {
		if e.record.ID == id {
			return e, nil
		}
	}
	return listed{}, admin.NoSubscription(id)
}

// change writes what edit makes of the record of an id, over the version that the
// operator has named or else over whichever there is. edit may be called again; it
// returns false where nothing is to be written.
func (r *roster) change(ctx context.Context, id string, version int64, edit func(listed) (managed.Record, bool, error)) (admin.SubscriptionRecord, error) {
	for try := 1; ; try++ {
		e, err := r.find(ctx, id)
		if err != nil {
			return admin.SubscriptionRecord{}, err
		}
		if version != admin.AnyVersion && version != e.record.Version {
			return admin.SubscriptionRecord{}, admin.StaleError("subscription "+id, e.record.Version)
		}
		next, write, err := edit(e)
		if err == nil && write {
			err = r.put(ctx, next)
		}
		switch {
		case errors.Is(err, managed.ErrVersion) && try < rosterTries:
			continue // who has named a version is told of the other one
		case errors.Is(err, managed.ErrVersion):
			return admin.SubscriptionRecord{}, refuse(http.StatusConflict, "subscription %q is changed by others all the time: try again", id)
		case err != nil:
			return admin.SubscriptionRecord{}, err
		}
		if write {
			if e, err = r.find(ctx, id); err != nil {
				return admin.SubscriptionRecord{}, err
			}
		}
		return r.told(ctx, e), nil
	}
}

// put writes a record.
func (r *roster) put(ctx context.Context, one managed.Record) error {
	_, err := r.records.Put(ctx, one)
	if errors.Is(err, managed.ErrFull) {
		return refuse(http.StatusConflict, "there are too many subscriptions that were changed at run time: remove one first")
	}
	if errors.Is(err, managed.ErrUnreadable) {
		return refuse(http.StatusConflict, "subscription %q can only be removed: %w", one.ID, managed.ErrUnreadable)
	}
	return err
}

// AddSubscription implements admin.Roster.
func (r *roster) AddSubscription(ctx context.Context, n admin.NewSubscription) (admin.SubscriptionRecord, error) {
	none := admin.SubscriptionRecord{}
	r.mu.Lock()
	c := r.cfg
	r.mu.Unlock()
	text, err := writtenOf(n.ID, n.SubscriptionSettings)
	if err != nil {
		return none, err
	}
	said, err := c.ParseSubscription(text)
	if err != nil {
		return none, refuse(http.StatusBadRequest, "%s", reasonOf(err))
	}
	secret, err := checkSecret(n.Credential)
	if err != nil {
		return none, err
	}
	for key, value := range map[string]string{"email": n.Email, "note": n.Note} {
		if len(value) > mostPrivate || !utf8.ValidString(value) || strings.ContainsFunc(value, func(c rune) bool { return !strconv.IsPrint(c) }) {
			return none, refuse(http.StatusBadRequest, "%s: want one line of text, at most %d bytes", key, mostPrivate)
		}
	}
	if err := r.read(ctx); err != nil {
		return none, err
	}
	one := managed.Record{ID: said.ID, Switch: managed.Enabled}
	if e, err := r.last(said.ID); err == nil {
		if e.record.Source == admin.SourceFile {
			return none, refuse(http.StatusConflict, "the config file has a subscription %q: take another id", said.ID)
		}
		return none, refuse(http.StatusConflict, "there is a subscription %q: rotate its secret, or remove it first", said.ID)
	}
	one.Version = r.versionOf(said.ID) // of a switch that was left when the file lost it
	if one.Settings, err = writtenOf("", settingsOf(said)); err != nil {
		return none, err
	}
	if err := r.seal(ctx, c, &one, said, secret, managed.Private{Email: n.Email, Note: n.Note}); err != nil {
		return none, err
	}
	if err := r.put(ctx, one); errors.Is(err, managed.ErrVersion) {
		return none, refuse(http.StatusConflict, "somebody else has added a subscription %q meanwhile: look at the list", said.ID)
	} else if err != nil {
		return none, err
	}
	e, err := r.find(ctx, said.ID)
	if err != nil {
		return none, err
	}
	return r.told(ctx, e), nil
}

func (r *roster) versionOf(id string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.known {
		if one.ID == id {
			return one.Version
		}
	}
	return 0
}

// reference is what the config file writes in place of a secret. Taken for the secret,
// it would be sealed as it is and sent to the provider.
var reference = regexp.MustCompile(`^(?:env|file|exec|vault|sealed):`)

// checkSecret refuses what cannot be a provider's credential.
func checkSecret(text admin.SecretText) (credential.Secret, error) {
	secret := credential.NewSecret(string(text))
	switch err := credential.Check(secret); {
	case secret.Empty():
		return secret, refuse(http.StatusBadRequest, "credential: it is empty: want the provider's secret itself")
	case len(text) > mostSecret:
		return secret, refuse(http.StatusBadRequest, "credential: it is larger than %d bytes", mostSecret)
	case err != nil:
		return secret, refuse(http.StatusBadRequest, "credential: %w", err)
	case reference.MatchString(string(text)):
		return secret, refuse(http.StatusBadRequest, "credential: it is a reference, which only the config file may hold: want the provider's secret itself")
	}
	return secret, nil
}

// seal puts a secret into a record.
func (r *roster) seal(ctx context.Context, c *config.Config, one *managed.Record, said config.Subscription, secret credential.Secret, private managed.Private) error {
	target, err := targetOf(c, said)
	if err == nil {
		err = r.vault.Seal(ctx, one, target, secret, private)
	}
	if err != nil {
		return refuse(http.StatusUnprocessableEntity, "the secret cannot be sealed: %w", err)
	}
	return nil
}

// SwitchSubscription implements admin.Roster.
func (r *roster) SwitchSubscription(ctx context.Context, id, to string, version int64) (admin.SubscriptionRecord, error) {
	if to == admin.SwitchEnabled && !r.shared.Healthy() {
		return r.enableHere(ctx, id)
	}
	done, err := r.change(ctx, id, version, func(e listed) (managed.Record, bool, error) {
		if e.record.Switch == admin.SwitchRemoving && to != admin.SwitchEnabled {
			return managed.Record{}, false, refuse(http.StatusConflict, "subscription %q is being removed: enable it to keep it", id)
		}
		next := e.kept
		next.ID, next.Switch = id, managed.Switch(to)
		return next, e.record.Switch != to, nil
	})
	if err != nil || to != admin.SwitchEnabled {
		return done, err
	}
	return done, r.reopen(ctx, id)
}

// enableHere ends cooldowns while Redis is away, which is no time to throw a switch.
func (r *roster) enableHere(ctx context.Context, id string) (admin.SubscriptionRecord, error) {
	e, err := r.last(id)
	if err != nil {
		return admin.SubscriptionRecord{}, err
	}
	if e.record.Switch != admin.SwitchEnabled {
		return admin.SubscriptionRecord{}, refuse(http.StatusConflict, "subscription %q is %s, and that cannot be changed while Redis is away", id, e.record.Switch)
	}
	return r.told(ctx, e), r.reopen(ctx, id)
}

// reopen ends the cooldowns of a subscription.
func (r *roster) reopen(ctx context.Context, id string) error {
	err := r.pool.Enable(ctx, id)
	switch {
	case errors.Is(err, pool.ErrNoSuchSubscription):
		return admin.NoSubscription(id)
	case errors.Is(err, pool.ErrDisabledByConfig):
		return refuse(http.StatusConflict, "subscription %q cannot be used whatever its switch: %w", id, err)
	}
	return err
}

// RotateSubscription implements admin.Roster.
func (r *roster) RotateSubscription(ctx context.Context, id string, secret credential.Secret, version int64) (admin.SubscriptionRecord, error) {
	if _, err := checkSecret(admin.SecretText(secret.Reveal())); err != nil {
		return admin.SubscriptionRecord{}, err
	}
	return r.change(ctx, id, version, func(e listed) (managed.Record, bool, error) {
		if e.record.Source == admin.SourceFile {
			return managed.Record{}, false, refuse(http.StatusConflict,
				"subscription %q is one of the config file, which has its secret from %s: change it there", id, e.record.Credential)
		}
		next := e.kept
		target, err := r.target(&next)
		if err != nil {
			return managed.Record{}, false, refuse(http.StatusUnprocessableEntity, "the secret cannot be sealed: %w", err)
		}
		// What is told of people opens with the former secret, or is lost with it.
		_, private, _ := r.vault.Open(ctx, &next, target)
		r.mu.Lock()
		c := r.cfg
		r.mu.Unlock()
		err = r.seal(ctx, c, &next, e.said, secret, private)
		return next, true, err
	})
}

// RemoveSubscription implements admin.Roster.
func (r *roster) RemoveSubscription(ctx context.Context, id string, version int64) (admin.SubscriptionRecord, error) {
	at := admin.SubscriptionRecord{}
	done, err := r.change(ctx, id, version, func(e listed) (managed.Record, bool, error) {
		at = e.record
		next := e.kept
		switch {
		case e.record.Source == admin.SourceFile && !e.kept.Managed():
			return next, false, refuse(http.StatusConflict, "subscription %q is one of the config file: take it out there", id)
		case e.record.Source == admin.SourceFile: // the one that it shadows serves nobody
			next.Settings, next.Secret, next.Private = nil, "", ""
			if next.Switch == managed.Removing {
				next.Switch = managed.Enabled
			}
			return next, true, nil
		case e.record.Switch == admin.SwitchDisabled || e.record.Reason != "": // likewise; and it shall not begin to
			if err := r.records.Remove(ctx, id, e.kept.Version); err != nil && !errors.Is(err, managed.ErrNotFound) {
				return next, false, err
			}
			at.Switch = admin.SwitchRemoved
			if err := r.read(ctx); err != nil {
				r.log.Warn("a subscription was removed, which is not seen here yet", "subscription", id, "error", err)
			}
			return next, false, nil
		}
		next.Switch = managed.Removing
		return next, e.record.Switch != admin.SwitchRemoving, nil
	})
	if err == nil && at.Switch == admin.SwitchRemoved {
		return at, nil
	}
	return done, err
}
