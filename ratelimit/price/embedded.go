package price

import (
	_ "embed" // the price table
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// embedded holds facts from LiteLLM's model_prices_and_context_window.json (MIT
// licence, github.com/BerriAI/litellm); its "meta" says which copy, which unit
// and what the fields mean. Not used here: "rsn", which equals "out" in every
// row that has it, and the sizes. Not from LiteLLM is "services": factors that a
// provider states for all its models, each with the page that states them.
//
//go:embed prices.json
var embedded []byte

// embeddedRow is one model in prices.json. Prices are kept as the digits that
// stand there.
type embeddedRow struct {
	ID       string `json:"id"`
	Provider string `json:"p"`
	embeddedPrices
	Tiers []struct {
		Above int64 `json:"above"`
		embeddedPrices
	} `json:"tiers"`
	Factors embeddedFactors `json:"mult"`
}

type embeddedFactors struct {
	Fast     json.Number `json:"fast"`
	US       json.Number `json:"us"`
	Batch    json.Number `json:"batch"`
	Flex     json.Number `json:"flex"`
	Priority json.Number `json:"priority"`
}

type embeddedPrices struct {
	Input        json.Number `json:"in"`
	Output       json.Number `json:"out"`
	CacheRead    json.Number `json:"cr"`
	CacheWrite5m json.Number `json:"cw5m"`
	CacheWrite1h json.Number `json:"cw1h"`
}

// family is a group of rows in the LiteLLM map: authpool's name of the provider,
// and the prefix that the rows' ids may carry.
type family struct{ provider, prefix string }

// families are keyed by the map's "litellm_provider".
var families = map[string]family{
	"anthropic":                  {"anthropic", "anthropic/"},
	"openai":                     {"openai", "openai/"},
	"azure":                      {"azure", "azure/"},
	"azure_ai":                   {"azure", "azure_ai/"},
	"bedrock":                    {"bedrock", "bedrock/"},
	"bedrock_converse":           {"bedrock", "bedrock/"},
	"bedrock_mantle":             {"bedrock", "bedrock_mantle/"},
	"mistral":                    {"mistral", "mistral/"},
	"gemini":                     {"gemini", "gemini/"},
	"vertex_ai-anthropic_models": {"vertex", "vertex_ai/"},
	"vertex_ai-language-models":  {"vertex", "vertex_ai/"},
	"deepseek":                   {"deepseek", "deepseek/"},
	"groq":                       {"groq", "groq/"},
	"xai":                        {"xai", "xai/"},
}

// parseEmbedded reads the format of prices.json.
func parseEmbedded(data []byte) (*Table, error) {
	var file struct {
		Meta struct {
			Version string `json:"version"`
		} `json:"meta"`
		Services []struct {
			Provider string `json:"p"`
			embeddedFactors
		} `json:"services"`
		Models []embeddedRow `json:"models"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	if file.Meta.Version == "" {
		return nil, errors.New("meta has no version")
	}
	t := &Table{
		version:  file.Meta.Version,
		rates:    make(map[key]Rate, 2*len(file.Models)),
		services: make(map[string]factors, len(file.Services)),
	}
	for _, service := range file.Services {
		f, err := service.parse()
		if err != nil {
			return nil, fmt.Errorf("services of %s: %w", service.Provider, err)
		}
		t.services[service.Provider] = f
	}
	short := make(map[key]Rate, len(file.Models))
	for _, row := range file.Models {
		f, ok := families[row.Provider]
		if !ok {
			return nil, fmt.Errorf("%s: provider %q is unknown", row.ID, row.Provider)
		}
		rate, err := row.rate(f.provider)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", row.ID, err)
		}
		rate.factors = rate.factors.or(t.services[f.provider])
		t.rates[key{f.provider, row.ID}] = rate
		if model, ok := strings.CutPrefix(row.ID, f.prefix); ok {
			// Two families of one provider may share a model: the
			// first in the file, which is sorted, stands.
			k := key{f.provider, model}
			if _, taken := short[k]; !taken {
				short[k] = rate
			}
		}
	}
	for k, rate := range short {
		if _, ok := t.rates[k]; !ok {
			t.rates[k] = rate
		}
	}
	return t, nil
}

func (r *embeddedRow) rate(provider string) (Rate, error) {
	base, err := r.prices()
	if err != nil {
		return Rate{}, err
	}
	var tiers []tier
	for _, t := range r.Tiers {
		p, err := t.prices()
		if err != nil {
			return Rate{}, fmt.Errorf("tier above %d: %w", t.Above, err)
		}
		tiers = append(tiers, tier{t.Above, p})
	}
	f, err := r.Factors.parse()
	if err != nil {
		return Rate{}, fmt.Errorf("mult: %w", err)
	}
	return newRate(provider, base, tiers, f), nil
}

func (e *embeddedFactors) parse() (factors, error) {
	var f factors
	for c, digits := range [classes]json.Number{e.Fast, e.US, e.Batch, e.Flex, e.Priority} {
		if digits == "" {
			continue
		}
		r, err := parseFactor(digits.String())
		if err != nil {
			return factors{}, fmt.Errorf("%s: %w", classFields[c], err)
		}
		f[c] = r
	}
	return f, nil
}

func (e *embeddedPrices) prices() (prices, error) {
	var p prices
	for k, digits := range [kinds]json.Number{e.Input, e.Output, e.CacheRead, e.CacheWrite5m, e.CacheWrite1h} {
		if digits == "" {
			continue
		}
		pico, err := parsePico(digits.String())
		if err != nil {
			return prices{}, err
		}
		p.pico[k], p.set[k] = pico, true
	}
	return p, nil
}
