package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/config"
)

func parseFile(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("authpool.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseSubscription(t *testing.T) {
	c := parseFile(t, "providers:\n  local: {type: openai, base_url: https://llm.example.com}\n")
	got, err := c.ParseSubscription([]byte(`{"id": "team-a", "provider": "local", "credential": {"type": "bearer"}, "priority": 0,
		"labels": ["batch"], "limits": {"concurrent": 4}, "budgets": [{"window": "day", "cost_usd": "2.5"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Subscription{
		ID: "team-a", Provider: "local", Credential: config.Credential{Type: "bearer"}, Weight: 1, Labels: []string{"batch"},
		Limits: config.Limits{Concurrent: 4}, Budgets: []config.Budget{{Window: "day", CostUSD: 2_500_000_000}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := c.ParseSubscription([]byte(`{"id": "b", "provider": "anthropic"}`)); err != nil || got.Weight != 1 || got.Priority != 1 || got.Credential.Type != "api_key" {
		t.Errorf("the defaults of a file: %+v, %v", got, err)
	}
}

// One subscription alone has the faults that it would have in a file.
func TestParseSubscriptionHasTheFaultsOfTheFile(t *testing.T) {
	c := parseFile(t, "")
	f := func(keys, says string) {
		t.Helper()
		_, err := c.ParseSubscription([]byte("{" + keys + "}"))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q", keys, err, says)
		}
		if strings.Contains(keys, `"credential"`) {
			return
		}
		file := `subscriptions: [{"credential": {"value": "env:KEY"}, ` + keys + `}]`
		_, err = config.Parse("authpool.yaml", []byte(file))
		if field, problem, _ := strings.Cut(says, ": "); err == nil || !strings.Contains(err.Error(), "subscriptions[0]."+field+": "+problem) {
			t.Errorf("%s: the file has %v, want %q", keys, err, says)
		}
	}
	with := func(keys string) string { return `"id": "a", "provider": "anthropic", ` + keys }
	f(`"id": "a:b", "provider": "anthropic"`, `id: "a:b" is no id`)
	f(`"id": "../a", "provider": "anthropic"`, `id: "../a" is no id`)
	f(`"id": "", "provider": "anthropic"`, `id: "" is no id`)
	f(`"id": "a", "provider": "anthropc"`, `provider: "anthropc" is no provider (did you mean`)
	f(`"id": "a"`, `provider: is missing`)
	f(with(`"weight": 0`), "weight: 0 is out of range → a whole number from 1")
	f(with(`"priority": -1`), "priority: -1 is out of range")
	f(with(`"limits": {"concurrent": 0}`), "limits.concurrent: 0 is out of range")
	f(with(`"limits": {"requests_per_minute": -5}`), "limits.requests_per_minute: -5 is out of range")
	f(with(`"limits": {"sessions": 1.5}`), "limits.sessions: is a number")
	f(with(`"models": ["["]`), `models[0]: "[" is no glob`)
	f(with(`"domain": "a b"`), `domain: "a b" is no domain`)
	f(with(`"labels": ["Batch Jobs"]`), `labels[0]: "Batch Jobs" is no label`)
	f(with(`"labels": ["a", "a"]`), `labels[1]: "a" stands here a second time`)
	f(with(`"budgets": [{"window": "block"}]`), "budgets[0]: limits nothing")
	f(with(`"budgets": [{"window": "hour", "requests": 1}]`), `budgets[0].window: "hour" is not known here`)
	f(with(`"wieght": 2`), "wieght: is no key that authpool knows (did you mean")
	f(with(`"credential": {"type": "basic"}`), `credential.type: "basic" is not known here`)
	f(with(`"credential": {"value": "file:/etc/passwd"}`), "credential.value: is not for a subscription that is not in the config file")

	for _, text := range []string{"", "[]", "42", "{", "{\"id\": \"" + strings.Repeat("a", 1<<20) + "\"}"} {
		if _, err := c.ParseSubscription([]byte(text)); err == nil {
			t.Errorf("%.20q is taken for a subscription", text)
		}
	}
}

func FuzzParseSubscription(f *testing.F) {
	f.Add(`{"id": "a", "provider": "anthropic", "limits": {"concurrent": 0}}`)
	f.Add("id: a\nprovider: openai\nlabels: [x, x]\n")
	f.Add("&a [*a]")
	c := config.Default()
	f.Fuzz(func(t *testing.T, text string) {
		s, err := c.ParseSubscription([]byte(text))
		if err != nil {
			if faults, ok := errors.AsType[config.Faults](err); !ok || len(faults) == 0 {
				t.Fatalf("error is %T", err)
			}
			return
		}
		if s.ID == "" || s.Weight < 1 || s.Priority < 0 || s.Limits.Concurrent < 0 || s.Credential.Value != "" {
			t.Errorf("%q is taken for %+v", text, s)
		}
	})
}
