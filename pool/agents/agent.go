// Package agents knows the agents of a fleet: by which token each shows itself, what
// it may use, and what it has used of that.
//
// Start at Book. What an operator has set is in Redis (store.PutAgent), and every
// process keeps all of it in memory, at most a moment old; requests are decided from
// there. A token is 256 bit random, so that its plain SHA-256, which is all that is
// kept of it, cannot be guessed back.
package agents

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Agent is what an operator has set of one agent. It is not changed once it is in a
// Book.
type Agent struct {
	ID      string
	Version int64 // one more with every change
	Created time.Time
	Expires time.Time // zero: never
	Token   bool      // it has one that Create made; else its limits are those of who is known otherwise
	// Unreadable says that nothing else is known of it, so that it is refused.
	Unreadable bool
	Rights
	Rates
	Budgets []Budget // all of them are kept; one for each period at most

	hash []byte // SHA-256 of the token; empty without one
}

// Rights are what an agent may use; of each an empty list is all.
type Rights struct {
	Providers     []string
	Models        []string // globs, as pool.Fits reads them
	Subscriptions []string // labels or ids
}

// Budget is what an agent may use within one period, over all processes and
// subscriptions; a limit of 0 is none. What is used is known when an answer has ended,
// so answers under way may take the cost and the tokens beyond the limit.
type Budget struct {
	Period      usage.Period // day, week or month
	CostNanoUSD int64
	Tokens      int64 // of all kinds, as usage.Tokens.Total adds them up
	Requests    int64 // those that cost something
}

// Bounds of a record: it is in the memory of every process.
const (
	maxList = 64
	maxText = 128
	maxRate = 1_000_000
)

var (
	identifier = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	globText   = regexp.MustCompile(`^[[:graph:]]+$`) // ASCII
)

// Check tells in one sentence what is wrong with what an operator wants, as of now.
func (a *Agent) Check(now time.Time) error {
	if !identifier.MatchString(a.ID) {
		return fmt.Errorf("%s is no agent's name: want %s", short(a.ID), identifierAllowed)
	}
	if !a.Expires.IsZero() && !a.Expires.After(now) {
		return fmt.Errorf("expires: %s is over: want a later moment", a.Expires.UTC().Format(time.RFC3339))
	}
	for _, list := range []struct {
		name    string
		values  []string
		form    *regexp.Regexp
		allowed string
	}{
		{"providers", a.Providers, identifier, identifierAllowed},
		{"models", a.Models, globText, "printable ASCII without spaces, with * and ? for what may be anything"},
		{"subscriptions", a.Subscriptions, identifier, "an id or a label: " + identifierAllowed},
	} {
		if len(list.values) > maxList {
			return fmt.Errorf("%s: there are %d: at most %d are allowed", list.name, len(list.values), maxList)
		}
		for i, value := range list.values {
			if len(value) > maxText || !list.form.MatchString(value) {
				return fmt.Errorf("%s: %s is none: want %s", list.name, short(value), list.allowed)
			}
			if slices.Contains(list.values[:i], value) {
				return fmt.Errorf("%s: %s stands there twice", list.name, value)
			}
		}
	}
	for _, glob := range a.Models {
		if _, err := path.Match(glob, ""); err != nil {
			return fmt.Errorf("models: %s is no glob, and would fit no model: want a model name with *, ? or [a-z], such as \"claude-*\"", short(glob))
		}
	}
	for _, limit := range []struct {
		name string
		most int
	}{{"requests_per_minute", a.RequestsPerMinute}, {"concurrent", a.Concurrent}, {"connections", a.Connections}} {
		if limit.most < 0 || limit.most > maxRate {
			return fmt.Errorf("%s: %d is out of range: want 1 to %d, or 0 for no limit", limit.name, limit.most, maxRate)
		}
	}
	for i, b := range a.Budgets {
		switch {
		case !slices.Contains(periods[:], b.Period):
			return fmt.Errorf("budgets: %s is no window of an agent: want day, week or month (blocks belong to subscriptions)", short(string(b.Period)))
		case b.CostNanoUSD < 0 || b.Tokens < 0 || b.Requests < 0:
			return fmt.Errorf("budgets: that of a %s has a limit below zero", b.Period)
		case b.CostNanoUSD == 0 && b.Tokens == 0 && b.Requests == 0:
			return fmt.Errorf("budgets: that of a %s limits nothing: want cost, tokens or requests above zero", b.Period)
		case slices.ContainsFunc(a.Budgets[:i], func(o Budget) bool { return o.Period == b.Period }):
			return fmt.Errorf("budgets: there are two of a %s: want one", b.Period)
		}
	}
	return nil
}

