package admin

import (
	"math"
	"time"
)

// The paths of the API that `authpool status` and `authpool usage` ask.
const (
	StatusPath = "/api/v1/status"
	UsagePath  = "/api/v1/usage"
)

// The response headers in which UsagePath tells the range that it really
// counted, after rounding; RFC 3339 in UTC, absent where the range is open.
const (
	SinceHeader = "X-Authpool-Since"
	UntilHeader = "X-Authpool-Until"
)

// Status is the answer of StatusPath and of `authpool status --json`.
type Status struct {
	Subscriptions []Subscription `json:"subscriptions"` // never null
	Redis         Redis          `json:"redis"`
}

// Subscription is one subscription's state.
type Subscription struct {
	ID             string               `json:"id"`
	Provider       string               `json:"provider"`
	State          string               `json:"state"`           // ready, cooling, probing, draining or disabled
	Reason         string               `json:"reason"`          // why the state is not ready, else ""
	Health         int                  `json:"health"`          // 0..100
	CooldownUntil  *time.Time           `json:"cooldown_until"`  // null when the subscription as a whole is open
	CooldownModels map[string]time.Time `json:"cooldown_models"` // models that are closed on it; never null
	Breaker        string               `json:"breaker"`         // closed, half-open or open
	Block          *Block               `json:"block"`           // null when no block is active
	Windows        []Window             `json:"windows"`         // the provider's own view; never null
	Sessions       int                  `json:"sessions"`
	InFlight       int                  `json:"in_flight"`
}

// Block is the active 5-hour block of a subscription.
type Block struct {
	Start        time.Time `json:"start"`
	End          time.Time `json:"end"`
	Requests     int64     `json:"requests"`
	Input        int64     `json:"input"`
	Output       int64     `json:"output"`
	CacheRead    int64     `json:"cache_read"`
	CacheWrite5m int64     `json:"cache_write_5m"`
	CacheWrite1h int64     `json:"cache_write_1h"`
	CostUSD      NanoUSD   `json:"cost_usd"`
}

// Tokens is the sum of all kinds.
func (b Block) Tokens() int64 {
	return b.Input + b.Output + b.CacheRead + b.CacheWrite5m + b.CacheWrite1h
}

// Window is a provider's own view of one of its limits.
type Window struct {
	Name        string     `json:"name"`
	Kind        string     `json:"kind"`
	Utilization float64    `json:"utilization"` // spent fraction, sometimes above 1
	Status      string     `json:"status"`
	Reset       *time.Time `json:"reset"` // null when the provider did not tell
	Seen        time.Time  `json:"seen"`
}

// Redis is the state of the store.
type Redis struct {
	Mode           string `json:"mode"` // embedded, single, sentinel or cluster
	OK             bool   `json:"ok"`
	JournalPending int    `json:"journal_pending"` // events that are not in Redis yet
}

// UsageRow is one line of UsagePath's answer and of `authpool usage --json`.
type UsageRow struct {
	Key          string  `json:"key"`
	Requests     int64   `json:"requests"`
	Input        int64   `json:"input"`
	Output       int64   `json:"output"`
	CacheRead    int64   `json:"cache_read"`
	CacheWrite5m int64   `json:"cache_write_5m"`
	CacheWrite1h int64   `json:"cache_write_1h"`
	CostUSD      NanoUSD `json:"cost_usd"`
	Estimated    int64   `json:"estimated"` // requests that were cut before their final usage
	Unpriced     int64   `json:"unpriced"`  // requests of models that the price table does not know
	Unknown      int64   `json:"unknown"`   // requests whose answer told no usage
}

// Problem is the body of every error of this API (RFC 9457,
// application/problem+json).
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"` // one sentence that says what to do
}

// utc brings a time to the form that the API shows: UTC, whole milliseconds.
func utc(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// normalise makes s what the contract promises whatever the source left out:
// no null lists or maps, all times in UTC.
func (s *Status) normalise() {
	if s.Subscriptions == nil {
		s.Subscriptions = []Subscription{}
	}
	for i := range s.Subscriptions {
		s.Subscriptions[i].normalise()
	}
}

func (s *Subscription) normalise() {
	if s.CooldownUntil != nil {
		t := utc(*s.CooldownUntil)
		s.CooldownUntil = &t
	}
	models := make(map[string]time.Time, len(s.CooldownModels))
	for model, until := range s.CooldownModels {
		models[model] = utc(until)
	}
	s.CooldownModels = models
	if s.Block != nil {
		b := *s.Block
		b.Start, b.End = utc(b.Start), utc(b.End)
		s.Block = &b
	}
	windows := make([]Window, len(s.Windows))
	for i, w := range s.Windows {
		w.Seen = utc(w.Seen)
		if math.IsNaN(w.Utilization) || math.IsInf(w.Utilization, 0) {
			w.Utilization = 0 // JSON has no such numbers
		}
		if w.Reset != nil {
			t := utc(*w.Reset)
			w.Reset = &t
		}
		windows[i] = w
	}
	s.Windows = windows
}
