package usage

import (
	"cmp"
	"slices"
	"strconv"
	"time"
)

// The bounds of one call of apply.lua. It holds the server as long as it has hashes
// and fields to touch, however many events they are of.
const (
	// maxRows makes it about three milliseconds of a Redis when all events are of
	// different sessions, and at the worst, when they are of as many models and have
	// every unit, too, about ten.
	maxRows = 128
	// maxModels is also the most that apply.lua may add to one hash at a time: all
	// its fields are arguments of one command, and Lua's stack is not endless.
	maxModels = 64
)

// row is a number of events that the script treats alike whatever state Redis is
// in, so that it can count them as one that weighs more.
//
// They share all names that they are counted under, and the hour, without its first
// millisecond, or that millisecond alone. This decides on the day and the month,
// and on the block: blocks start on the hour (in UTC) and last whole hours, so
// within an hour no block starts and none ends. Hence events of one hour are late
// together, for the same older block. If they are not late, the first of them opens
// a block or not, and the others are in the block that it is in: that does not end
// before the hour does, and the first is less than BlockLength ago. The first
// millisecond stands apart because it still belongs to a block that ends there,
// which the next one does not.
type row struct {
	rowKey
	counts      Counts
	events      int64
	first, last moment // of its events
}

// rowKey is what the events of a row have in common. Names are as events have
// them.
type rowKey struct {
	hour                          hourOf
	agent, session, model, prices string
}

// moment is an event's place in the order in which events are counted: by time,
// and at the same time by number.
type moment struct {
	time int64 // epoch ms
	at   int   // in the batch
}

func (m moment) compare(o moment) int {
	return cmp.Or(cmp.Compare(m.time, o.time), cmp.Compare(m.at, o.at))
}

// hourOf is twice the hour of a time since the epoch, and one more behind the
// hour's first millisecond.
type hourOf int64

func newHourOf(ms int64) hourOf {
	h := hourOf(ms / hourMilli * 2)
	if ms%hourMilli > 0 {
		h++
	}
	return h
}

// merge sums up as many of the first events as one call of apply.lua may count,
// and returns how many they are: at least one of any. Events that repeats tells are
// left out of the sums; it is nil when there are none.
//
// Nobody knows here how many of them have been counted before. That is why the
// script counts either all events of a call or none.
func merge(events []Event, repeats []bool) (rows []*row, slots []*slot, n int) {
	byKey := make(map[rowKey]*row)
	bySlot := make(map[int64]*slot)
	models := make(map[string]struct{})
	var s *slot
	for i := range events {
		if i < len(repeats) && repeats[i] {
			continue
		}
		e := &events[i]
		m := moment{min(max(e.Time, 0), maxTime), i}
		start := m.time - m.time%slotMilli
		if s == nil || s.start != start {
			s = bySlot[start]
		}
		key := rowKey{newHourOf(m.time), e.Agent, e.Session, e.Model, e.PriceVersion}
		r := byKey[key]
		if (r == nil || s == nil) && len(rows) > 0 {
			_, known := models[e.Model]
			if len(byKey)+len(bySlot) >= maxRows || !known && len(models) >= maxModels {
				return rows, slots, i
			}
		}
		if s == nil {
			s = &slot{start: start}
			bySlot[start] = s
			slots = append(slots, s)
		}
		if r == nil {
			r = &row{rowKey: key, first: m, last: m}
			byKey[key] = r
			rows = append(rows, r)
			models[e.Model] = struct{}{}
		}
		if m.compare(r.first) < 0 {
			r.first = m
		}
		if m.compare(r.last) > 0 {
			r.last = m
		}
		c := countsOf(e)
		r.events++
		r.counts.Add(c)
		s.counts.Add(Counts{Requests: c.Requests, Input: c.Input, Output: c.Output})
	}
	return rows, slots, len(events)
}

// slot is what events of ten seconds add up to: requests, input and output.
type slot struct {
	start  int64 // epoch ms
	counts Counts
}

// Lengths of time, and how long hashes are kept, in milliseconds.
const (
	slotMilli = int64(10 * time.Second / time.Millisecond)
	hourMilli = int64(time.Hour / time.Millisecond)
	dayMilli  = 24 * hourMilli

	slotKept  = 18 * slotMilli
	dayKept   = 401 * dayMilli              // from its beginning
	monthKept = (31 + 5*365 + 2) * dayMilli // from its beginning
)

