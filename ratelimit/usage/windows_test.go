package usage_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestWindowsAreTheNewestView(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		store := usage.NewStore(client, "authpool")
		window := func(util float64, reset, seen time.Duration) usage.ProviderWindow {
			return usage.ProviderWindow{Name: "5h", Utilization: util, Status: "allowed", Reset: epoch.Add(reset), Seen: epoch.Add(seen)}
		}
		f := func(name string, w, want usage.ProviderWindow) {
			t.Helper()
			if err := store.Observe(t.Context(), "team-a", "five_hour", []usage.ProviderWindow{w}); err != nil {
				t.Fatal(err)
			}
			got, err := store.Windows(t.Context(), "team-a", "team-none")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string][]usage.Window{"team-a": {{ProviderWindow: want}}}, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		first := window(0.25, 5*time.Hour, time.Hour)
		f("first", first, first)
		f("older answer", window(0.9, 5*time.Hour, 59*time.Minute), first)
		newer := window(1.04, 5*time.Hour, 2*time.Hour)
		f("newer, above one", newer, newer)
		f("slow answer of the former window", window(0.9, 4*time.Hour, 3*time.Hour), newer)
		jitter := window(0.5, 5*time.Hour-30*time.Second, 3*time.Hour)
		f("reset a little earlier", jitter, jitter)
		f("reset has passed", window(0.1, 3*time.Hour, 4*time.Hour), jitter)
		next := window(0.01, 11*time.Hour, 6*time.Hour)
		f("next window", next, next)

		silent := usage.ProviderWindow{Name: "5h", Utilization: 0.02, Seen: epoch.Add(7 * time.Hour)}
		known := silent
		known.Reset = next.Reset
		f("no reset told, the known one is ahead", silent, known)
		silent.Seen = epoch.Add(11 * time.Hour)
		f("no reset told, the known one has passed", silent, silent)
		nonsense := silent
		nonsense.Utilization, nonsense.Seen = math.NaN(), epoch.Add(12*time.Hour)
		nothing := nonsense
		nothing.Utilization = 0
		f("no number", nonsense, nothing)
		silent.Seen = epoch.Add(13 * time.Hour)
		f("a number again", silent, silent)

		hash := client.HGetAll(t.Context(), "authpool:{team-a}:windows").Val()
		if hash["claim"] != "five_hour" || hash["5h:util"] != "20000" || hash["5h:reset"] != "0" || hash["5h:status"] != "" {
			t.Errorf("Redis holds %v", hash)
		}
	})
}

// meterman spends money on team-a and tells what the provider says of it.
type meterman struct {
	t      rapid.TB
	ctx    context.Context
	store  *usage.Store
	client redis.UniversalClient
	spent  int64 // batches
}

const dollar = int64(1_000_000_000)

