package explain

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// id is that of the nth request.
func id(n int) string {
	return uuid.UUID{0: 0x01, 6: 0x70, 8: 0x80, 12: byte(n >> 24), 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)}.String()
}

// request is the nth one, with what most have.
func request(n int) *Request {
	return &Request{
		ID: id(n), Start: time.UnixMilli(1_795_348_800_000 + int64(n)).UTC(), Agent: "default", Provider: "anthropic", Endpoint: "messages",
		Model: "claude-sonnet-4-5-20250929", Session: "0199d1c4-2f61-7c1e-9f0a-5d1f4c3b2a10", SessionSource: "x-claude-code-session-id",
		Stream: true, Bytes: 123_456, Subscription: "team-a", Status: 200, End: "whole",
		Tokens: Tokens{Input: 12, Output: 345, CacheRead: 67_890}, Took: Seconds(12_345 * time.Millisecond),
	}
}

// noted is a story of some choices, each among many and with an attempt.
func noted(s *Story, choices, candidates int) {
	s.Reset()
	req := &pool.Request{Trace: &pool.Trace{Home: "team-a", Strategy: pool.StrategyBalanced}}
	for i := range candidates {
		c := pool.Candidate{Subscription: fmt.Sprint("team-", i), Priority: 1, Score: pool.Score{Total: 99, Availability: 1, Headroom: 0.99, Soundness: 1, Swiftness: 1, Idleness: 1}}
		if i%2 == 0 {
			c = pool.Candidate{Subscription: c.Subscription, Obstacle: "cooling", Reason: "throttled", Until: time.UnixMilli(1_795_348_900_000)}
		}
		req.Trace.Candidates = append(req.Trace.Candidates, c)
	}
	for range choices {
		s.Choice(req, nil, nil)
		s.Attempt(time.Millisecond, time.Second, 429, ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeSubscription, Wait: time.Minute, Row: "throttled"}, nil)
	}
}

func TestTheOldestIsForgotten(t *testing.T) {
	var (
		g Ring
		s Story
	)
	noted(&s, 1, 0)
	for n := range Most {
		noted(&s, 1, 0)
		g.Add(request(n), &s)
	}
	if _, ok := g.Find(id(0)); !ok {
		t.Error("the first is forgotten before its time")
	}
	noted(&s, 1, 0)
	g.Add(request(Most), &s)
	if _, ok := g.Find(id(0)); ok {
		t.Errorf("the first is remembered beside %d others", Most)
	}
	for _, n := range []int{1, Most / 2, Most} {
		if r, ok := g.Find(id(n)); !ok || !r.Start.Equal(request(n).Start) || len(r.Choices) != 1 {
			t.Errorf("request %d: %+v, %v", n, r, ok)
		}
	}
	list := g.Last(Filter{})
	if len(list) != Most || list[0].ID != id(Most) || list[Most-1].ID != id(1) {
		t.Errorf("%d requests from %s to %s", len(list), list[0].ID, list[len(list)-1].ID)
	}
	if used := memory(&g); used > 5<<20 {
		t.Errorf("%d usual requests take %d bytes", Most, used)
	}
}

// memory is what a Ring has allocated.
func memory(g *Ring) int {
	return cap(g.buf) + cap(g.slots)*int(reflect.TypeFor[slot]().Size())
}

func TestBytesAreBounded(t *testing.T) {
	var (
		g Ring
		s Story
	)
	for n := range Most {
		noted(&s, 20, 16)
		g.Add(request(n), &s)
		if n%100 != 0 {
			continue
		}
		if _, ok := g.Find(id(n)); !ok {
			t.Fatalf("request %d is not remembered", n)
		}
	}
	if used, list := memory(&g), g.Last(Filter{}); used > 10<<20 || len(list) == Most || len(list) < 500 {
		t.Errorf("%d large requests in %d bytes", len(list), used)
	}
}

// Whatever the sizes, what is remembered is the last requests, each whole, and no
// fewer than fit.
func TestRingKeepsTheLast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			g    Ring
			s    Story
			size []int
		)
		limit := 0
		for n := range rapid.IntRange(1, 1500).Draw(t, "requests") {
			r := request(n)
			noted(&s, rapid.SampledFrom([]int{0, 1, 3, 30}).Draw(t, "choices"), 16)
			r.Message = strings.Repeat("x", n%maxText)
			g.Add(r, &s)
			size = append(size, len(s.notes.buf))
			limit = max(limit, size[n])
		}
		list := g.Last(Filter{})
		kept := 0
		for i := range list {
			n := len(size) - 1 - i
			if list[i].ID != id(n) || list[i].Message != strings.Repeat("x", n%maxText) {
				t.Fatalf("in place %d is %s, want request %d", i, list[i].ID, n)
			}
			kept += size[n]
		}
		if len(list) < len(size) && kept+2*limit < MostBytes {
			t.Fatalf("%d of %d requests are remembered, in only %d bytes", len(list), len(size), kept)
		}
	})
}