// sum is what a call adds to one hash; apply.lua tells what becomes of it.
type sum struct {
	key         string // without the subscription's part; "" for a block, which the script finds
	expiry      int64  // epoch ms; 0 for one that follows from the last event, or never
	spans       bool   // whether the hash keeps its first and last event
	first, last int64  // epoch ms
	prices      string
	priced      moment // of the event that prices comes from
	events      int64
	always      int // how many of fields the hash has also where they are zero
	total       Counts
	models      []modelCounts // in the order of their first events
}

type modelCounts struct {
	model string
	Counts
}

func (s *sum) add(r *row) {
	if s.events == 0 {
		s.first, s.last = r.first.time, r.last.time
	}
	s.first, s.last = min(s.first, r.first.time), max(s.last, r.last.time)
	s.events += r.events
	s.total.Add(r.counts)
}

func (s *sum) addModel(model string, r *row) {
	s.add(r)
	for i := range s.models {
		if s.models[i].model == model {
			s.models[i].Add(r.counts)
			return
		}
	}
	s.models = append(s.models, modelCounts{model, r.counts})
}

// sumUp returns what rows and slots add to each hash: first to the blocks, in the
// order of time.
func sumUp(rows []*row, slots []*slot) []*sum {
	slices.SortFunc(rows, func(a, b *row) int { return a.first.compare(b.first) })
	var sums []*sum
	var block *sum
	var hour hourOf
	for _, r := range rows {
		// Hours are in the order of their first events, too.
		if block == nil || r.hour != hour {
			block, hour = &sum{spans: true, always: alwaysFields}, r.hour
			sums = append(sums, block)
		}
		block.addModel(cleanModel(r.model), r)
	}
	byKey := map[string]*sum{}
	of := func(key string, expiry int64) *sum {
		s := byKey[key]
		if s == nil {
			s = &sum{key: key, expiry: expiry, always: alwaysFields}
			byKey[key] = s
			sums = append(sums, s)
		}
		return s
	}
	for _, r := range rows {
		of("total", 0).add(r)
		model, agent, session := cleanModel(r.model), cleanID(r.agent), cleanID(r.session)
		t := time.UnixMilli(r.first.time).UTC()
		midnight := r.first.time - r.first.time%dayMilli
		date := t.Format(time.DateOnly)
		ofDay := of("day:"+date, midnight+dayKept)
		ofDay.addModel(model, r)
		if r.prices != "" && (ofDay.prices == "" || r.last.compare(ofDay.priced) > 0) {
			ofDay.prices, ofDay.priced = r.prices, r.last
		}
		of("month:"+date[:len("2006-01")], midnight-int64(t.Day()-1)*dayMilli+monthKept).addModel(model, r)
		if agent != "" {
			of("agent:"+agent+":"+date, midnight+dayKept).addModel(model, r)
			if session != "" {
				ofSession := of("session:"+agent+"/"+session, 0)
				ofSession.spans = true
				ofSession.addModel(model, r)
			}
		}
	}
	for _, s := range slots {
		const few = 3 // as many of fields as it counts
		sums = append(sums, &sum{
			key: "recent:" + strconv.FormatInt(s.start/1000, 10), expiry: s.start + slotKept,
			always: few, total: s.counts,
		})
	}
	return sums
}

// args appends the sum to ARGV of apply.lua.
func (s *sum) args(args []any) []any {
	var expiry, first, last any = "", "", ""
	if s.expiry > 0 {
		expiry = s.expiry
	}
	if s.spans {
		first, last = s.first, s.last
	}
	args = append(args, s.key, expiry, first, last, s.prices, s.events, len(s.models))
	args = s.total.args(args, s.always)
	for i := range s.models {
		args = append(args, s.models[i].model)
		// The requests come always: by them the script knows its models.
		args = s.models[i].args(args, 1)
	}
	return args
}

// args appends the counts that are not zero, and the first of fields in any case,
// after the shape that tells which they are.
func (c *Counts) args(args []any, always int) []any {
	at, shape := len(args), 0
	args = append(args, nil)
	for i, n := range c.refs() {
		if i < always || *n != 0 {
			shape |= 1 << i
			args = append(args, *n)
		}
	}
	args[at] = shape
	return args
}
