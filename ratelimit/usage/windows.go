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

var (
	//go:embed windows.lua
	windowsSource string
	windowsScript = redis.NewScript(windowsSource)
)

// Observe stores the windows that one answer told, and the name of the one that
// rules, if the provider says so. What is older than what is stored is left out,
// so answers may come in any order, from any sidecar.
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
	if err := windowsScript.Run(ctx, s.client, []string{s.windowsKey(subscription)}, args...).Err(); err != nil {
		return fmt.Errorf("cannot store the provider's windows of %s: %w", subscription, err)
	}
	return nil
}

// Windows returns the newest view of a subscription's windows, sorted by name. A
// window whose Reset has passed is empty by now, whatever its Utilization.
func (s *Store) Windows(ctx context.Context, subscription string) ([]ProviderWindow, error) {
	hash, err := s.client.HGetAll(ctx, s.windowsKey(subscription)).Result()
	if err != nil {
		return nil, fmt.Errorf("cannot read the provider's windows of %s: %w", subscription, err)
	}
	var windows []ProviderWindow
	for field := range hash {
		name, ok := strings.CutSuffix(field, ":seen")
		if !ok {
			continue
		}
		w := ProviderWindow{Name: name, Status: hash[name+":status"]}
		util, err1 := strconv.ParseInt(hash[name+":util"], 10, 64)
		reset, err2 := strconv.ParseInt(hash[name+":reset"], 10, 64)
		seen, err3 := strconv.ParseInt(hash[field], 10, 64)
		if err := cmp.Or(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("cannot read window %s of %s: %w", name, subscription, err)
		}
		w.Utilization, w.Seen = float64(util)/million, time.UnixMilli(seen).UTC()
		if reset > 0 {
			w.Reset = time.UnixMilli(reset).UTC()
		}
		windows = append(windows, w)
	}
	slices.SortFunc(windows, func(a, b ProviderWindow) int { return cmp.Compare(a.Name, b.Name) })
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
