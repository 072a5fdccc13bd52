package pool

import (
	"context"
	"time"

	"github.com/authpool/authpool/pool/store"
)

// allowanceWait is how long a request waits for this process's part of a limit
// per minute that the fleet has, rather than be served by another subscription.
// The talk with Redis takes some milliseconds; it is shorter than briefWait, so
// that who may not wait for a subscription can still go elsewhere.
const allowanceWait = 1500 * time.Millisecond

// musterEvery is how often it is asked how many processes there are.
const musterEvery = 10 * time.Second

// muster finds out among how many processes what a provider's answers say is left
// has to be divided.
func (k *keeper) muster(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	n, err := k.pool.bindings.Watchers(ctx)
	if err != nil {
		return // as many as before, then
	}
	k.processes = n
	for _, m := range k.pool.members() {
		m.gate.Among(n)
	}
}

// soon tells whether the request should stay for what the fleet is being asked
// for. patience is when it ends for a cooldown; zero: it begins now.
func (r refusal) soon(patience, now time.Time) bool {
	return r.short && (patience.IsZero() || now.Before(patience.Add(allowanceWait-briefWait)))
}

// rates draws this process's allowances of the limits per minute. leaves gives
// them back for good.
func (k *keeper) rates(ctx context.Context, leaves bool) {
	p := k.pool
	sent := time.Now()
	var members []*member
	var draws []store.RateDraw
	for _, m := range p.members() {
		waiting := int(p.group(m.conf().Provider).queue.length.Load())
		if d, ok := m.gate.Draw(sent, waiting, leaves); ok {
			members, draws = append(members, m), append(draws, store.RateDraw{Subscription: m.conf().ID, Draw: d})
		}
	}
	if len(draws) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	drawn := p.bindings.DrawRates(ctx, p.process, draws)
	now := time.Now()
	for i, m := range members {
		switch {
		case drawn[i].Err != nil:
			m.gate.Undrawn()
		case !m.gate.Drawn(sent, now, draws[i].Draw, drawn[i].Drawn):
			continue
		}
		p.group(m.conf().Provider).queue.event()
	}
}
