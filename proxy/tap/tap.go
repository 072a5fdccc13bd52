// Package tap stands between a provider's answer and the agent: every piece of
// the answer is pushed through a Tap, which gives a decoded copy to whoever
// reads the answer (the meter) and returns the bytes that may go on.
//
// What goes on is what came, with two exceptions that the request side asks
// for: a credential that the answer echoes is overwritten by `*` of the same
// length, and the usage chunk that authpool, not the agent, asked for is left
// out. Nothing is delayed but bytes that may still turn out to be one of these.
//
// A Tap does no I/O and starts no goroutine that runs by itself: all its work
// is done within Pass. The Sink is always ahead of the agent: it has been given
// everything that can be decoded from a piece before Pass returns the piece.
//
// Events cuts server-sent events out of a stream; the meter uses it too.
package tap

import "errors"

// ErrEcho means that a compressed answer echoes the credential. It cannot be
// masked inside a compressed stream, so the answer must be cut: nothing of the
// piece passed last may go to the agent.
var ErrEcho = errors.New("the compressed answer echoes the credential")

// Sink is given the decoded copy of an answer, within the calls of Tap.
type Sink interface {
	// Write is given the next decoded bytes. It must not keep p nor change it.
	Write(p []byte)
	// Blind says that no more can be decoded, although the answer goes on: an
	// unknown or corrupt coding, or far more text than bytes.
	Blind()
	// Close says that the answer has ended, wholly or not. It is called once.
	Close()
}

// Options say how one answer is to be treated.
type Options struct {
	// Encoding is the answer's Content-Encoding as sent; it may list several.
	Encoding string
	// Sink is given the decoded copy; nil when nobody reads it.
	Sink Sink
	// Mask lists the texts that must not reach the agent. Texts shorter than
	// 8 bytes are ignored: ordinary answers hold them.
	Mask [][]byte
	// Filter takes the usage chunk out of an OpenAI stream whose agent did not
	// ask for it. It has no effect on a compressed answer.
	Filter bool
}

// Tap treats one answer at a time. It is not safe for concurrent use.
type Tap struct {
	sink    Sink
	decode  *decoder // nil when the answer is not compressed
	mask    mask
	filter  filter
	filters bool
	closed  bool
	err     error
}

// New returns a Tap for an answer. It must be ended by Finish or Close.
func New(o Options) *Tap {
	t := new(Tap)
	t.Reset(o)
	return t
}

// Reset makes t, ended by Finish or Close, ready for another answer.
func (t *Tap) Reset(o Options) {
	t.sink, t.filters, t.closed, t.err = o.Sink, o.Filter, false, nil
	t.mask.reset(o.Mask)
	t.filter.reset()
	t.decode = nil
	encodings := parseEncodings(o.Encoding)
	if len(encodings) == 0 {
		return
	}
	t.filters = false
	t.decode = &decoder{copy: t.sighted}
	if o.Sink == nil && len(t.mask.texts) == 0 {
		t.decode.blind = true // nobody looks
		return
	}
	if !t.decode.open(encodings) {
		t.goBlind()
	}
}

// Pass is given the next piece of the answer's body and returns the bytes that
// may go to the agent now: p itself, unless something is masked, held back or
// left out. p may be changed and is out's memory; out is valid until the next
// call. The only error is ErrEcho, and it is final.
func (t *Tap) Pass(p []byte) (out []byte, err error) {
	if t.err != nil {
		return nil, t.err
	}
	if t.decode != nil {
		if !t.decode.write(p) {
			t.goBlind()
		}
		if t.err != nil {
			return nil, t.err
		}
		return p, nil
	}
	if t.sink != nil {
		t.sink.Write(p)
	}
	out = t.mask.pass(p)
	if t.filters {
		out = t.filter.pass(out)
	}
	return out, nil
}

// Finish says that the answer's body has ended: it drains the decoder, closes
// the Sink and returns the bytes that were held back and may still go on.
func (t *Tap) Finish() (out []byte, err error) {
	if t.decode != nil && t.err == nil && !t.closed {
		if !t.decode.finish() {
			t.goBlind()
		}
	}
	if t.err == nil && !t.closed && t.decode == nil {
		out = t.mask.finish()
		if t.filters {
			out = t.filter.finish(out)
		}
	}
	t.Close()
	return out, t.err
}

// Close ends the treatment at any point: it frees the decoder and closes the
// Sink. Bytes that were held back are lost. Calling it again does nothing.
func (t *Tap) Close() {
	if t.closed {
		return
	}
	t.closed = true
	if t.decode != nil {
		t.decode.close()
	}
	if t.sink != nil {
		t.sink.Close()
	}
}

// sighted is given the decoded bytes of a compressed answer. It reports
// whether decoding should go on.
func (t *Tap) sighted(p []byte) bool {
	if t.mask.sees(p) {
		t.err = ErrEcho
		return false
	}
	if t.sink != nil {
		t.sink.Write(p)
	}
	return true
}

func (t *Tap) goBlind() {
	t.decode.close()
	if t.sink != nil && t.err == nil {
		t.sink.Blind()
	}
}
