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
		[]tier{{200_000, usd(t, "6", "22.5", "0.6", "7.5", "12")}}, factors{})
	grok := newRate("xai", usd(t, "3", "15", "0.75"), []tier{{128_000, usd(t, "6", "30")}}, factors{})
	gemini := newRate("gemini", usd(t, "1.25", "10"), []tier{
		{512_000, usd(t, "5", "20")}, // out of order on purpose
		{200_000, usd(t, "2.5", "15")},
	}, factors{})

	f := func(name string, r Rate, in usage.Tokens, want int64, wantAssumed bool) {
		t.Helper()
		if got, want := r.Cost(in, usage.Service{}), (Amount{NanoUSD: want, Assumed: wantAssumed}); got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	f("nothing", claude, usage.Tokens{}, 0, false)
	f("every kind", claude, usage.Tokens{Input: 1, Output: 10, CacheRead: 100, CacheWrite5m: 1000, CacheWrite1h: 10_000},
		3_000+150_000+30_000+3_750_000+60_000_000, false)
	f("reasoning is in output already", claude, usage.Tokens{Output: 10, Reasoning: 9}, 150_000, false)
	f("at the tier's border", claude, usage.Tokens{Input: 200_000}, 600_000_000, false)
	f("one above: every token at the tier's price", claude, usage.Tokens{Input: 200_001, Output: 10}, 1_200_006_000+225_000, false)
	f("300k on Sonnet is 1.80 USD", claude, usage.Tokens{Input: 300_000}, 1_800_000_000, false)
	f("half of a prompt cached is as long", claude, usage.Tokens{Input: 150_000, CacheRead: 150_000}, 900_000_000+90_000_000, false)
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

// factor makes a ratio of a decimal.
func factor(t testing.TB, s string) ratio {
	t.Helper()
	r, err := parseFactor(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCostOfClasses(t *testing.T) {
	opus := newRate("anthropic", usd(t, "5", "25", "0.5", "6.25", "10"), nil,
		factors{fast: factor(t, "6"), us: factor(t, "1.1"), batch: factor(t, "0.5")})
	plain := newRate("openai", usd(t, "2.5", "10"), nil, factors{flex: factor(t, "0.5"), priority: factor(t, "1.75")})
	in := usage.Tokens{Input: 1000, Output: 100} // 7,500,000 nano at opus, 3,500,000 at plain

	f := func(name string, r Rate, s usage.Service, want int64, wantUnsettled bool) {
		t.Helper()
		if got, want := r.Cost(in, s), (Amount{NanoUSD: want, Unsettled: wantUnsettled}); got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	f("standard", opus, usage.Service{}, 7_500_000, false)
	f("US", opus, usage.Service{US: true}, 8_250_000, false)
	f("fast", opus, usage.Service{Fast: true}, 45_000_000, false)
	f("fast in the US", opus, usage.Service{Fast: true, US: true}, 49_500_000, false)
	f("batch", opus, usage.Service{Tier: usage.TierBatch}, 3_750_000, false)
	f("batch in the US", opus, usage.Service{Tier: usage.TierBatch, US: true}, 4_125_000, false)
	f("flex", plain, usage.Service{Tier: usage.TierFlex}, 1_750_000, false)
	f("priority", plain, usage.Service{Tier: usage.TierPriority}, 6_125_000, false)

	f("an unknown factor: the standard price, and told", opus, usage.Service{Tier: usage.TierPriority}, 7_500_000, true)
	f("an unknown name", opus, usage.Service{Tier: usage.TierOther}, 7_500_000, true)
	f("what is known counts", opus, usage.Service{Tier: usage.TierPriority, US: true}, 8_250_000, true)
	f("unknown beside the tier", plain, usage.Service{Tier: usage.TierFlex, Fast: true}, 1_750_000, true)
}

func TestFactorIsMultipliedBeforeRounding(t *testing.T) {
	r := newRate("x", prices{pico: [kinds]int64{input: 1}, set: [kinds]bool{input: true}}, nil, factors{us: factor(t, "1.1")})
	f := func(tokens, want int64) {
		t.Helper()
		if got := r.Cost(usage.Tokens{Input: tokens}, usage.Service{US: true}).NanoUSD; got != want {
			t.Errorf("%d pico by 1.1: got %d nano, want %d", tokens, got, want)
		}
	}
	f(450, 0) // 495 pico; rounding first would be the same
	f(460, 1) // 506 pico; rounding first would give 0
	f(1350, 1)
	f(1370, 2) // 1507; rounding first would give 1
	f(5000, 6) // 5500, a tie: to the even
	f(15_000, 16)
}

func TestCostRoundsHalfToEven(t *testing.T) {
	f := func(perToken int64, tokens int64, want int64) {
		t.Helper()
		r := Rate{base: prices{pico: [kinds]int64{input: perToken}, set: [kinds]bool{input: true}}}
		if got := r.Cost(usage.Tokens{Input: tokens}, usage.Service{}).NanoUSD; got != want {
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
		a := r.Cost(usage.Tokens{Input: 200_000, CacheWrite1h: 1}, usage.Service{})
		a.NanoUSD -= 200_000 * r.at(200_001).pico[input] / 1000
		if want := (Amount{NanoUSD: want, Assumed: wantAssumed}); a != want {
			t.Errorf("%s: got %+v, want %+v", name, a, want)
		}
	}
	long := []tier{{200_000, usd(t, "6", "22.5", "0.6", "7.5")}}
	f("twice the input where five minutes cost 1.25 times", newRate("bedrock", usd(t, "3", "15", "0.3", "3.75"), nil, factors{}), 6_000, true)
	f("the tier's own input", newRate("bedrock", usd(t, "3", "15", "0.3", "3.75", "6"), long, factors{}), 12_000, true)
	f("no such factor: input", newRate("azure", usd(t, "2.75", "11", "", "1.38"), nil, factors{}), 2_750, true)
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

		service := usage.Service{
			Tier: rapid.SampledFrom([]usage.Tier{
				usage.TierStandard, usage.TierBatch, usage.TierFlex, usage.TierPriority, usage.TierOther,
			}).Draw(t, "tier"),
			Fast: rapid.Bool().Draw(t, "fast"),
			US:   rapid.Bool().Draw(t, "us"),
		}
		product := big.NewRat(1, 1)
		for c, used := range map[class]bool{
			fast: service.Fast, us: service.US, batch: service.Tier == usage.TierBatch,
			flex: service.Tier == usage.TierFlex, priority: service.Tier == usage.TierPriority,
		} {
			decimal := rapid.OneOf(rapid.SampledFrom([]string{"", "1.1", "0.5", "6"}), rapid.StringMatching(`[0-9]{1,3}(\.[0-9]{1,3})?`)).Draw(t, "factor")
			if decimal == "" {
				continue
			}
			var err error
			if r.factors[c], err = parseFactor(decimal); err != nil {
				t.Fatal(err)
			}
			if used {
				f, _ := new(big.Rat).SetString(decimal)
				product.Mul(product, f)
			}
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
		exact := new(big.Rat).Mul(new(big.Rat).SetFrac(sum, big.NewInt(1000)), product)
		exact.Add(exact, big.NewRat(1, 2))
		want, rest := new(big.Int).DivMod(exact.Num(), exact.Denom(), new(big.Int))
		if rest.Sign() == 0 && want.Bit(0) == 1 {
			want.Sub(want, big.NewInt(1))
		}
		if !want.IsInt64() {
			want.SetInt64(math.MaxInt64)
		}
		if got := r.Cost(in, service).NanoUSD; got != want.Int64() {
			t.Fatalf("got %d nano, want %s", got, want)
		}
	})
}
