package simulator

import "time"

// usage is what one answer is billed for. Input does not hold what was read from or written to the cache.
type usage struct {
	input, output, cacheRead, write5m, write1h int64
	thinking                                   int64 // part of output
}

func (u usage) prompt() int64 { return u.input + u.cacheRead + u.write5m + u.write1h }

const (
	cacheShort = 5 * time.Minute
	cacheLong  = time.Hour
	// cacheSize bounds the prefixes kept for one key; the one that ends first goes.
	cacheSize = 4096
)

// promptCache remembers the prompt prefixes of one key until they expire.
type promptCache struct {
	until map[[32]byte]time.Time
}

// price splits the prompt into what the cache holds and what not. It changes nothing.
func (p *promptCache) price(now time.Time, c *call) usage {
	var u usage
	total := int64(0)
	for _, s := range c.prompt {
		total += tokens(s)
	}
	cacheable := p.cacheable(c)
	var before, hit int64
	for i, sum := range c.prefixes[:cacheable] {
		before += tokens(c.prompt[i])
		if p.until[sum].After(now) {
			hit = before
		}
	}
	u.cacheRead = hit
	if c.asksForCache() && cacheable > 0 {
		if c.cacheLong {
			u.write1h = before - hit
		} else {
			u.write5m = before - hit
		}
	}
	u.input = total - u.cacheRead - u.write5m - u.write1h
	return u
}

// keep puts the prompt's prefixes into the cache, or renews them.
func (p *promptCache) keep(now time.Time, c *call) {
	life := cacheShort
	if c.cacheLong {
		life = cacheLong
	}
	if p.until == nil {
		p.until = make(map[[32]byte]time.Time)
	}
	for _, sum := range c.prefixes[:p.cacheable(c)] {
		if _, known := p.until[sum]; !known && len(p.until) >= cacheSize {
			p.drop(now)
		}
		p.until[sum] = now.Add(life)
	}
}

// asksForCache tells whether a provider keeps nothing that it is not asked to keep, and bills what it writes.
func (c *call) asksForCache() bool { return c.provider == Anthropic || c.provider == Bedrock }

// cacheable is how many pieces of the prompt are kept: all but the last one, and none unless asked for where that has
// to be.
func (p *promptCache) cacheable(c *call) int {
	if c.asksForCache() && !c.cacheControl || len(c.prompt) == 0 {
		return 0
	}
	return len(c.prompt) - 1
}

// drop removes what has expired, else the prefix that ends first.
func (p *promptCache) drop(now time.Time) {
	var first [32]byte
	var end time.Time
	for sum, until := range p.until {
		if !until.After(now) {
			delete(p.until, sum)
		} else if end.IsZero() || until.Before(end) {
			first, end = sum, until
		}
	}
	if len(p.until) >= cacheSize {
		delete(p.until, first)
	}
}
