package price_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/authpool/authpool/ratelimit/price"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestLookup(t *testing.T) {
	table := price.New()
	// The cost of a million input tokens, split so that no tier is met.
	f := func(provider, model string, wantNano int64, wantOK bool) {
		t.Helper()
		nano, ok := table.Cost(provider, model, usage.Tokens{Input: 1000}, usage.Service{})
		if nano != wantNano || ok != wantOK {
			t.Errorf("%s %s: got %d nano, %v; want %d, %v", provider, model, nano, ok, wantNano, wantOK)
		}
	}
	f("anthropic", "claude-sonnet-4-5", 3_000_000, true)
	f("anthropic", "claude-sonnet-4-5-20250929", 3_000_000, true)
	f("openai", "gpt-4o-2024-08-06", 2_500_000, true)
	f("groq", "llama-3.1-8b-instant", 50_000, true)
	f("groq", "groq/llama-3.1-8b-instant", 50_000, true)
	f("vertex", "claude-sonnet-4-5@20250929", 3_000_000, true)
	f("azure", "gpt-5.4", 2_500_000, true)
	f("bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", 3_300_000, true)
	f("bedrock", "openai.gpt-5.6-sol", 5_500_000, true)

	f("bedrock", "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0", 3_000_000, true)
	f("bedrock", "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0", 3_300_000, true)
	f("gemini", "models/gemini-2.5-pro", 1_250_000, true)
	f("vertex", "claude-sonnet-4-5-20250929", 3_000_000, true)

	f("bedrock", "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0", 0, false)
	f("bedrock", "arn:aws:sagemaker:us-east-1:123456789012:foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0", 0, false)
	f("bedrock", "mars.anthropic.claude-sonnet-4-5-20250929-v1:0", 0, false) // a region that the map has no price for
	f("gemini", "tunedModels/gemini-2.5-pro", 0, false)
	f("openai", "models/gpt-4o", 0, false)
	f("anthropic", "claude-sonnet-4-5@20250929", 0, false)
	f("anthropic", "claude-sonnet-4-5-20991231", 0, false) // a date that is not in the map
	f("anthropic", "claude-sonnet", 0, false)
	f("anthropic", "Claude-Sonnet-4-5", 0, false)
	f("anthropic", "claude-sonnet-4-5 ", 0, false)
	f("anthropic", "gpt-4o", 0, false) // another provider's model
	f("openai", "claude-sonnet-4-5", 0, false)
	f("openai", "groq/llama-3.1-8b-instant", 0, false)
	f("local-vllm", "gpt-4o", 0, false) // declared providers have no list price
	f("openrouter", "anthropic/claude-sonnet-4.5", 0, false)
	f("", "", 0, false)
}

// TestTiers holds the tiers of the embedded data: the request's whole prompt side
// decides, and then all of its tokens cost the higher price. LiteLLM has it so, and
// so have the providers' bills; ccusage reckons the part above alone.
func TestTiers(t *testing.T) {
	table := price.New()
	f := func(provider, model string, tokens usage.Tokens, wantNano int64) {
		t.Helper()
		if nano, ok := table.Cost(provider, model, tokens, usage.Service{}); nano != wantNano || !ok {
			t.Errorf("%s %s %+v: got %d nano, %v; want %d", provider, model, tokens, nano, ok, wantNano)
		}
	}
	f("anthropic", "claude-sonnet-4-5", usage.Tokens{Input: 200_000}, 600_000_000)
	f("anthropic", "claude-sonnet-4-5", usage.Tokens{Input: 250_000}, 1_500_000_000)
	f("anthropic", "claude-sonnet-4-5", usage.Tokens{Input: 300_000, Output: 10}, 1_800_000_000+225_000)
	f("anthropic", "claude-sonnet-4-5", usage.Tokens{Input: 150_000, CacheRead: 150_000}, 900_000_000+90_000_000)
	f("anthropic", "claude-sonnet-4-5", usage.Tokens{Input: 200_000, CacheWrite1h: 1}, 1_200_000_000+12_000)
	f("openai", "gpt-5.4", usage.Tokens{Input: 272_000}, 680_000_000)
	f("openai", "gpt-5.4", usage.Tokens{Input: 272_001}, 1_360_005_000)
	f("xai", "grok-4-fast-reasoning", usage.Tokens{Input: 127_999}, 25_599_800)
	f("xai", "grok-4-fast-reasoning", usage.Tokens{Input: 128_000}, 51_200_000) // at the border already
}

