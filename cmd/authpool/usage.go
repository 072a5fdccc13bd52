package main

import (
	"encoding/csv"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

func newUsageCommand(p *program) *cobra.Command {
	var (
		find             clientFlags
		by, since, until string
		asJSON, asCSV    bool
	)
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "Show tokens and cost",
		Long: `Adds up requests, tokens and cost of everything that went through the pool.

A time is RFC 3339 (2026-11-22T10:00:00Z), a date (2026-11-22; as --until that
whole day is counted) or a duration back (24h, 7d). Sums are kept by the UTC
day, so the range is widened to whole days; by block, every block that touches
the range is counted whole. The range that was counted is told.

By subscription and by block, the table ends with the active blocks: how much is
used of the block budget, else of what the provider's window was learned to
hold, and when the block resets. Bars are drawn in ASCII unless the locale is
UTF-8.`,
		Example: "  authpool usage\n  authpool usage --by model --since 7d\n  authpool usage --by block --since 24h --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON && asCSV {
				return wrongf("--json and --csv exclude each other")
			}
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			query := url.Values{"by": {by}}
			if since != "" {
				query.Set("since", since)
			}
			if until != "" {
				query.Set("until", until)
			}
			var rows []admin.UsageRow
			head, err := c.get(cmd.Context(), admin.UsagePath, query, &rows)
			if err != nil {
				return err
			}
			counted := countedRange(usage.By(by), head)
			if (asJSON || asCSV) && counted != "" {
				_, _ = fmt.Fprintf(p.Err, "authpool: counted %s\n", counted) // a note, not the answer
			}
			switch {
			case asJSON:
				return p.printJSON(rows)
			case asCSV:
				return p.printUsageCSV(rows)
			default:
				if err := p.printf("%s", usageTable(usage.By(by), counted, rows)); err != nil {
					return err
				}
				if until != "" || by != string(usage.BySubscription) && by != string(usage.ByBlock) {
					return nil
				}
				status, err := c.status(cmd.Context())
				if err != nil {
					return err
				}
				return p.printf("%s", activeBlocks(status, time.Now(), p.pen()))
			}
		},
	}
	find.register(cmd)
	cmd.Flags().StringVar(&by, "by", string(usage.BySubscription), "what to add up by: subscription, model, session, agent, day, block or week")
	cmd.Flags().StringVar(&since, "since", "", "first time that counts (default: everything kept)")
	cmd.Flags().StringVar(&until, "until", "", "end of what counts (default: now)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "print CSV")
	return cmd
}

// countedRange says in words which range the server counted; "" when all.
func countedRange(by usage.By, head http.Header) string {
	since, until := head.Get(admin.SinceHeader), head.Get(admin.UntilHeader)
	if since == "" && until == "" {
		return ""
	}
	if by == usage.ByBlock {
		return "every block that touches the time" + edge(" from ", since) + edge(" to ", until)
	}
	// Both are midnights in UTC; the last day is the one before the end.
	if end, err := time.Parse(time.RFC3339, until); err == nil {
		until = end.Add(-time.Second).Format(time.DateOnly)
	}
	since, _, _ = strings.Cut(since, "T")
	counted := "whole UTC days" + edge(" from ", since) + edge(" to ", until)
	if by == usage.BySession {
		counted += ", each session with its whole life"
	}
	return counted
}

func edge(word, t string) string {
	if t == "" {
		return ""
	}
	return word + t
}

// usageTable is the usage for people, with a sum when there is something to
// add up.
func usageTable(by usage.By, counted string, rows []admin.UsageRow) string {
	var out strings.Builder
	out.WriteString("Usage by " + string(by))
	if counted != "" {
		out.WriteString(", " + counted)
	}
	out.WriteString("\n")
	if len(rows) == 0 {
		out.WriteString("Nothing was used.\n")
		return out.String()
	}
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "REQUESTS\tINPUT\tOUTPUT\tCACHE READ\tCACHE WRITE\tCOST\t  "+strings.ToUpper(string(by))) // a strings.Builder takes all
	var total admin.UsageRow
	for _, r := range rows {
		usageLine(w, r)
		total = sum(total, r)
	}
	if len(rows) > 1 {
		total.Key = "total"
		usageLine(w, total)
	}
	_ = w.Flush() // a strings.Builder takes all
	return out.String()
}

