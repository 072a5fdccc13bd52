package main

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/price"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestParseColumns(t *testing.T) {
	c, err := parseColumns("day = Date, model=Model,input=In+In 2,cost_usd=Cost")
	if err != nil {
		t.Fatal(err)
	}
	want := columns{day: "Date", model: "Model"}
	want.measures[input], want.measures[cost] = []string{"In", "In 2"}, []string{"Cost"}
	if diff := cmp.Diff(want, *c, cmp.AllowUnexported(columns{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	f := func(text, want string) {
		t.Helper()
		if _, err := parseColumns(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	f("", "want NAME=COLUMN")
	f("day", "want NAME=COLUMN")
	f("day=,input=In", "want NAME=COLUMN")
	f("day=Date,input=In+", "want NAME=COLUMN")
	f("input=In", "day=COLUMN is missing")
	f("day=Date,model=Model", "nothing to compare")
	f("day=Date,inputs=In", `"inputs" is not one of day, model, subscription, requests, input,`)
	f("day=Date,input=In,input=Out", "input stands twice")
	f("day=Date,day=At,input=In", "day stands twice")
	f("day=Date+Time,input=In", "day cannot be added up")
}

// export reads an export of team-a with these columns.
func export(columns, text string) (*ledger, error) {
	c, err := parseColumns(columns)
	if err != nil {
		return nil, err
	}
	o := &owners{aliases: map[string]string{"Default Workspace": "team-b"}}
	if c.subscription == "" {
		o.only = "team-a"
	}
	return readExport(iotest.OneByteReader(strings.NewReader(text)), c, o)
}

func TestReadExport(t *testing.T) {
	const columns = "day=date,model=model,requests=n,input=in+more,output=out,cost_usd=cost"
	f := func(name, columns, text string, want map[place]sums) {
		t.Helper()
		l, err := export(columns, text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		got := map[place]sums{}
		for where, b := range l.places {
			got[where] = b.sums
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	day1, day2 := place{"team-a", "2026-11-21", "m1"}, place{"team-a", "2026-11-22", "m1"}
	f("CSV, added up", columns, `model,date,n,in,more,out,cost,ignored
m1,2026-11-21,1,10,5,7,0.5,x
m1,2026-11-21,2,1,,,0.000000001,
m1,2026-11-22,0,0,0,0,"12.25",
`, map[place]sums{
		day1: {requests: 3, input: 16, output: 7, cost: 500_000_001},
		day2: {cost: 12_250_000_000},
	})
	f("a byte order mark, CRLF, quotes", "day=date,input=in", "\ufeff\"date\",\"in\"\r\n\"2026-11-21\",\"3\"\r\n",
		map[place]sums{{"team-a", "2026-11-21", ""}: {input: 3}})
	f("JSON", columns, ` [ {"date":"2026-11-21","model":"m1","n":1,"in":10,"more":null,"out":"7","cost":"1.5e-3"},
		{"date":"2026-11-21","model":"m1","n":2,"in":1,"more":5,"other":{"a":[1]}} ] `,
		map[place]sums{day1: {requests: 3, input: 16, output: 7, cost: 1_500_000}})
	f("times of every kind", "day=at,model=model,requests=n", `at,model,n
2026-11-21T23:59:59Z,m1,1
2026-11-22T00:30:00+02:00,m1,1
2026-11-22T01:00:00-01:00,m1,1
1795305599,m1,1
1795305600,m1,1
`, map[place]sums{day1: {requests: 3}, day2: {requests: 2}})
	f("no model is unknown", "day=d,model=m,requests=n", "d,m,n\n2026-11-21,,1\n", map[place]sums{{"team-a", "2026-11-21", "unknown"}: {requests: 1}})
	f("models as Redis has them", "day=d,model=m,requests=n", "d,m,n\n2026-11-21,größe,1\n",
		map[place]sums{{"team-a", "2026-11-21", "gr????e"}: {requests: 1}})
	f("subscriptions by column, one by another name", "day=d,subscription=who,requests=n",
		"d,who,n\n2026-11-21,team-a,1\n2026-11-21,Default Workspace,2\n",
		map[place]sums{{"team-a", "2026-11-21", ""}: {requests: 1}, {"team-b", "2026-11-21", ""}: {requests: 2}})
	f("rounded once to nano-dollars", "day=d,cost_usd=c", "d,c\n2026-11-21,0.00000000049999999999999999999\n2026-11-22,0.0000000005\n",
		map[place]sums{{"team-a", "2026-11-21", ""}: {}, {"team-a", "2026-11-22", ""}: {cost: 1}})
	f("nothing", "day=d,requests=n", "d,n\n", map[place]sums{})
	f("nothing in JSON", "day=d,requests=n", "[]", map[place]sums{})
}

func TestReadExportFaults(t *testing.T) {
	const columns = "day=d,requests=n,cost_usd=c"
	f := func(text, want string) {
		t.Helper()
		if _, err := export(columns, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	f("", "it is empty")
	f("d;n;c\n2026-11-21;1;0\n", "has no commas: want columns separated by commas")
	f("d,n\n", `no column "c" in it, but d, n`)
	f("d,n,c,n\n", `two columns "n"`)
	f("d,n,c\n2026-11-21,1\n", "line 2")
	f("d,n,c\n2026-11-21,1,0\n21.11.2026,1,0\n", `line 3: column "d": "21.11.2026" is no day`)
	f("d,n,c\n0000-01-01T00:00:00+10:00,1,0\n", "is no day")
	f("d,n,c\n9999999999999,1,0\n", "is no day")
	f("d,n,c\n2026-11-21,1.5,0\n", `column "n": "1.5" is no count`)
	f("d,n,c\n2026-11-21,-1,0\n", "is no count")
	f("d,n,c\n2026-11-21,9999999999999999999,0\n", "is no count")
	f("d,n,c\n2026-11-21,1,-0.5\n", `column "c": "-0.5" is no amount`)
	f("d,n,c\n2026-11-21,1,$5\n", "is no amount")
	f("d,n,c\n2026-11-21,1,1e999999999\n", "is no amount")
	f("d,n,c\n2026-11-21,1,9e99\n", "is no amount")
	f(`{"data":[]}`, "no JSON array")
	f(`[{"d":"2026-11-21","n":1}]`, `no field "c"`)
	f(`[{"d":"2026-11-21","n":[1],"c":0}]`, `entry 1: field "n" is neither text nor number`)
	f(`[{"d":"2026-11-21","n":1,"c":0}`, "its end is missing")
	f(`[1]`, "entry 1")

	// A key that stands where a subscription should is not repeated.
	_, err := export("day=d,subscription=who,requests=n", "d,who,n\n2026-11-21,sk-Canary-0123456789,1\n")
	if err == nil || strings.Contains(err.Error(), "Canary") || !strings.Contains(err.Error(), "--map") {
		t.Errorf("got %v", err)
	}
}

// FuzzReadExport feeds anything as an export: it is refused, or has sums that add up.
func FuzzReadExport(f *testing.F) {
	f.Add("d,n,c\n2026-11-21,1,0.5\n")
	f.Add("\ufeff\"d\",\"n\",\"c\"\r\n1795305599,2,\r\n")
	f.Add(`[{"d":"2026-11-21T23:59:59Z","n":1,"c":"1.5e-3"},{"d":"2026-11-21","n":null}]`)
	f.Add("[[[")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := export("day=d,requests=n,cost_usd=c", text)
		if err != nil {
			return
		}
		redis := map[place]counted{}
		for where, b := range l.places {
			if !(sums{}).atMost(b.sums) || !b.eve.atMost(b.sums) {
				t.Fatalf("%+v has %+v", where, b)
			}
			redis[where] = counted{sums: b.sums}
		}
		if c := compare(l, redis, l.days); c.err() != nil || len(c.differing(true)) > 0 {
			t.Fatalf("a ledger differs from itself:\n%s", c.text())
		}
	})
}

// A ledger that goes on and on is refused, not read in part.
func TestLedgerIsBounded(t *testing.T) {
	r := &boundedReader{io.NopCloser(strings.NewReader("d,n\n2026-11-21,1\n2026-11-22,1\n")), 20}
	c, err := parseColumns("day=d,requests=n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readExport(r, c, &owners{only: "team-a"}); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("got %v", err)
	}
}

// on makes a place of team-a.
func on(day, model string) place { return place{"team-a", day, model} }

// tokens are an answer's, as Redis and a ledger have them.
func tokens(n, in, out int64) sums { return sumsOf(usage.Tokens{Input: in, Output: out}, n, 0) }

func at(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestCompare(t *testing.T) {
	// said writes what differs: "day model: requests input output (reason)".
	said := func(c comparison) []string {
		lines := []string{}
		for _, row := range c.rows {
			if !row.equal() {
				d := row.redis.minus(row.ledger)
				line := fmt.Sprintf("%s %s: %d %d %d", row.day, row.model, d[requests], d[input], d[output])
				if why, _, _ := strings.Cut(row.why, ":"); why != "" {
					line += " (" + why + ")"
				}
				lines = append(lines, line)
			}
		}
		return lines
	}
	type line = entry
	done := func(when, model string, s sums) line {
		return line{subscription: "team-a", model: model, at: at(t, when), sums: s}
	}
	cut := func(when, model string, s sums) line {
		e := done(when, model, s)
		e.open = true
		return e
	}
	f := func(name string, lines []line, redis map[place]counted, want ...string) {
		t.Helper()
		l := newSimulated([]string{"team-a"})
		for _, e := range lines {
			l.add(e)
		}
		for where, c := range redis {
			c.sums = c.only(l.has)
			redis[where] = c
		}
		if want == nil {
			want = []string{}
		}
		if diff := cmp.Diff(want, said(compare(l, redis, l.days))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	exact := func(n, in, out int64) counted { return counted{sums: tokens(n, in, out)} }
	vague := func(n, in, out, estimated, unknown int64) counted {
		return counted{tokens(n, in, out), estimated, unknown}
	}

	const d21, d22 = "2026-11-21", "2026-11-22"
	noon := done(d21+"T12:00:00Z", "m1", tokens(1, 10, 5))
	f("equal", []line{noon, noon}, map[place]counted{on(d21, "m1"): exact(2, 20, 10)})
	f("too little", []line{noon, noon}, map[place]counted{on(d21, "m1"): exact(1, 10, 5)}, d21+" m1: -1 -10 -5")
	f("too much", []line{noon}, map[place]counted{on(d21, "m1"): exact(1, 10, 6)}, d21+" m1: 0 0 1")
	f("nothing in Redis", []line{noon}, nil, d21+" m1: -1 -10 -5")
	f("nothing in the ledger", []line{noon}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d21, "m2"): exact(1, 1, 1)}, d21+" m2: 1 1 1")
	f("another model", []line{noon}, map[place]counted{on(d21, "m2"): exact(1, 10, 5)}, d21+" m1: -1 -10 -5", d21+" m2: 1 10 5")
	f("other days do not matter", []line{noon}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d22, "m1"): exact(1, 1, 1)})

	// Too many models for a day: those that came late are "other" in Redis.
	second := done(d21+"T12:00:00Z", "m2", tokens(1, 1, 1))
	f("others", []line{noon, second}, map[place]counted{on(d21, "other"): exact(2, 11, 6)})
	f("some others", []line{noon, second}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d21, "other"): exact(1, 1, 1)})
	f("others that lack some", []line{noon, second}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d21, "other"): exact(1, 1, 0)},
		d21+" other: 0 0 -1")

	// Over midnight.
	eve := done(d21+"T23:59:58Z", "m1", tokens(1, 10, 5))
	next := done(d22+"T08:00:00Z", "m1", tokens(1, 3, 3))
	f("over midnight", []line{noon, eve, next}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d22, "m1"): exact(2, 13, 8)},
		d21+" m1: -1 -10 -5 (answers over midnight)", d22+" m1: 1 10 5 (answers over midnight)")
	f("over midnight, past the ledger's last day", []line{noon, eve}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d22, "m1"): exact(1, 10, 5)},
		d21+" m1: -1 -10 -5 (answers over midnight)")
	f("not in the last hour", []line{noon, noon, next}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d22, "m1"): exact(2, 13, 8)},
		d21+" m1: -1 -10 -5", d22+" m1: 1 10 5")
	f("not as much on the other side", []line{noon, eve, next}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d22, "m1"): exact(2, 13, 7)},
		d21+" m1: -1 -10 -5", d22+" m1: 1 10 4")
	f("backwards", []line{eve, next}, map[place]counted{on(d21, "m1"): exact(2, 13, 8)}, d21+" m1: 1 3 3", d22+" m1: -1 -3 -3")
	f("a day between", []line{eve}, map[place]counted{on("2026-11-23", "m1"): exact(1, 10, 5)}, d21+" m1: -1 -10 -5")
	f("of another model", []line{eve, next}, map[place]counted{on(d22, "m1"): exact(1, 3, 3), on(d22, "m2"): exact(1, 10, 5)},
		d21+" m1: -1 -10 -5", d22+" m2: 1 10 5")
	f("over two midnights, one answer each", []line{eve, done(d22+"T23:00:00Z", "m1", tokens(1, 7, 7))},
		map[place]counted{on(d22, "m1"): exact(1, 10, 5), on("2026-11-23", "m1"): exact(1, 7, 7)},
		d21+" m1: -1 -10 -5 (answers over midnight)", d22+" m1: 0 3 -2 (answers over midnight)")
	f("a fault before a midnight", []line{done("2026-11-20T12:00:00Z", "m1", tokens(1, 1, 1)), eve},
		map[place]counted{on(d22, "m1"): exact(1, 10, 5)}, "2026-11-20 m1: -1 -1 -1", d21+" m1: -1 -10 -5 (answers over midnight)")

	// Without an end. The ledger has 4 tokens sent of the answer that was cut.
	half := cut(d21+"T12:00:00Z", "m1", tokens(1, 8, 4))
	ok := d21 + " m1: 0 0 %d (1 answer without an end, estimated in Redis)"
	f("estimated right", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 18, 9, 1, 0)})
	f("estimated high", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 18, 63, 1, 0)}, fmt.Sprintf(ok, 54))
	f("estimated too high", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 18, 64, 1, 0)}, d21+" m1: 0 0 55")
	f("estimated low", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 18, 5, 1, 0)}, fmt.Sprintf(ok, -4))
	f("less than the answers with an end", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 18, 4, 1, 0)}, d21+" m1: 0 0 -5")
	f("its input never came", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 10, 9, 1, 1)},
		d21+" m1: 0 -8 0 (1 answer without an end, estimated in Redis)")
	f("told no usage", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 10, 5, 0, 1)},
		d21+" m1: 0 -8 -4 (1 answer without an end, estimated in Redis)")
	f("more input than there was", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 19, 9, 1, 0)}, d21+" m1: 0 1 0")
	f("not in Redis at all", []line{noon, half}, map[place]counted{on(d21, "m1"): exact(1, 10, 5)}, d21+" m1: -1 -8 -4")
	f("not estimated", []line{noon, half}, map[place]counted{on(d21, "m1"): exact(2, 18, 8)}, d21+" m1: 0 0 -1")
	f("more estimated than cut", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(2, 18, 8, 2, 0)}, d21+" m1: 0 0 -1")
	f("a whole answer is missing", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(1, 10, 9, 1, 0)}, d21+" m1: -1 -8 0")
	f("a request too many", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(3, 18, 9, 1, 0)}, d21+" m1: 1 0 0")

	// Opened in the journal, and cut off by a crash before the provider had it.
	const unseen = " that the provider never saw or never answered"
	f("never sent", []line{noon}, map[place]counted{on(d21, "m1"): vague(3, 10, 5, 2, 2)}, d21+" m1: 2 0 0 (2 requests"+unseen+")")
	f("never sent, of a model without answers", []line{noon}, map[place]counted{on(d21, "m1"): exact(1, 10, 5), on(d21, "m2"): vague(1, 0, 0, 1, 1)},
		d21+" m2: 1 0 0 (1 request"+unseen+")")
	f("one of two is no estimate", []line{noon}, map[place]counted{on(d21, "m1"): vague(3, 10, 5, 1, 1)}, d21+" m1: 2 0 0")
	f("estimated, but of an answer that told something", []line{noon}, map[place]counted{on(d21, "m1"): vague(2, 10, 5, 1, 0)}, d21+" m1: 1 0 0")
	f("unknown, but whole", []line{noon}, map[place]counted{on(d21, "m1"): vague(2, 10, 5, 0, 1)}, d21+" m1: 1 0 0")
	f("more estimated than are too many", []line{noon}, map[place]counted{on(d21, "m1"): vague(2, 10, 5, 2, 2)}, d21+" m1: 1 0 0")
	f("never sent, with tokens", []line{noon}, map[place]counted{on(d21, "m1"): vague(2, 11, 5, 1, 1)}, d21+" m1: 1 1 0")
	f("never sent, and a token less", []line{noon}, map[place]counted{on(d21, "m1"): vague(2, 10, 4, 1, 1)}, d21+" m1: 1 0 -1")
	f("never sent, beside one without an end", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(3, 18, 5, 2, 1)},
		d21+" m1: 1 0 -4 (1 answer without an end, estimated in Redis; 1 request"+unseen+")")
	f("never sent, and one without an end not estimated", []line{noon, half}, map[place]counted{on(d21, "m1"): vague(3, 18, 5, 1, 1)}, d21+" m1: 1 0 -4")
}

