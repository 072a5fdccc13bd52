package ratelimit

import (
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// toldModels bounds the models that are remembered of one subscription.
	toldModels = 64
	// toldMost is how long an answer's word keeps requests waiting at most, and
	// how soon a bucket has to be full again that is looked after at all: what
	// counts hours or days only steers (see Gate.Utilization).
	toldMost  = time.Minute
	toldSlow  = 2 * time.Minute
	toldRound = 1000 // to what Anthropic rounds what is left of tokens
	// toldLow is the part of a bucket above which nobody looks after it.
	toldLow = 1.0 / 4
	// toldParts bounds into how many parts it is divided: smaller ones would hold
	// requests back until the bucket is full.
	toldParts = 8
)

// told is what the provider's answers say is left of its own limits per minute,
// model by model, while that is little. With it a request waits for what it
// needs, in place of being refused. It is only ever a reason to wait for a moment:
// what an answer said is forgotten when the bucket has to be full again, and after
// toldMost in any case, whatever the headers say.
//
// Of the time that a bucket takes until it is full one can tell how fast it fills.
// Where the provider counts from one fixed instant to the next instead, that is
// too fast, and it is the provider who refuses. A request whose tokens nobody has
// estimated waits only while hardly any are left.
type told struct {
	count atomic.Int32 // of models, to be read without the lock
	among atomic.Int32 // processes that use the subscription; 0: one

	mu     sync.Mutex
	models map[string]*toldModel
}

// toldKinds are the limits that providers tell: of requests, of input, of output,
// and of tokens of both kinds.
const toldKinds = kinds + 1

// toldModel is what is known of one model.
type toldModel struct {
	sent    [toldKinds]int64 // by this process, since the model is known
	buckets [toldKinds]toldBucket
}

// toldBucket is what one answer told of one limit.
type toldBucket struct {
	left  float64   // when it was seen
	sent  int64     // what was sent before the request that it answers, and that
	size  float64   // the limit
	pace  float64   // what comes in a second
	seen  time.Time // when the answer came
	until time.Time // when it is forgotten
}

// toldTurn is one request among those that were booked.
type toldTurn struct {
	model *toldModel
	sent  [toldKinds]int64 // until then, and by it
}

// toldNeeds is what a request takes of each kind.
func toldNeeds(n Amounts) [toldKinds]int64 {
	return [toldKinds]int64{n[0], n[1], n[2], n[1] + n[2]}
}

