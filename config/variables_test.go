package config_test

import (
	"slices"
	"testing"

	"github.com/authpool/authpool/config"
)

func TestSecretVariables(t *testing.T) {
	f := func(text string, want ...string) {
		t.Helper()
		c, err := config.Parse("authpool.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.SecretVariables(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f("")
	f(`
admin: {token: "env:ADMIN", viewer_token: "file:viewer"}
redis: {url: "env:REDIS", password: "env:REDIS_PASSWORD"}
subscriptions:
  - {id: a, provider: anthropic, credential: {value: "env:TEAM_A"}}
  - {id: b, provider: anthropic, credential: {value: "env:TEAM_A"}}
  - {id: c, provider: openai, credential: {value: "exec:/bin/cat env:NOT_THIS"}}
notifications: [{url: "https://hooks.example.com/", secret: "env:HOOK", events: ["budget.*"]}]
egress: {proxy: "http://proxy.example.com:3128", username: u, password: "env:PROXY"}
`, "ADMIN", "HOOK", "PROXY", "REDIS", "REDIS_PASSWORD", "TEAM_A")
}