func (m *meterman) spend(nano int64) {
	m.t.Helper()
	m.spent++
	e := event(time.Duration(m.spent) * time.Millisecond)
	e.CostNanoUSD = nano
	if _, err := m.store.Apply(m.ctx, batch(m.spent, e)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *meterman) see(util float64, reset, seen time.Duration) {
	m.t.Helper()
	w := usage.ProviderWindow{Name: "5h", Utilization: util, Status: "allowed", Reset: epoch.Add(reset), Seen: epoch.Add(seen)}
	if err := m.store.Observe(m.ctx, "team-a", "", []usage.ProviderWindow{w}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *meterman) window() usage.Window {
	m.t.Helper()
	got, err := m.store.Windows(m.ctx, "team-a")
	if err != nil {
		m.t.Fatal(err)
	}
	if len(got["team-a"]) != 1 {
		m.t.Fatalf("there are %v", got)
	}
	return got["team-a"][0]
}

// TestWindowsAreReckoned goes through the life of a window that holds 100 dollars.
func TestWindowsAreReckoned(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		m := &meterman{t: t, ctx: t.Context(), store: usage.NewStore(client, "authpool"), client: client}
		type want struct {
			spent, since, capacity int64 // dollars
			foreign                float64
		}
		f := func(name string, w want) {
			t.Helper()
			got := m.window()
			if is := (want{got.SpentNanoUSD / dollar, got.SinceNanoUSD / dollar, got.CapacityNanoUSD / dollar, got.Foreign}); is != w {
				t.Errorf("%s: got %+v, want %+v", name, is, w)
			}
		}
		const reset = 5 * time.Hour
		m.spend(7 * dollar) // before anyone told of a window
		m.see(0.10, reset, time.Minute)
		f("what was before is not ours", want{})
		m.spend(1 * dollar)
		f("since", want{since: 1})
		m.see(0.11, reset, 2*time.Minute)
		f("too small a step to learn from", want{spent: 1})
		m.spend(3 * dollar)
		m.see(0.14, reset, 3*time.Minute)
		// 4 dollars moved it by 0.04. Of 0.14 our 4 dollars are 0.04: the rest was before.
		f("one pair", want{spent: 4, capacity: 100, foreign: 0.10})
		m.spend(2 * dollar)
		m.see(0.24, reset, 4*time.Minute) // somebody else spent most of it
		f("the mean of two", want{spent: 6, capacity: 60, foreign: 0.14})
		m.spend(10 * dollar)
		m.see(0.34, reset, 5*time.Minute)
		f("the median of three does not mind one", want{spent: 16, capacity: 100, foreign: 0.18})
		m.see(0.40, reset, 6*time.Minute)
		f("a step that was all others'", want{spent: 16, capacity: 100, foreign: 0.24})
		m.spend(5 * dollar)
		m.see(0.39, reset-20*time.Second, 7*time.Minute) // the answers of two sidecars cross
		m.see(0.45, reset+20*time.Second, 8*time.Minute)
		f("a reset that wavers, a step back that is noise", want{spent: 21, capacity: 100, foreign: 0.24})
		m.see(0.99, reset, time.Minute)
		f("an old answer", want{spent: 21, capacity: 100, foreign: 0.24})

		m.spend(50 * dollar)
		f("since, again", want{spent: 21, since: 50, capacity: 100, foreign: 0.24})
		m.see(0.01, 2*reset, reset+time.Minute)
		f("a new window: its cost begins here, what was learned stays", want{capacity: 100})
		m.spend(1 * dollar)
		m.see(0.03, 2*reset, reset+2*time.Minute) // 50 more in the list
		f("the next pair is of the new window alone", want{spent: 1, capacity: 100})

		for i := range 30 {
			m.spend(8 * dollar)
			m.see(0.03+0.04*float64(i+1), 2*reset, reset+time.Duration(3+i)*time.Minute)
		}
		hash := client.HGetAll(t.Context(), "authpool:{team-a}:windows").Val()
		if pairs := strings.Fields(hash["5h:pairs"]); len(pairs) != 20 || hash["5h:capacity_nano"] != "200000000000" {
			t.Errorf("Redis holds %v", hash)
		}
		if hash["5h:spent_nano"] != strconv.FormatInt(241*dollar, 10) {
			t.Errorf("Redis holds %v", hash)
		}

		// A fail-over that lost the total must not be taken for negative cost.
		client.HSet(t.Context(), "authpool:{team-a}:total", "cost_nano_usd", 5)
		if w := m.window(); w.SinceNanoUSD != 0 {
			t.Errorf("%+v", w)
		}
		m.see(1.50, 2*reset, 2*reset-time.Minute)
		f("the total was lost", want{spent: 241, capacity: 200, foreign: 1.5 - 1.205})
	})
}

// TestWindowsSteps are the borders of what is learned from.
func TestWindowsSteps(t *testing.T) {
	client := redistest.Mini(t)
	f := func(name string, want int64, step func(m *meterman)) {
		t.Helper()
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		m := &meterman{t: t, ctx: t.Context(), store: usage.NewStore(client, "authpool"), client: client}
		m.see(0.50, time.Hour, time.Second)
		step(m)
		if got := m.window().CapacityNanoUSD; got != want {
			t.Errorf("%s: learned %d, want %d", name, got, want)
		}
	}
	total := func(m *meterman, nano int64) { client.HSet(m.ctx, "authpool:{team-a}:total", "cost_nano_usd", nano) }
	f("the smallest step", 50*dollar, func(m *meterman) {
		m.spend(dollar)
		m.see(0.52, time.Hour, 2*time.Second)
	})
	f("a smaller one", 0, func(m *meterman) {
		m.spend(dollar)
		m.see(0.519999, time.Hour, 2*time.Second)
	})
	f("the provider gave some back: the next step begins there", 50*dollar, func(m *meterman) {
		m.spend(5 * dollar)
		m.see(0.48, time.Hour, 2*time.Second)
		m.spend(dollar)
		m.see(0.50, time.Hour, 3*time.Second)
	})
	f("more than can be", 9_000_000*dollar, func(m *meterman) {
		total(m, math.MaxInt64/2)
		m.see(0.52, time.Hour, 2*time.Second)
	})
	f("a total that comes and goes", 9_000_000*dollar, func(m *meterman) {
		for i := range 6 {
			total(m, int64(i%2)*(math.MaxInt64/2))
			m.see(0.52+0.1*float64(i), time.Hour, time.Duration(2+i)*time.Second)
		}
		if w := m.window(); w.SpentNanoUSD != 9_000_000*dollar {
			t.Errorf("%+v", w)
		}
	})
}