// activeBlocks shows how much of each running block is used, and when it resets; ""
// when none runs.
func activeBlocks(status admin.Status, now time.Time, draw pen) string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, s := range status.Subscriptions {
		if s.Block == nil {
			continue
		}
		cell, ok := draw.capacityCell(s.Block.Capacity)
		if !ok {
			cell = money(s.Block.CostUSD) + ", no budget"
		}
		for _, b := range s.Budgets {
			if b.Window == "block" { // of tokens or requests perhaps, which a capacity has not
				cell = draw.budgetCell(b)
			}
		}
		_, _ = fmt.Fprintf(w, "  %s\t%s, resets %s\n", s.ID, cell, clock(s.Block.End, now)) // a strings.Builder takes all
	}
	_ = w.Flush() // a strings.Builder takes all
	if out.Len() == 0 {
		return ""
	}
	return "Active blocks\n" + out.String()
}

func usageLine(w *tabwriter.Writer, r admin.UsageRow) {
	_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t$%s\t  %s%s\n", grouped(r.Requests), grouped(r.Input), grouped(r.Output),
		grouped(r.CacheRead), grouped(r.CacheWrite5m+r.CacheWrite1h), r.CostUSD, r.Key, remarks(r)) // a strings.Builder takes all
}

// remarks tells which requests of a row are less than exact, and what it used that
// is not counted in tokens.
func remarks(r admin.UsageRow) string {
	notes := marks(r.Estimated, r.Unpriced, r.Unknown)
	for _, name := range slices.Sorted(maps.Keys(r.Units)) {
		notes = append(notes, grouped(r.Units[name])+" "+name)
	}
	if len(notes) == 0 {
		return ""
	}
	return " (" + strings.Join(notes, ", ") + ")"
}

// marks tells how many requests are less than exact, and in which way.
func marks(estimated, unpriced, unknown int64) []string {
	var notes []string
	for _, n := range []struct {
		count int64
		what  string
	}{{estimated, "estimated"}, {unpriced, "unpriced"}, {unknown, "unknown"}} {
		if n.count > 0 {
			notes = append(notes, grouped(n.count)+" "+n.what)
		}
	}
	return notes
}

func sum(a, b admin.UsageRow) admin.UsageRow {
	units := maps.Clone(a.Units)
	for name, n := range b.Units {
		if units == nil {
			units = map[string]int64{}
		}
		units[name] += n
	}
	return admin.UsageRow{
		Requests:     a.Requests + b.Requests,
		Input:        a.Input + b.Input,
		Output:       a.Output + b.Output,
		CacheRead:    a.CacheRead + b.CacheRead,
		CacheWrite5m: a.CacheWrite5m + b.CacheWrite5m,
		CacheWrite1h: a.CacheWrite1h + b.CacheWrite1h,
		CostUSD:      a.CostUSD + b.CostUSD,
		Estimated:    a.Estimated + b.Estimated,
		Unpriced:     a.Unpriced + b.Unpriced,
		Unknown:      a.Unknown + b.Unknown,
		Reasoning:    a.Reasoning + b.Reasoning,
		Units:        units,
	}
}

// printUsageCSV writes rows with the names of the JSON as head line. Units are one
// column, as "name=count" with blanks between, sorted by name.
func (p *program) printUsageCSV(rows []admin.UsageRow) error {
	w := csv.NewWriter(p.Out)
	lines := [][]string{{
		"key", "requests", "input", "output", "cache_read", "cache_write_5m", "cache_write_1h",
		"cost_usd", "estimated", "unpriced", "unknown", "reasoning", "units",
	}}
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, r := range rows {
		lines = append(lines, []string{
			r.Key, count(r.Requests), count(r.Input), count(r.Output), count(r.CacheRead), count(r.CacheWrite5m),
			count(r.CacheWrite1h), r.CostUSD.String(), count(r.Estimated), count(r.Unpriced), count(r.Unknown),
			count(r.Reasoning), unitsCell(r.Units),
		})
	}
	if err := w.WriteAll(lines); err != nil {
		return fmt.Errorf("cannot write to standard output: %w", err)
	}
	return nil
}

// unitsCell writes units in a fixed order; "" for none.
func unitsCell(units map[string]int64) string {
	cells := make([]string, 0, len(units))
	for _, name := range slices.Sorted(maps.Keys(units)) {
		cells = append(cells, name+"="+strconv.FormatInt(units[name], 10))
	}
	return strings.Join(cells, " ")
}
