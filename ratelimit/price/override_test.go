package price_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authpool/authpool/ratelimit/price"
	"github.com/authpool/authpool/ratelimit/usage"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	const yaml = `
models:
  - provider: local-vllm
    model: qwen3-coder
    input: 0.10   # per million
    output: "0.25"
  - {provider: anthropic, model: claude-sonnet-4-5, input: 1, output: 2, cache_read: 0.000001,
     tiers: [{above: 100, input: 10}]}
`
	const json = `{"models": [
		{"provider": "local-vllm", "model": "qwen3-coder", "input": 0.10, "output": "0.25"},
		{"provider": "anthropic", "model": "claude-sonnet-4-5", "input": 1, "output": 2, "cache_read": 0.000001,
		 "tiers": [{"above": 100, "input": 10}]}
	]}`
	for name, text := range map[string]string{"prices.yaml": yaml, "prices.json": json} {
		t.Run(name, func(t *testing.T) {
			table, err := price.Load(write(t, name, text))
			if err != nil {
				t.Fatal(err)
			}
			f := func(provider, model string, tokens usage.Tokens, want int64) {
				t.Helper()
				if got, ok := table.Cost(provider, model, tokens, usage.Service{}); got != want || !ok {
					t.Errorf("%s %s: got %d, %v; want %d", provider, model, got, ok, want)
				}
			}
			f("local-vllm", "qwen3-coder", usage.Tokens{Input: 30, Output: 2}, 3_000+500)
			f("anthropic", "claude-sonnet-4-5", usage.Tokens{Input: 100, Output: 1}, 100_000+2_000)
			f("anthropic", "claude-sonnet-4-5", usage.Tokens{Input: 101, Output: 1}, 1_010_000+2_000)
			f("anthropic", "claude-sonnet-4-5", usage.Tokens{CacheRead: 2000}, 2)
			f("openai", "gpt-4o", usage.Tokens{Input: 1000}, 2_500_000) // not overridden

			if v, base := table.Version(), price.New().Version(); !strings.HasPrefix(v, base+"+") || len(v) != len(base)+9 {
				t.Errorf("the version is %q, want %s+ and a hash", v, base)
			}
		})
	}
}

func TestOverrideClasses(t *testing.T) {
	table, err := price.Load(write(t, "prices.yaml", `models:
  - {provider: local-vllm, model: qwen, input: 1, output: 1, fast: 2.5, us: "1.1", batch: 0.25, flex: 0.75, priority: 3}
  - {provider: anthropic, model: claude-opus-4-6, input: 5, output: 25}
  - {provider: anthropic, model: claude-haiku-4-5, input: 1, output: 5, batch: 0.4}
`))
	if err != nil {
		t.Fatal(err)
	}
	f := func(provider, model string, s usage.Service, want int64, wantOK bool) {
		t.Helper()
		if got, ok := table.Cost(provider, model, usage.Tokens{Input: 1000}, s); got != want || ok != wantOK {
			t.Errorf("%s %s %+v: got %d, %v; want %d, %v", provider, model, s, got, ok, want, wantOK)
		}
	}
	f("local-vllm", "qwen", usage.Service{Fast: true}, 2_500_000, true)
	f("local-vllm", "qwen", usage.Service{US: true, Tier: usage.TierBatch}, 275_000, true)
	f("local-vllm", "qwen", usage.Service{Tier: usage.TierFlex}, 750_000, true)
	f("local-vllm", "qwen", usage.Service{Tier: usage.TierPriority}, 3_000_000, true)
	// The row replaces the embedded one as a whole, but what the provider states
	// for all its models holds on.
	f("anthropic", "claude-opus-4-6", usage.Service{Fast: true}, 5_000_000, false)
	f("anthropic", "claude-opus-4-6", usage.Service{Tier: usage.TierBatch}, 2_500_000, true)
	f("anthropic", "claude-haiku-4-5", usage.Service{Tier: usage.TierBatch}, 400_000, true)
}

