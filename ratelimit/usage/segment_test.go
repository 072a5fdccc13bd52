package usage

import (
	"bytes"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// scanAll reads data as a segment and returns its events with their numbers.
func scanAll(t testing.TB, data []byte) (events []Event, numbers []int64, size int64, damage error) {
	t.Helper()
	size, damage, err := scan(bytes.NewReader(data), func(r record) error {
		e, err := r.event()
		if err != nil {
			return nil
		}
		events, numbers = append(events, e), append(numbers, r.number)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return events, numbers, size, damage
}

// FuzzJournal reads arbitrary bytes as a segment. What it found readable reads the
// same once the rest is cut off, and so does what is appended to it.
func FuzzJournal(f *testing.F) {
	e := Event{ID: "id", Time: -1, Subscription: "team-a", Tokens: Tokens{Input: 1, Output: 300}, Unknown: true}
	good := appendRecord([]byte(segmentMagic), recordEvent, 1, &e)
	good = appendRecord(good, recordOpen, 0, &e)
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte(segmentMagic))
	f.Add([]byte(segmentMagic + "\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Add([]byte(segmentMagic + "\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		events, numbers, size, damage := scanAll(t, data)
		whole := size == int64(len(data)) && size > 0
		if size < 0 || size > int64(len(data)) || whole != (damage == nil) {
			t.Fatalf("%d of %d bytes readable, damage %v", size, len(data), damage)
		}
		if size == 0 {
			return
		}
		added := appendRecord(data[:size:size], recordEvent, 7, &e)
		events2, numbers2, size2, damage := scanAll(t, added)
		if damage != nil || size2 != int64(len(added)) {
			t.Fatalf("after a cut and an append %d of %d bytes readable, damage %v", size2, len(added), damage)
		}
		if diff := cmp.Diff(append(events, e), events2) + cmp.Diff(append(numbers, 7), numbers2); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzRecord reads arbitrary bytes as a payload: what can be read can be written
// and read again.
func FuzzRecord(f *testing.F) {
	e := Event{ID: "id", Time: 1, Subscription: "team-a", Model: "m", CostNanoUSD: 5}
	f.Add(appendRecord(nil, recordEvent, 1, &e)[frameSize:])
	f.Add([]byte{recordOpen, 0, 0xff})
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := parseRecord(payload)
		if err != nil {
			return
		}
		e, err := r.event()
		if err != nil {
			return
		}
		again, err := parseRecord(appendRecord(nil, r.kind, r.number, &e)[frameSize:])
		if err != nil {
			t.Fatal(err)
		}
		if e2, err := again.event(); err != nil || e2 != e || again.number != r.number {
			t.Fatalf("wrote %+v, read %+v, %v", e, e2, err)
		}
	})
}

func TestRecordKeepsEveryField(t *testing.T) {
	count := rapid.Int64Range(0, maxCount)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		want := Event{
			ID: text.Draw(t, "id"), Time: rapid.Int64().Draw(t, "time"), Provider: text.Draw(t, "provider"),
			Subscription: text.Draw(t, "subscription"), Agent: text.Draw(t, "agent"), Session: text.Draw(t, "session"),
			Model: text.Draw(t, "model"), PriceVersion: text.Draw(t, "version"), CostNanoUSD: count.Draw(t, "cost"),
			Tokens: Tokens{
				Input: count.Draw(t, "in"), Output: count.Draw(t, "out"), CacheRead: count.Draw(t, "cr"),
				CacheWrite5m: count.Draw(t, "cw5m"), CacheWrite1h: count.Draw(t, "cw1h"), Reasoning: count.Draw(t, "reasoning"),
			},
			Unpriced: rapid.Bool().Draw(t, "unpriced"), Estimated: rapid.Bool().Draw(t, "estimated"), Unknown: rapid.Bool().Draw(t, "unknown"),
		}
		payload, _, err := parseFrame(appendRecord(nil, recordEvent, 9, &want))
		if err != nil {
			t.Fatal(err)
		}
		r, err := parseRecord(payload)
		if err != nil || r.number != 9 || r.kind != recordEvent {
			t.Fatalf("got %+v, %v", r, err)
		}
		if got, err := r.event(); err != nil || got != want {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
	})
}

func TestCountsAreClampedOnTheWay(t *testing.T) {
	e := Event{Tokens: Tokens{Input: math.MaxInt64, Output: -1}, CostNanoUSD: math.MinInt64}
	payload, _, err := parseFrame(appendRecord(nil, recordEvent, 1, &e))
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseRecord(payload)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.event()
	if want := (Event{Tokens: Tokens{Input: maxCount}}); err != nil || got != want {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
}
