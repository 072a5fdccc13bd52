package simulator

import (
	"encoding/hex"
	"sync"
	"time"
)

// account is a key and everything the simulator keeps for it.
type account struct {
	key      string
	provider string
	*organisation

	cache promptCache // guarded by the organisation's mu
}

// organisation is whom a provider's limits belong to: one key, or several.
type organisation struct {
	org string // its id: the name given, else a function of the key

	mu                      sync.Mutex
	requests, input, output *bucket
	windows                 []*window
}

func newAccount(k Key, o *organisation) *account {
	return &account{key: k.Key, provider: k.Provider, organisation: o}
}

func newOrganisation(k Key) *organisation {
	o := &organisation{org: k.Organisation, requests: newBucket(k.RPM), input: newBucket(k.ITPM), output: newBucket(k.OTPM)}
	for _, w := range k.Windows {
		o.windows = append(o.windows, &window{UsageWindow: w})
	}
	if o.org != "" {
		return o
	}
	sum := digest("organisation", k.Provider, k.Key)
	id := hex.EncodeToString(sum[:16])
	if o.org = "org-" + id[:24]; k.Provider == Anthropic {
		o.org = id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
	}
	return o
}

// admit prices a prompt against the key's cache, and takes it from the organisation's limits with the output it will
// have. It takes all or nothing; a refused prompt leaves the cache as it was.
func (a *account) admit(now time.Time, c *call, output int) (usage, *refusal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.cache.price(now, c)
	u.output = int64(output)
	input := int(u.input + u.write5m + u.write1h)
	if r := a.rejected(now); r != nil {
		return usage{}, r
	}
	spent := input + output
	if a.provider == OpenAI {
		input += int(u.cacheRead) + output // one limit for all tokens
	}
	var worst *refusal
	ask := func(b *bucket, what string, n int) {
		if b == nil {
			return
		}
		tooLarge := a.provider == OpenAI && n > b.limit
		if wait := b.wait(now, n); tooLarge || wait > 0 && (worst == nil || wait > worst.wait) {
			worst = &refusal{what: what, limit: b.limit, used: b.limit - b.remaining(now), requested: n, wait: wait, tooLarge: tooLarge}
		}
	}
	ask(a.requests, "requests", 1)
	ask(a.input, "input tokens", input)
	ask(a.output, "output tokens", output)
	if worst != nil {
		return usage{}, worst
	}
	a.requests.take(now, 1)
	a.input.take(now, input)
	a.output.take(now, output)
	for _, w := range a.windows {
		w.take(now, spent)
	}
	a.cache.keep(now, c)
	return u, nil
}

// count takes one request that spends no tokens.
func (a *account) count(now time.Time) *refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	if wait := a.requests.wait(now, 1); wait > 0 {
		return &refusal{what: "requests", limit: a.requests.limit, used: a.requests.limit, requested: 1, wait: wait}
	}
	a.requests.take(now, 1)
	return nil
}
