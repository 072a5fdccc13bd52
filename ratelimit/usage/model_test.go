package usage_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

// model is what apply.lua must do, written in plain Go from the rule. It keeps
// the hashes of one subscription as they must stand in Redis, without prefix.
type model struct {
	hashes map[string]map[string]string
	expiry map[string]int64  // epoch ms
	blocks []int64           // starts, rising
	items  map[string]string // the event that owns a batch's item, by batch, item and further model
	done   map[string]int64  // by writer
	lives  map[string]string // by writer, of who counted
	seen   map[string]int64
}

func newModel() *model {
	return &model{
		hashes: map[string]map[string]string{}, expiry: map[string]int64{}, items: map[string]string{},
		done: map[string]int64{}, lives: map[string]string{}, seen: map[string]int64{},
	}
}

const (
	hour  = int64(time.Hour / time.Millisecond)
	day   = 24 * hour
	block = 5 * hour
)

// apply counts a batch as the contract of the scripts says.
func (m *model) apply(b usage.Batch) usage.Result {
	for _, e := range b.Events {
		m.claim(e)
	}
	done := m.done[b.Writer]
	switch {
	case done > 0 && b.Lives.String() != m.lives[b.Writer]:
		return usage.Result{Outcome: usage.Fenced, Last: done} // they share nothing
	case b.First > done+1:
		return usage.Result{Outcome: usage.Gap, Last: done}
	case b.First+int64(len(b.Events)) <= done+1:
		return usage.Result{Outcome: usage.Duplicate, Last: done}
	}
	fresh := slices.Clone(b.Events[done+1-b.First:])
	slices.SortStableFunc(fresh, func(a, b usage.Event) int { return int(a.Time - b.Time) })
	var counted, late int64
	touched := false // the current block, by an event that is not late
	for _, e := range fresh {
		if !m.owns(e) {
			continue
		}
		counted++
		start, isLate := m.blockOf(e.Time)
		if isLate {
			late++
		}
		touched = touched || !isLate
		m.count(e, start)
	}
	if touched {
		m.show()
	}
	for len(m.blocks) > 0 && m.blocks[0] < m.newest()-35*day {
		m.blocks = m.blocks[1:]
	}
	if seen := fresh[len(fresh)-1].Time; done == 0 {
		for id := range m.done {
			if id != b.Writer && m.seen[id] < seen-35*day {
				delete(m.done, id)
				delete(m.lives, id)
				delete(m.seen, id)
			}
		}
	}
	done = b.First + int64(len(b.Events)) - 1
	m.done[b.Writer], m.lives[b.Writer] = done, b.Lives.String()
	m.seen[b.Writer] = max(m.seen[b.Writer], fresh[len(fresh)-1].Time)
	return usage.Result{Outcome: usage.Applied, Last: done, Applied: counted, Repeated: int64(len(fresh)) - counted, Late: late}
}

// itemOf names what an event of a batch's item is the first one to tell of.
func itemOf(e usage.Event) string {
	item := e.Batch + "\n" + e.Item
	if e.Further {
		item += "\n" + e.Model
	}
	return item
}

func (m *model) claim(e usage.Event) {
	if e.Batch == "" || e.Item == "" {
		return
	}
	if m.items[itemOf(e)] == "" {
		m.items[itemOf(e)] = e.ID
	}
	key := "batch:" + e.Batch
	m.expiry[key] = max(m.expiry[key], e.Time+35*day)
}

func (m *model) owns(e usage.Event) bool {
	return e.Batch == "" || e.Item == "" || m.items[itemOf(e)] == e.ID
}

func (m *model) newest() int64 {
	if len(m.blocks) == 0 {
		return -1
	}
	return m.blocks[len(m.blocks)-1]
}

func (m *model) blockName(start int64) string {
	return "block:" + time.UnixMilli(start).UTC().Format("2006-01-02T15")
}

// blockOf is ccusage's rule, and the project's for late events.
func (m *model) blockOf(ts int64) (start int64, late bool) {
	open := func() int64 {
		s := ts - ts%hour
		if !slices.Contains(m.blocks, s) {
			m.blocks = append(m.blocks, s)
			slices.Sort(m.blocks)
		}
		return s
	}
	current := m.newest()
	if current < 0 {
		return open(), false
	}
	if ts >= current {
		last, _ := strconv.ParseInt(m.hashes[m.blockName(current)]["last"], 10, 64)
		if ts-current > block || ts-last > block {
			return open(), false
		}
		return current, false
	}
	for _, s := range slices.Backward(m.blocks) {
		if s <= ts && ts-s <= block {
			return s, true
		}
	}
	return open(), true
}

// incr adds n to a field; a field comes into being also by adding nothing.
func (m *model) incr(key, field string, n int64) {
	h := m.hashes[key]
	if h == nil {
		h = map[string]string{}
		m.hashes[key] = h
	}
	was, _ := strconv.ParseInt(h[field], 10, 64)
	h[field] = strconv.FormatInt(was+n, 10)
}

