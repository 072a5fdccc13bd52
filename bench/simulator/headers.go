package simulator

import (
	"net/http"
	"strconv"
	"time"
)

// limitHeaders says what is left of the organisation's limits, as the provider does. A limit that it does not have is
// left out.
func (a *account) limitHeaders(h http.Header, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch a.provider { // the others tell nothing
	case Anthropic:
		a.anthropicHeaders(h, now)
		a.windowHeaders(h, now)
	case OpenAI:
		a.openaiHeaders(h, now)
		a.windowHeaders(h, now)
	}
}

func (a *account) anthropicHeaders(h http.Header, now time.Time) {
	set := func(name string, b *bucket, thousands bool) {
		if b == nil {
			return
		}
		left := b.remaining(now)
		if thousands {
			left = (left + 500) / 1000 * 1000
		}
		h.Set("Anthropic-Ratelimit-"+name+"-Limit", strconv.Itoa(b.limit))
		h.Set("Anthropic-Ratelimit-"+name+"-Remaining", strconv.Itoa(left))
		h.Set("Anthropic-Ratelimit-"+name+"-Reset", now.Add(b.full(now)).UTC().Truncate(time.Second).Format(time.RFC3339))
	}
	set("Requests", a.requests, false)
	set("Input-Tokens", a.input, true)
	set("Output-Tokens", a.output, true)
	// The plain name shows the limit that is nearest.
	nearest := a.input
	if nearest == nil || a.output != nil && a.output.remaining(now)*nearest.limit < nearest.remaining(now)*a.output.limit {
		nearest = a.output
	}
	set("Tokens", nearest, true)
}

func (a *account) openaiHeaders(h http.Header, now time.Time) {
	set := func(name string, b *bucket) {
		if b == nil {
			return
		}
		h.Set("X-Ratelimit-Limit-"+name, strconv.Itoa(b.limit))
		h.Set("X-Ratelimit-Remaining-"+name, strconv.Itoa(b.remaining(now)))
		h.Set("X-Ratelimit-Reset-"+name, goDuration(b.full(now)))
	}
	set("Requests", a.requests)
	if a.input != nil {
		set("Tokens", a.input)
	} else {
		set("Tokens", a.output)
	}
}