const identifierAllowed = "1 to 63 of a-z, 0-9, _ and -, the first a letter or a digit"

// short is a text that somebody may have made as long as he liked.
func short(text string) string {
	const most = 80
	if len(text) > most {
		return fmt.Sprintf("%q...", text[:most])
	}
	return fmt.Sprintf("%q", text)
}

// periods are those of which the usage of agents is kept.
var periods = [...]usage.Period{usage.PeriodDay, usage.PeriodWeek, usage.PeriodMonth}

// text is an Agent as it is written into its record.
type text struct {
	Hash          []byte       `json:"hash,omitempty"`
	Created       int64        `json:"created"`           // epoch ms
	Expires       int64        `json:"expires,omitempty"` // epoch ms
	Providers     []string     `json:"providers,omitempty"`
	Models        []string     `json:"models,omitempty"`
	Subscriptions []string     `json:"subscriptions,omitempty"`
	Budgets       []textBudget `json:"budgets,omitempty"`

	RequestsPerMinute int `json:"requests_per_minute,omitempty"`
	Concurrent        int `json:"concurrent,omitempty"`
	Connections       int `json:"connections,omitempty"`
}

type textBudget struct {
	Window   usage.Period `json:"window"`
	Cost     int64        `json:"cost_nano_usd,omitempty"`
	Tokens   int64        `json:"tokens,omitempty"`
	Requests int64        `json:"requests,omitempty"`
}

func (a *Agent) record() store.AgentRecord {
	t := text{
		Hash: a.hash, Created: a.Created.UnixMilli(),
		Providers: a.Providers, Models: a.Models, Subscriptions: a.Subscriptions,
		RequestsPerMinute: a.RequestsPerMinute, Concurrent: a.Concurrent, Connections: a.Connections,
	}
	if !a.Expires.IsZero() {
		t.Expires = a.Expires.UnixMilli()
	}
	for _, b := range a.Budgets {
		t.Budgets = append(t.Budgets, textBudget{b.Period, b.CostNanoUSD, b.Tokens, b.Requests})
	}
	bytes, err := json.Marshal(t)
	if err != nil {
		panic("BUG: an agent cannot be written: " + err.Error())
	}
	return store.AgentRecord{ID: a.ID, Version: a.Version, Text: string(bytes)}
}

// errHash is about a record that no process of ours has written.
var errHash = errors.New("its hash is no SHA-256")

// parseRecord reads a record. What a newer version has added to it is passed over.
func parseRecord(r store.AgentRecord) (*Agent, error) {
	var t text
	if err := json.Unmarshal([]byte(r.Text), &t); err != nil {
		return nil, err
	}
	if n := len(t.Hash); n != 0 && n != hashSize {
		return nil, errHash
	}
	a := &Agent{
		ID: r.ID, Version: r.Version, Created: time.UnixMilli(t.Created).UTC(), Token: len(t.Hash) > 0, hash: t.Hash,
		Rights: Rights{Providers: t.Providers, Models: t.Models, Subscriptions: t.Subscriptions},
		Rates:  Rates{t.RequestsPerMinute, t.Concurrent, t.Connections},
	}
	if t.Expires != 0 {
		a.Expires = time.UnixMilli(t.Expires).UTC()
	}
	for _, b := range t.Budgets {
		a.Budgets = append(a.Budgets, Budget{b.Window, b.Cost, b.Tokens, b.Requests})
	}
	// An end that is over is no fault of a record: it was to come when it was written.
	err := a.Check(a.Created)
	return a, err
}

// MayProvider tells whether the agent may use the provider.
func (r *Rights) MayProvider(name string) bool {
	return len(r.Providers) == 0 || slices.Contains(r.Providers, name)
}

// MayModel tells whether the agent may use the model. Empty is one that nobody knows,
// which an agent that may use only some must not.
func (r *Rights) MayModel(name string) bool {
	return len(r.Models) == 0 || name != "" && pool.Fits(r.Models, name)
}
