package ratelimit_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/ratelimit"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// left is what an answer tells of one limit per minute.
func left(name string, size, left float64, seen time.Time, full time.Duration) ratelimit.Window {
	return ratelimit.Window{
		Name: name, Kind: "bucket", Size: size, Left: left, Utilization: 1 - left/size, Seen: seen, Reset: seen.Add(full),
	}
}

// tells has a request be answered at once, and returns until when the next one
// has to wait from then.
func tells(t *testing.T, g *ratelimit.Gate, now time.Time, windows ...ratelimit.Window) func(model string, input int64) time.Duration {
	t.Helper()
	p, r := g.Allow(now, "m", 0, 0)
	if r.Why != ratelimit.Open {
		t.Fatalf("the first request is refused: %v", r.Why)
	}
	p.Verdict(now, ratelimit.Verdict{Signal: ratelimit.OK, Windows: windows})
	p.Done(now, 0, 0, true)
	return func(model string, input int64) time.Duration {
		r := g.Check(now, model, input, 0)
		if r.Why == ratelimit.Open {
			return 0
		}
		if r.Why != ratelimit.Metered {
			t.Errorf("refused by %v, want the rate", r.Why)
		}
		return r.Until.Sub(now)
	}
}

// What an answer says is left keeps requests of its model waiting for what they
// need, and no longer.
func TestProvidersWordKeepsWaiting(t *testing.T) {
	for _, c := range []struct {
		name  string
		told  ratelimit.Window
		input int64
		wait  time.Duration
	}{
		{"enough", left("requests", 50, 1, noon, 59*time.Second), 0, 0},
		{"none left", left("requests", 50, 0, noon, time.Minute), 0, 1200 * time.Millisecond},
		{"none left, and it is slow", left("requests", 1, 0, noon, time.Minute), 0, time.Minute},
		{"tokens", left("input_tokens", 40_000, 1000, noon, 58500*time.Millisecond), 9500, 15 * time.Second},
		{"tokens, of both kinds", left("tokens", 6000, 500, noon, 55*time.Second), 1200, 10 * time.Second},
		{"more than there can be", left("tokens", 6000, 3, noon, 59970*time.Millisecond), 90_000, 59970 * time.Millisecond},
		// Anthropic rounds to thousands. Of tokens a twentieth is left, as of a
		// configured limit.
		{"0 is no proof", left("input_tokens", 40_000, 0, noon, time.Minute), 900, 3600 * time.Millisecond},
		{"0 is one where nobody rounds", left("input_tokens", 4000, 0, noon, time.Minute), 700, 13500 * time.Millisecond},
		// Hours and days only steer.
		{"a day's requests", left("requests", 1000, 0, noon, 24*time.Hour), 0, 0},
		{"a day's requests, an answer ago", left("requests", 1000, 999, noon, 86400*time.Millisecond), 0, 0},
		// Nonsense.
		{"no reset", ratelimit.Window{Name: "requests", Kind: "bucket", Size: 50, Seen: noon}, 0, 0},
		{"reset in the past", left("requests", 50, 0, noon, -time.Second), 0, 0},
		{"negative", left("requests", -1, -1, noon, time.Minute), 0, 0},
		{"more than the limit", left("requests", 10, 11, noon, time.Minute), 0, 0},
		{"not a number", left("requests", math.NaN(), 0, noon, time.Minute), 0, 0},
		{"endless", left("requests", math.Inf(1), 0, noon, time.Minute), 0, 0},
		{"of something else", left("images", 50, 0, noon, time.Minute), 0, 0},
		{"a usage window", ratelimit.Window{Name: "requests", Kind: "provider", Size: 50, Seen: noon, Reset: noon.Add(time.Minute)}, 0, 0},
	} {
		g := gate(ratelimit.Rates{})
		wait := tells(t, g, noon, c.told)
		if got := wait("m", c.input); got < c.wait || got > c.wait+2*time.Millisecond {
			t.Errorf("%s: waits %v, want %v", c.name, got, c.wait)
		}
		if got := wait("another", c.input); got != 0 {
			t.Errorf("%s: another model waits %v", c.name, got)
		}
		for _, d := range []time.Duration{c.wait + 2*time.Millisecond, time.Minute, 25 * time.Hour} {
			if r := g.Check(noon.Add(d), "m", c.input, 0); r.Why != ratelimit.Open {
				t.Errorf("%s: after %v it still waits, until %v", c.name, d, r.Until.Sub(noon))
			}
		}
	}
}

