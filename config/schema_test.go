package config_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/authpool/authpool/config"
)

// whole says every key of the contract.
const whole = `
listen: [127.0.0.1:8787, "unix:/run/authpool.sock"]
tls: {cert: file:cert.pem, key: file:key.pem}
admin: {listen: 127.0.0.1:8788, token: file:/run/secrets/admin}
redis: {mode: single, url: "redis://redis:6379/0", addresses: [], master: "", username: "", password: env:REDIS_PASSWORD, prefix: authpool, listen: 127.0.0.1:8789}
state_dir: /var/lib/authpool
providers:
  anthropic: {base_url: https://api.anthropic.com, paths: [{path: /v1/skills/**, methods: [GET, POST], action: refuse}]}
  local-vllm: {type: openai, base_url: http://127.0.0.1:8000, allow_plaintext: true, stream_usage: ask}
subscriptions:
  - id: team-a
    provider: anthropic
    credential: {type: api_key, value: env:ANTHROPIC_API_KEY_A}
    priority: 1
    weight: 1
    domain: org-1
    models: ["claude-*"]
    limits: {requests_per_minute: 50, input_tokens_per_minute: 40000, output_tokens_per_minute: 8000, concurrent: 20, sessions: 10}
    budgets: [{window: block, cost_usd: 25}, {window: month, cost_usd: 500}]
agents: {auth: token, isolation: strict}
sessions: {idle_timeout: 30m, affinity: 720h, cache_warm: 5m, strategy: balanced, children: inherit, drain_on_disconnect: false,
  health: {probing_percent: 50, nearly_percent: 95, reset_soon: 1m, slow_percent: 200, session_percent: 25}}
failover: {attempts: 3, deadline: 60s, wait: 30s, hold: 2s, replay_body: 32MiB}
timeouts: {connect: 5s, first_byte: 10m, idle: 5m, write_stall: 60s}
limits_http: {body: 64MiB, header: 32KiB}
journal: {sync: 50ms, max: 1GiB, keep: 1h}
prices: file:prices.yaml
intercept: {enabled: true, other_hosts: deny}
egress: {proxy: "", ca_file: ""}
notifications: [{url: https://hooks.example.com/x, secret: env:HOOK_SECRET, events: [subscription.limited, budget.80], format: json, pin_sha256: "", allow_private: false}]
log: {level: info, format: text}
shutdown: {grace: 25s}
`

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := jsonschema.UnmarshalJSON(bytes.NewReader(config.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("authpool.json", text); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("authpool.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// data is a YAML text as JSON values.
func data(t *testing.T, text string) any {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSchemaAndLoaderTakeTheWholeContract(t *testing.T) {
	if _, err := config.Parse("a.yaml", []byte(whole)); err != nil {
		t.Error(err)
	}
	if err := compiled(t).Validate(data(t, whole)); err != nil {
		t.Error(err)
	}
}

// TestSchemaKnowsWhatTheLoaderKnows holds the two to the same judgement where a
// schema can judge at all.
func TestSchemaKnowsWhatTheLoaderKnows(t *testing.T) {
	schema := compiled(t)
	f := func(text string, good bool) {
		t.Helper()
		if _, err := config.Parse("a.yaml", []byte(text)); (err == nil) != good {
			t.Errorf("loader, %s: %v", text, err)
		}
		if err := schema.Validate(data(t, text)); (err == nil) != good {
			t.Errorf("schema, %s: %v", text, err)
		}
	}
	f(`{}`, true)
	f(`{listen: "127.0.0.1:1"}`, true)
	f(`{listen: ["127.0.0.1:1", "unix:/a"]}`, true)
	f(`{listen: 8787}`, false)
	f(`{listen: here}`, false)
	f(`{lisen: "127.0.0.1:1"}`, false)
	f(`{timeouts: {idle: 1h30m}}`, true)
	f(`{timeouts: {idle: 1.5h}}`, true)
	f(`{timeouts: {idle: 90}}`, false)
	f(`{timeouts: {idle: soon}}`, false)
	f(`{limits_http: {body: 1024}}`, true)
	f(`{limits_http: {body: 1KiB}}`, true)
	f(`{limits_http: {body: 1KB}}`, false)
	f(`{limits_http: {body: 0}}`, false)
	f(`{journal: {sync: always}}`, true)
	f(`{journal: {sync: 10ms}}`, true)
	f(`{journal: {sync: never}}`, false)
	f(`{agents: {auth: some}}`, false)
	f(`{sessions: {strategy: drain_soonest, health: {slow_percent: 100}}}`, true)
	f(`{sessions: {strategy: drain_last}}`, false)
	f(`{sessions: {health: {probing_percent: 0}}}`, false)
	f(`{sessions: {health: {nearly_percent: 49}}}`, false)
	f(`{sessions: {health: {nearly_percent: 101}}}`, false)
	f(`{sessions: {health: {slow_percent: 99}}}`, false)
	f(`{sessions: {health: {slow_percent: 2.5}}}`, false)
	f(`{sessions: {health: {session_percent: 101}}}`, false)
	f(`{failover: {attempts: 0}}`, false)
	f(`{failover: {attempts: 21}}`, false)
	f(`{intercept: {other_hosts: tunnel}}`, true)
	f(`{intercept: {other_hosts: ["*.example.com"]}}`, true)
	f(`{intercept: {other_hosts: all}}`, false)
	f(`{admin: {token: in-the-clear}}`, false)
	f(`{admin: {token: "vault:x"}}`, false)
	f(`{redis: {prefix: "a:b"}}`, false)
	f(`{providers: {mine: {type: openai, base_url: "https://h"}}}`, true)
	f(`{providers: {mine: {type: cohere, base_url: "https://h"}}}`, true)
	f(`{providers: {mine: {type: vertex, base_url: "https://h"}}}`, false)
	f(`{subscriptions: [{id: a, provider: openai}]}`, false)
	f(`{subscriptions: [{id: A, provider: openai, credential: {value: env:A}}]}`, false)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}}]}`, true)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}, weight: 0}]}`, false)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}, limits: {concurrent: 0}}]}`, false)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}, budgets: [{window: day, cost_usd: 0.5}]}]}`, true)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}, budgets: [{window: day, cost_usd: "0.50"}]}]}`, true)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}, budgets: [{window: day, cost_usd: -1}]}]}`, false)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}, budgets: [{window: hour, cost_usd: 1}]}]}`, false)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}, budgets: [{window: day, tokens: 5, requests: 6}]}]}`, true)
	f(`{subscriptions: [{id: a, provider: openai, credential: {value: env:A}, budgets: [{window: day, requests: 0}]}]}`, false)
	f(`{sessions: {brake: {tokens_per_hour: 1}}, agents: {brake: {cost_usd_per_hour: 0.5}}}`, true)
	f(`{sessions: {brake: {tokens_per_hour: 0}}}`, false)
}

func TestSchemaExplainsItsKeys(t *testing.T) {
	var schema struct {
		Title      string
		Properties map[string]struct{ Description string }
	}
	if err := json.Unmarshal(config.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	if schema.Title == "" || len(schema.Properties) < 19 {
		t.Errorf("title %q, %d keys", schema.Title, len(schema.Properties))
	}
	for key, p := range schema.Properties {
		if p.Description == "" {
			t.Errorf("%s is not explained", key)
		}
	}
}