// TestWindowsTellNoReset: without one, a window begins anew where it falls.
func TestWindowsTellNoReset(t *testing.T) {
	m := &meterman{t: t, ctx: t.Context(), client: redistest.Mini(t)}
	m.store = usage.NewStore(m.client, "authpool")
	see := func(util float64, seen time.Duration) usage.Window {
		t.Helper()
		w := usage.ProviderWindow{Name: "5h", Utilization: util, Seen: epoch.Add(seen)}
		if err := m.store.Observe(t.Context(), "team-a", "", []usage.ProviderWindow{w}); err != nil {
			t.Fatal(err)
		}
		return m.window()
	}
	see(0.5, time.Minute)
	m.spend(dollar)
	if w := see(0.49, 2*time.Minute); w.SpentNanoUSD != dollar {
		t.Errorf("noise: %+v", w)
	}
	if w := see(0.1, 3*time.Minute); w.SpentNanoUSD != 0 {
		t.Errorf("a fall: %+v", w)
	}
}

func TestEffectiveAndDrift(t *testing.T) {
	now := epoch
	window := func(util float64, spent, since, capacity int64, reset time.Duration) usage.Window {
		w := usage.Window{SpentNanoUSD: spent, SinceNanoUSD: since, CapacityNanoUSD: capacity}
		w.Utilization = util
		if reset != 0 {
			w.Reset = now.Add(reset)
		}
		return w
	}
	f := func(name string, w usage.Window, fallback int64, effective float64, drift any) {
		t.Helper()
		if got := w.Effective(now); math.Abs(got-effective) > 1e-12 {
			t.Errorf("%s: effective %v, want %v", name, got, effective)
		}
		var got any
		if d, ok := w.Drift(now, fallback); ok {
			got = math.Round(d*1e9) / 1e9
		}
		if got != drift {
			t.Errorf("%s: drift %v, want %v", name, got, drift)
		}
	}
	f("nothing learned", window(0.5, 20, 10, 0, time.Hour), 0, 0.5, nil)
	f("a configured budget stands in for the drift only", window(0.5, 20, 10, 0, time.Hour), 100, 0.5, 0.3)
	f("learned rules over configured", window(0.5, 20, 10, 200, time.Hour), 100, 0.55, 0.4)
	f("all is ours", window(0.5, 50, 0, 100, time.Hour), 0, 0.5, 0.0)
	f("we count more", window(0.5, 80, 0, 100, time.Hour), 0, 0.5, -0.3)
	f("no reset told", window(0.5, 50, 10, 100, 0), 0, 0.6, 0.0)
	f("a moment before the reset", window(0.5, 50, 10, 100, 1), 0, 0.6, 0.0)
	f("at the reset", window(0.5, 50, 10, 100, -time.Nanosecond), 0, 0, nil)
	f("a capacity of next to nothing", window(0.5, 0, math.MaxInt64, 1, time.Hour), 0, 1e6, 0.5)
}

// TestWindowsStayNumbers: whatever several sidecars tell, in whatever order, what
// is reckoned from it stays in bounds.
func TestWindowsStayNumbers(t *testing.T) {
	client := redistest.Mini(t)
	ctx := t.Context()
	rapid.Check(t, func(rt *rapid.T) {
		if err := client.FlushAll(ctx).Err(); err != nil {
			rt.Fatal(err)
		}
		m := &meterman{t: rt, ctx: ctx, store: usage.NewStore(client, "authpool"), client: client}
		util := rapid.OneOf(rapid.Float64Range(0, 1.1), rapid.Float64(), rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, 0, 1e300}))
		minutes := rapid.IntRange(-10, 1000)
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.IntRange(0, 5).Draw(rt, "step") {
			case 0, 1:
				m.spend(rapid.OneOf(rapid.Int64Range(0, dollar), rapid.Int64()).Draw(rt, "cost"))
			case 2:
				client.HSet(ctx, "authpool:{team-a}:total", "cost_nano_usd", rapid.Int64Range(0, math.MaxInt64/2).Draw(rt, "total"))
			default:
				m.see(util.Draw(rt, "util"), time.Duration(minutes.Draw(rt, "reset"))*time.Minute, time.Duration(minutes.Draw(rt, "seen"))*time.Minute)
			}
			got, err := m.store.Windows(ctx, "team-a")
			if err != nil {
				rt.Fatal(err)
			}
			for _, w := range got["team-a"] {
				now := epoch.Add(time.Duration(minutes.Draw(rt, "now")) * time.Minute)
				e := w.Effective(now)
				d, _ := w.Drift(now, rapid.Int64().Draw(rt, "fallback"))
				if !(e >= 0 && e <= 1e6) || !(math.Abs(d) <= 1e6) || !(w.Foreign >= 0 && w.Foreign <= 1e6) ||
					w.SpentNanoUSD < 0 || w.SinceNanoUSD < 0 || w.CapacityNanoUSD < 0 {
					rt.Fatalf("effective %v, drift %v of %+v", e, d, w)
				}
			}
			if n := len(strings.Fields(client.HGet(ctx, "authpool:{team-a}:windows", "5h:pairs").Val())); n > 20 {
				rt.Fatalf("%d pairs", n)
			}
		}
	})
}

