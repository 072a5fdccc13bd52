package usage

import "time"

// BlockLength is the length of an accounting block: ccusage's five hours.
const BlockLength = 5 * time.Hour

// Block is one five-hour accounting window of a subscription, after ccusage's
// rule: it starts with its first event, floored to the hour in UTC, and ends
// BlockLength later. An event opens a new block when it lies more than
// BlockLength after the start, or more than BlockLength after the last event;
// at exactly BlockLength it still belongs to the old one. The provider's own
// window is another thing: see ProviderWindow.
type Block struct {
	Start time.Time
	End   time.Time
	First time.Time // the first event in it
	Last  time.Time // the last
	Counts
}

// Active tells whether the block is the one that usage now counts for, as
// ccusage shows it: less than BlockLength after its last event and before its
// end. Reading has this strict border, counting the one described at Block, so
// an event exactly at the end still enters a block that is no longer shown.
func (b Block) Active(now time.Time) bool {
	return now.Sub(b.Last) < BlockLength && now.Before(b.End)
}

// Counts are sums over events. The names of the fields in Redis and in the
// contract stand beside them; Reasoning and Units have a field only where they
// are not zero.
type Counts struct {
	Requests     int64 // requests
	Input        int64 // input: uncached input tokens
	Output       int64 // output: tokens, reasoning included
	CacheRead    int64 // cache_read: tokens
	CacheWrite5m int64 // cache_write_5m: tokens
	CacheWrite1h int64 // cache_write_1h: tokens
	CostNanoUSD  int64 // cost_nano_usd
	Estimated    int64 // estimated: requests whose tokens are an estimate
	Unpriced     int64 // unpriced: requests, or shares of one, without a full price: see Event.Unpriced
	Unknown      int64 // unknown: requests whose answer told no tokens
	Reasoning    int64 // reasoning: the part of output that was reasoning, where it is told
	Units        Units // by the names of Units.All
}

// fields are the names of Counts in Redis, in the order of Counts.refs and of
// FIELDS in apply.lua.
var fields = [...]string{
	"requests", "input", "output", "cache_read", "cache_write_5m", "cache_write_1h",
	"cost_nano_usd", "estimated", "unpriced", "unknown",
	"reasoning",
	unitNames[0], unitNames[1], unitNames[2], unitNames[3], unitNames[4],
}

// alwaysFields is how many of fields every sum has, also where they are zero. The
// others would be zeros in nearly every hash.
const alwaysFields = 10

// refs returns the counts in the order of fields.
func (c *Counts) refs() [len(fields)]*int64 {
	u := c.Units.refs()
	return [...]*int64{
		&c.Requests, &c.Input, &c.Output, &c.CacheRead, &c.CacheWrite5m, &c.CacheWrite1h,
		&c.CostNanoUSD, &c.Estimated, &c.Unpriced, &c.Unknown,
		&c.Reasoning,
		u[0], u[1], u[2], u[3], u[4],
	}
}

// Add adds o to c.
func (c *Counts) Add(o Counts) {
	from := o.refs()
	for i, to := range c.refs() {
		*to += *from[i]
	}
}

// countsOf returns what one event adds. A further model's share is no request of
// its own, so that requests are answers everywhere.
func countsOf(e *Event) Counts {
	c := Counts{
		Input:        clamp(e.Tokens.Input),
		Output:       clamp(e.Tokens.Output),
		CacheRead:    clamp(e.Tokens.CacheRead),
		CacheWrite5m: clamp(e.Tokens.CacheWrite5m),
		CacheWrite1h: clamp(e.Tokens.CacheWrite1h),
		CostNanoUSD:  clamp(e.CostNanoUSD),
		Reasoning:    clamp(e.Tokens.Reasoning),
		Units:        e.Units,
	}
	for _, n := range c.Units.refs() {
		*n = clamp(*n)
	}
	if e.Unpriced {
		c.Unpriced = 1
	}
	if e.Further {
		return c
	}
	c.Requests = 1
	if e.Unknown {
		c.Unknown = 1
	}
	if e.Estimated {
		c.Estimated = 1
	}
	return c
}

// maxCount bounds each number of one event, so that the sums of a batch stay far
// from the end of int64. As tokens of one answer it is 70 million millions, as
// cost 70,000 dollars; only a nonsensical answer has more.
const maxCount = 1 << 46

func clamp(n int64) int64 { return min(max(n, 0), maxCount) }
