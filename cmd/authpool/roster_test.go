package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/managed"
	"github.com/authpool/authpool/pool/seal"
	"github.com/authpool/authpool/proxy/admin"
)

func rosterConfig(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("authpool.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const rosterFile = `
providers: {lab: {type: openai, base_url: "https://llm.example.com:8443/v1x"}}
subscriptions:
  - {id: both, provider: anthropic, credential: {value: env:KEY_BOTH}}
  - {id: own, provider: lab, credential: {type: bearer, value: env:KEY_OWN}, labels: [batch], limits: {sessions: 3}, budgets: [{window: day, cost_usd: 2.5, requests: 9}]}
`

func TestMergeRosters(t *testing.T) {
	c := rosterConfig(t, rosterFile)
	record := func(id string, to managed.Switch, settings string) managed.Record {
		return managed.Record{ID: id, Version: 4, Switch: to, Settings: json.RawMessage(settings), Created: time.Unix(1, 0), Changed: time.Unix(2, 0)}
	}
	entries := merge(c, []managed.Record{
		record("added", managed.Draining, `{"provider":"lab","credential":{"type":"bearer"},"weight":3}`),
		record("both", managed.Removing, `{"provider":"openai"}`),
		record("far", managed.Enabled, `{"provider":"elsewhere"}`),
		record("gone", managed.Disabled, ``), // of one that the file had
		record("new", managed.Enabled, `null`),
		record("own", managed.Disabled, ``),
		record("swapped", managed.Enabled, `{"id":"own","provider":"lab","credential":{"value":"file:/etc/passwd"}}`),
		record("zero", managed.Enabled, `{"provider":"lab","limits":{"concurrent":0}}`),
	})
	var got []string
	for _, e := range entries {
		state := "serves"
		switch {
		case e.record.Shadowed:
			state = "shadowed"
		case e.sub.Disabled:
			state = "disabled: " + e.sub.Reason
		case e.sub.Draining:
			state = "draining"
		}
		if e.sub.ID != e.record.ID {
			t.Errorf("%s is given to the pool as %s", e.record.ID, e.sub.ID)
		}
		state, _, _ = strings.Cut(state, " →")
		got = append(got, e.record.ID+" "+e.record.Source+" "+e.record.Switch+" "+state)
	}
	want := []string{
		"both file enabled serves", // that it was being removed was about the managed one
		"own file disabled disabled: disabled by an operator",
		"added managed draining draining",
		"both managed removing shadowed",
		`far managed enabled disabled: provider: "elsewhere" is no provider`,
		"new managed enabled disabled: its record cannot be read by this version of authpool",
		"swapped managed enabled disabled: credential.value: is not for a subscription that is not in the config file",
		"zero managed enabled disabled: limits.concurrent: 0 is out of range",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What an operator is told of a subscription can be said again and means the same.
func TestSettingsAreReadAsTheyAreTold(t *testing.T) {
	c := rosterConfig(t, rosterFile)
	for _, s := range c.Subscriptions {
		text, err := writtenOf("", settingsOf(s))
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseRecord(c, managed.Record{ID: s.ID, Settings: text})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		s.Credential.Value = ""
		if diff := cmp.Diff(s, got); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
}

// A sealed secret goes to the host that it was sealed for, whatever somebody who can
// write to Redis or the config makes of the record; and as long as nothing changes, the
// pool has the same source.
func TestSealedSecretsStayWithTheirTarget(t *testing.T) {
	keys, err := seal.New()
	if err != nil {
		t.Fatal(err)
	}
	text, err := keys.Text()
	if err != nil {
		t.Fatal(err)
	}
	vault := managed.NewVault(managed.Keys{Read: func(context.Context) (credential.Secret, error) { return text, nil }})
	c := rosterConfig(t, rosterFile)
	record := managed.Record{ID: "added", Version: 1, Switch: managed.Enabled, Settings: json.RawMessage(`{"provider":"lab","credential":{"type":"bearer"}}`)}
	said, err := parseRecord(c, record)
	if err != nil {
		t.Fatal(err)
	}
	target, err := targetOf(c, said)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(managed.Target{Provider: "lab", Scheme: credential.Bearer, Hosts: []string{"llm.example.com:8443"}}, target); diff != "" {
		t.Error(diff)
	}
	if err := vault.Seal(t.Context(), &record, target, credential.NewSecret("sk-sealed"), managed.Private{}); err != nil {
		t.Fatal(err)
	}
	l := lender{vault: vault}
	lend := func(c *config.Config, r managed.Record) listed {
		t.Helper()
		entries := merge(c, []managed.Record{r})
		l.equip(c, entries)
		return entries[len(entries)-1]
	}
	first := lend(c, record)
	if got, err := first.sub.Credential.Credential(t.Context()); err != nil || got.Secret.Reveal() != "sk-sealed" || got.Scheme != credential.Bearer {
		t.Fatalf("lent: %v, %v", got.Scheme, err)
	}
	drained := record
	drained.Switch, drained.Version = managed.Draining, 2
	if again := lend(c, drained); again.sub.Credential != first.sub.Credential {
		t.Error("a switch makes it another source")
	}
	refused := func(what string, c *config.Config, r managed.Record) {
		t.Helper()
		if got, err := lend(c, r).sub.Credential.Credential(t.Context()); err == nil {
			t.Errorf("%s: lent %s", what, got.Secret.Hint())
		}
	}
	for what, settings := range map[string]string{
		"another provider": `{"provider":"openai","credential":{"type":"bearer"}}`,
		"another scheme":   `{"provider":"lab","credential":{"type":"api_key"}}`,
	} {
		other := record
		other.Settings = json.RawMessage(settings)
		refused(what, c, other)
	}
	other := record
	other.ID = "other"
	refused("another id", c, other)
	refused("another host", rosterConfig(t, strings.Replace(rosterFile, "llm.example.com", "evil.example.com", 1)), record)
}

func TestBudgetFlags(t *testing.T) {
	cost, tokens, requests := admin.NanoUSD(25_500_000_000), int64(7), int64(1000)
	got, err := parseBudgets([]string{"day:cost_usd=25.5", "block:tokens=7", "day:requests=1000"})
	want := []admin.SubscriptionBudget{{Window: "day", CostUSD: &cost, Requests: &requests}, {Window: "block", Tokens: &tokens}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, text := range []string{"", "day", "day=5", "day:cost_usd", "day:cost=5", "day:tokens=x", "day:cost_usd=1e3", "day:requests=99999999999999999999"} {
		if _, err := parseBudgets([]string{text}); err == nil {
			t.Errorf("%q is a budget", text)
		}
	}
	if _, err := parseBudgets([]string{"day:tokens=1", "day:tokens=2"}); err == nil {
		t.Error("one budget twice")
	}
}