func TestFilter(t *testing.T) {
	var (
		g Ring
		s Story
	)
	p := pool.New(pool.Options{}, []pool.Subscription{{ID: "team-a", Provider: "anthropic"}, {ID: "team-b", Provider: "anthropic"}}, nil)
	for n := range 4 {
		r := request(n)
		r.Session, r.Status = fmt.Sprint("s", n%2), 200+int64(n)
		s.Reset()
		req := &pool.Request{Provider: "anthropic", Trace: &pool.Trace{}}
		if n == 3 {
			req.Tried = []string{"team-a"}
		} else {
			req.Tried = []string{"team-b"}
		}
		lease, err := p.Acquire(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		s.Choice(req, lease, nil)
		g.Add(r, &s)
	}
	f := func(filter Filter, want ...int) {
		t.Helper()
		got := []string{}
		for _, r := range g.Last(filter) {
			got = append(got, r.ID)
		}
		ids := []string{}
		for _, n := range want {
			ids = append(ids, id(n))
		}
		if !slices.Equal(got, ids) {
			t.Errorf("%+v: got %v, want %v", filter, got, ids)
		}
	}
	f(Filter{}, 3, 2, 1, 0)
	f(Filter{Limit: 2}, 3, 2)
	f(Filter{Session: "s1"}, 3, 1)
	f(Filter{Session: "default/s1", Limit: 1}, 3)
	f(Filter{Session: "other/s1"})
	f(Filter{Status: 201}, 1)
	f(Filter{Subscription: "team-b"}, 3)
	f(Filter{Subscription: "team-a", Session: "s1"}, 1)
}

func TestFind(t *testing.T) {
	var g Ring
	for _, unknown := range []string{"", "x", id(1)} {
		if r, ok := g.Find(unknown); ok {
			t.Errorf("%q: %+v", unknown, r)
		}
	}
	g.Add(&Request{ID: "no id"}, new(Story))
	if list := g.Last(Filter{}); len(list) > 0 {
		t.Errorf("%+v", list)
	}
	g.Add(&Request{ID: id(1)}, new(Story))
	if r, ok := g.Find(strings.ToUpper(id(1))); !ok || r.ID != id(1) || r.Choices == nil {
		t.Errorf("%+v, %v", r, ok)
	}
}

// The notes of a request are bounded, and what is left out is counted.
func TestStoryIsBounded(t *testing.T) {
	var (
		g Ring
		s Story
	)
	noted(&s, 500, 16)
	if n := len(s.notes.buf); n > storyMost+storyMost/2 {
		t.Errorf("%d bytes", n)
	}
	g.Add(request(1), &s)
	r, _ := g.Find(id(1))
	if n := int64(len(r.Choices)); n < 20 || n+r.MoreChoices != 500 {
		t.Errorf("%d choices and %d more", n, r.MoreChoices)
	}
	for i, c := range r.Choices {
		if len(c.Candidates)+int(c.Omitted) != 16 || c.Attempt == nil {
			t.Errorf("choice %d: %+v", i, c)
		}
	}
	// It does not show what its memory held before.
	s.Reset()
	g.Add(&Request{ID: id(2)}, &s)
	if r, _ := g.Find(id(2)); len(r.Choices) > 0 || r.MoreChoices > 0 {
		t.Errorf("%+v", r)
	}
}

// An attempt's verdict is the last one; an error behind content is told beside it.
func TestVerdicts(t *testing.T) {
	var (
		g Ring
		s Story
	)
	failed := ratelimit.Verdict{Signal: ratelimit.ServerError, Reason: ratelimit.ReasonUpstream, Wait: -1, Row: "server-error"}
	s.Verdict(failed) // nothing was sent
	req := &pool.Request{Trace: &pool.Trace{}}
	s.Choice(req, nil, nil)
	s.Attempt(0, 0, 200, ratelimit.Verdict{Row: "no content yet"}, nil)
	s.Verdict(ratelimit.Verdict{Row: "ok"})
	s.Late(failed)
	s.Choice(req, nil, nil)
	s.Attempt(0, 0, 500, failed, errors.New(strings.Repeat("ä", maxText)))
	s.Verdict(failed)
	s.Final("enough")
	s.Late(failed) // it was bad already
	s.Choice(req, nil, errors.New("nobody"))
	s.Late(failed) // and now nothing is under way
	g.Add(&Request{ID: id(1)}, &s)
	r, _ := g.Find(id(1))
	told := Verdict{Signal: "server_error", Reason: "upstream", Scope: "request", Row: "server-error"}
	want := []Choice{
		{Candidates: []Candidate{}, Attempt: &Attempt{Status: 200, Verdict: Verdict{Signal: "ok", Scope: "request", Row: "ok"}, Late: &told}},
		{Candidates: []Candidate{}, Attempt: &Attempt{Status: 500, Verdict: told, Error: strings.Repeat("ä", maxText/2), Final: "enough"}},
		{Candidates: []Candidate{}, Refusal: "nobody"},
	}
	if diff := cmp.Diff(want, r.Choices); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Every field comes back as it was written.
func TestCodec(t *testing.T) {
	roundTrip(t, (*codec).request, "ID", "Choices")
	roundTrip(t, (*codec).choice, "Candidates", "Attempt")
	roundTrip(t, (*codec).candidate)
	roundTrip(t, (*codec).attempt, "Final", "Late")
	roundTrip(t, (*codec).verdict)
}

func roundTrip[T any](t *testing.T, code func(*codec, *T), except ...string) {
	t.Helper()
	var in, out T
	n := 0
	fill(t, reflect.ValueOf(&in).Elem(), &n, except)
	var c codec
	code(&c, &in)
	c.reading = true
	code(&c, &out)
	if diff := cmp.Diff(in, out); diff != "" || len(c.buf) > 0 {
		t.Errorf("%T: %d bytes are left; -want +got:\n%s", in, len(c.buf), diff)
	}
}

// fill sets all fields to values that differ.
func fill(t *testing.T, v reflect.Value, n *int, except []string) {
	t.Helper()
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.UnixMilli(int64(*n)).UTC()))
		return
	case Seconds:
		v.SetInt(int64(*n) * int64(time.Microsecond))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("text ", *n))
	case reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Float64:
		v.SetFloat(float64(*n) / 1000)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n, except)
	case reflect.Struct:
		for i := range v.NumField() {
			if !slices.Contains(except, v.Type().Field(i).Name) {
				fill(t, v.Field(i), n, except)
			}
		}
	default:
		t.Fatalf("a %s cannot be filled", v.Type())
	}
}