// What is left belongs to all processes that use the subscription: each waits for
// its part.
func TestProvidersWordIsDivided(t *testing.T) {
	g := gate(ratelimit.Rates{})
	wait := tells(t, g, noon, left("requests", 60, 2, noon, 58*time.Second), left("tokens", 6000, 600, noon, 54*time.Second))
	for _, c := range []struct {
		processes int
		input     int64
		wait      time.Duration
	}{
		{1, 300, 0},
		{2, 150, 0},               // half of 600, and half of the twentieth
		{2, 250, 2 * time.Second}, // 100 more, of which 50 come in a second
		{4, 0, 2 * time.Second},   // half a request more, of which a quarter comes in a second
		{0, 300, 0},
	} {
		g.Among(c.processes)
		if got := wait("m", c.input); got < c.wait || got > c.wait+2*time.Millisecond {
			t.Errorf("%d processes, %d tokens: waits %v, want %v", c.processes, c.input, got, c.wait)
		}
	}
}

// Where input and output have limits of their own, "tokens" is one of them.
func TestProvidersWordOfAllTokens(t *testing.T) {
	g := gate(ratelimit.Rates{})
	wait := tells(t, g, noon, left("input_tokens", 40_000, 20_000, noon, 30*time.Second), left("tokens", 8000, 0, noon, time.Minute))
	if got := wait("m", 5000); got != 0 {
		t.Errorf("input waits %v for what may be the limit on output", got)
	}
}

// What was sent since the request that was answered is not left any more; what
// never went out, or came to less, is.
func TestProvidersWordIsOlderThanWhatWasSent(t *testing.T) {
	g := gate(ratelimit.Rates{})
	tells(t, g, noon, left("requests", 60, 5, noon, 55*time.Second))
	allow := func(want bool) ratelimit.Pass {
		t.Helper()
		p, r := g.Allow(noon, "m", 0, 0)
		if (r.Why == ratelimit.Open) != want {
			t.Errorf("allowed is %t, want %t", !want, want)
		}
		return p
	}
	one := allow(true)
	two, three := allow(true), allow(true)
	// The answer to the first counts only the first.
	one.Verdict(noon, ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{left("requests", 60, 4, noon, 56*time.Second)}})
	allow(true)
	allow(true)
	allow(false)
	three.Cancel(noon)
	last := allow(true)
	allow(false)
	// Nor does one that comes late change that.
	two.Verdict(noon, ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{left("requests", 60, 40, noon.Add(-time.Second), 20*time.Second)}})
	allow(false)
	last.Verdict(noon, ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{left("requests", 60, 2, noon, 58*time.Second)}})
	allow(true)
	allow(true)
	allow(false)
}

// An agent that always has requests meets the provider's limit about as often as
// it takes to learn of it, and gets all of it.
func TestProvidersWordAvoidsRefusals(t *testing.T) {
	const limit, latency, length = 60, 2 * time.Second, 5 * time.Minute
	type answer struct {
		at     time.Time
		pass   ratelimit.Pass
		window ratelimit.Window
	}
	g := gate(ratelimit.Rates{})
	tokens, served, refused := float64(limit), 0, 0
	var under []answer
	const step = 50 * time.Millisecond
	for now := noon; now.Before(noon.Add(length)); now = now.Add(step) {
		tokens = min(tokens+step.Minutes()*limit, limit)
		for len(under) > 0 && !now.Before(under[0].at) {
			a := under[0]
			under = under[1:]
			a.window.Seen, a.window.Reset = now, now.Add(a.window.Reset.Sub(a.window.Seen))
			a.pass.Verdict(now, ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{a.window}})
			a.pass.Done(now, 0, 0, true)
		}
		for len(under) < 20 {
			p, r := g.Allow(now, "m", 0, 0)
			if r.Why != ratelimit.Open {
				break
			}
			if tokens >= 1 {
				tokens--
				served++
			} else {
				refused++
			}
			full := time.Duration((limit - tokens) / limit * float64(time.Minute))
			under = append(under, answer{now.Add(latency), p, left("requests", limit, math.Floor(tokens), now, full)})
		}
	}
	most := int(limit * (1 + length.Minutes()))
	if refused > served/50 {
		t.Errorf("%d requests met the limit, %d did not: more than 2 %%", refused, served)
	}
	if served < most*97/100 {
		t.Errorf("%d requests were served of %d", served, most)
	}
}

