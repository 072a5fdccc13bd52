package main

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/tunnel"
)

// No tunnel leads to a provider: not to a built-in one's own host where the config has
// another, not to one of another region, and not to one that was declared.
func TestProviderHostsAreNoTargets(t *testing.T) {
	cfg, err := config.Parse("a.yaml", []byte(`
intercept: {other_hosts: tunnel, allow_private: [127.0.0.1]}
providers:
  anthropic: {base_url: "https://gateway.example/anthropic"}
  local-vllm: {type: openai, base_url: "http://127.0.0.1:8000", allow_plaintext: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := tunnelRulesFromConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	tunnels := tunnel.New(tunnel.Options{Rules: rules, PerAgent: 1, Most: 1, Log: slog.New(slog.DiscardHandler)})
	f := func(host string, port uint16, want tunnel.Reason) {
		t.Helper()
		var got tunnel.Reason
		if refused, ok := errors.AsType[*tunnel.RefusedError](tunnels.Permit(host, port)); ok {
			got = refused.Reason
		}
		if got != want {
			t.Errorf("%s port %d: %q, want %q", host, port, got, want)
		}
	}
	for _, host := range []string{
		"api.anthropic.com", "gateway.example", "api.openai.com", "generativelanguage.googleapis.com", "us-east5-aiplatform.googleapis.com", "aiplatform.googleapis.com",
		"aiplatform.eu.rep.googleapis.com", "bedrock-runtime.eu-west-1.amazonaws.com", "bedrock-runtime-fips.us-east-1.amazonaws.com", "team.openai.azure.com", "team.services.ai.azure.com",
		"openrouter.ai", "api.z.ai",
	} {
		f(host, 443, tunnel.ProviderHost)
		f(host, 8443, tunnel.ProviderHost)
	}
	f("127.0.0.1", 8000, tunnel.ProviderHost)
	f("127.0.0.1", 11434, tunnel.ProviderHost) // Ollama's
	f("127.0.0.1", 9000, "")
	f("storage.googleapis.com", 443, "")
	f("s3.eu-west-1.amazonaws.com", 443, "")
	f("example.openai.com", 443, "")
}

// Without a word of it nobody is reached.
func TestTunnelsAreDeniedByDefault(t *testing.T) {
	rules, err := tunnelRulesFromConfig(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	tunnels := tunnel.New(tunnel.Options{Rules: rules, PerAgent: 1, Most: 1, Log: slog.New(slog.DiscardHandler)})
	if refused, ok := errors.AsType[*tunnel.RefusedError](tunnels.Permit("github.com", 443)); !ok || refused.Reason != tunnel.NotListed {
		t.Errorf("%v", refused)
	}
}
