package ratelimit

import (
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// windowsMost bounds the windows that are remembered of one subscription. The
// providers tell of at most ten.
const windowsMost = 32

// How long a window without a stated reset is believed.
const (
	bucketLife = time.Minute
	windowLife = 5 * time.Hour
)

// windows is the provider's own view of a subscription's limits, as told by
// the last answer that told it. Safe for concurrent use.
type windows struct {
	mu  sync.Mutex
	all []Window // sorted by name
}

// remember takes over what one answer told. An answer that was received before
// the known one changes nothing.
func (w *windows) remember(told []Window) {
	if len(told) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range told {
		i, known := slices.BinarySearchFunc(w.all, t.Name, func(have Window, name string) int {
			return strings.Compare(have.Name, name)
		})
		switch {
		case known:
			if !t.Seen.Before(w.all[i].Seen) {
				t.Name, t.Kind = w.all[i].Name, w.all[i].Kind
				if t.Status == w.all[i].Status {
					t.Status = w.all[i].Status
				} else {
					t.Status = strings.Clone(t.Status)
				}
				w.all[i] = t
			}
		case len(w.all) < windowsMost:
			// Names come from headers, which do not outlive the request.
			t.Name, t.Kind, t.Status = strings.Clone(t.Name), strings.Clone(t.Kind), strings.Clone(t.Status)
			w.all = slices.Insert(w.all, i, t)
		}
	}
}

func (w *windows) list() []Window {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

// each tells f of the windows that concern every request.
func (w *windows) each(now time.Time, f func(Limit)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.all {
		one := &w.all[i]
		if one.partial() {
			continue
		}
		f(Limit{Spent: one.Spent(now), Reset: one.Reset, Expires: one.Kind == "provider"})
	}
}

// partial tells a window that is about some requests only: a family of models
// ("7d_oi"), or paid usage beyond the plan ("overage"), which is rejected on
// every subscription that did not buy any.
func (w *Window) partial() bool {
	return w.Kind == "provider" && (w.Name == "overage" || strings.Contains(w.Name, "_"))
}

// Spent is the window's utilization at now, never negative and never NaN: 0
// after its reset, 1 at least while it is rejected.
func (w *Window) Spent(now time.Time) float64 {
	end := w.Reset
	if end.IsZero() {
		life := windowLife
		if w.Kind == "bucket" {
			life = bucketLife
		}
		end = w.Seen.Add(life)
	}
	switch {
	case !now.Before(end), math.IsNaN(w.Utilization):
		return 0
	case w.Status == "rejected":
		return max(1, w.Utilization)
	}
	return max(0, w.Utilization)
}
