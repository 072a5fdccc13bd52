package price

import (
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/ratelimit/usage"
)

// usd makes prices of strings in the order of kinds; "" is not priced.
func usd(t testing.TB, cells ...string) prices {
	t.Helper()
	var p prices
	for k, s := range cells {
		if s == "" {
			continue
		}
		pico, err := parsePico(s)
		if err != nil {
			t.Fatal(err)
		}
		p.pico[k], p.set[k] = pico, true
	}
	return p
}

func TestCost(t *testing.T) {
	claude := newRate("anthropic", usd(t, "3", "15", "0.3", "3.75", "6"),
		[]tier{{200_000, usd(t, "6", "22.5", "0.6", "7.5", "12")}})
	grok := newRate("xai", usd(t, "3", "15", "0.75"), []tier{{128_000, usd(t, "6", "30")}})
	gemini := newRate("gemini", usd(t, "1.25", "10"), []tier{
		{512_000, usd(t, "5", "20")}, // out of order on purpose
		{200_000, usd(t, "2.5", "15")},
	})

	f := func(name string, r Rate, in usage.Tokens, want int64, wantAssumed bool) {
		t.Helper()
		got, assumed := r.Cost(in)
		if got != want || assumed != wantAssumed {
			t.Errorf("%s: got %d nano, assumed %v; want %d, %v", name, got, assumed, want, wantAssumed)
		}
	}
	f("nothing", claude, usage.Tokens{}, 0, false)
	f("every kind", claude, usage.Tokens{Input: 1, Output: 10, CacheRead: 100, CacheWrite5m: 1000, CacheWrite1h: 10_000},
		3_000+150_000+30_000+3_750_000+60_000_000, false)
	f("reasoning is in output already", claude, usage.Tokens{Output: 10, Reasoning: 9}, 150_000, false)
	f("at the tier's border", claude, usage.Tokens{Input: 200_000}, 600_000_000, false)
	f("one above: every token at the tier's price", claude, usage.Tokens{Input: 200_001, Output: 10}, 1_200_006_000+225_000, false)
	f("300k on Sonnet is 1.80 USD", claude, usage.Tokens{Input: 300_000}, 1_800_000_000, false)
	f("cache counts for the tier", claude, usage.Tokens{Input: 1, CacheRead: 100_000, CacheWrite5m: 50_000, CacheWrite1h: 50_000},
		6_000+60_000_000+375_000_000+600_000_000, false)
	f("output does not", claude, usage.Tokens{Input: 1, Output: 300_000}, 3_000+4_500_000_000, false)
	f("xAI: below", grok, usage.Tokens{Input: 127_999}, 383_997_000, false)
	f("xAI: the border is in the tier", grok, usage.Tokens{Input: 128_000}, 768_000_000, false)
	f("a tier without the price takes the base's", grok, usage.Tokens{Input: 128_000, CacheRead: 1}, 768_000_750, false)
	f("two tiers", gemini, usage.Tokens{Input: 200_001}, 500_002_500, false)
	f("two tiers, higher", gemini, usage.Tokens{Input: 512_001}, 2_560_005_000, false)
	f("no cache price: input price, and told", gemini, usage.Tokens{CacheRead: 2}, 2_500, true)
	f("no cache price in a tier: the tier's input price", gemini, usage.Tokens{Input: 1, CacheRead: 200_000}, 2_500+500_000_000, true)
	f("negative counts are nothing", claude, usage.Tokens{Input: -5, Output: 1}, 15_000, false)
	f("beyond an int64", claude, usage.Tokens{Input: math.MaxInt64, Output: math.MaxInt64}, math.MaxInt64, false)
}

func TestCostRoundsHalfToEven(t *testing.T) {
	f := func(perToken int64, tokens int64, want int64) {
		t.Helper()
		r := Rate{base: prices{pico: [kinds]int64{input: perToken}, set: [kinds]bool{input: true}}}
		if got, _ := r.Cost(usage.Tokens{Input: tokens}); got != want {
			t.Errorf("%d pico: got %d nano, want %d", perToken*tokens, got, want)
		}
	}
	f(499, 1, 0)
	f(500, 1, 0)
	f(501, 1, 1)
	f(1499, 1, 1)
	f(500, 3, 2)
	f(500, 5, 2)
	f(2501, 1, 3)
}

func TestAnthropicHourWrite(t *testing.T) {
	f := func(name string, r Rate, want int64, wantAssumed bool) {
		t.Helper()
		got, assumed := r.Cost(usage.Tokens{Input: 200_000, CacheWrite1h: 1})
		got -= 200_000 * r.at(200_001).pico[input] / 1000
		if got != want || assumed != wantAssumed {
			t.Errorf("%s: got %d nano, assumed %v; want %d, %v", name, got, assumed, want, wantAssumed)
		}
	}
	long := []tier{{200_000, usd(t, "6", "22.5", "0.6", "7.5")}}
	f("twice the input where five minutes cost 1.25 times", newRate("bedrock", usd(t, "3", "15", "0.3", "3.75"), nil), 6_000, true)
	f("the tier's own input", newRate("bedrock", usd(t, "3", "15", "0.3", "3.75", "6"), long), 12_000, true)
	f("no such factor: input", newRate("azure", usd(t, "2.75", "11", "", "1.38"), nil), 2_750, true)
}

// TestCostIsExact compares with rational arithmetic of any precision.
func TestCostIsExact(t *testing.T) {
	tokens := rapid.OneOf(rapid.Int64Range(0, 2_000_000), rapid.Int64Range(0, math.MaxInt64/8))
	perToken := rapid.OneOf(rapid.Int64Range(0, 5_000), rapid.Int64Range(0, 999_999_999_999))
	rapid.Check(t, func(t *rapid.T) {
		var r Rate
		for k := range kinds {
			r.base.pico[k], r.base.set[k] = perToken.Draw(t, "price"), true
		}
		var tierPrices prices
		for k := range kinds {
			tierPrices.pico[k], tierPrices.set[k] = perToken.Draw(t, "tier price"), true
		}
		above := tokens.Draw(t, "above")
		r.tiers = []tier{{above, tierPrices}}
		in := usage.Tokens{
			Input: tokens.Draw(t, "in"), Output: tokens.Draw(t, "out"), CacheRead: tokens.Draw(t, "cr"),
			CacheWrite5m: tokens.Draw(t, "cw5m"), CacheWrite1h: tokens.Draw(t, "cw1h"),
		}

		p := r.base
		if in.Input+in.CacheRead+in.CacheWrite5m+in.CacheWrite1h > above {
			p = tierPrices
		}
		sum := new(big.Int)
		for k, n := range []int64{in.Input, in.Output, in.CacheRead, in.CacheWrite5m, in.CacheWrite1h} {
			sum.Add(sum, new(big.Int).Mul(big.NewInt(n), big.NewInt(p.pico[k])))
		}
		// Half to even: add half, floor, and step back from an odd result of a tie.
		want, rest := new(big.Int).DivMod(new(big.Int).Add(sum, big.NewInt(500)), big.NewInt(1000), new(big.Int))
		if rest.Sign() == 0 && want.Bit(0) == 1 {
			want.Sub(want, big.NewInt(1))
		}
		if !want.IsInt64() {
			want.SetInt64(math.MaxInt64)
		}
		if got, _ := r.Cost(in); got != want.Int64() {
			t.Fatalf("got %d nano, want %s", got, want)
		}
	})
}
