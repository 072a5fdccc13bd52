package meter

import (
	"math"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// generation is what a stream has shown of the output so far, by kind.
type generation struct {
	prose   deltas // text of the answer
	thought deltas // text of the reasoning, where it is shown
	args    deltas // arguments of tool calls
	names   int64  // bytes of the names of called tools
	calls   int64
	blocks  int64 // content blocks begun
	sealed  int64 // tokens that sealed reasoning stands for
}

// deltas counts pieces of one kind of text.
type deltas struct{ bytes, pieces int64 }

func (d *deltas) add(bytes int64) {
	d.bytes += bytes
	d.pieces++
}

func (d *deltas) plus(e deltas) {
	d.bytes += e.bytes
	d.pieces += e.pieces
}

func (g *generation) plus(h *generation) {
	g.prose.plus(h.prose)
	g.thought.plus(h.thought)
	g.args.plus(h.args)
	g.names += h.names
	g.calls += h.calls
	g.blocks += h.blocks
	g.sealed += h.sealed
}

// rates are what an estimate needs to know of a dialect. They were fitted to the
// recorded streams; see Meter.EstimateOutput.
type rates struct {
	// fine: a delta is one token, as long as deltas are short.
	fine bool
	// block and call are the tokens of a content block and of a tool call beside
	// the text in them: the model writes their frame too.
	block, call int64
	// Reasoning that is not shown goes to the agent sealed, and the seal grows
	// with it: sealedRate tokens for each 1,000 bytes beyond the first sealedBase.
	sealedBase, sealedRate int64
}

// Bytes of UTF-8 that one token has on average. Arguments are JSON, whose marks
// and short keys are tokens of their own. Scripts with longer characters have
// fewer of them in a token, so that bytes serve for every script.
const (
	proseBytes = 4
	argsBytes  = 2.5
)

// tokens returns about how many tokens were generated.
func (g *generation) tokens(r *rates) int64 {
	n := r.text(g.prose, proseBytes) + r.text(g.args, argsBytes)
	n += max(r.text(g.thought, proseBytes), float64(g.sealed)) // the same reasoning
	n += float64(g.names) / proseBytes
	return int64(math.Ceil(n)) + g.calls*r.call + g.blocks*r.block
}

// A provider that sends a delta for each token has a mean below shortDelta
// bytes, one that gathers text has one above longDelta. Between them an estimate
// goes over from the one to the other.
const (
	shortDelta = 5.5
	longDelta  = 8
)

// text returns about how many tokens the text of d has, at so many bytes each.
func (r *rates) text(d deltas, each float64) float64 {
	n := float64(d.bytes) / each
	if !r.fine || d.pieces == 0 {
		return n
	}
	pieces := float64(d.pieces)
	n = max(n, pieces)
	mean := float64(d.bytes) / pieces
	gathered := min(max((mean-shortDelta)/(longDelta-shortDelta), 0), 1)
	return pieces + (n-pieces)*gathered
}

// seal returns about how many tokens of reasoning a sealed text of so many bytes
// stands for.
func (r *rates) seal(bytes int64) int64 {
	return max(bytes-r.sealedBase, 0) * r.sealedRate / 1000
}

// size returns how many bytes the text of a string has, its escapes undone. Of a
// long string the escapes are counted in its beginning only.
func size(v *jsonscan.Value) int64 {
	n := v.End - v.Start - 2
	if !v.Escaped || len(v.Raw) == 0 {
		return n
	}
	var text [256]byte
	return n * int64(len(jsonscan.Unquote(text[:0], v.Raw))) / int64(len(v.Raw))
}
