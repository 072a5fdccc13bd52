package main

import (
	"context"
	"fmt"
	"math"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/proxy/admin"
)

// watchInterval is how often `status --watch` asks again.
const watchInterval = 2 * time.Second

func newStatusCommand(p *program) *cobra.Command {
	var (
		find          clientFlags
		asJSON, watch bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the subscriptions of the running serve",
		Long: `Shows each subscription's state, health, cooldown and sessions; what its active
block and its budgets have cost, how fast, and when that is used up; how the
provider sees its own windows, and how the store is.

How fast a block is spent is told once its answers are a minute apart; what it
will cost at the end, and when something is used up, is foretold at that rate.

The drift of a window is the provider's number less our own share of it: what
was used elsewhere, before authpool first saw the window, or what is not counted.`,
		Example: "  authpool status\n  authpool status --watch\n  authpool status --json | jq -r '.subscriptions[] | select(.state != \"ready\") | .id'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			if watch {
				ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
				defer stop()
				return watchStatus(ctx, p, c.status, asJSON)
			}
			status, err := c.status(cmd.Context())
			if err != nil {
				return err
			}
			return p.printStatus(status, asJSON)
		},
	}
	find.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (with --watch: one line each time)")
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every 2 s until interrupted")
	return cmd
}

// status asks for the status.
func (c *client) status(ctx context.Context) (admin.Status, error) {
	var status admin.Status
	_, err := c.get(ctx, admin.StatusPath, nil, &status)
	return status, err
}

func (p *program) printStatus(status admin.Status, asJSON bool) error {
	if asJSON {
		return p.printJSON(status)
	}
	return p.printf("%s", statusTable(status, time.Now(), p.pen()))
}

