package proxy

import (
	"errors"
	"io"
	"os"
	"time"
)

// holdLimit is how many bytes of an answer are kept back at most.
const holdLimit = 64 << 10

// hold reads a stream's first bytes until its first content event, or an error event.
func (ex *exchange) hold(buf []byte) error {
	return ex.keepBack(buf, func() bool {
		_, failed := ex.meter.Failure()
		return !failed && !ex.meter.HasContent() && !ex.meter.Terminal()
	})
}

// keepBack reads an answer into ex.held while more of it is wanted, up to its end, to
// holdLimit, and at most for Options.Hold: what there is then goes on.
func (ex *exchange) keepBack(buf []byte, wanted func() bool) error {
	until := time.Now().Add(ex.settings.Hold)
	for len(ex.held) < holdLimit && !ex.ended && wanted() {
		wait := time.Until(until)
		if wait <= 0 {
			return nil
		}
		out, err := ex.next(buf, wait)
		ex.held = append(ex.held, out...)
		switch {
		case err == nil, errors.Is(err, io.EOF):
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		default:
			return err
		}
	}
	return nil
}

// next reads and watches the answer's next bytes. What it returns may go to the
// agent; it stays valid until the next call. io.EOF comes with the last ones.
func (ex *exchange) next(buf []byte, wait time.Duration) ([]byte, error) {
	n, err := ex.call.Read(buf, wait)
	out, terr := buf[:n], error(nil)
	if n > 0 {
		out, terr = ex.tap.Pass(buf[:n])
	}
	if terr != nil {
		return nil, terr
	}
	if errors.Is(err, io.EOF) {
		rest, terr := ex.tap.Finish()
		if terr != nil {
			return nil, terr
		}
		ex.ended = true
		if len(rest) > 0 {
			out = append(append(ex.tail[:0], out...), rest...)
			ex.tail = out
		}
	}
	return out, err
}

// count brings what was read to the journal. The usage is on disk before the
// bytes that tell the agent that the answer is whole: an agent that has seen
// the end can rely on it being counted. Usage that may be the last goes there
// too, because nothing but the end of the body ends some streams (Gemini's), and
// an agent has all that it wants before that.
func (ex *exchange) count() {
	switch {
	case ex.ended || ex.meter.Terminal():
		ex.learnMade()
		ex.settle(false)
	case ex.opened && ex.meter.Accepted():
		ex.void() // see claim
	case !ex.informed && ex.meter.InputKnown(), ex.meter.Final():
		ex.inform()
	}
}

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (ex *exchange) SupportsBodyWriteTo() bool { return true }

// flusher is a writer with a buffer.
type flusher interface{ Flush() error }

// WriteTo implements io.WriterTo: it carries the answer to the agent, every
// read flushed at once.
func (ex *exchange) WriteTo(w io.Writer) (total int64, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = ex.panicked(p)
		}
	}()
	if len(ex.held) > 0 {
		ex.count()
		n, err := ex.send(w, ex.held)
		total += n
		if err != nil {
			return total, err
		}
	}
	if ex.ended {
		ex.count()
		return total, nil
	}
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	for {
		out, err := ex.next(*bp, ex.settings.Idle)
		ex.count()
		ex.judgeContent()
		if len(out) > 0 {
			n, werr := ex.send(w, out)
			total += n
			if werr != nil {
				return total, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			ex.cut = err
			return total, err
		}
	}
}

func (ex *exchange) send(w io.Writer, p []byte) (int64, error) {
	n, err := w.Write(p)
	if err == nil {
		// A body of known length is buffered by fasthttp; one of chunks is
		// flushed already, and this costs nothing.
		if f, ok := w.(flusher); ok {
			err = f.Flush()
		}
	}
	if err != nil {
		ex.agentGone = true
	}
	return int64(n), err
}

// judgeContent settles the verdict of a stream whose first content comes only
// now, after the hold, and tells the pool of an error behind content. Either is
// done before the agent has the bytes, and so before it asks again.
func (ex *exchange) judgeContent() {
	switch {
	case ex.judgedLate:
		return
	case !ex.stream:
		if ex.ended && ex.disguise.is {
			ex.judgedLate = true
			v := ex.classifyDisguised()
			ex.story.Late(v)
			ex.lease.Late(v)
		}
		return
	}
	f, failed := ex.meter.Failure()
	switch {
	case failed && ex.judged:
		ex.judgedLate = true
		v := ex.classifyEvent(f)
		ex.story.Late(v)
		ex.lease.Late(v)
	case failed:
		ex.judge(ex.classifyEvent(f))
	case !ex.judged && ex.meter.HasContent():
		ex.judge(ex.headVerdict)
	}
}

// Read implements io.Reader, which fasthttp asks of a body stream; WriteTo is
// what it calls.
func (ex *exchange) Read([]byte) (int, error) {
	return 0, errors.New("BUG: the answer is carried by WriteTo")
}

// CloseWithError implements fasthttp's closing of a body stream: the end of
// every answer, whole or cut. There is no Close beside it, since fasthttp would
// then call both and the reason would be lost.
func (ex *exchange) CloseWithError(err error) error {
	defer func() {
		if p := recover(); p != nil {
			_ = ex.panicked(p)
			ex.abandon()
		}
	}()
	if err != nil && ex.cut == nil {
		// WriteTo says itself why it ends; anything else is that the head or the
		// last chunk could not be written, which is no fault of the provider.
		ex.cut, ex.agentGone = err, true
	}
	if ex.broken {
		ex.abandon()
		return nil
	}
	ex.finish()
	return nil
}

// drain reads an answer on to its end although nobody takes it any more.
func (ex *exchange) drain() {
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	for {
		_, err := ex.next(*bp, ex.settings.Idle)
		ex.count()
		if err != nil {
			return
		}
	}
}
