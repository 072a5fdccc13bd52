package proxy

import (
	"bytes"
	"time"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tap"
	"github.com/authpool/authpool/ratelimit"
)

// disguised finds an error that came with a good status and is the whole answer
// (see provider.ErrorBegins), beside whoever else reads the answer. It is a
// tap.Sink.
type disguised struct {
	next tap.Sink // nil: nobody
	text []byte   // the beginning of the answer while it may be an error, up to holdLimit
	is   bool     // it is one
	sure bool     // it is known whether it is one
}

func (d *disguised) reset(next tap.Sink) {
	d.next, d.text, d.is, d.sure = next, d.text[:0], false, next == nil
}

// Write implements tap.Sink.
func (d *disguised) Write(p []byte) {
	d.next.Write(p)
	if d.sure && !d.is {
		return
	}
	text := p
	if len(d.text) > 0 {
		d.text = append(d.text, p[:min(len(p), holdLimit-len(d.text))]...)
		text = d.text
	}
	if !d.sure {
		if d.is, d.sure = provider.ErrorBegins(text); d.sure && !d.is {
			return
		}
	}
	// Some providers send white space for minutes, so that nobody hangs up.
	if len(d.text) == 0 {
		p = bytes.TrimLeft(p, " \t\r\n")
		d.text = append(d.text, p[:min(len(p), holdLimit)]...)
	}
}

// Blind implements tap.Sink.
func (d *disguised) Blind() {
	d.sure = true
	d.next.Blind()
}

// Close implements tap.Sink.
func (d *disguised) Close() { d.next.Close() }

// unmask reads an answer that is no stream until it is known whether it is an
// error in disguise, and that error to its end.
func (ex *exchange) unmask(buf []byte) error {
	return ex.keepBack(buf, func() bool { return !ex.disguise.sure || ex.disguise.is })
}

// classifyDisguised says what an error with a good status means.
func (ex *exchange) classifyDisguised() ratelimit.Verdict {
	answer := ex.answerFacts()
	answer.Body = ex.disguise.text
	return provider.Classify(answer, time.Now())
}
