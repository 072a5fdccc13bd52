package proxy

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
)

// The constants of the memory of failed tries.
const (
	// triesMost bounds the conversations that are remembered; the one that
	// failed longest ago is forgotten first.
	triesMost = 1024
	// triesKeep is how long after its last failure a conversation is.
	triesKeep = 2 * time.Minute
	// triesFree is how many tries in a row go to the provider whenever they come:
	// more than any SDK makes by itself.
	triesFree = 4
	// triesFirst is the pause after those; it doubles with each failure more, up
	// to triesPause. A client that waits longer than that between two tries, as
	// Claude Code does, never notices.
	triesFirst = time.Second
	triesPause = 10 * time.Second
	// triesBody is the longest error text that is kept to be shown again.
	triesBody = 8 << 10
)

// tries remembers which conversations met a failing provider, so that an agent
// which tries again at once, and authpool which tries elsewhere, do not multiply:
// codex alone makes 30 tries in 25 seconds. The second try of a request is not
// repeated elsewhere, and after some more the provider is left in peace for a
// moment; meanwhile its own last error is shown.
//
// A try is known by its conversation and model, because little else is the same
// in all tries: only some SDKs count them in a header, Claude Code always says 0,
// and codex' x-client-request-id is its session. It holds for the conversation
// that met the failure and for no other: an overload that comes and goes must
// not lock others out. It is safe for concurrent use.
type tries struct {
	count atomic.Int32 // conversations: most of the time there is none

	mu    sync.Mutex
	of    map[tryKey]*list.Element
	order list.List // of *tried, the last to fail at the end
}

// tryKey is one conversation with one model. Without a session there is none.
type tryKey struct{ provider, agent, session, model string }

// tried is what became of a conversation's last tries.
type tried struct {
	key      tryKey
	failures int // in a row
	last     time.Time
	error    *kept
}

// pause is how long the provider is left in peace after the last failure.
func (t *tried) pause() time.Duration {
	if t.failures < triesFree {
		return 0
	}
	pause := triesFirst
	for i := triesFree; i < t.failures && pause < triesPause; i++ {
		pause *= 2
	}
	return min(pause, triesPause)
}

// again tells how many tries before this one failed in a row, and the error to
// answer with when it must not go to the provider yet; else nil.
func (t *tries) again(key tryKey, now time.Time) (failures int, answer *kept) {
	if t.count.Load() == 0 || key.session == "" {
		return 0, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	e := t.of[key]
	if e == nil {
		return 0, nil
	}
	one := e.Value.(*tried)
	if now.Before(one.last.Add(one.pause())) {
		return one.failures, one.error
	}
	return one.failures, nil
}

// failed notes that a try has ended with this error of the provider.
func (t *tries) failed(key tryKey, k *kept, now time.Time) {
	if key.session == "" {
		return
	}
	if len(k.body) > triesBody {
		k = &kept{verdict: k.verdict, status: k.status, err: k.err}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	e := t.of[key]
	if e == nil {
		if t.of == nil {
			t.of = make(map[tryKey]*list.Element)
		}
		e = t.order.PushBack(&tried{key: key})
		t.of[key] = e
		t.count.Add(1)
	}
	one := e.Value.(*tried)
	one.failures++
	one.last, one.error = now, k
	t.order.MoveToBack(e)
	if len(t.of) > triesMost {
		t.forget(t.order.Front())
	}
}

// served forgets the failures of a conversation that goes on.
func (t *tries) served(key tryKey) {
	if t.count.Load() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.of[key]; e != nil {
		t.forget(e)
	}
}

// expire forgets what failed too long ago, under the lock.
func (t *tries) expire(now time.Time) {
	for e := t.order.Front(); e != nil && !now.Before(e.Value.(*tried).last.Add(triesKeep)); e = t.order.Front() {
		t.forget(e)
	}
}

func (t *tries) forget(e *list.Element) {
	delete(t.of, e.Value.(*tried).key)
	t.order.Remove(e)
	t.count.Add(-1)
}

// tryKey names the conversation of the request.
func (ex *exchange) tryKey() tryKey {
	return tryKey{ex.provider.Name, ex.agent, ex.info.Session.ID, ex.info.Model}
}

// repeated finds out whether this is one more try of what has failed before. It
// returns the answer when the provider is to be left in peace; but where the pool
// sees to that, it is better to wait there.
func (ex *exchange) repeated(req *pool.Request) *refusal {
	failures, k := ex.s.tries.again(ex.tryKey(), ex.start)
	ex.info.RetryCount = max(ex.info.RetryCount, failures)
	if k == nil {
		return nil
	}
	if k.head != nil {
		// Others may be shown it at the same time.
		head := &fasthttp.ResponseHeader{}
		k.head.CopyTo(head)
		k = &kept{verdict: k.verdict, status: k.status, head: head, body: k.body}
	}
	if ex.s.deps.Pool.Holds(req) {
		ex.kept = k // to be shown should waiting not help
		return nil
	}
	triesDamped.Inc()
	ex.story.damped = true
	return ex.failing(k)
}

// learn remembers how the last attempt of the try has ended, for the next one.
func (ex *exchange) learn(v ratelimit.Verdict) {
	switch {
	case executed(v):
		ex.keep(v)
		ex.s.tries.failed(ex.tryKey(), ex.kept, time.Now())
	case v.Signal == ratelimit.OK:
		ex.s.tries.served(ex.tryKey())
	}
}

// failing shows the provider's last error, in its own words where they are whole.
func (ex *exchange) failing(k *kept) *refusal {
	switch {
	case k.head != nil:
		return &refusal{status: k.status, kept: k}
	case k.verdict.Signal == ratelimit.Overloaded:
		r := &refusal{message: "provider " + ex.provider.Name + " is overloaded"}
		r.closed(ex.family, string(ratelimit.ReasonCapacity))
		return r
	}
	return ex.unreached(k.verdict, k.err)
}
