package main

import (
	"context"
	"fmt"
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
		Long: `Shows each subscription's state, health, active block, cooldown and sessions,
and how the store is.`,
		Example: "  authpool status\n  authpool status --watch\n  authpool status --json | jq -r '.subscriptions[] | select(.state != \"ready\") | .id'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			if !watch {
				return showStatus(cmd.Context(), p, c, asJSON)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return watchStatus(ctx, p, c, asJSON)
		},
	}
	find.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (with --watch: one line each time)")
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every 2 s until interrupted")
	return cmd
}

func showStatus(ctx context.Context, p *program, c *client, asJSON bool) error {
	var status admin.Status
	if _, err := c.get(ctx, admin.StatusPath, nil, &status); err != nil {
		return err
	}
	if asJSON {
		return p.printJSON(status)
	}
	return p.printf("%s", statusTable(status, time.Now()))
}

// watchStatus shows the status until ctx ends, which is no error.
func watchStatus(ctx context.Context, p *program, c *client, asJSON bool) error {
	const clearScreen = "\x1b[H\x1b[2J"
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		if !asJSON && p.isTerminal() {
			if err := p.printf("%s", clearScreen); err != nil {
				return err
			}
		}
		if err := showStatus(ctx, p, c, asJSON); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// statusTable is the status for people.
func statusTable(status admin.Status, now time.Time) string {
	var out strings.Builder
	if len(status.Subscriptions) == 0 {
		out.WriteString("No subscription: set ANTHROPIC_API_KEY or OPENAI_API_KEY for serve, or write a config (authpool serve --help).\n")
	} else {
		w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "SUBSCRIPTION\tPROVIDER\tSTATE\tHEALTH\tBLOCK\tTOKENS\tCOST\tWINDOWS\tCOOLDOWN\tSESSIONS\tIN FLIGHT") // a strings.Builder takes all
		for _, s := range status.Subscriptions {
			block, tokens, cost := "-", "-", "-"
			if s.Block != nil {
				block = bar(now.Sub(s.Block.Start), s.Block.End.Sub(s.Block.Start)) + " " + until(s.Block.End, now) + " left"
				tokens, cost = grouped(s.Block.Tokens()), "$"+s.Block.CostUSD.String()
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%d\t%d\n",
				s.ID, s.Provider, stateCell(s), s.Health, block, tokens, cost, windowsCell(s.Windows), cooldownCell(s, now), s.Sessions, s.InFlight)
		}
		_ = w.Flush() // a strings.Builder takes all
	}
	redis := "ok"
	if !status.Redis.OK {
		redis = "away: usage is kept in the journal"
	}
	fmt.Fprintf(&out, "Redis %s: %s, %s waiting in the journal\n", status.Redis.Mode, redis, plural(int64(status.Redis.JournalPending), "event"))
	return out.String()
}

func stateCell(s admin.Subscription) string {
	cell := s.State
	if s.Reason != "" {
		cell += " (" + s.Reason + ")"
	}
	if s.Breaker != "" && s.Breaker != "closed" {
		cell += ", breaker " + s.Breaker
	}
	return cell
}

func windowsCell(windows []admin.Window) string {
	cells := make([]string, 0, len(windows))
	for _, w := range windows {
		cell := w.Name + " " + strconv.FormatFloat(w.Utilization*100, 'f', 0, 64) + "%"
		if w.Status != "" && w.Status != "allowed" {
			cell += " " + w.Status
		}
		cells = append(cells, cell)
	}
	return orDash(strings.Join(cells, ", "))
}

func cooldownCell(s admin.Subscription, now time.Time) string {
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
	return orDash(strings.Join(cells, ", "))
}

// bar draws which part of whole has passed.
func bar(passed, whole time.Duration) string {
	const width = 10
	filled := 0
	if whole > 0 {
		filled = int(min(width, max(0, passed*width/whole)))
	}
	return strings.Repeat("█", filled) + strings.Repeat("░", width-filled)
}

// until tells the time from now to end in the two largest units that matter.
func until(end, now time.Time) string {
	d := max(0, end.Sub(now))
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	default:
		return fmt.Sprintf("%ds", (d+time.Second-1)/time.Second)
	}
}

// grouped writes n with commas between thousands.
func grouped(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return grouped(n) + " " + noun + "s"
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