// TestWindowsLearnTheCapacity: several sidecars with answers that cross, a share of
// steps that others take, resets that waver, and what is learned is still the truth.
func TestWindowsLearnTheCapacity(t *testing.T) {
	client := redistest.Mini(t)
	rapid.Check(t, func(rt *rapid.T) {
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			rt.Fatal(err)
		}
		m := &meterman{t: rt, ctx: t.Context(), store: usage.NewStore(client, "authpool"), client: client}
		capacity := rapid.Int64Range(dollar, 10_000*dollar).Draw(rt, "capacity")
		var used int64 // by everybody, in the provider's eyes
		reset, clock := 5*time.Hour, time.Duration(0)
		for i := range 12 {
			step := capacity / 100 * rapid.Int64Range(2, 6).Draw(rt, "percent")
			m.spend(step)
			used += step
			if i%4 == 3 { // somebody else
				used += capacity / 100 * rapid.Int64Range(1, 5).Draw(rt, "others")
			}
			clock += time.Minute
			waver := time.Duration(rapid.IntRange(-15, 15).Draw(rt, "waver")) * time.Second
			told := float64(used) / float64(capacity)
			m.see(told, reset+waver, clock)
			for range rapid.IntRange(0, 1).Draw(rt, "late answers") {
				m.see(told*0.9, reset, clock-time.Duration(rapid.IntRange(1, 60).Draw(rt, "late by"))*time.Second)
			}
			if used > capacity {
				used, reset, clock = 0, reset+5*time.Hour, reset+time.Minute
				m.see(0, reset, clock)
			}
		}
		if off := math.Abs(float64(m.window().CapacityNanoUSD)/float64(capacity) - 1); off > 0.01 {
			rt.Fatalf("learned %d, want %d", m.window().CapacityNanoUSD, capacity)
		}
	})
}

// TestWindowsOfManyNames keeps them apart.
func TestWindowsOfManyNames(t *testing.T) {
	client := redistest.Mini(t)
	m := &meterman{t: t, ctx: t.Context(), store: usage.NewStore(client, "authpool"), client: client}
	for i := range 3 {
		m.spend(dollar)
		var told []usage.ProviderWindow
		for n, name := range []string{"5h", "7d", "7d_opus"} {
			told = append(told, usage.ProviderWindow{
				Name: name, Utilization: float64(i*(n+1)) * 0.02, Reset: epoch.Add(time.Hour), Seen: epoch.Add(time.Duration(i) * time.Minute),
			})
		}
		if err := m.store.Observe(t.Context(), "team-a", "", told); err != nil {
			t.Fatal(err)
		}
	}
	got, err := m.store.Windows(t.Context(), "team-a")
	if err != nil {
		t.Fatal(err)
	}
	var is []string
	for _, w := range got["team-a"] {
		is = append(is, fmt.Sprintf("%s %d", w.Name, w.CapacityNanoUSD/dollar))
	}
	if diff := cmp.Diff([]string{"5h 50", "7d 25", "7d_opus 16"}, is); diff != "" {
		t.Error(diff)
	}
}

// TestWindowsOfSeveralSidecars: at the same time, in any order, the newest view stays,
// and what all of them spent is counted once.
func TestWindowsOfSeveralSidecars(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const sidecars, views = 4, 25
		m := &meterman{t: t, ctx: t.Context(), store: usage.NewStore(client, "authpool"), client: client}
		m.see(0, 5*time.Hour, 0)
		m.spend(10 * dollar)
		errs := make([]error, sidecars)
		var busy sync.WaitGroup
		for n := range sidecars {
			busy.Go(func() {
				for i := range views {
					at := 1 + (i*7)%views*sidecars + n // of all sidecars' views, which
					w := usage.ProviderWindow{
						Name: "5h", Utilization: float64(at) / 1000, Reset: epoch.Add(5 * time.Hour),
						Seen: epoch.Add(time.Duration(at) * time.Second),
					}
					errs[n] = errors.Join(errs[n], m.store.Observe(t.Context(), "team-a", "", []usage.ProviderWindow{w}))
				}
			})
		}
		busy.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		w := m.window()
		if want := epoch.Add(sidecars * views * time.Second); w.Seen != want || w.Utilization != 0.1 || w.SpentNanoUSD != 10*dollar {
			t.Errorf("got %+v, want the view of %v", w, want)
		}
	})
}
