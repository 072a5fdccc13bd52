package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/managed"
	"github.com/authpool/authpool/proxy/admin"
)

// listed is one subscription of the roster.
type listed struct {
	record admin.SubscriptionRecord // without Hint, Email and Note
	sub    pool.Subscription        // what the pool gets, unless record.Shadowed
	said   config.Subscription      // what it was made of
	kept   managed.Record           // what is kept of it; the zero Record: nothing
}

// sealedCredential is told in the place of a reference.
const sealedCredential = "sealed"

// merge makes one list of the file's subscriptions and of what was done at run time:
// the file's in its order, each with the switch of its id, then the managed ones by id,
// as records are.
//
// A managed subscription of an id that the file has is kept, but serves nobody. One
// that the rules of the file refuse, for want of its provider here or because another
// version wrote it, is disabled and says why: nothing is lost, and no other is touched.
func merge(c *config.Config, records []managed.Record) []listed {
	kept := make(map[string]managed.Record, len(records))
	for _, r := range records {
		kept[r.ID] = r
	}
	entries := make([]listed, 0, len(c.Subscriptions)+len(records))
	inFile := make(map[string]bool, len(c.Subscriptions))
	for _, s := range c.Subscriptions {
		inFile[s.ID] = true
		e := listed{said: s, kept: kept[s.ID], record: admin.SubscriptionRecord{
			ID: s.ID, Source: admin.SourceFile, Version: kept[s.ID].Version, Switch: admin.SwitchEnabled,
			SubscriptionSettings: settingsOf(s), Credential: s.Credential.Value.String(), Changed: moment(kept[s.ID].Changed),
		}}
		if to := kept[s.ID].Switch; to == managed.Disabled || to == managed.Draining { // Removing was about the managed one
			e.record.Switch = string(to)
		}
		entries = append(entries, e.described())
	}
	for _, r := range records {
		if !r.Managed() {
			continue // a switch alone: its subscription is in the file of others, or was in this one
		}
		e := listed{kept: r, record: admin.SubscriptionRecord{
			ID: r.ID, Source: admin.SourceManaged, Version: r.Version, Switch: string(r.Switch),
			Credential: sealedCredential, Created: moment(r.Created), Changed: moment(r.Changed),
		}}
		var err error
		if e.said, err = parseRecord(c, r); err != nil {
			e.record.Reason = reasonOf(err)
		}
		if r.Unreadable {
			e.record.Reason = managed.ErrUnreadable.Error()
		}
		e.said.ID = r.ID
		e.record.SubscriptionSettings = settingsOf(e.said)
		if inFile[r.ID] {
			e.record.Shadowed, e.record.Reason = true, "the config file has a subscription of this id, which is used instead"
		}
		entries = append(entries, e.described())
	}
	return entries
}

// described fills in what the pool gets, but for the credential.
func (e listed) described() listed {
	e.sub = subscriptionFromConfig(e.said)
	switch {
	case e.record.Reason != "":
		e.sub.Disabled, e.sub.Reason = true, e.record.Reason
	case e.record.Switch == admin.SwitchDisabled:
		e.sub.Disabled, e.sub.Reason = true, "disabled by an operator"
	case e.record.Switch == admin.SwitchDraining, e.record.Switch == admin.SwitchRemoving:
		e.sub.Draining = true
	}
	return e
}

// reasonOf makes the faults of one subscription one sentence.
func reasonOf(err error) string {
	faults, ok := errors.AsType[config.Faults](err)
	if !ok {
		return err.Error()
	}
	texts := make([]string, len(faults))
	for i, f := range faults {
		texts[i] = f.String()
	}
	return strings.Join(texts, "; ")
}

// written is a subscription in the words of the file. A record's has no ID, which is
// the record's own.
type written struct {
	ID         string            `json:"id,omitempty"`
	Credential map[string]string `json:"credential,omitempty"`
	admin.SubscriptionSettings
	Scheme struct{} `json:"scheme,omitzero"` // hides that of the settings: it stands in Credential
}

func writtenOf(id string, s admin.SubscriptionSettings) (json.RawMessage, error) {
	w := written{ID: id, SubscriptionSettings: s}
	if s.Scheme != "" {
		w.Credential = map[string]string{"type": s.Scheme}
	}
	text, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("cannot write subscription %q: %w", id, err)
	}
	return text, nil
}

// parseRecord has the rules of the file applied to what is kept of a subscription.
func parseRecord(c *config.Config, r managed.Record) (config.Subscription, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(r.Settings, &keys); err != nil || keys == nil {
		return config.Subscription{}, errors.New("its record cannot be read by this version of authpool")
	}
	id, err := json.Marshal(r.ID)
	if err != nil {
		return config.Subscription{}, fmt.Errorf("cannot read the id: %w", err)
	}
	keys["id"] = id // whatever stands there
	text, err := json.Marshal(keys)
	if err != nil {
		return config.Subscription{}, fmt.Errorf("cannot read the record: %w", err)
	}
	return c.ParseSubscription(text)
}

