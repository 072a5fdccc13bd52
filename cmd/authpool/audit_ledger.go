package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit/usage"
)

// measure is one number that a ledger can hold.
type measure uint8

const (
	requests measure = iota
	input            // uncached
	allInput         // with what was read from and written to the cache
	output           // with reasoning
	cacheRead
	cacheWrite // of either life
	cacheWrite5m
	cacheWrite1h
	cost // nano-dollars
	measures
)

var measureNames = [measures]string{
	"requests", "input", "all_input", "output", "cache_read", "cache_write", "cache_write_5m", "cache_write_1h", "cost_usd",
}

// sums are numbers by measure.
type sums [measures]int64

func (s sums) plus(t sums) sums {
	for m := range s {
		s[m] += t[m]
	}
	return s
}

func (s sums) minus(t sums) sums {
	for m := range s {
		s[m] -= t[m]
	}
	return s
}

// only returns s without the measures that has does not hold.
func (s sums) only(has [measures]bool) sums {
	for m := range s {
		if !has[m] {
			s[m] = 0
		}
	}
	return s
}

// atMost tells whether no measure of s is above that of t.
func (s sums) atMost(t sums) bool {
	for m := range s {
		if s[m] > t[m] {
			return false
		}
	}
	return true
}

// show writes the number of a measure, money in dollars.
func (s sums) show(m measure) string {
	if m == cost {
		return admin.NanoUSD(s[m]).String()
	}
	return grouped(s[m])
}

func sumsOf(t usage.Tokens, n, nano int64) sums {
	return sums{
		requests: n, input: t.Input, allInput: t.Prompt(), output: t.Output, cacheRead: t.CacheRead,
		cacheWrite: t.CacheWrite5m + t.CacheWrite1h, cacheWrite5m: t.CacheWrite5m, cacheWrite1h: t.CacheWrite1h, cost: nano,
	}
}

// place is what is compared: what one subscription used of one model on one UTC
// day (YYYY-MM-DD).
type place struct{ subscription, day, model string }

// billed is what a ledger says of a place.
type billed struct {
	sums // of everything
	// open is the part of answers whose end was never sent.
	open sums
	// eve is the part whose time is known and lies in the day's last hour.
	eve sums
}

// ledger is what somebody else has counted.
type ledger struct {
	has    [measures]bool
	models bool            // it tells models apart
	known  map[string]bool // the subscriptions that it tells of
	places map[place]*billed
	days   dayRange
}

func newLedger(has [measures]bool, models bool, known []string) *ledger {
	l := &ledger{has: has, models: models, known: map[string]bool{}, places: map[place]*billed{}}
	for _, sub := range known {
		l.known[sub] = true
	}
	return l
}

// entry is one line of a ledger.
type entry struct {
	subscription, model string
	at                  time.Time
	sums                sums
	open                bool
}

func (l *ledger) add(e entry) {
	l.known[e.subscription] = true
	if e.model = provider.CleanModel([]byte(e.model)); e.model == "" {
		e.model = "unknown" // as usage is recorded of an answer that names none
	}
	if !l.models {
		e.model = ""
	}
	at := e.at.UTC()
	day := at.Format(time.DateOnly)
	l.days = l.days.with(day)
	where := place{e.subscription, day, e.model}
	b := l.places[where]
	if b == nil {
		b = &billed{}
		l.places[where] = b
	}
	e.sums = e.sums.only(l.has)
	b.sums = b.plus(e.sums)
	if e.open {
		b.open = b.open.plus(e.sums)
	}
	if at.Hour() == 23 {
		b.eve = b.eve.plus(e.sums)
	}
}

// maxLedger bounds what is read of a ledger: that of the simulator has at most a
// million entries of some 300 bytes.
const maxLedger = 1 << 30

// ledgerTimeout bounds the time that a ledger's download may take.
const ledgerTimeout = 5 * time.Minute

// openLedger opens a file or a URL.
func openLedger(ctx context.Context, from string) (io.ReadCloser, error) {
	if !strings.HasPrefix(from, "http://") && !strings.HasPrefix(from, "https://") {
		f, err := os.Open(from)
		if err != nil {
			return nil, wrongf("cannot read the ledger: %w", err)
		}
		return bounded(f), nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, wrongf("cannot ask for the ledger: %w", err)
	}
	resp, err := (&http.Client{Timeout: ledgerTimeout}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot fetch the ledger: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("cannot fetch the ledger: %s answers %s", req.URL.Redacted(), resp.Status), resp.Body.Close())
	}
	return bounded(resp.Body), nil
}