func TestLoadEmptyFile(t *testing.T) {
	table, err := price.Load(write(t, "prices.yaml", "# nothing yet\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := table.Cost("openai", "gpt-4o", usage.Tokens{Input: 1}, usage.Service{}); !ok {
		t.Error("the embedded prices are gone")
	}
}

func TestLoadFaults(t *testing.T) {
	f := func(name, text string, want ...string) {
		t.Helper()
		path := write(t, "prices.yaml", text)
		_, err := price.Load(path)
		if err == nil {
			t.Errorf("%s: no fault found", name)
			return
		}
		for i := range want {
			want[i] = path + want[i]
		}
		if got := err.Error(); got != strings.Join(want, "\n") {
			t.Errorf("%s:\n got %s\nwant %s", name, got, strings.Join(want, "\n"))
		}
	}
	f("all at once, in order", `models:
  - provider: openai
    input: 1e3
    output: -1
    tiers:
      - above: 0
        cache_read: 0.0000001
  - model: x
    input: 1
    output:
  - {provider: a, model: b, input: 1, output: 1}
  - {provider: a, model: b, input: 1, output: 1, tiers: [{above: 5}, {above: 5}]}
`,
		`:2:5: models[0].model: is missing: the model as the provider's answers name it`,
		`:3:12: models[0].input: "1e3" is not a plain decimal such as 0.3`,
		`:4:13: models[0].output: "-1" is not a plain decimal such as 0.3`,
		`:6:16: models[0].tiers[0].above: must be a number of tokens above 0`,
		`:7:21: models[0].tiers[0].cache_read: "0.0000001" is finer than a pico-dollar per token: at most 6 decimal places`,
		`:8:5: models[1].provider: is missing: authpool's name of the provider, such as anthropic`,
		`:10:12: models[1].output: is missing: US dollars per million tokens, 0 when free`,
		`:12:26: models[3].model: b at a has a row already`,
		`:12:78: models[3].tiers[1].above: 5 has a tier already`,
	)
	f("factors", `models:
  - {provider: a, model: b, input: 1, output: 1, fast: 6x}
  - provider: a
    model: c
    input: 1
    output: 1
    batch: 0.0005
    priority: ""
`,
		`:2:56: models[0].fast: "6x" is not a plain decimal such as 0.3`,
		`:7:12: models[1].batch: "0.0005" is no factor: at most 3 digits before and after the point`,
		`:8:15: models[1].priority: "\"\"" is not a plain decimal such as 0.3`,
	)
	f("unknown key", "models:\n  - {provider: a, model: b, input: 1, output: 1, prompt: 3}\n", `:2:50: unknown field "prompt"`)
	f("unknown keys beside other faults", `modles: []
models:
  - {provider: a, model: b, input: -1, outptu: 1, output: 1}
  - provider: a
    model: c
    input: 1
    output: 1
    tiers: [{abvoe: 5}]
`,
		`:1:1: unknown field "modles"`,
		`:3:36: models[0].input: "-1" is not a plain decimal such as 0.3`,
		`:3:40: unknown field "outptu"`,
		`:8:14: unknown field "abvoe"`,
		`:8:14: models[1].tiers[0].above: must be a number of tokens above 0`,
	)
	f("an unknown key behind an anchor", "models:\n  - &row {provider: a, model: b, input: 1, output: 1, prompt: 3}\n", `:2:55: unknown field "prompt"`)
	f("an unknown key alone", "model: []\n", `:1:1: unknown field "model"`)
	f("wrong shape", "models: 3\n", `:1:9: int was used where sequence is expected`)

	if _, err := price.Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.HasPrefix(err.Error(), "cannot read prices: ") {
		t.Errorf("a missing file gave %v", err)
	}
}

// TestExampleFile: what deploy explains is what is read.
func TestExampleFile(t *testing.T) {
	table, err := price.Load(filepath.Join("..", "..", "deploy", "prices.example.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	f := func(model, provider string, tokens usage.Tokens, s usage.Service, want int64, wantOK bool) {
		t.Helper()
		if got, ok := table.Cost(provider, model, tokens, s); got != want || ok != wantOK {
			t.Errorf("%s %+v %+v: got %d, %v; want %d, %v", model, tokens, s, got, ok, want, wantOK)
		}
	}
	long := usage.Tokens{Input: 200_001, CacheWrite1h: 1}
	f("claude-sonnet-4-5", "anthropic", usage.Tokens{Input: 1, Output: 1, CacheRead: 10, CacheWrite5m: 4, CacheWrite1h: 1}, usage.Service{}, 3_000+15_000+3_000+15_000+6_000, true)
	f("claude-sonnet-4-5", "anthropic", long, usage.Service{}, 200_001*6_000+12_000, true)
	f("claude-sonnet-4-5", "anthropic", usage.Tokens{Input: 1000}, usage.Service{Tier: usage.TierBatch, US: true}, 1_650_000, true)
	f("claude-sonnet-4-5", "anthropic", usage.Tokens{Input: 1000}, usage.Service{Fast: true}, 3_000_000, false) // no factor in the row
	f("qwen3-coder", "local-vllm", usage.Tokens{Input: 1000}, usage.Service{}, 0, true)                         // free, and not unpriced
}