// Whatever the headers say, they keep nobody waiting for more than a minute, nor
// beyond the time that they name; and nobody at all where they count hours.
func TestProvidersWordNeverBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := gate(ratelimit.Rates{})
		number := rapid.OneOf(rapid.Float64(), rapid.Float64Range(0, 100), rapid.SampledFrom([]float64{0, -1, 1, 1e18, math.NaN(), math.Inf(1), math.Inf(-1)}))
		now, reset := noon, noon
		var under []ratelimit.Pass
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			model := fmt.Sprint(rapid.IntRange(0, 100).Draw(t, "model"))
			p, r := g.Allow(now, model, rapid.Int64().Draw(t, "input"), rapid.Int64Range(0, 1e6).Draw(t, "output"))
			if r.Why == ratelimit.Open {
				under = append(under, p)
			} else if wait := r.Until.Sub(now); wait <= 0 || wait > time.Minute || r.Until.After(reset) {
				t.Fatalf("waits %v, the latest reset is in %v", wait, reset.Sub(now))
			}
			for range rapid.IntRange(0, 3).Draw(t, "answers") {
				if len(under) == 0 {
					break
				}
				w := left(rapid.SampledFrom([]string{"requests", "tokens", "input_tokens", "output_tokens"}).Draw(t, "limit"),
					number.Draw(t, "size"), number.Draw(t, "left"), now,
					time.Duration(rapid.Int64Range(-1e9, 200e9).Draw(t, "full")))
				reset = later(reset, w.Reset)
				under[0].Verdict(now, ratelimit.Verdict{Signal: ratelimit.OK, Windows: []ratelimit.Window{w}})
				if rapid.Bool().Draw(t, "used more") {
					under[0].Done(now, 1e9, 1e9, true)
				} else {
					under[0].Done(now, 0, 0, true)
				}
				under = under[1:]
			}
		}
		now = now.Add(time.Minute)
		for i := range 101 {
			if r := g.Check(now, fmt.Sprint(i), 1e9, 1e9); r.Why != ratelimit.Open {
				t.Fatalf("a minute after the last answer a request waits until %v", r.Until.Sub(now))
			}
		}
	})
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Nothing is remembered of what is plentiful, and nothing costs memory then.
func TestProvidersWordCostsNothingWhileThereIsEnough(t *testing.T) {
	g := gate(ratelimit.Rates{})
	windows := []ratelimit.Window{left("requests", 50, 40, noon, 12*time.Second), left("tokens", 40_000, 30_000, noon, 15*time.Second)}
	allocs := testing.AllocsPerRun(100, func() {
		p, _ := g.Allow(noon, "m", 0, 0)
		p.Verdict(noon, ratelimit.Verdict{Signal: ratelimit.OK, Windows: windows})
		p.Done(noon, 0, 0, true)
	})
	bare := testing.AllocsPerRun(100, func() {
		p, _ := g.Allow(noon, "m", 0, 0)
		p.Verdict(noon, ratelimit.Verdict{Signal: ratelimit.OK})
		p.Done(noon, 0, 0, true)
	})
	if allocs != bare {
		t.Errorf("%v allocations with headers, %v without", allocs, bare)
	}
}