// errTooLong is what a ledger longer than maxLedger gives: a part of it would
// compare as usage that is missing.
var errTooLong = fmt.Errorf("it is longer than %d MiB", maxLedger>>20)

// bounded fails instead of reading more than maxLedger from r.
func bounded(r io.ReadCloser) io.ReadCloser {
	return &boundedReader{r, maxLedger}
}

type boundedReader struct {
	io.ReadCloser
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// readSimulated reads the simulator's ledger.
func readSimulated(r io.Reader, o *owners) (*ledger, error) {
	in := bufio.NewReader(r)
	if !isJSON(in) {
		return nil, errors.New("it is not the simulator's: say by --columns what its columns are")
	}
	l := newSimulated(o.known())
	err := eachElement(in, func(dec *json.Decoder) error {
		var e simulator.Entry
		if err := dec.Decode(&e); err != nil {
			return err
		}
		if e.RequestID == "" || !plausible(e.At) {
			return errors.New("is not one of the simulator's: say by --columns what its fields are")
		}
		sub, err := o.of(e.Key)
		if err != nil || sub == "" {
			return err
		}
		l.add(simulated(sub, &e))
		return nil
	})
	return l, err
}

// newSimulated returns an empty ledger of what the simulator tells.
func newSimulated(known []string) *ledger {
	var has [measures]bool
	for _, m := range []measure{requests, input, output, cacheRead, cacheWrite5m, cacheWrite1h} {
		has[m] = true
	}
	return newLedger(has, true, known)
}

func simulated(subscription string, e *simulator.Entry) entry {
	tokens := usage.Tokens{
		Input: e.Input, Output: e.Output, CacheRead: e.CacheRead, CacheWrite5m: e.CacheWrite5m, CacheWrite1h: e.CacheWrite1h,
	}
	return entry{subscription: subscription, model: e.Model, at: e.At, sums: sumsOf(tokens, 1, 0), open: !e.Finished}
}

// isJSON tells whether the first byte that is not white space begins JSON.
func isJSON(in *bufio.Reader) bool {
	for {
		c, err := in.ReadByte()
		if err != nil {
			return false
		}
		if !strings.ContainsRune(" \t\r\n", rune(c)) {
			_ = in.UnreadByte() // one was just read
			return c == '[' || c == '{'
		}
	}
}

// eachElement calls take to decode each element of a JSON array.
func eachElement(in io.Reader, take func(*json.Decoder) error) error {
	dec := json.NewDecoder(in)
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return errors.Join(errors.New("it is no JSON array"), err)
	}
	for n := 1; dec.More(); n++ {
		if err := take(dec); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("its end is missing: %w", err)
	}
	return nil
}

// dayRange are UTC days from first to last, both included; empty is open.
type dayRange struct{ first, last string }

// with widens the range to a day.
func (r dayRange) with(day string) dayRange {
	if r.first == "" || day < r.first {
		r.first = day
	}
	if r.last == "" || day > r.last {
		r.last = day
	}
	return r
}

// within returns the range asked for, which holds what it leaves open from r.
func (r dayRange) within(q usage.Query) dayRange {
	if !q.Since.IsZero() {
		r.first = q.Since.Format(time.DateOnly)
	}
	if !q.Until.IsZero() {
		r.last = q.Until.Add(-time.Nanosecond).Format(time.DateOnly)
	}
	return r
}

func (r dayRange) holds(day string) bool {
	return (r.first == "" || r.first <= day) && (r.last == "" || day <= r.last)
}

// empty tells that no day can be in the range.
func (r dayRange) empty() bool { return r.first != "" && r.last != "" && r.last < r.first }

func (r dayRange) String() string {
	switch {
	case r.first == "" && r.last == "":
		return "all days"
	case r.first == r.last:
		return r.first
	}
	return "whole UTC days" + edge(" from ", r.first) + edge(" to ", r.last)
}

// plausible tells whether t can be the time of a request to a language model. Its
// day and those beside it have years of four digits.
func plausible(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 2000 && year < 9999
}

// dayAfter is the day n days after day, or before it.
func dayAfter(day string, n int) string {
	t, err := time.Parse(time.DateOnly, day)
	if err != nil {
		panic("BUG: a day is " + day)
	}
	return t.AddDate(0, 0, n).Format(time.DateOnly)
}
