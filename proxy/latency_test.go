package proxy

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// Whose streams begin late is known for it, and gets fewer new sessions. Answers
// that fail, and those that are no streams and begin when they are complete, tell
// nothing.
func TestLatencyLowersHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := func(string, io.Writer) {}
		w := newTold(t, 2, func(key string, w io.Writer) { answer(key, w) }, func(o *rigOptions) { o.subs[1].Priority = o.subs[0].Priority })
		ask := func(times int) {
			for range times {
				for _, session := range []string{"s1", "s2", "s3", "s4", "s5", "s6"} {
					w.ask(ofSession(session), message)
				}
			}
		}
		answer = func(_ string, w io.Writer) {
			time.Sleep(20 * time.Second)
			_, _ = io.WriteString(w, raw(200, "", `{"usage":{"input_tokens":1,"output_tokens":1}}`))
		}
		ask(2)
		answer = func(_ string, w io.Writer) {
			time.Sleep(20 * time.Second)
			_, _ = io.WriteString(w, raw(400, "", `{"type":"error","error":{"type":"invalid_request_error","message":"no"}}`))
		}
		ask(1)
		for _, s := range w.pool.Status() {
			if s.FirstByte != 0 || s.Score.Swiftness != 1 {
				t.Errorf("%s: %s, %+v", s.ID, s.FirstByte, s.Score)
			}
		}
		const slow, slowKey = "anthropic-1", "0001"
		answer = func(key string, w io.Writer) {
			wait := 500 * time.Millisecond
			if key == slowKey {
				wait = 20 * time.Second
			}
			time.Sleep(wait)
			_, _ = io.WriteString(w, streamOf(msgStart, msgBlock, msgHello))
		}
		ask(6)
		for _, s := range w.pool.Status() {
			switch late := s.FirstByte > 15*time.Second; {
			case late != (s.ID == slow):
				t.Errorf("%s: first byte after %s", s.ID, s.FirstByte)
			case late && (s.Score.Swiftness > 0.7 || s.Health > 70), !late && s.Score.Swiftness < 1:
				t.Errorf("%s: %+v", s.ID, s.Score)
			}
		}
	})
}
