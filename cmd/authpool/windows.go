package main

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// providerWindow is the kind of a ratelimit.Window that is a usage window.
const providerWindow = "provider"

const (
	// windowsEvery is how often the providers' windows are brought to Redis.
	windowsEvery = time.Second
	// windowsLimit bounds one round of it.
	windowsLimit = 5 * time.Second
)

// windowsDeps are what a windowsWriter reads from and writes to: the pool,
// Redis' health, and the usage store.
type windowsDeps struct {
	status  func() []pool.Status
	healthy func() bool
	observe func(ctx context.Context, subscription, ruling string, windows []usage.ProviderWindow) error
}

// windowsWriter brings the usage windows that the providers tell of to Redis,
// where people and other processes find them beside our own blocks. Limits that
// refill within minutes are left to `status`: in Redis they would be out of date
// before anyone reads them.
type windowsWriter struct {
	windowsDeps
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}

	// told is what Redis has of this process, by subscription. It belongs to
	// the goroutine, and after its end to close.
	told map[string][]usage.ProviderWindow
}

// startWindows begins to write. close ends it.
func startWindows(deps windowsDeps, log *slog.Logger) *windowsWriter {
	ctx, stop := context.WithCancel(context.Background())
	w := &windowsWriter{
		windowsDeps: deps, log: log, stop: stop, done: make(chan struct{}),
		told: map[string][]usage.ProviderWindow{},
	}
	go w.run(ctx)
	return w
}

// close writes what has changed since the last round, and ends.
func (w *windowsWriter) close(ctx context.Context) error {
	w.stop()
	<-w.done
	w.write(ctx)
	return nil
}

func (w *windowsWriter) run(ctx context.Context) {
	defer close(w.done)
	tick := time.NewTicker(windowsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.write(ctx)
		}
	}
}

// write writes the windows that have changed. A Redis that was away may have lost
// the others, too, and gets all of them.
func (w *windowsWriter) write(ctx context.Context) {
	if !w.healthy() {
		clear(w.told)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, windowsLimit)
	defer cancel()
	for _, s := range w.status() {
		windows, ruling := providerWindows(s.Windows)
		if slices.Equal(windows, w.told[s.ID]) {
			continue
		}
		if err := w.observe(ctx, s.ID, ruling, windows); err != nil {
			if ctx.Err() == nil {
				w.log.Warn("the providers' windows in Redis are out of date", "error", err)
			}
			clear(w.told)
			return
		}
		w.told[s.ID] = windows
	}
}

// providerWindows brings the pool's view into the store's words, with the
// provider's own word for the window that decides, by the newest answer.
func providerWindows(told []ratelimit.Window) (windows []usage.ProviderWindow, ruling string) {
	var newest time.Time
	for _, w := range told {
		if w.Kind != providerWindow {
			continue
		}
		windows = append(windows, usage.ProviderWindow{
			Name: w.Name, Utilization: w.Utilization, Status: w.Status, Reset: w.Reset, Seen: w.Seen,
		})
		if w.Claim != "" && w.Seen.After(newest) {
			ruling, newest = w.Claim, w.Seen
		}
	}
	return windows, ruling
}