// check tells what keeps a request waiting.
func (t *told) check(now time.Time, model string, need Amounts) Refusal {
	if t.count.Load() == 0 {
		return Refusal{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_, r := t.refusal(now, model, need)
	return r
}

// take books what a request takes, or refuses it, unless it dares. Of a model that
// nothing is known of it books nothing, and returns nil.
func (t *told) take(now time.Time, model string, need Amounts, dares bool) (*toldTurn, Refusal) {
	if t.count.Load() == 0 {
		return nil, Refusal{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m, r := t.refusal(now, model, need)
	if m == nil || r.Why != Open && !dares {
		return nil, r
	}
	m.book(need)
	return &toldTurn{m, m.sent}, Refusal{}
}

// giveBack books what was not used after all; negative is what was used beyond.
func (t *told) giveBack(turn *toldTurn, n Amounts) {
	if turn == nil {
		return
	}
	for k := range n {
		n[k] = -n[k]
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	turn.model.book(n)
}

func (m *toldModel) book(n Amounts) {
	for k, n := range toldNeeds(n) {
		m.sent[k] += n
	}
}

// refusal forgets what is old, and returns what is known of the model: nil where
// nothing is.
func (t *told) refusal(now time.Time, model string, need Amounts) (*toldModel, Refusal) {
	m := t.models[model]
	if m == nil {
		return nil, Refusal{}
	}
	known, until := false, now
	among := float64(max(t.among.Load(), 1))
	for k, n := range toldNeeds(need) {
		b := &m.buckets[k]
		if !now.Before(b.until) {
			continue
		}
		known = true
		left := min(b.left+max(now.Sub(b.seen).Seconds(), 0)*b.pace, b.size)/among - float64(m.sent[k]-b.sent)
		if lack := min(max(float64(n), 1)+restOf(k, b.size)/among, b.size/among) - left; lack > 1e-3 {
			wait := time.Duration(min(lack/b.pace*among, toldMost.Seconds())*float64(time.Second)) + time.Millisecond
			until = later(until, earlier(now.Add(wait), b.until))
		}
	}
	if !known {
		delete(t.models, model)
		t.count.Store(int32(len(t.models)))
		return nil, Refusal{}
	}
	if until.After(now) {
		return m, Refusal{Why: Metered, Until: until, Foretold: true}
	}
	return m, Refusal{}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// hear takes over what the answer to p tells.
func (t *told) hear(p *Pass, windows []Window) {
	split := false // tokens of both kinds are said to be limited by themselves
	for i := range windows {
		split = split || windows[i].Kind == "bucket" && windows[i].Name == "input_tokens"
	}
	for i := range windows {
		w := &windows[i]
		if w.Kind != "bucket" {
			continue
		}
		k := 0
		switch w.Name {
		case "requests":
		case "input_tokens":
			k = 1
		case "output_tokens":
			k = 2
		case "tokens", "project_tokens":
			if k = kinds; split {
				continue // one of them, or something that nobody can name
			}
		default:
			continue
		}
		if b, ok := w.bucket(k > 0); ok && (b.left <= b.size*toldLow || t.count.Load() > 0) {
			t.note(p, k, b)
		}
	}
}

// bucket is what the window says, if it is of a limit per minute and has sense.
func (w *Window) bucket(tokens bool) (b toldBucket, ok bool) {
	full := w.Reset.Sub(w.Seen)
	pace := (w.Size - w.Left) / full.Seconds()
	sane := full > 0 && w.Left >= 0 && w.Left < w.Size && w.Size/pace <= toldSlow.Seconds()
	if !sane { // not a number, too
		return b, false
	}
	left := w.Left
	if tokens && w.Size >= 10*toldRound && math.Mod(left, toldRound) == 0 {
		left = min(left+toldRound/2, w.Size) // 0 is no proof
	}
	return toldBucket{
		left: left, size: w.Size, pace: pace,
		seen: w.Seen, until: w.Seen.Add(min(full, toldMost)),
	}, true
}

// note takes over one limit. Of a model that nobody looks after it is the first
// word only if little is left.
func (t *told) note(p *Pass, k int, b toldBucket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.models[p.model]
	if m == nil {
		if b.left > b.size*toldLow || !t.makeRoom(b.seen) {
			return
		}
		if t.models == nil {
			t.models = make(map[string]*toldModel)
		}
		m = &toldModel{}
		t.models[strings.Clone(p.model)] = m
		t.count.Store(int32(len(t.models)))
	}
	if b.seen.Before(m.buckets[k].seen) {
		return
	}
	// What was sent after the request, the provider had not seen. Before the model
	// was known nobody counted.
	b.sent = m.sent[k]
	if p.told != nil && p.told.model == m {
		b.sent = p.told.sent[k]
	}
	m.buckets[k] = b
}

// makeRoom tells whether there is room for one more model.
func (t *told) makeRoom(now time.Time) bool {
	if len(t.models) < toldModels {
		return true
	}
	for model, m := range t.models {
		known := false
		for k := range m.buckets {
			known = known || now.Before(m.buckets[k].until)
		}
		if !known {
			delete(t.models, model)
		}
	}
	return len(t.models) < toldModels
}

// Among says how many processes use the subscription, this one too. Each takes an
// equal part of what the provider's answers say is left: one that does not use its
// part leaves it to the others, who learn of it by their next answers.
func (g *Gate) Among(processes int) { g.told.among.Store(int32(min(processes, toldParts))) }
