package config_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/config"
)

func TestDefaultIsWithoutFault(t *testing.T) {
	c := config.Default()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
	parsed, err := config.Parse("a.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, parsed, cmp.FilterPath(unexported, cmp.Ignore())); diff != "" {
		t.Errorf("an empty file is not the default: %s", diff)
	}
}

func TestWarnings(t *testing.T) {
	f := func(text string, want ...string) {
		t.Helper()
		c, err := config.Parse("a.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		got := c.Warnings()
		if len(got) != len(want) {
			t.Fatalf("got %d warnings, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("got %s\nwant %s…", got[i], want[i])
			}
		}
	}
	f("listen: [127.0.0.1:1]\nintercept: {enabled: false, other_hosts: deny}\nsessions: {strategy: balanced, cache_warm: 1m, drain_on_disconnect: true}\nagents: {isolation: shared}\nnotifications: [{url: 'https://h/', events: ['budget.*', redis.lost], format: slack, allow_private: true}]\n")
	f("listen: [127.0.0.1:1, 0.0.0.0:2]\n", `a.yaml:1:23: listen[1]: "0.0.0.0:2" can be reached from other machines without TLS`)
	f("listen: 0.0.0.0:2\ntls: {cert: file:a, key: file:b}\n")
	f("admin: {listen: ':1'}\nredis: {listen: ':2'}\n",
		`a.yaml:1:17: admin.listen: ":1" can be reached from other machines: the admin token`,
		`a.yaml:2:17: redis.listen: ":2" can be reached`)
	f("redis: {listen: ':2', url: 'redis://r'}\naudit: {stream: true}\n")
	f("providers: {groq: {base_url: 'https://api.groq.com/openai/v1/'}}\n", "a.yaml:1:30: providers.groq.base_url: ends in /v1: agents' paths are appended whole")
	f("subscriptions:\n  - {id: a, provider: openai, credential: {value: env:A}, budgets: [{window: day, cost_usd: 1}]}\n")
	f("intercept: {other_hosts: ['10.1.2.3:22', '10.2.3.4', '8.8.8.8'], allow_private: [10.2.0.0/16]}\n", "a.yaml:1:27: intercept.other_hosts[0]: is a private address, and nobody is let there")
	f("intercept: {allow_private: [10.2.0.0/16]}\n", "a.yaml:1:28: intercept.allow_private: has no effect while other_hosts is deny")
	f("subscriptions: [{id: a, provider: openai, credential: {value: env:A}, limits: {requests_per_minute: 1}}]\nredis: {url: 'redis://r'}\n")
}

func TestFromEnv(t *testing.T) {
	c := config.FromEnv([]string{
		"OPENAI_API_KEY=k", "ANTHROPIC_API_KEY_10=k", "ANTHROPIC_API_KEY_2=k", "ANTHROPIC_API_KEY=k",
		"GEMINI_API_KEY_3=k", "GEMINI_API_KEY=", "ANTHROPIC_API_KEY_1=k", "ANTHROPIC_API_KEY_02=k",
		"ANTHROPIC_API_KEY_X=k", "OPENAI_API_KEY_12345=k", "OPENAI_API_KEYS=k", "X=y", "broken",
	})
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range c.Subscriptions {
		got = append(got, s.ID+" "+s.Provider+" "+s.Credential.Type+" "+string(s.Credential.Value))
		if s.Priority != 1 || s.Weight != 1 {
			t.Errorf("%s has priority %d, weight %d", s.ID, s.Priority, s.Weight)
		}
	}
	want := []string{
		"anthropic-1 anthropic api_key env:ANTHROPIC_API_KEY",
		"anthropic-2 anthropic api_key env:ANTHROPIC_API_KEY_2",
		"anthropic-10 anthropic api_key env:ANTHROPIC_API_KEY_10",
		"gemini-3 gemini api_key env:GEMINI_API_KEY_3",
		"openai-1 openai api_key env:OPENAI_API_KEY",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if n := len(config.FromEnv(nil).Subscriptions); n != 0 {
		t.Errorf("%d subscriptions from nothing", n)
	}
}

func TestOverride(t *testing.T) {
	load := func() *config.Config {
		c, err := config.Parse("a.yaml", []byte("listen: 127.0.0.1:1\nagents: {auth: none}\nredis: {addresses: ['a:1', 'b:1'], master: m, password: env:PW, prefix: p}\n"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := load()
	c.Override("listen", "--listen", "127.0.0.1:2,unix:/a")
	c.Override("admin", "$AUTHPOOL_ADMIN", "127.0.0.1:3")
	c.Override("redis", "--redis", "env:REDIS_URL")
	c.Override("state-dir", "--state-dir", "/s")
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if !slices.Equal(c.Listen, []string{"127.0.0.1:2", "unix:/a"}) || c.Admin.Listen != "127.0.0.1:3" || c.StateDir != "/s" {
		t.Errorf("got %+v", c)
	}
	if ref, ok := c.Redis.URLRef(); !ok || ref != "env:REDIS_URL" || c.Redis.Topology() != config.RedisSingle || c.Redis.Password != "env:PW" || c.Redis.Prefix != "p" {
		t.Errorf("redis is %+v", c.Redis)
	}
	c.Override("redis", "--redis", "embedded")
	if err := c.Validate(); err != nil || c.Redis.Topology() != config.RedisEmbedded {
		t.Errorf("%v, redis is %+v", err, c.Redis)
	}

	faulty := func(flag, origin, text string, want ...string) {
		t.Helper()
		c := load()
		c.Override(flag, origin, text)
		err := c.Validate()
		faults, ok := errors.AsType[config.Faults](err)
		if !ok || len(faults) != len(want) {
			t.Fatalf("%s %s: %v", flag, text, err)
		}
		for i := range want {
			if !strings.HasPrefix(faults[i].String(), want[i]) {
				t.Errorf("got %s\nwant %s…", faults[i].String(), want[i])
			}
		}
	}
	faulty("listen", "--listen", "nowhere", "--listen: listen[0]: \"nowhere\" is no address", `a.yaml:2:16: agents.auth: is none, but "nowhere"`)
	faulty("listen", "$AUTHPOOL_LISTEN", "0.0.0.0:1", `a.yaml:2:16: agents.auth: is none, but "0.0.0.0:1" can be reached`)
	faulty("redis", "--redis", "redis://:hunter2@h", "--redis: redis.url: holds a password in the clear")

	defer func() {
		if recover() == nil {
			t.Error("an unknown flag was taken")
		}
	}()
	c.Override("colour", "--colour", "red")
}

func TestEnvName(t *testing.T) {
	if got := config.EnvName("state-dir"); got != "AUTHPOOL_STATE_DIR" {
		t.Error(got)
	}
}

func TestTopology(t *testing.T) {
	for want, list := range map[config.RedisMode][]config.Redis{
		config.RedisEmbedded: {{}, {URL: "embedded"}},
		config.RedisSingle:   {{URL: "redis://a"}, {Addresses: []string{"a:1"}}, {URL: "env:A"}},
		config.RedisSentinel: {{Addresses: []string{"a:1"}, Master: "m"}, {Addresses: []string{"a:1", "b:1"}, Mode: "sentinel", Master: "m"}, {URL: "redis://a,b?master=m"}},
		config.RedisCluster:  {{Addresses: []string{"a:1", "b:1"}}, {URL: "redis://a", Mode: "cluster"}, {URL: "redis://a,b"}, {URL: "redis://a?mode=cluster"}},
	} {
		for _, r := range list {
			if got := r.Topology(); !reflect.DeepEqual(got, want) {
				t.Errorf("%+v is %s, want %s", r, got, want)
			}
		}
	}
}

func TestProviderByName(t *testing.T) {
	c, err := config.Parse("a.yaml", []byte(`
providers:
  anthropic: {base_url: "https://gateway.example/anthropic/"}
  openai: {stream_usage: never}
  mine: {type: openai, base_url: "http://127.0.0.1:8000", allow_plaintext: true}
  azure: {base_url: "https://res.openai.azure.com"}
subscriptions:
  - {id: a, provider: mine, credential: {value: env:A}}
  - {id: b, provider: azure, credential: {value: env:A}}
  - {id: c, provider: mine, credential: {value: env:B}}
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]config.Provider{
		"anthropic": {Type: "anthropic", BaseURL: "https://gateway.example/anthropic", StreamUsage: "ask"},
		"openai":    {Type: "openai", BaseURL: "https://api.openai.com", StreamUsage: "never"},
		"mine":      {Type: "openai", BaseURL: "http://127.0.0.1:8000", AllowPlaintext: true, StreamUsage: "ask"},
		"azure":     {Type: "azure", BaseURL: "https://res.openai.azure.com", StreamUsage: "ask"},
		"groq":      {Type: "openai", BaseURL: "https://api.groq.com", StreamUsage: "ask"},
		"vertex":    {Type: "gemini", StreamUsage: "ask"},
		"mistral":   {Type: "openai", BaseURL: "https://api.mistral.ai", StreamUsage: "never"},
		"ollama":    {Type: "ollama", BaseURL: "http://127.0.0.1:11434", AllowPlaintext: true, StreamUsage: "ask"},
	} {
		if got, ok := c.ProviderByName(name); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %+v, %v, want %+v", name, got, ok, want)
		}
	}
	if _, ok := c.ProviderByName("nobody"); ok {
		t.Error("a provider that nobody declared was found")
	}
	if got := c.ProvidersInUse(); !slices.Equal(got, []string{"azure", "mine"}) {
		t.Errorf("in use: %v", got)
	}
	if got := config.BuiltinProviders(); len(got) != 20 || !slices.IsSorted(got) {
		t.Errorf("built in: %v", got)
	}
}

func TestScalarsPrintAsTheyAreRead(t *testing.T) {
	size, usd, duration := func(text string) string {
		var s config.Size
		if err := s.UnmarshalText([]byte(text)); err != nil {
			t.Error(err)
		}
		return s.String()
	}, func(text string) string {
		var u config.USD
		if err := u.UnmarshalText([]byte(text)); err != nil {
			t.Error(err)
		}
		return u.String()
	}, func(text string) string {
		var p config.SyncPolicy
		if err := p.UnmarshalText([]byte(text)); err != nil {
			t.Error(err)
		}
		out, _ := p.MarshalText()
		return string(out)
	}
	for in, want := range map[string]string{"1024": "1KiB", "1025B": "1025B", "3MiB": "3MiB", "2048GiB": "2048GiB"} {
		if got := size(in); got != want {
			t.Errorf("size %s is %s", in, got)
		}
	}
	for in, want := range map[string]string{"25": "25", "0.50": "0.5", "12.000000001": "12.000000001", "1.": "1"} {
		if got := usd(in); got != want {
			t.Errorf("USD %s is %s", in, got)
		}
	}
	for in, want := range map[string]string{"always": "always", "50ms": "50ms"} {
		if got := duration(in); got != want {
			t.Errorf("sync %s is %s", in, got)
		}
	}
}