// TestCompareOnlyWhatIsThere has ledgers that lack models, or measures, or
// subscriptions.
func TestCompareOnlyWhatIsThere(t *testing.T) {
	redis := map[place]counted{
		on("2026-11-21", "m1"): countedOf(admin.UsageRow{
			Requests: 2, Input: 10, Output: 5, CacheRead: 100, CacheWrite5m: 3, CacheWrite1h: 4, CostUSD: 1_500_000_000,
		}),
		on("2026-11-21", "m2"):           countedOf(admin.UsageRow{Requests: 1, Input: 1, Output: 1, CostUSD: 500_000_000}),
		{"team-b", "2026-11-21", "m1"}:   countedOf(admin.UsageRow{Requests: 9}),
		{"old-team", "2026-11-21", "m1"}: countedOf(admin.UsageRow{Requests: 9}),
	}
	f := func(columns, text string, want ...string) {
		t.Helper()
		l, err := export(columns, text)
		if err != nil {
			t.Fatal(err)
		}
		c := compare(l, redis, l.days)
		got := []string{}
		for _, row := range c.differing(false) {
			diff := row.redis.minus(row.ledger)
			for m := range measures {
				if diff[m] != 0 {
					got = append(got, fmt.Sprintf("%s %s %s %s", row.subscription, row.model, measureNames[m], diff.show(m)))
				}
			}
		}
		if want == nil {
			want = []string{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", columns, diff)
		}
	}
	f("day=d,all_input=i,cache_write=w,cost_usd=c", "d,i,w,c\n2026-11-21,118,7,2\n")
	f("day=d,model=m,cache_write_5m=w", "d,m,w\n2026-11-21,m1,3\n")
	f("day=d,all_input=i,cost_usd=c", "d,i,c\n2026-11-21,117,2.000000001\n", "team-a  all_input 1", "team-a  cost_usd -0.000000001")
	f("day=d,subscription=s,requests=n", "d,s,n\n2026-11-21,team-a,3\n", "team-b  requests 9") // team-b is known by its alias
	f("day=d,subscription=s,requests=n", "d,s,n\n2026-11-21,team-a,3\n2026-11-21,Default Workspace,9\n")

	l, err := export("day=d,requests=n", "d,n\n2026-11-21,3\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"old-team", "team-b"}, compare(l, redis, l.days).strangers); diff != "" {
		t.Errorf("not compared (-want +got):\n%s", diff)
	}
}

func TestComparisonText(t *testing.T) {
	l, err := export("day=d,model=m,requests=n,output=o,cost_usd=c", "d,m,n,o,c\n2026-11-21,m1,1,1234,0.5\n2026-11-22,m1,2,2,0\n")
	if err != nil {
		t.Fatal(err)
	}
	redis := map[place]counted{
		on("2026-11-21", "m1"): countedOf(admin.UsageRow{Requests: 1, Output: 234, CostUSD: 250_000_000}),
		on("2026-11-22", "m1"): countedOf(admin.UsageRow{Requests: 2, Output: 2}),
	}
	c := compare(l, redis, l.days)
	const want = `Redis beside the ledger, whole UTC days from 2026-11-21 to 2026-11-22

Differences:
SUBSCRIPTION  MODEL  DAY         COUNT     REDIS  LEDGER  DIFFERENCE
team-a        m1     2026-11-21  output    234    1,234   -1,000
team-a        m1     2026-11-21  cost_usd  0.25   0.5     -0.25
`
	if diff := cmp.Diff(want, c.text()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	redis[on("2026-11-21", "m1")] = countedOf(admin.UsageRow{Requests: 2, Input: 20, Output: 3, Estimated: 1})
	redis[on("2026-11-22", "m1")] = countedOf(admin.UsageRow{Requests: 1, Input: 10, Output: 5})
	cut := newSimulated([]string{"team-a"})
	for _, e := range []entry{
		{subscription: "team-a", model: "m1", at: at(t, "2026-11-21T10:00:00Z"), sums: tokens(1, 20, 2)},
		{subscription: "team-a", model: "m1", at: at(t, "2026-11-21T10:00:00Z"), sums: tokens(1, 1, 5), open: true},
		{subscription: "team-a", model: "m1", at: at(t, "2026-11-22T10:00:00Z"), sums: tokens(1, 10, 5)},
	} {
		cut.add(e)
	}
	explained := compare(cut, redis, cut.days)
	const wantExplained = `Redis beside the ledger, whole UTC days from 2026-11-21 to 2026-11-22

Explained:
SUBSCRIPTION  MODEL  DAY         COUNT   REDIS  LEDGER  DIFFERENCE  WHY
team-a        m1     2026-11-21  input   20     21      -1          1 answer without an end, estimated in Redis
team-a        m1     2026-11-21  output  3      7       -4

Equal to the token but for what is explained in 1 row: 2 rows, 3 requests.
`
	if diff := cmp.Diff(wantExplained, explained.text()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	if err := explained.err(); err != nil {
		t.Errorf("all is explained, and yet: %v", err)
	}
	redis[on("2026-11-21", "m1")] = countedOf(admin.UsageRow{Requests: 3, Output: 1234, CostUSD: 500_000_000, Estimated: 2, Unknown: 2})
	redis[on("2026-11-22", "m1")] = countedOf(admin.UsageRow{Requests: 2, Output: 2})
	unseen := compare(l, redis, l.days)
	const wantUnseen = `Redis beside the ledger, whole UTC days from 2026-11-21 to 2026-11-22

Explained:
SUBSCRIPTION  MODEL  DAY         COUNT     REDIS  LEDGER  DIFFERENCE  WHY
team-a        m1     2026-11-21  requests  3      1       2           2 requests that the provider never saw or never answered: estimated

Equal to the token but for what is explained in 1 row: 2 rows, 3 requests.
`
	if diff := cmp.Diff(wantUnseen, unseen.text()); diff != "" || unseen.err() != nil {
		t.Errorf("%v (-want +got):\n%s", unseen.err(), diff)
	}
	redis[on("2026-11-21", "m1")] = countedOf(admin.UsageRow{Requests: 3, Output: 1234, CostUSD: 500_000_001, Estimated: 2, Unknown: 2})
	if dearer := compare(l, redis, l.days); dearer.err() == nil {
		t.Error("requests without tokens explain a difference in cost")
	}

	var out strings.Builder
	if err := (&program{Stdio: Stdio{Out: &out}}).printJSON(c.report()); err != nil {
		t.Fatal(err)
	}
	const wantJSON = `{"since":"2026-11-21","until":"2026-11-22","rows":2,"equal":false,"differences":[` +
		`{"subscription":"team-a","model":"m1","day":"2026-11-21",` +
		`"redis":{"cost_usd":"0.25","output":234,"requests":1},"ledger":{"cost_usd":"0.5","output":1234,"requests":1},` +
		`"difference":{"cost_usd":"-0.25","output":-1000,"requests":0},"explanation":""}]}` + "\n"
	if diff := cmp.Diff(wantJSON, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestDayKeepsPriceVersion is the way from the price table to the day in Redis,
// where a later correction finds which prices were used.
func TestDayKeepsPriceVersion(t *testing.T) {
	s := startStage(t)
	d := &demo{program: &program{Stdio: Stdio{Out: io.Discard}}, stage: s}
	if err := newDemoAgent(d, "eve", openAIDialect).ask(t.Context(), "http://"+s.service.agentAddress(), s.service.dir.AgentToken()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := s.reader()
	defer r.Close()
	days, err := r.Keys(t.Context(), "authpool:{lab}:day:*").Result()
	if err != nil || len(days) != 1 {
		t.Fatalf("the days are %q, %v", days, err)
	}
	if got := r.HGet(t.Context(), days[0], "prices").Val(); got != price.New().Version() {
		t.Errorf("the day has prices %q, want %q", got, price.New().Version())
	}
}
