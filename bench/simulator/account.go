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
	org      string // organisation id, a function of the key

	mu                      sync.Mutex
	requests, input, output *bucket
	cache                   promptCache
}

func newAccount(k Key) *account {
	sum := digest("organisation", k.Provider, k.Key)
	id := hex.EncodeToString(sum[:16])
	org := id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
	if k.Provider == OpenAI {
		org = "org-" + id[:24]
	}
	return &account{
		key: k.Key, provider: k.Provider, org: org,
		requests: newBucket(k.RPM), input: newBucket(k.ITPM), output: newBucket(k.OTPM),
	}
}

// admit prices a prompt against the key's cache, and takes it from the key's limits with the output it will
// have. It takes all or nothing; a refused prompt leaves the cache as it was.
func (a *account) admit(now time.Time, c *call, output int) (usage, *refusal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.cache.price(now, c)
	u.output = int64(output)
	input := int(u.input + u.write5m + u.write1h)
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
			worst = &refusal{what, b.limit, b.limit - b.remaining(now), n, wait, tooLarge}
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