// watchStatus shows the status until ctx ends, which is no error. A serve that does
// not answer at first is one; later it may be on its way up again, and is waited for.
func watchStatus(ctx context.Context, p *program, ask func(context.Context) (admin.Status, error), asJSON bool) error {
	const clearScreen = "\x1b[H\x1b[2J"
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for answered := false; ; {
		status, err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !answered:
			return err
		}
		if !asJSON && p.isTerminal() {
			if err := p.printf("%s", clearScreen); err != nil {
				return err
			}
		}
		if err != nil {
			_, _ = fmt.Fprintf(p.Err, "authpool: %v\n", err) // a note: the next answer may come
		} else if err := p.printStatus(status, asJSON); err != nil {
			return err
		}
		answered = true
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// statusTable is the status for people: a line for each subscription, and below it
// what there is to say, with bars for what is used up. It fits lineWidth.
func statusTable(status admin.Status, now time.Time, draw pen) string {
	var out strings.Builder
	if len(status.Subscriptions) == 0 {
		out.WriteString("No subscription: set ANTHROPIC_API_KEY or OPENAI_API_KEY for serve, or write a config (authpool serve --help).\n")
	} else {
		var heads strings.Builder
		w := tabwriter.NewWriter(&heads, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "SUBSCRIPTION\tPROVIDER\tSTATE\tHEALTH\tSESSIONS\tIN FLIGHT") // a strings.Builder takes all
		for _, s := range status.Subscriptions {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\n", s.ID, s.Provider, stateCell(s), s.Health, s.Sessions, s.InFlight)
		}
		_ = w.Flush() // a strings.Builder takes all
		lines := strings.SplitAfter(heads.String(), "\n")
		details := make([][]detail, len(status.Subscriptions))
		width := 0
		for i, s := range status.Subscriptions {
			details[i] = subscriptionDetails(s, now, draw)
			for _, d := range details[i] {
				width = max(width, len(d.name))
			}
		}
		out.WriteString(lines[0])
		for i := range status.Subscriptions {
			out.WriteString(lines[1+i])
			for _, d := range details[i] {
				fmt.Fprintf(&out, "  %-*s  %s\n", width, d.name, notes(strings.Repeat(" ", width+4), d.phrases))
			}
		}
	}
	redis := "ok,"
	if !status.Redis.OK {
		redis = "away: blocks and budgets are not known, usage is kept in the journal;"
	}
	fmt.Fprintf(&out, "Redis %s: %s %s waiting in the journal\n", status.Redis.Mode, redis, plural(int64(status.Redis.JournalPending), "event"))
	out.WriteString(journalLine(status.Journal))
	out.WriteString(waitingLine(status.Journal.OldestPending, now))
	return out.String()
}

// journalLine says how much room for usage is taken, once that is worth a line, and
// shouts when there was none; else it is empty.
func journalLine(j admin.Journal) string {
	const worthIt = 100 // a hundredth
	if j.Held < j.MaxBytes/worthIt && j.Refused == 0 {
		return ""
	}
	line := "Journal: " + size(j.Held) + " of " + size(j.MaxBytes) + " taken"
	if j.Refused > 0 {
		line += ", the usage of " + plural(j.Refused, "answer") + " was LOST since the start"
	}
	if j.Refusing {
		line += ", and NEW USAGE IS LOST"
	}
	return line + "\n"
}

// waitingLine names the usage that has not reached Redis for a minute, which is long
// when Redis is there; else it is empty.
func waitingLine(w *admin.OldestPending, now time.Time) string {
	if w == nil || now.Sub(w.Time) < time.Minute {
		return ""
	}
	line := "Journal: usage of " + w.Subscription + " waits for " + until(now, w.Time)
	if w.Error != "" {
		line += ": " + w.Error
	}
	return line + "\n"
}

// detail is one thing that is said of a subscription below its line.
type detail struct {
	name    string
	phrases []string
}

// healthPhrases are the parts that lower the health of a subscription that can serve.
func healthPhrases(s admin.Subscription) []string {
	var phrases []string
	for _, part := range [...]struct {
		name  string
		value float64
	}{
		{"availability", s.Score.Availability},
		{"headroom", s.Score.Headroom},
		{"soundness", s.Score.Soundness},
		{"swiftness", s.Score.Swiftness},
	} {
		if worth := math.Round(100 * part.value); s.Score.Availability > 0 && worth < 100 {
			phrases = append(phrases, fmt.Sprintf("%s %.0f%%", part.name, worth))
		}
	}
	if len(phrases) > 0 && s.FirstByte != nil {
		phrases = append(phrases, "first byte after "+took(*s.FirstByte))
	}
	return phrases
}

// subscriptionDetails are in the order of how much they matter now.
func subscriptionDetails(s admin.Subscription, now time.Time, draw pen) []detail {
	var details []detail
	if cooldown := cooldownPhrases(s, now); len(cooldown) > 0 {
		details = append(details, detail{"cooldown", cooldown})
	}
	if health := healthPhrases(s); len(health) > 0 {
		details = append(details, detail{"health", health})
	}
	if s.Block != nil {
		details = append(details, detail{"block", blockPhrases(s.Block, now, draw)})
	}
	for _, b := range s.Budgets {
		switch {
		case b.Window != "block" || s.Block == nil:
			details = append(details, detail{b.Window, budgetPhrases(b, now, draw)})
		case b.Tokens > 0 || b.Requests > 0: // else it is the block's capacity
			details = append(details, detail{"budget", budgetPhrases(b, now, draw)})
		}
	}
	var limits []string
	for _, w := range s.Windows {
		if w.Kind != providerWindow {
			limits = append(limits, w.Name+" "+percent(w.Effective)+statusWord(w))
			continue
		}
		details = append(details, detail{"window " + w.Name, windowPhrases(w, now, draw)})
	}
	if len(limits) > 0 {
		details = append(details, detail{"limits", limits})
	}
	if m := s.Minute; m != nil && m.Requests > 0 {
		details = append(details, detail{"minute", []string{plural(m.Requests, "request"), grouped(m.Input) + " in", grouped(m.Output) + " out"}})
	}
	return details
}

func blockPhrases(b *admin.Block, now time.Time, draw pen) []string {
	var phrases []string
	if cell, ok := draw.capacityCell(b.Capacity); ok {
		phrases = append(phrases, cell)
	}
	phrases = append(phrases, "resets "+clock(b.End, now)+" ("+until(b.End, now)+")", money(b.CostUSD), grouped(b.Tokens())+" tokens")
	phrases = append(phrases, marks(b.Estimated, b.Unpriced, b.Unknown)...)
	if b.Burn != nil && b.Burn.Steady {
		phrases = append(phrases, fmt.Sprintf("%s/min", grouped(int64(b.Burn.TokensPerMinute))), money(b.Burn.CostUSDPerHour)+"/h")
		if b.Projection != nil {
			phrases = append(phrases, money(b.Projection.CostUSD)+" at the end")
		}
	}
	return empties(phrases, b.EmptiesAt, now)
}

func budgetPhrases(b admin.Budget, now time.Time, draw pen) []string {
	phrases := []string{draw.budgetCell(b)}
	if b.State != "ok" {
		phrases = append(phrases, b.State)
	}
	var spent []string
	if b.CostUSD > 0 {
		spent = append(spent, money(b.SpentUSD))
	}
	if b.Tokens > 0 {
		spent = append(spent, plural(b.UsedTokens, "token"))
	}
	if b.Requests > 0 {
		spent = append(spent, plural(b.UsedRequests, "request"))
	}
	phrases = append(phrases, strings.Join(spent, " and ")+" spent")
	if b.Resets != nil {
		phrases = append(phrases, "resets "+clock(*b.Resets, now))
	}
	if b.State == "exceeded" {
		return phrases // which says that it is used up
	}
	return empties(phrases, b.EmptiesAt, now)
}

func windowPhrases(w admin.Window, now time.Time, draw pen) []string {
	used := draw.bar(w.Effective)
	if w.CapacityUSD != nil {
		used += " of about " + money(*w.CapacityUSD)
	}
	phrases := []string{used + statusWord(w)}
	if w.Reset != nil {
		phrases = append(phrases, "resets "+clock(*w.Reset, now))
	}
	if w.Drift != nil {
		phrases = append(phrases, fmt.Sprintf("drift %+.1f%%", *w.Drift*100))
	}
	if w.Foreign > 0 {
		phrases = append(phrases, percent(w.Foreign)+" used elsewhere")
	}
	return empties(phrases, w.EmptiesAt, now)
}

// empties adds when something is used up.
func empties(phrases []string, at *time.Time, now time.Time) []string {
	switch {
	case at == nil:
		return phrases
	case !at.After(now):
		return append(phrases, "used up")
	}
	return append(phrases, "used up by "+clock(*at, now))
}

func percent(fraction float64) string {
	return strconv.FormatFloat(fraction*100, 'f', 0, 64) + "%"
}

// statusWord is the provider's word where it is not the usual one.
func statusWord(w admin.Window) string {
	if w.Status == "" || w.Status == "allowed" {
		return ""
	}
	return " " + w.Status
}

func stateCell(s admin.Subscription) string {
	cell := s.State
	if s.Reason != "" && s.Reason != s.State {
		cell += " (" + s.Reason + ")"
	}
	if s.Breaker != "" && s.Breaker != "closed" {
		cell += ", breaker " + s.Breaker
	}
	return cell
}

func cooldownPhrases(s admin.Subscription, now time.Time) []string {
	var cells []string
	if s.CooldownUntil != nil && s.CooldownUntil.After(now) {
		cells = append(cells, until(*s.CooldownUntil, now))
	}
	models := make([]string, 0, len(s.CooldownModels))
	for model := range s.CooldownModels {
		models = append(models, model)
	}
	slices.Sort(models)
	for _, model := range models {
		if end := s.CooldownModels[model]; end.After(now) {
			cells = append(cells, model+" "+until(end, now))
		}
	}
	return cells
}
