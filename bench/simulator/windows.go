package simulator

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// UsageWindow is a usage window of a subscription, as Claude and ChatGPT plans have them. It begins with the first answer
// after the last one ended.
type UsageWindow struct {
	// Name is its length: 5h or 7d.
	Name string `yaml:"name"`
	// Tokens is what it holds, input that the cache did not have and output. The answer that fills it may go over.
	Tokens int `yaml:"tokens"`
}

// windowLengths are the windows that there are, and Anthropic's word for each.
var windowLengths = map[string]struct {
	length time.Duration
	claim  string
}{
	"5h": {5 * time.Hour, "five_hour"},
	"7d": {7 * 24 * time.Hour, "seven_day"},
}

func (w UsageWindow) check() error {
	if _, ok := windowLengths[w.Name]; !ok {
		return fmt.Errorf("name: %q, want 5h or 7d", w.Name)
	}
	if w.Tokens < 1 {
		return fmt.Errorf("tokens: %d, want 1 or more", w.Tokens)
	}
	return nil
}

// window is a UsageWindow with what is used of it; the organisation's mu guards it.
type window struct {
	UsageWindow
	used  int
	reset time.Time // zero or past: it has not begun
}

func (w *window) take(now time.Time, tokens int) {
	if !now.Before(w.reset) {
		w.used, w.reset = 0, now.Add(windowLengths[w.Name].length)
	}
	w.used += tokens
}

// utilization is the share that is spent, which may exceed 1.
func (w *window) utilization(now time.Time) float64 {
	if !now.Before(w.reset) {
		return 0
	}
	return float64(w.used) / float64(w.Tokens)
}

// end is when the window resets, or would if it began now.
func (w *window) end(now time.Time) time.Time {
	if !now.Before(w.reset) {
		return now.Add(windowLengths[w.Name].length)
	}
	return w.reset
}

// tightest is the window that decides: of those that are full the one that resets last, else the fullest. nil: there
// is none.
func (o *organisation) tightest(now time.Time) (tightest *window, full bool) {
	for _, w := range o.windows {
		switch isFull := w.utilization(now) >= 1; {
		case tightest == nil,
			isFull && (!full || w.end(now).After(tightest.end(now))),
			!isFull && !full && w.utilization(now) > tightest.utilization(now):
			tightest, full = w, isFull
		}
	}
	return tightest, full
}

// rejected is the refusal of windows that are used up, or nil.
func (o *organisation) rejected(now time.Time) *refusal {
	w, full := o.tightest(now)
	if !full {
		return nil
	}
	return &refusal{what: "window", limit: w.Tokens, used: w.used, wait: w.end(now).Sub(now), window: true}
}

// windowHeaders tells the windows as the provider does, on every answer.
func (a *account) windowHeaders(h http.Header, now time.Time) {
	w, full := a.tightest(now)
	if w == nil {
		return
	}
	if a.provider == OpenAI {
		for i, w := range a.windows {
			slot := []string{"Primary", "Secondary"}[i]
			h.Set("X-Codex-"+slot+"-Used-Percent", strconv.FormatFloat(100*w.utilization(now), 'f', 1, 64))
			h.Set("X-Codex-"+slot+"-Window-Minutes", strconv.Itoa(int(windowLengths[w.Name].length/time.Minute)))
			h.Set("X-Codex-"+slot+"-Reset-At", epoch(w.end(now)))
		}
		return
	}
	word := func(full bool) string {
		if full {
			return "rejected"
		}
		return "allowed"
	}
	const unified = "Anthropic-Ratelimit-Unified-"
	h.Set(unified+"Status", word(full))
	h.Set(unified+"Reset", epoch(w.end(now)))
	h.Set(unified+"Representative-Claim", windowLengths[w.Name].claim)
	for _, w := range a.windows {
		h.Set(unified+w.Name+"-Utilization", strconv.FormatFloat(w.utilization(now), 'f', -1, 64))
		h.Set(unified+w.Name+"-Reset", epoch(w.end(now)))
		h.Set(unified+w.Name+"-Status", word(w.utilization(now) >= 1))
	}
}

func epoch(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