func (m *model) count(e usage.Event, start int64) {
	t := time.UnixMilli(e.Time).UTC()
	midnight := e.Time - e.Time%day
	month := time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	blockKey, dayKey := m.blockName(start), "day:"+t.Format("2006-01-02")
	session := "session:" + e.Agent + "/" + e.Session

	m.sum(blockKey, e, start+block+35*day)
	m.sum(dayKey, e, midnight+401*day)
	if e.PriceVersion != "" {
		m.hashes[dayKey]["prices"] = e.PriceVersion
	}
	m.sum("month:"+t.Format("2006-01"), e, month+(31+5*365+2)*day)
	if e.Agent != "" {
		m.sum("agent:"+e.Agent+":"+t.Format("2006-01-02"), e, midnight+401*day)
		if e.Session != "" {
			m.sum(session, e, 0)
			m.span(session, e.Time)
			last, _ := strconv.ParseInt(m.hashes[session]["last"], 10, 64)
			m.expiry[session] = last + 7*day
		}
	}
	for field, n := range fieldsOf(wantCounts(e)) {
		if n > 0 || always[field] {
			m.incr("total", field, n)
		}
	}
	m.expiry["total"] = -1
	m.span(blockKey, e.Time)
	m.hashes[blockKey]["start"] = strconv.FormatInt(start, 10)
	m.hashes[blockKey]["end"] = strconv.FormatInt(start+block, 10)

	slot := e.Time - e.Time%10_000
	recent := fmt.Sprintf("recent:%d", slot/1000)
	c := wantCounts(e)
	m.incr(recent, "requests", c.Requests)
	m.incr(recent, "input", c.Input)
	m.incr(recent, "output", c.Output)
	m.expiry[recent] = slot + 180_000
}

func (m *model) span(key string, ts int64) {
	h := m.hashes[key]
	if v, err := strconv.ParseInt(h["first"], 10, 64); err != nil || ts < v {
		h["first"] = strconv.FormatInt(ts, 10)
	}
	if v, err := strconv.ParseInt(h["last"], 10, 64); err != nil || ts > v {
		h["last"] = strconv.FormatInt(ts, 10)
	}
}

// wantCounts is what one event adds.
func wantCounts(e usage.Event) usage.Counts {
	var c usage.Counts
	c.Input, c.Output, c.CacheRead, c.Reasoning = e.Tokens.Input, e.Tokens.Output, e.Tokens.CacheRead, e.Tokens.Reasoning
	c.CacheWrite5m, c.CacheWrite1h, c.CostNanoUSD = e.Tokens.CacheWrite5m, e.Tokens.CacheWrite1h, e.CostNanoUSD
	c.Units = e.Units
	if !e.Further {
		c.Requests = 1
	}
	if e.Unknown && !e.Further {
		c.Unknown = 1
	}
	if e.Estimated && !e.Further {
		c.Estimated = 1
	}
	if e.Unpriced {
		c.Unpriced = 1
	}
	return c
}

// always are the fields that every sum has, also where they are zero.
var always = map[string]bool{
	"requests": true, "input": true, "output": true, "cache_read": true, "cache_write_5m": true, "cache_write_1h": true,
	"cost_nano_usd": true, "estimated": true, "unpriced": true, "unknown": true,
}

// fieldsOf are the counts under their names in the contract.
func fieldsOf(c usage.Counts) map[string]int64 {
	return map[string]int64{
		"requests": c.Requests, "input": c.Input, "output": c.Output, "cache_read": c.CacheRead,
		"cache_write_5m": c.CacheWrite5m, "cache_write_1h": c.CacheWrite1h, "cost_nano_usd": c.CostNanoUSD,
		"estimated": c.Estimated, "unpriced": c.Unpriced, "unknown": c.Unknown,
		"reasoning": c.Reasoning, "web_search_requests": c.Units.WebSearches, "web_fetch_requests": c.Units.WebFetches,
		"seconds": c.Units.Seconds, "images": c.Units.Images, "search_units": c.Units.SearchUnits,
	}
}

func (m *model) sum(key string, e usage.Event, expiry int64) {
	models := map[string]bool{}
	for field := range m.hashes[key] {
		if model, ok := cutKind(field, "requests"); ok {
			models[model] = true
		}
	}
	name := e.Model
	if !models[name] && len(models) >= 64 {
		name = "other"
	}
	for field, n := range fieldsOf(wantCounts(e)) {
		if n > 0 || always[field] {
			m.incr(key, field, n)
		}
		if n > 0 || field == "requests" { // a model has its requests always, to be known by
			m.incr(key, name+":"+field, n)
		}
	}
	m.expiry[key] = expiry
}

// cutKind splits "<model>:<kind>" at its last colon.
func cutKind(field, kind string) (model string, ok bool) {
	at := len(field) - len(kind) - 1
	if at < 0 || field[at] != ':' || field[at+1:] != kind {
		return "", false
	}
	return field[:at], true
}

// show writes what stands in the hash "now".
func (m *model) show() {
	start := m.newest()
	h := m.hashes[m.blockName(start)]
	now := map[string]string{"block": m.blockName(start)[len("block:"):]}
	for _, field := range append(slices.Collect(maps.Keys(fieldsOf(usage.Counts{}))), "start", "end", "last") {
		if v, ok := h[field]; ok {
			now[field] = v
		}
	}
	m.hashes["now"] = now
	m.expiry["now"] = start + block
}
