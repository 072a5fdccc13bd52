package admin

import (
	"cmp"
	"math"
	"time"

	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/ratelimit/usage"
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
	Journal       Journal        `json:"journal"`
}

// Subscription is one subscription's state.
type Subscription struct {
	ID             string               `json:"id"`
	Provider       string               `json:"provider"`
	Domain         string               `json:"domain"`          // with whom it shares its limits: as configured, or the organisation that answers named; else ""
	State          string               `json:"state"`           // ready, cooling, probing, draining or disabled
	Reason         string               `json:"reason"`          // why the state is not ready, else ""
	Health         int                  `json:"health"`          // 0..100
	Score          explain.Score        `json:"score"`           // for the next new session, with the parts of health
	FirstByte      *explain.Seconds     `json:"first_byte_s"`    // typical of its recent streamed answers; null: not known
	CooldownUntil  *time.Time           `json:"cooldown_until"`  // null when the subscription as a whole is open
	CooldownModels map[string]time.Time `json:"cooldown_models"` // models that are closed on it; never null
	Breaker        string               `json:"breaker"`         // closed, half-open or open
	Block          *Block               `json:"block"`           // null when no block is active
	Windows        []Window             `json:"windows"`         // the provider's own view; never null
	Sessions       int                  `json:"sessions"`
	InFlight       int                  `json:"in_flight"`
	Budgets        []Budget             `json:"budgets"`        // the configured ones; never null, empty while Redis is away
	BudgetState    string               `json:"budget_state"`   // the worst of Budgets: ok, warning or exceeded; Unknown while Redis is away
	BudgetFreeAt   *time.Time           `json:"budget_free_at"` // when none is exceeded any more; null when none is, or when it is not known
	Minute         *Minute              `json:"minute"`         // null while Redis is away
}

// Block is the active 5-hour block of a subscription.
type Block struct {
	Start        time.Time        `json:"start"`
	End          time.Time        `json:"end"`
	Requests     int64            `json:"requests"`
	Input        int64            `json:"input"`
	Output       int64            `json:"output"`
	CacheRead    int64            `json:"cache_read"`
	CacheWrite5m int64            `json:"cache_write_5m"`
	CacheWrite1h int64            `json:"cache_write_1h"`
	CostUSD      NanoUSD          `json:"cost_usd"`
	First        time.Time        `json:"first"` // the first event in it
	Last         time.Time        `json:"last"`
	Reasoning    int64            `json:"reasoning"` // a part of Output
	Units        map[string]int64 `json:"units"`     // what is not counted in tokens, by name; never null
	Estimated    int64            `json:"estimated"` // these three as in UsageRow
	Unpriced     int64            `json:"unpriced"`
	Unknown      int64            `json:"unknown"`
	Burn         *Burn            `json:"burn"`       // null while it has no two events at different times
	Projection   *Projection      `json:"projection"` // likewise
	Capacity     *Capacity        `json:"capacity"`   // null when no budget is configured and nothing is learned
	EmptiesAt    *time.Time       `json:"empties_at"` // when Capacity is used up at the present rate; null when not within the block
}

// Burn is how fast a block is spent, over the time from its first event to its last.
type Burn struct {
	TokensPerMinute    float64 `json:"tokens_per_minute"`    // all kinds
	IndicatorPerMinute float64 `json:"indicator_per_minute"` // input and output alone
	CostUSDPerHour     NanoUSD `json:"cost_usd_per_hour"`
	// Steady tells that it stands on a minute at least: else it is a moment's, and no
	// EmptiesAt is foretold by it.
	Steady bool `json:"steady"`
}

// Projection is what the block will have come to at its end at that rate.
type Projection struct {
	RemainingMinutes int64   `json:"remaining_minutes"`
	Tokens           int64   `json:"tokens"`
	CostUSD          NanoUSD `json:"cost_usd"`
}

// Unknown is the BudgetState of a subscription whose spending cannot be read.
const Unknown = "unknown"

// The sources of a Capacity.
const (
	Configured = "configured" // the budget of the config
	Learned    = "learned"    // from how the provider's utilisation moves
)

// Capacity is what a block may cost, and how much of that is used.
type Capacity struct {
	CostUSD NanoUSD `json:"cost_usd"`
	Source  string  `json:"source"` // Configured or Learned
	Used    float64 `json:"used"`   // fraction, whole thousandths, rounded down; above 1 is possible
}

// Budget is what a subscription may use in a period; of what is 0 or left out, as much
// as it likes.
type Budget struct {
	Window       string     `json:"window"` // block, day, week or month; UTC
	CostUSD      NanoUSD    `json:"cost_usd"`
	Tokens       int64      `json:"tokens,omitempty"` // of all kinds
	Requests     int64      `json:"requests,omitempty"`
	SpentUSD     NanoUSD    `json:"spent_usd"`
	UsedTokens   int64      `json:"used_tokens"`
	UsedRequests int64      `json:"used_requests"`
	Used         float64    `json:"used"`       // as in Capacity, of what the most is used of
	State        string     `json:"state"`      // ok, warning (from 0.8) or exceeded
	Resets       *time.Time `json:"resets"`     // null for a block that has not begun
	EmptiesAt    *time.Time `json:"empties_at"` // when it is used up at the active block's rate; null when not before it resets
}

// Minute is the usage of the last minute: of the present ten seconds and the fifty
// before.
type Minute struct {
	Requests int64 `json:"requests"`
	Input    int64 `json:"input"`
	Output   int64 `json:"output"`
}

// Tokens is the sum of all kinds.
func (b Block) Tokens() int64 {
	return b.Input + b.Output + b.CacheRead + b.CacheWrite5m + b.CacheWrite1h
}

