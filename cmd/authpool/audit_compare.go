package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

// counted is what Redis says of a place.
type counted struct {
	sums
	estimated, unknown int64 // requests
}

func (c counted) plus(d counted) counted {
	return counted{c.sums.plus(d.sums), c.estimated + d.estimated, c.unknown + d.unknown}
}

func countedOf(r admin.UsageRow) counted {
	tokens := usage.Tokens{
		Input: r.Input, Output: r.Output, CacheRead: r.CacheRead, CacheWrite5m: r.CacheWrite5m, CacheWrite1h: r.CacheWrite1h,
	}
	return counted{sumsOf(tokens, r.Requests, int64(r.CostUSD)), r.Estimated, r.Unknown}
}

// comparison is a ledger beside Redis.
type comparison struct {
	days dayRange
	has  [measures]bool
	rows []compared // all places, sorted
	// strangers are subscriptions that only Redis knows of.
	strangers []string
}

// compared is one place. redis and ledger hold only what the ledger has.
type compared struct {
	place
	redis, ledger sums
	why           string // what explains a difference; "" when nothing does
}

func (c *compared) equal() bool     { return c.redis == c.ledger }
func (c *compared) explained() bool { return c.why != "" }

// compare sets what Redis says of the days of r beside a ledger.
func compare(l *ledger, redis map[place]counted, r dayRange) comparison {
	out := comparison{days: r, has: l.has}
	told := map[place]counted{}
	for where, c := range redis {
		if !l.known[where.subscription] {
			out.strangers = append(out.strangers, where.subscription)
			continue
		}
		if !l.models {
			where.model = ""
		}
		c.sums = c.only(l.has)
		told[where] = told[where].plus(c)
	}
	slices.Sort(out.strangers)
	out.strangers = slices.Compact(out.strangers)

	books := l.folded(told)
	places := map[place]bool{}
	for where := range books {
		places[where] = true
	}
	for where := range told {
		places[where] = true
	}
	sorted := slices.SortedFunc(maps.Keys(places), func(a, b place) int {
		return cmp.Or(cmp.Compare(a.subscription, b.subscription), cmp.Compare(a.model, b.model), cmp.Compare(a.day, b.day))
	})
	over := overMidnight(sorted, told, books)
	for _, where := range sorted {
		b := books[where]
		row := compared{place: where, redis: told[where].sums, ledger: b.sums}
		if !r.holds(where.day) || row.redis == (sums{}) && row.ledger == (sums{}) {
			continue
		}
		if !row.equal() {
			row.why = over[where]
			if row.why == "" {
				row.why = b.withoutEnd(told[where], l.has)
			}
		}
		out.rows = append(out.rows, row)
	}
	return out
}

// otherModel is where Redis counts the models of a day that has too many.
const otherModel = "other"

// folded returns the ledger's places as Redis would have them: a model that Redis
// does not have on a day that has others is one of those. A day's models are each
// counted wholly by name or wholly as others, as the names never go again.
func (l *ledger) folded(redis map[place]counted) map[place]billed {
	out := make(map[place]billed, len(l.places))
	for where, b := range l.places {
		if _, named := redis[where]; !named {
			others := place{where.subscription, where.day, otherModel}
			if _, ok := redis[others]; ok {
				where = others
			}
		}
		sum := out[where]
		out[where] = billed{sum.plus(b.sums), sum.open.plus(b.open), sum.eve.plus(b.eve)}
	}
	return out
}

// overMidnight explains the days that differ by nothing but answers over midnight:
// what one day lacks, the days after it have, and it is not more than the ledger
// has in the last hour before. Places come sorted by subscription, model and day.
func overMidnight(places []place, redis map[place]counted, books map[place]billed) map[place]string {
	why := map[place]string{}
	for i := 0; i < len(places); i++ {
		n := shifted(places[i:], redis, books)
		for _, where := range places[i : i+n] {
			why[where] = "answers over midnight: the ledger's day is that of their start, Redis' that of their end"
		}
		i += max(n-1, 0)
	}
	return why
}

// shifted returns how many of the first places are days of one subscription and
// model that differ by answers over midnight and by nothing else.
func shifted(places []place, redis map[place]counted, books map[place]billed) int {
	var carry sums // what the days so far lack
	for i, where := range places {
		if i > 0 {
			last := places[i-1]
			if last.subscription != where.subscription || last.model != where.model || dayAfter(last.day, 1) != where.day {
				return 0 // nobody has what is lacking
			}
		}
		b := books[where]
		carry = carry.plus(b.sums).minus(redis[where].sums)
		switch {
		case carry == sums{} && i == 0:
			return 0 // there is no difference
		case carry == sums{}:
			return i + 1
		case !sums{}.atMost(carry) || !carry.atMost(b.eve):
			return 0
		}
	}
	return 0
}

// frameTokens is what an estimate may hold beside the text that was sent: the frame
// of a tool's call is taken for 36 tokens, that of a block of content for 4 (see
// meter.Meter.EstimateOutput).
const frameTokens = 50