// TestClasses holds what the embedded data says of classes of service.
func TestClasses(t *testing.T) {
	table := price.New()
	f := func(provider, model string, s usage.Service, wantNano int64, wantOK bool) {
		t.Helper()
		nano, ok := table.Cost(provider, model, usage.Tokens{Input: 1000}, s)
		if nano != wantNano || ok != wantOK {
			t.Errorf("%s %s %+v: got %d nano, %v; want %d, %v", provider, model, s, nano, ok, wantNano, wantOK)
		}
	}
	f("anthropic", "claude-opus-4-6", usage.Service{}, 5_000_000, true)
	f("anthropic", "claude-opus-4-6", usage.Service{Fast: true}, 30_000_000, true)
	f("anthropic", "claude-opus-4-8", usage.Service{Fast: true}, 10_000_000, true)
	f("anthropic", "claude-opus-4-6", usage.Service{US: true}, 5_500_000, true)
	f("anthropic", "claude-opus-4-6", usage.Service{Tier: usage.TierBatch, US: true}, 2_750_000, true)
	f("anthropic", "claude-sonnet-4-5", usage.Service{Tier: usage.TierBatch}, 1_500_000, true)
	f("openai", "gpt-4o", usage.Service{Tier: usage.TierBatch}, 1_250_000, true)
	f("openai", "gpt-4o", usage.Service{Tier: usage.TierFlex}, 1_250_000, true)

	f("anthropic", "claude-sonnet-4-5", usage.Service{Fast: true}, 3_000_000, false)
	f("anthropic", "claude-sonnet-4-5", usage.Service{Tier: usage.TierPriority}, 3_000_000, false)
	f("openai", "gpt-4o", usage.Service{Tier: usage.TierPriority}, 2_500_000, false)
	f("openai", "gpt-4o", usage.Service{Tier: usage.TierOther}, 2_500_000, false)
	f("bedrock", "amazon.nova-pro-v1:0", usage.Service{Tier: usage.TierBatch}, 800_000, false)
	f("anthropic", "no-such-model", usage.Service{Tier: usage.TierBatch}, 0, false)
}

func TestVersionNamesTheDate(t *testing.T) {
	if v := price.New().Version(); !regexp.MustCompile(`^litellm-\d{4}-\d{2}-\d{2}\.\d+$`).MatchString(v) {
		t.Errorf("got %q", v)
	}
}

// TestReasoningIsNotPricedApart holds the ground on which Rate has no price of
// its own for reasoning.
func TestReasoningIsNotPricedApart(t *testing.T) {
	data, err := os.ReadFile("prices.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Models []struct {
			ID       string
			Out, Rsn json.Number
		}
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	for _, m := range file.Models {
		if m.Rsn != "" && m.Rsn != m.Out {
			t.Errorf("%s: reasoning costs %s and output %s: Rate has to tell them apart", m.ID, m.Rsn, m.Out)
		}
	}
}

func BenchmarkCost(b *testing.B) {
	table := price.New()
	tokens := usage.Tokens{Input: 1200, Output: 800, CacheRead: 90_000, CacheWrite5m: 2000}
	service := usage.Service{Tier: usage.TierBatch}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := table.Cost("anthropic", "claude-sonnet-4-5", tokens, service); !ok {
			b.Fatal("the model has no price")
		}
	}
}

// TestProviders: those of the override stand among the embedded ones, each once.
func TestProviders(t *testing.T) {
	if got := price.New().Providers(); !slices.IsSorted(got) || !slices.Contains(got, "anthropic") || slices.Contains(got, "local-vllm") {
		t.Errorf("embedded: %q", got)
	}
	table, err := price.Load(write(t, "prices.yaml", "models:\n  - {provider: local-vllm, model: a, input: 1, output: 1}\n  - {provider: local-vllm, model: b, input: 1, output: 1}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := table.Providers(); len(got) != len(price.New().Providers())+1 || !slices.Contains(got, "local-vllm") {
		t.Errorf("with an override: %q", got)
	}
}
