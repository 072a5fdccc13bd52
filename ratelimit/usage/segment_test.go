package usage

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
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
	e.Units, e.Further, e.Batch, e.Item = Units{Images: 1}, true, "b", "i"
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
			Further: rapid.Bool().Draw(t, "further"),
		}
		if rapid.Bool().Draw(t, "has units") {
			for _, n := range want.Units.refs() {
				*n = count.Draw(t, "units")
			}
		}
		if rapid.Bool().Draw(t, "of a batch") {
			want.Batch, want.Item = text.Draw(t, "batch"), text.Draw(t, "item")
			want.Batch, want.Item = want.Batch[:min(len(want.Batch), maxName)], want.Item[:min(len(want.Item), maxName)]
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

// goldens are the events in testdata, in the order of their records: an open and
// two events numbered 1 and 2, an open.
var (
	goldenV1 = []Event{
		{
			ID: "01939f1e-5a00-7000-8000-000000000001", Time: 1764547200123, Provider: "anthropic", Subscription: "team-a",
			Agent: "coder", Session: "s-1", Model: "claude-sonnet-4-5",
			Tokens:      Tokens{Input: 3, Output: 500, CacheRead: 20_000, CacheWrite5m: 70, CacheWrite1h: 1 << 40, Reasoning: 200},
			CostNanoUSD: 13_509_000, PriceVersion: "2026-08-01",
		},
		{
			ID: "01939f1e-5a00-7000-8000-000000000002", Time: 1764547200124, Provider: "openai", Subscription: "team-b",
			Model: "unheard-of", Unpriced: true, Estimated: true, Unknown: true,
		},
		{
			ID: "01939f1e-5a00-7000-8000-000000000003", Time: 1764547200125, Provider: "anthropic", Subscription: "team-a",
			Session: "s-2", Model: "claude-opus-4-5", Tokens: Tokens{Input: 9},
		},
	}
	goldenV2 = []Event{
		{
			ID: "01939f1e-5a00-7000-8000-000000000004/1", Time: 1764547200126, Provider: "anthropic", Subscription: "team-a",
			Agent: "coder", Model: "claude-sonnet-4-5", Tokens: Tokens{Input: 1, Output: 2}, CostNanoUSD: 3, PriceVersion: "v",
			Units: Units{WebSearches: 1, WebFetches: 2, Seconds: 3, Images: 4, SearchUnits: 1 << 33},
			Batch: "msgbatch_01", Item: "request-1",
		},
		{
			ID: "01939f1e-5a00-7000-8000-000000000004/1+1", Time: 1764547200126, Provider: "anthropic", Subscription: "team-a",
			Agent: "coder", Model: "claude-opus-4-5", Tokens: Tokens{Input: 5, Output: 6}, Unpriced: true, Further: true,
			Batch: "msgbatch_01", Item: "request-1",
		},
		{
			ID: "01939f1e-5a00-7000-8000-000000000005", Time: 1764547200127, Provider: "openai", Subscription: "team-b",
			Model: "gpt-image-1", Units: Units{Images: 2},
		},
	}
)

// TestGolden pins the format: what either version wrote is read, and written again
// as it was. A record without units and batch is one of the first version.
func TestGolden(t *testing.T) {
	f := func(name string, golden []Event) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		events, numbers, _, damage := scanAll(t, data)
		want := []Event{golden[0], golden[0], golden[1], golden[2]}
		if diff := cmp.Diff(want, events) + cmp.Diff([]int64{0, 1, 2, 0}, numbers); diff != "" || damage != nil {
			t.Errorf("%s: damage %v (-want +got):\n%s", name, damage, diff)
		}
		written := []byte(segmentMagic)
		for i, e := range want {
			kind := recordEvent
			if numbers[i] == 0 {
				kind = recordOpen
			}
			written = appendRecord(written, kind, numbers[i], &e)
		}
		if !bytes.Equal(written, data) {
			t.Errorf("%s: the events are written as\n%q, the file is\n%q", name, written, data)
		}
	}
	f("journal-v1.seg", goldenV1)
	f("journal-v2.seg", goldenV2)
}

// TestUnknownFlagIsDamage: a record of a later version is not taken for less than
// it says.
func TestUnknownFlagIsDamage(t *testing.T) {
	e := Event{ID: "id", Subscription: "team-a", Units: Units{Seconds: 1}}
	payload := appendRecord(nil, recordEvent, 1, &e)[frameSize:]
	f := func(was, now byte, rest string) {
		t.Helper()
		at := bytes.IndexByte(payload, was)
		changed := append(bytes.Clone(payload), rest...)
		changed[at] = now
		r, err := parseRecord(changed)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r.event(); err == nil {
			t.Errorf("read %+v", got)
		}
	}
	f(flagUnits, flagUnits|allFlags+1, "")
	f(byte(len(unitNames)), byte(len(unitNames)+1), "\x07")
}

func TestLongNamesAreHashed(t *testing.T) {
	e := Event{ID: "id", Subscription: "team-a", Batch: strings.Repeat("b", 1<<20), Item: strings.Repeat("i", maxName+1)}
	payload, _, err := parseFrame(appendRecord(nil, recordEvent, 1, &e))
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseRecord(payload)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.event()
	if err != nil || got.Batch != shorten(e.Batch) || got.Item != shorten(e.Item) || len(got.Item) > maxName {
		t.Errorf("got %+v, %v", got, err)
	}
}
