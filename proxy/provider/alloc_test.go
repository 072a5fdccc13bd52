//go:build !race

// The race detector allocates too.

package provider_test

import (
	"testing"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

func TestHeadDoesNotAllocate(t *testing.T) {
	dst := make([]byte, 0, 4096)
	for name, c := range map[string]credential.Credential{
		"anthropic": cred(credential.Bearer, oauthToken), "openai": cred(credential.APIKey, openAIKey),
	} {
		h := provider.Head{Method: []byte("POST"), Rest: []byte("/v1/messages"), Query: []byte("beta=true&key=x"), Headers: provider.Headers(agentHeaders), Length: 2}
		p := registry.Provider(name)
		if n := testing.AllocsPerRun(100, func() { _, _ = p.AppendHead(dst[:0], &h, c) }); n != 0 {
			t.Errorf("%s: %v allocations a head, want 0", name, n)
		}
	}
}

// TestInspectAllocates only what it returns: model and session id.
func TestInspectAllocates(t *testing.T) {
	r := provider.Request{
		Provider: registry.Provider("anthropic"), Agent: "default", Method: []byte("POST"), Rest: []byte("/v1/messages"),
		Headers: provider.Headers(agentHeaders), Body: []byte(`{"model":"claude-x","stream":true,"metadata":{"user_id":"{\"session_id\":\"x\"}"},"messages":[{"role":"user","content":"hi"}]}`),
	}
	if n := testing.AllocsPerRun(1000, func() { _, _ = provider.Inspect(&r) }); n > 2 {
		t.Errorf("%v allocations a request, want 2", n)
	}
	path := []byte("/anthropic/v1/messages")
	if n := testing.AllocsPerRun(1000, func() { _, _ = registry.Route(path, r.Headers) }); n != 0 {
		t.Errorf("Route: %v allocations, want 0", n)
	}
}

func TestClassifyHardlyAllocatesForAGoodAnswer(t *testing.T) {
	windows := make([]ratelimit.Window, 0, 16)
	headers := pairs("Content-Type", "application/json", "Request-Id", "req_1",
		"Date", "Sun, 22 Nov 2026 12:00:00 GMT", "anthropic-ratelimit-unified-status", "allowed",
		"anthropic-ratelimit-unified-5h-status", "allowed", "anthropic-ratelimit-unified-5h-utilization", "0.25", "anthropic-ratelimit-unified-5h-reset", "1795352400",
		"anthropic-ratelimit-requests-limit", "50", "anthropic-ratelimit-requests-remaining", "49", "anthropic-ratelimit-requests-reset", "2026-11-22T12:00:30Z",
		"anthropic-organization-id", "0f5c5c1e-7a52-4a6c-9f5e-3a9f3c1d2b4a")
	organisation := make([]byte, 0, 64)
	answer := provider.Answer{Family: provider.Anthropic, Status: 200, Headers: headers, Windows: windows, Organisation: organisation}
	base := testing.AllocsPerRun(100, func() {
		for range headers {
			continue
		}
	})
	// Two are of the loop over a function that the compiler cannot see into.
	if n := testing.AllocsPerRun(100, func() { provider.Classify(answer, now) }); n > base+2 {
		t.Errorf("%v allocations beside those of the headers, want 2", n-base)
	}
}
