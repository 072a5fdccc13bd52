package usage

import (
	"cmp"
	"context"
	_ "embed" // the script
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// ProviderWindow is a provider's own view of one of its usage windows, as its
// answers' headers tell it. It is kept beside our Block and never bent into it: the
// two start at different times and count different things.
type ProviderWindow struct {
	Name        string    // "5h", "7d", ...; without a colon
	Utilization float64   // spent fraction, 0..1 and sometimes above
	Status      string    // the provider's word, or ""
	Reset       time.Time // zero when not told
	Seen        time.Time // when the answer came
}

// Window is a provider's window beside what all sidecars together counted in it.
// The provider's view is of the moment Seen and knows everybody's usage; our cost is
// exact and knows only what went through us. All amounts are nano-dollars and never
// negative.
type Window struct {
	ProviderWindow
	SpentNanoUSD int64 // our cost from the window's first view to Seen
	SinceNanoUSD int64 // our cost since Seen
	// CapacityNanoUSD is what the whole window holds, learned from how far our cost
	// moved Utilization: the median of the last twenty such steps. 0 until there
	// was one.
	CapacityNanoUSD int64
	// Foreign is the part of Utilization that somebody else must have used, or that
	// was used before the window's first view. 0 while nothing is learned, and where
	// the difference is no more than rounding explains.
	Foreign float64
}

// Effective returns the spent fraction at now: the provider's last word, and what we
// spent since. After the reset it is 0 until the next answer. Never negative, never
// above maxUtilization.
func (w Window) Effective(now time.Time) float64 {
	if !w.Reset.IsZero() && !now.Before(w.Reset) {
		return 0
	}
	return min(w.Utilization+share(w.SinceNanoUSD, w.CapacityNanoUSD), maxUtilization)
}

// Drift returns how far the provider's view lies above our own count at the same
// moment, as a fraction of the window: about 0 when all usage goes through us, above
// when somebody else uses the subscription too, below when capacity is set too low.
// fallback is what the window is taken to hold while nothing is learned. ok is false
// when neither says, and when the window is over.
func (w Window) Drift(now time.Time, fallback int64) (drift float64, ok bool) {
	capacity := cmp.Or(w.CapacityNanoUSD, max(fallback, 0))
	if capacity == 0 || !w.Reset.IsZero() && !now.Before(w.Reset) {
		return 0, false
	}
	return w.Utilization - min(share(w.SpentNanoUSD, capacity), maxUtilization), true
}

// share is cost as a fraction of capacity; 0 when capacity is not known.
func share(cost, capacity int64) float64 {
	if capacity <= 0 {
		return 0
	}
	return float64(max(cost, 0)) / float64(capacity)
}

var (
	//go:embed windows.lua
	windowsSource string
	windowsScript = redis.NewScript(windowsSource)
)

// Observe stores the windows that one answer told, and the name of the one that
// rules, if the provider says so. What is older than what is stored is left out,
// so answers may come in any order, from any sidecar. What a window holds is learned
// on the way, by the same script.
func (s *Store) Observe(ctx context.Context, subscription, ruling string, windows []ProviderWindow) error {
	args := make([]any, 0, 1+5*len(windows))
	args = append(args, ruling)
	for _, w := range windows {
		var util int64 // 0 also for what is no number
		if w.Utilization > 0 {
			util = int64(math.Round(min(w.Utilization, maxUtilization) * million))
		}
		args = append(args, w.Name, util, unixMilli(w.Reset), w.Status, unixMilli(w.Seen))
	}
	keys := []string{s.windowsKey(subscription), s.totalKey(subscription)}
	if err := windowsScript.Run(ctx, s.client, keys, args...).Err(); err != nil {
		return fmt.Errorf("cannot store the provider's windows of %s: %w", subscription, err)
	}
	return nil
}

// Windows returns the newest view of the windows of subscriptions, by id, sorted by
// name. A subscription without windows is left out.
func (s *Store) Windows(ctx context.Context, subscriptions ...string) (map[string][]Window, error) {
	keys, totals := make([]string, len(subscriptions)), make([]string, len(subscriptions))
	for i, sub := range subscriptions {
		keys[i], totals[i] = s.windowsKey(sub), s.totalKey(sub)
	}
	hashes := make([]map[string]string, len(subscriptions))
	err := s.hashes(ctx, keys, func(i int, hash map[string]string) error {
		hashes[i] = hash
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the providers' windows: %w", err)
	}
	spent, err := s.costs(ctx, totals) // after the windows, so that what came since is counted
	if err != nil {
		return nil, fmt.Errorf("cannot read the totals: %w", err)
	}
	found := map[string][]Window{}
	for i, sub := range subscriptions {
		windows, err := parseWindows(hashes[i], spent[i])
		if err != nil {
			return nil, fmt.Errorf("cannot read the provider's windows of %s: %w", sub, err)
		}
		if len(windows) > 0 {
			found[sub] = windows
		}
	}
	return found, nil
}

// parseWindows reads what windows.lua wrote; total is what the subscription has cost
// by now.
func parseWindows(hash map[string]string, total int64) ([]Window, error) {
	var windows []Window
	for field := range hash {
		name, ok := strings.CutSuffix(field, ":seen")
		if !ok {
			continue
		}
		var errs []error
		number := func(field string) int64 {
			text, ok := hash[name+":"+field]
			if !ok {
				return 0
			}
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				errs = append(errs, fmt.Errorf("field %s:%s is %q, not a number", name, field, text))
			}
			return n
		}
		w := Window{
			ProviderWindow: ProviderWindow{
				Name: name, Status: hash[name+":status"],
				Utilization: float64(number("util")) / million,
				Seen:        time.UnixMilli(number("seen")).UTC(),
			},
			SpentNanoUSD:    number("spent_nano"),
			SinceNanoUSD:    max(0, total-number("total_nano")),
			CapacityNanoUSD: number("capacity_nano"),
			Foreign:         float64(number("foreign")) / million,
		}
		if reset := number("reset"); reset > 0 {
			w.Reset = time.UnixMilli(reset).UTC()
		}
		if err := cmp.Or(errs...); err != nil {
			return nil, err
		}
		windows = append(windows, w)
	}
	slices.SortFunc(windows, func(a, b Window) int { return cmp.Compare(a.Name, b.Name) })
	return windows, nil
}

const (
	million = 1e6
	// maxUtilization bounds nonsense; 1.04 has been seen.
	maxUtilization = 1e6
)

func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// costs returns what the hashes at keys say of cost; 0 where there is none.
func (s *Store) costs(ctx context.Context, keys []string) ([]int64, error) {
	costs := make([]int64, 0, len(keys))
	for chunk := range slices.Chunk(keys, pipelineSize) {
		found := make([]*redis.SliceCmd, len(chunk))
		if err := s.pipeline(ctx, func(p redis.Pipeliner) {
			for i, key := range chunk {
				found[i] = p.HMGet(ctx, key, "cost_nano_usd") // unlike HGET, it is no error without the field
			}
		}); err != nil {
			return nil, err
		}
		for i, key := range chunk {
			text, ok := found[i].Val()[0].(string)
			if !ok {
				costs = append(costs, 0)
				continue
			}
			cost, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: field cost_nano_usd is %q, not an amount", key, text)
			}
			costs = append(costs, cost)
		}
	}
	return costs, nil
}
