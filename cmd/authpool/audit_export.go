package main

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// columns say what the columns of a usage export are.
type columns struct {
	day, model, subscription string
	measures                 [measures][]string // to be added up
}

// parseColumns reads name=COLUMN,name=COLUMN+COLUMN,...
func parseColumns(text string) (*columns, error) {
	var c columns
	for part := range strings.SplitSeq(text, ",") {
		name, column, _ := strings.Cut(part, "=")
		name = strings.TrimSpace(name)
		var names []string
		for one := range strings.SplitSeq(column, "+") {
			if one = strings.TrimSpace(one); one == "" {
				return nil, fmt.Errorf("%q: want NAME=COLUMN or NAME=COLUMN+COLUMN", part)
			}
			names = append(names, one)
		}
		if m := slices.Index(measureNames[:], name); m >= 0 {
			if c.measures[m] != nil {
				return nil, fmt.Errorf("%s stands twice", name)
			}
			c.measures[m] = names
			continue
		}
		to := map[string]*string{"day": &c.day, "model": &c.model, "subscription": &c.subscription}[name]
		switch {
		case to == nil:
			return nil, fmt.Errorf("%q is not one of day, model, subscription, %s", name, strings.Join(measureNames[:], ", "))
		case *to != "":
			return nil, fmt.Errorf("%s stands twice", name)
		case len(names) > 1:
			return nil, fmt.Errorf("%s cannot be added up", name)
		}
		*to = names[0]
	}
	if c.day == "" {
		return nil, errors.New("day=COLUMN is missing")
	}
	if c.has() == ([measures]bool{}) {
		return nil, fmt.Errorf("there is nothing to compare: add one of %s", strings.Join(measureNames[:], ", "))
	}
	return &c, nil
}

// has tells which measures there are.
func (c *columns) has() (has [measures]bool) {
	for m, names := range c.measures {
		has[m] = names != nil
	}
	return has
}

// all are the names of all columns.
func (c *columns) all() []string {
	var all []string
	for _, name := range []string{c.day, c.model, c.subscription} {
		if name != "" {
			all = append(all, name)
		}
	}
	for _, names := range c.measures {
		all = append(all, names...)
	}
	return all
}

// readExport reads a provider's usage export: a JSON array of objects, or CSV.
func readExport(r io.Reader, c *columns, o *owners) (*ledger, error) {
	l := newLedger(c.has(), c.model != "", o.known())
	take := func(cell func(column string) string) error {
		e, err := c.entry(cell)
		if err != nil {
			return err
		}
		e.subscription = o.only
		if c.subscription != "" {
			if e.subscription, err = o.of(cell(c.subscription)); err != nil || e.subscription == "" {
				return err
			}
		}
		l.add(e)
		return nil
	}
	in := bufio.NewReader(r)
	if mark, err := in.Peek(3); err == nil && string(mark) == "\ufeff" {
		_, _ = in.Discard(3) // they are there
	}
	if isJSON(in) {
		return l, c.eachObject(in, take)
	}
	return l, c.eachLine(in, take)
}

// eachLine calls take with each line of CSV under its head line.
func (c *columns) eachLine(in io.Reader, take func(func(string) string) error) error {
	lines := csv.NewReader(in)
	lines.ReuseRecord = true
	head, err := lines.Read()
	if errors.Is(err, io.EOF) {
		return errors.New("it is empty: not even a head line is in it")
	}
	if err != nil {
		return fmt.Errorf("cannot read its head line: %w", err)
	}
	if len(head) == 1 && strings.ContainsAny(head[0], ";\t|") {
		return fmt.Errorf("its head line %q has no commas: want columns separated by commas", head[0])
	}
	at := map[string]int{}
	for _, name := range c.all() {
		if at[name] = slices.Index(head, name); at[name] < 0 {
			return fmt.Errorf("there is no column %q in it, but %s", name, strings.Join(head, ", "))
		}
		if slices.Contains(head[at[name]+1:], name) {
			return fmt.Errorf("it has two columns %q", name)
		}
	}
	for {
		cells, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := take(func(column string) string { return strings.TrimSpace(cells[at[column]]) }); err != nil {
			line, _ := lines.FieldPos(0)
			return fmt.Errorf("line %d: %w", line, err)
		}
	}
}

// eachObject calls take with each object of a JSON array. One may lack a field,
// all may not.
func (c *columns) eachObject(in io.Reader, take func(func(string) string) error) error {
	seen, rows := map[string]bool{}, 0
	err := eachElement(in, func(dec *json.Decoder) error {
		var object map[string]any
		if err := dec.Decode(&object); err != nil {
			return err
		}
		rows++
		var wrong error
		err := take(func(column string) string {
			value, ok := object[column]
			seen[column] = seen[column] || ok
			switch v := value.(type) {
			case nil:
				return ""
			case string:
				return strings.TrimSpace(v)
			case json.Number:
				return v.String()
			default:
				wrong = fmt.Errorf("field %q is neither text nor number", column)
				return ""
			}
		})
		return errors.Join(wrong, err)
	})
	if err != nil {
		return err
	}
	for _, name := range c.all() {
		if rows > 0 && !seen[name] {
			return fmt.Errorf("there is no field %q in it", name)
		}
	}
	return nil
}

// entry reads a line but its subscription. An empty number is zero.
func (c *columns) entry(cell func(column string) string) (entry, error) {
	at, err := parseDay(cell(c.day))
	if err != nil {
		return entry{}, fmt.Errorf("column %q: %w", c.day, err)
	}
	e := entry{at: at}
	if c.model != "" {
		e.model = cell(c.model)
	}
	for m, names := range c.measures {
		for _, name := range names {
			text := cell(name)
			if text == "" {
				continue
			}
			parse := parseCount
			if measure(m) == cost {
				parse = parseDollars
			}
			n, err := parse(text)
			if err != nil {
				return entry{}, fmt.Errorf("column %q: %w", name, err)
			}
			e.sums[m] += n
		}
	}
	return e, nil
}

// parseDay reads the time of a line. A date has the time 00:00, which no answer
// over midnight has been admitted at.
func parseDay(text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil && plausible(t) {
			return t, nil
		}
	}
	if s, err := strconv.ParseInt(text, 10, 64); err == nil && plausible(time.Unix(s, 0)) {
		return time.Unix(s, 0), nil
	}
	return time.Time{}, fmt.Errorf("%q is no day: want RFC 3339, YYYY-MM-DD or epoch seconds", text)
}

// maxNumber keeps sums of a million lines far from the end of int64.
const maxNumber = 1e12

func parseCount(text string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSuffix(text, ".0"), 10, 64)
	if err != nil || n < 0 || n > maxNumber {
		return 0, fmt.Errorf("%q is no count: want a whole number from 0", text)
	}
	return n, nil
}

// dollars is a number as spreadsheets and JSON write it, small enough for exact
// arithmetic.
var dollars = regexp.MustCompile(`^[0-9]{1,6}(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,2})?$`)

// parseDollars reads US dollars as nano-dollars, rounded half up.
func parseDollars(text string) (int64, error) {
	if dollars.MatchString(text) {
		if r, ok := new(big.Rat).SetString(text); ok {
			r.Mul(r, big.NewRat(1e9, 1))
			r.Add(r, big.NewRat(1, 2))
			if n := new(big.Int).Quo(r.Num(), r.Denom()); n.IsInt64() && n.Int64() < maxNumber*1e3 {
				return n.Int64(), nil
			}
		}
	}
	return 0, fmt.Errorf("%q is no amount: want US dollars from 0, without sign or separators", text)
}
