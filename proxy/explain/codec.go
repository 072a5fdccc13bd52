package explain

import (
	"encoding/binary"
	"math"
	"time"
	"unicode/utf8"
)

// codec writes values as bytes or reads them back, in the same walk over them, so
// that there is one list of fields. What it reads it has written itself.
type codec struct {
	buf     []byte // what was written, or is still to be read
	reading bool
}

// maxText bounds each text: some are errors, which may be long.
const maxText = 256

func (c *codec) number(n *int64) {
	if c.reading {
		value, size := binary.Varint(c.buf)
		*n, c.buf = value, c.buf[size:]
		return
	}
	if *n >= 0 && *n < 1<<6 { // as most are
		c.buf = append(c.buf, byte(*n)<<1)
		return
	}
	c.buf = binary.AppendVarint(c.buf, *n)
}

func (c *codec) text(s *string) {
	text := *s
	if !c.reading && len(text) > maxText {
		n := maxText
		for n > 0 && !utf8.RuneStart(text[n]) {
			n--
		}
		text = text[:n]
	}
	size := int64(len(text))
	c.number(&size)
	if c.reading {
		*s, c.buf = string(c.buf[:size]), c.buf[size:]
		return
	}
	c.buf = append(c.buf, text...)
}

func (c *codec) flag(b *bool) {
	n := int64(0)
	if *b {
		n = 1
	}
	c.number(&n)
	*b = n != 0
}

func (c *codec) seconds(s *Seconds) {
	n := time.Duration(*s).Microseconds()
	c.number(&n)
	*s = Seconds(n) * Seconds(time.Microsecond)
}

// time keeps milliseconds; the zero time stays it.
func (c *codec) time(t *time.Time) {
	n := int64(0)
	if !t.IsZero() {
		n = t.UnixMilli()
	}
	if c.number(&n); c.reading && n != 0 {
		*t = time.UnixMilli(n).UTC()
	}
}

// thousandths keeps a fraction as people read it.
func (c *codec) thousandths(f *float64) {
	n := int64(math.Round(*f * 1000))
	c.number(&n)
	*f = float64(n) / 1000
}

// optional tells whether there is something behind p, which it makes to be read.
func optional[T any](c *codec, p **T) bool {
	there := *p != nil
	c.flag(&there)
	if there && c.reading {
		*p = new(T)
	}
	return there
}

// request leaves the ID out, which the Ring keeps, and Choices.
func (c *codec) request(r *Request) {
	c.time(&r.Start)
	c.text(&r.Agent)
	c.text(&r.Provider)
	c.text(&r.Endpoint)
	c.text(&r.Action)
	c.text(&r.Model)
	c.text(&r.Session)
	c.text(&r.SessionSource)
	c.text(&r.Parent)
	c.flag(&r.Stream)
	c.number(&r.Bytes)
	c.number(&r.Tries)
	c.flag(&r.Damped)
	c.number(&r.MoreChoices)
	c.text(&r.Subscription)
	c.number(&r.Status)
	c.text(&r.End)
	c.text(&r.Error)
	c.text(&r.Message)
	c.number(&r.Tokens.Input)
	c.number(&r.Tokens.Output)
	c.number(&r.Tokens.CacheRead)
	c.number(&r.Tokens.CacheWrite5m)
	c.number(&r.Tokens.CacheWrite1h)
	c.flag(&r.Estimated)
	c.number(&r.Turns)
	c.seconds(&r.Took)
}

// choice leaves Candidates and Attempt out: they are notes of their own.
func (c *codec) choice(o *Choice) {
	c.text(&o.Subscription)
	c.text(&o.Source)
	c.text(&o.Home)
	c.flag(&o.Inherited)
	c.text(&o.Strategy)
	c.flag(&o.ByHash)
	c.flag(&o.Pinned)
	c.text(&o.Owner)
	c.number(&o.Omitted)
	c.text(&o.Refusal)
	if optional(c, &o.Wait) {
		c.seconds(&o.Wait.For)
		c.number(&o.Wait.Ahead)
		c.number(&o.Wait.Own)
		c.text(&o.Wait.Subscription)
		c.text(&o.Wait.Reason)
		if optional(c, &o.Wait.Until) {
			c.time(o.Wait.Until)
		}
	}
}

func (c *codec) candidate(o *Candidate) {
	c.text(&o.Subscription)
	c.text(&o.Obstacle)
	c.text(&o.Reason)
	if optional(c, &o.Until) {
		c.time(o.Until)
	}
	c.number(&o.Priority)
	c.flag(&o.Draining)
	if optional(c, &o.Score) {
		c.thousandths(&o.Score.Total)
		c.thousandths(&o.Score.Availability)
		c.thousandths(&o.Score.Headroom)
		c.thousandths(&o.Score.Soundness)
		c.thousandths(&o.Score.Swiftness)
		c.thousandths(&o.Score.Idleness)
	}
	if optional(c, &o.Standing) {
		c.thousandths(&o.Standing.Used)
		c.seconds(&o.Standing.ExpiresIn)
		c.number(&o.Standing.Sessions)
		c.number(&o.Standing.InFlight)
		c.thousandths(&o.Standing.Turn)
	}
}

// attempt leaves Final and Late out.
func (c *codec) attempt(a *Attempt) {
	c.seconds(&a.At)
	c.seconds(&a.Took)
	c.number(&a.Status)
	c.verdict(&a.Verdict)
	c.text(&a.Error)
}

func (c *codec) verdict(v *Verdict) {
	c.text(&v.Signal)
	c.text(&v.Reason)
	c.text(&v.Scope)
	if optional(c, &v.Wait) {
		c.seconds(v.Wait)
	}
	c.text(&v.Row)
}