// settingsOf writes a subscription as operators say it.
func settingsOf(s config.Subscription) admin.SubscriptionSettings {
	said := admin.SubscriptionSettings{
		Provider: s.Provider, Scheme: s.Credential.Type, Priority: &s.Priority, Weight: &s.Weight,
		Domain: s.Domain, Labels: s.Labels, Models: s.Models,
	}
	limits := admin.SubscriptionLimits{
		RequestsPerMinute:     ifSet(s.Limits.RequestsPerMinute),
		InputTokensPerMinute:  ifSet(s.Limits.InputTokensPerMinute),
		OutputTokensPerMinute: ifSet(s.Limits.OutputTokensPerMinute),
		Concurrent:            ifSet(int64(s.Limits.Concurrent)),
		Sessions:              ifSet(int64(s.Limits.Sessions)),
	}
	if limits != (admin.SubscriptionLimits{}) {
		said.Limits = &limits
	}
	for _, b := range s.Budgets {
		said.Budgets = append(said.Budgets, admin.SubscriptionBudget{
			Window: b.Window, CostUSD: ifSet(admin.NanoUSD(b.CostUSD)), Tokens: ifSet(b.Tokens), Requests: ifSet(b.Requests),
		})
	}
	return said
}

// ifSet is nil for 0, which nobody can say.
func ifSet[N ~int64](n N) *N {
	if n == 0 {
		return nil
	}
	return &n
}

// targetOf is where the secret of a subscription may go, as c has its provider.
func targetOf(c *config.Config, s config.Subscription) (managed.Target, error) {
	p, known := c.ProviderByName(s.Provider)
	if !known {
		return managed.Target{}, fmt.Errorf("%q is no provider here", s.Provider)
	}
	u, err := url.Parse(baseURL(s.Provider, p))
	if err != nil {
		return managed.Target{}, fmt.Errorf("provider %q has no address that can be read", s.Provider)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return managed.Target{
		Provider: s.Provider, Scheme: credential.Scheme(s.Credential.Type), Hosts: []string{net.JoinHostPort(u.Hostname(), port)},
	}, nil
}

// originOf is where a provider's credentials may be sent, as provider.Provider.Origin has
// it; empty for what is no provider.
func originOf(c *config.Config, name string) string {
	p, known := c.ProviderByName(name)
	u, err := url.Parse(baseURL(name, p))
	if !known || err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// lender keeps the sources of credentials: as long as what one is made of stays the
// same the pool has the same source, which it knows by its identity. The roster's lock
// guards it.
type lender struct {
	vault *managed.Vault
	lent  map[string]lent // by id
}

type lent struct {
	of     string
	source pool.CredentialSource
}

// noCredential is the source of a credential that cannot be read, and why.
type noCredential struct{ err error }

func (n *noCredential) Credential(context.Context) (credential.Credential, error) {
	return credential.Credential{}, n.err
}

func (n *noCredential) Refresh(ctx context.Context) (credential.Credential, error) {
	return n.Credential(ctx)
}

func unreadable(before lent, err error) lent {
	of := "unreadable " + err.Error()
	if before.of == of {
		return before
	}
	return lent{of, &noCredential{err}}
}

// equip gives the entries that the pool gets their sources, and forgets those of others.
func (l *lender) equip(c *config.Config, entries []listed) {
	next := make(map[string]lent, len(entries))
	for i := range entries {
		if e := &entries[i]; !e.record.Shadowed {
			one := l.of(c, e)
			e.sub.Credential, next[e.record.ID] = one.source, one
			e.sub.Origin = originOf(c, e.said.Provider)
		}
	}
	l.lent = next
}

func (l *lender) of(c *config.Config, e *listed) lent {
	before := l.lent[e.record.ID]
	if e.record.Source == admin.SourceFile {
		of := "file " + e.said.Credential.Type + " " + string(e.said.Credential.Value)
		if before.of == of {
			return before
		}
		ref, err := credential.ParseRef(string(e.said.Credential.Value))
		if err != nil {
			return unreadable(before, err)
		}
		return lent{of, credential.NewSource(ref, credential.Scheme(e.said.Credential.Type))}
	}
	target, err := targetOf(c, e.said)
	if err != nil {
		return unreadable(before, err)
	}
	of := fmt.Sprintf("sealed %q %q", target, e.kept.Secret)
	if before.of == of {
		return before
	}
	return lent{of, managed.NewSource(l.vault, e.kept, target)}
}