// Window is a provider's own view of one of its limits, and from Effective on, what
// is reckoned from it and our own count.
type Window struct {
	Name        string     `json:"name"`
	Kind        string     `json:"kind"`
	Utilization float64    `json:"utilization"` // spent fraction, sometimes above 1
	Status      string     `json:"status"`
	Reset       *time.Time `json:"reset"` // null when the provider did not tell
	Seen        time.Time  `json:"seen"`
	Effective   float64    `json:"effective"` // Utilization and what went through us since; 0 once Reset has passed
	SpentUSD    *NanoUSD   `json:"spent_usd"` // our own cost in this window, until Seen; null when not known
	// CapacityUSD is what the whole window holds, learned from how far our own cost
	// moved Utilization; null until it did.
	CapacityUSD *NanoUSD `json:"capacity_usd"`
	// Drift is Utilization less our own share of CapacityUSD, or of the configured
	// budget while nothing is learned: 0 when all usage goes through us, above when
	// somebody else uses the subscription. Null when there is neither.
	Drift     *float64   `json:"drift"`
	Foreign   float64    `json:"foreign"`    // Drift against what was learned, where it is more than rounding explains
	EmptiesAt *time.Time `json:"empties_at"` // when it is used up at the active block's rate; null when not before Reset
}

// Redis is the state of the store.
type Redis struct {
	Mode           string `json:"mode"` // embedded, single, sentinel or cluster
	OK             bool   `json:"ok"`
	JournalPending int    `json:"journal_pending"` // events that are not in Redis yet
}

// Journal is the state of the usage journal of the process that answers.
type Journal struct {
	Bytes    int64 `json:"bytes"`      // on disk
	Held     int64 `json:"held_bytes"` // the part of Bytes that cannot go, as it is not counted in Redis yet
	MaxBytes int64 `json:"max_bytes"`  // of Held; beyond it usage is refused
	Refused  int64 `json:"refused"`    // answers whose usage was not recorded since the start
	Refusing bool  `json:"refusing"`   // the newest answer's was not, and there is no room yet
	// OldestPending is the oldest event that is not in Redis yet, null when there is
	// none. Usage that waits for long keeps newer usage from being let go.
	OldestPending *OldestPending `json:"oldest_pending"`
}

// OldestPending is an event that is not in Redis yet.
type OldestPending struct {
	Subscription string    `json:"subscription"`
	Time         time.Time `json:"time"`
	Error        string    `json:"error"` // why it could not be counted when that was last tried; "" when it was not
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
	Unpriced     int64   `json:"unpriced"`  // requests without a full price: an unknown model (cost 0) or class of service (standard cost)
	Unknown      int64   `json:"unknown"`   // requests whose answer told no tokens

	Reasoning int64            `json:"reasoning"` // the part of Output that was reasoning
	Units     map[string]int64 `json:"units"`     // what is not counted in tokens, by name; never null
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
	if w := s.Journal.OldestPending; w != nil {
		s.Journal.OldestPending = &OldestPending{w.Subscription, utc(w.Time), w.Error}
	}
}

func (s *Subscription) normalise() {
	for _, part := range []*float64{
		&s.Score.Total, &s.Score.Availability, &s.Score.Headroom, &s.Score.Soundness, &s.Score.Swiftness, &s.Score.Idleness,
	} {
		*part = finite(*part)
	}
	s.CooldownUntil, s.BudgetFreeAt = utcOrNil(s.CooldownUntil), utcOrNil(s.BudgetFreeAt)
	models := make(map[string]time.Time, len(s.CooldownModels))
	for model, until := range s.CooldownModels {
		models[model] = utc(until)
	}
	s.CooldownModels = models
	if s.Block != nil {
		b := *s.Block
		b.normalise()
		s.Block = &b
	}
	windows := make([]Window, len(s.Windows))
	for i, w := range s.Windows {
		w.Seen = utc(w.Seen)
		w.Reset, w.EmptiesAt = utcOrNil(w.Reset), utcOrNil(w.EmptiesAt)
		w.Utilization, w.Effective, w.Foreign = finite(w.Utilization), finite(w.Effective), finite(w.Foreign)
		if w.Drift != nil {
			drift := finite(*w.Drift)
			w.Drift = &drift
		}
		windows[i] = w
	}
	s.Windows = windows
	budgets := make([]Budget, len(s.Budgets))
	for i, b := range s.Budgets {
		b.Used = finite(b.Used)
		b.Resets, b.EmptiesAt = utcOrNil(b.Resets), utcOrNil(b.EmptiesAt)
		budgets[i] = b
	}
	s.Budgets = budgets
	s.BudgetState = cmp.Or(s.BudgetState, usage.BudgetOK.String())
}

func (b *Block) normalise() {
	b.Start, b.End, b.First, b.Last = utc(b.Start), utc(b.End), utc(b.First), utc(b.Last)
	b.EmptiesAt = utcOrNil(b.EmptiesAt)
	b.Units = orEmpty(b.Units)
	if b.Burn != nil {
		burn := *b.Burn
		burn.TokensPerMinute, burn.IndicatorPerMinute = finite(burn.TokensPerMinute), finite(burn.IndicatorPerMinute)
		b.Burn = &burn
	}
	if b.Capacity != nil {
		c := *b.Capacity
		c.Used = finite(c.Used)
		b.Capacity = &c
	}
}

func utcOrNil(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := utc(*t)
	return &u
}

// finite is f in millionths, as utilization is kept, or 0 for what JSON has no words
// for. Digits beyond are those of floating point, and no one's count.
func finite(f float64) float64 {
	const million = 1e6
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	if rounded := math.Round(f*million) / million; !math.IsInf(rounded, 0) {
		return rounded
	}
	return f
}

func orEmpty(units map[string]int64) map[string]int64 {
	if units == nil {
		return map[string]int64{}
	}
	return units
}