// withoutEnd explains a difference by answers whose end was never sent, of which
// Redis can only have an estimate, and by requests that the journal knew of and the
// provider did not; "" when that is not sure. The rule stands in the help of `audit
// usage`.
func (b *billed) withoutEnd(redis counted, has [measures]bool) string {
	n, unseen := b.open[requests], redis.sums[requests]-b.sums[requests]
	if n+unseen == 0 || unseen < 0 || n > 0 && has[cost] {
		return ""
	}
	// An answer without an end is estimated, unknown, or both, as one that is unseen
	// always is.
	if max(redis.estimated, redis.unknown) > n+unseen || redis.estimated+redis.unknown < n+2*unseen {
		return ""
	}
	least, most := b.minus(b.open), b.sums
	least[requests], most[requests] = redis.sums[requests], redis.sums[requests]
	most[output] += b.open[output] + n*frameTokens
	if !least.atMost(redis.sums) || !redis.atMost(most) {
		return ""
	}
	var why []string
	if n > 0 {
		why = append(why, plural(n, "answer")+" without an end, estimated in Redis")
	}
	if unseen > 0 {
		why = append(why, plural(unseen, "request")+" that the provider never saw or never answered: estimated")
	}
	return strings.Join(why, "; ")
}

// differing returns the rows that differ and are explained, or are not.
func (c *comparison) differing(explained bool) []compared {
	var rows []compared
	for _, row := range c.rows {
		if !row.equal() && row.explained() == explained {
			rows = append(rows, row)
		}
	}
	return rows
}

// err is the failure that rows differ, nil when none does without a reason.
func (c *comparison) err() error {
	n := len(c.differing(false))
	if n == 0 {
		return nil
	}
	return fmt.Errorf("redis and the ledger differ in %s of %s", grouped(int64(n)), plural(int64(len(c.rows)), "row"))
}

// text is the comparison for people.
func (c *comparison) text() string {
	var out strings.Builder
	out.WriteString("Redis beside the ledger, " + c.days.String() + "\n")
	if rows := c.differing(false); len(rows) > 0 {
		out.WriteString("\nDifferences:\n")
		c.table(&out, rows)
	}
	explained := c.differing(true)
	if len(explained) > 0 {
		out.WriteString("\nExplained:\n")
		c.table(&out, explained)
	}
	if c.err() == nil {
		out.WriteString("\n" + c.verdict() + "\n")
	}
	return out.String()
}

// verdict is the sentence that says that both are equal, and how much that is: a
// comparison of nothing proves nothing.
func (c *comparison) verdict() string {
	if len(c.rows) == 0 {
		return "Nothing to compare: neither Redis nor the ledger has usage there."
	}
	text := "Equal to the token"
	if n := len(c.differing(true)); n > 0 {
		text += " but for what is explained in " + plural(int64(n), "row")
	}
	text += ": " + plural(int64(len(c.rows)), "row")
	if c.has[requests] {
		var n int64
		for _, row := range c.rows {
			n += row.ledger[requests]
		}
		text += ", " + plural(n, "request")
	}
	return text + "."
}

// table lists each number in which rows differ, and once for each row what explains
// it.
func (c *comparison) table(out *strings.Builder, rows []compared) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	why := ""
	if rows[0].explained() {
		why = "\tWHY"
	}
	_, _ = fmt.Fprintln(w, "SUBSCRIPTION\tMODEL\tDAY\tCOUNT\tREDIS\tLEDGER\tDIFFERENCE"+why) // a strings.Builder takes all
	for _, row := range rows {
		diff, why := row.redis.minus(row.ledger), ""
		if row.explained() {
			why = "\t" + row.why
		}
		for m := range measures {
			if diff[m] != 0 {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s%s\n", row.subscription, orDash(row.model), row.day, measureNames[m],
					row.redis.show(m), row.ledger.show(m), diff.show(m), why) // a strings.Builder takes all
				why = ""
			}
		}
	}
	_ = w.Flush() // a strings.Builder takes all
}

// auditReport is the answer of `audit usage --json`.
type auditReport struct {
	Since       string       `json:"since"` // UTC days, both included; "" where everything was compared
	Until       string       `json:"until"`
	Rows        int          `json:"rows"`
	Equal       bool         `json:"equal"` // but for what is explained
	Differences []auditedRow `json:"differences"`
}

// auditedRow is one place that differs. The three maps hold what the ledger has, by
// the names of --columns.
type auditedRow struct {
	Subscription string         `json:"subscription"`
	Model        string         `json:"model"` // "" when the ledger does not tell models apart
	Day          string         `json:"day"`
	Redis        map[string]any `json:"redis"`
	Ledger       map[string]any `json:"ledger"`
	Difference   map[string]any `json:"difference"`  // Redis less the ledger
	Explanation  string         `json:"explanation"` // "" when there is none
}

func (c *comparison) report() auditReport {
	r := auditReport{Since: c.days.first, Until: c.days.last, Rows: len(c.rows), Equal: c.err() == nil, Differences: []auditedRow{}}
	named := func(s sums) map[string]any {
		named := map[string]any{}
		for m := range measures {
			switch {
			case !c.has[m]:
			case m == cost:
				named[measureNames[m]] = admin.NanoUSD(s[m])
			default:
				named[measureNames[m]] = s[m]
			}
		}
		return named
	}
	for _, row := range c.rows {
		if !row.equal() {
			r.Differences = append(r.Differences, auditedRow{
				row.subscription, row.model, row.day, named(row.redis), named(row.ledger), named(row.redis.minus(row.ledger)), row.why,
			})
		}
	}
	return r
}