// Many write and read at once; whoever reads sees whole requests.
func TestConcurrent(t *testing.T) {
	const writers, each = 4, Most / 3
	var (
		g       Ring
		writing sync.WaitGroup
		reading sync.WaitGroup
	)
	done := make(chan struct{})
	for w := range writers {
		writing.Go(func() {
			var s Story
			for i := range each {
				n := w*each + i
				noted(&s, n%4, n%3)
				r := request(n)
				r.Message = r.ID
				g.Add(r, &s)
				if got, ok := g.Find(r.ID); ok && got.Message != r.ID {
					t.Errorf("%s reads as %s", r.ID, got.Message)
				}
			}
		})
	}
	for range 2 {
		reading.Go(func() {
			for {
				for _, r := range g.Last(Filter{Limit: 100}) {
					if r.Message != r.ID {
						t.Errorf("%s reads as %s", r.ID, r.Message)
					}
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	writing.Wait()
	close(done)
	reading.Wait()
	if n := len(g.Last(Filter{})); n != Most {
		t.Errorf("%d are remembered", n)
	}
}

func BenchmarkStory(b *testing.B) {
	for _, candidates := range []int{0, 3, 16} {
		b.Run(fmt.Sprint(candidates, " candidates"), func(b *testing.B) {
			var (
				g Ring
				s Story
			)
			req := &pool.Request{Trace: &pool.Trace{Home: "team-a"}}
			for i := range candidates {
				req.Trace.Candidates = append(req.Trace.Candidates, pool.Candidate{Subscription: fmt.Sprint("team-", i)})
			}
			r := request(1)
			b.ReportAllocs()
			for b.Loop() {
				s.Reset()
				s.Choice(req, nil, nil)
				s.Attempt(time.Millisecond, time.Second, 200, ratelimit.Verdict{Row: "ok"}, nil)
				g.Add(r, &s)
			}
		})
	}
}
