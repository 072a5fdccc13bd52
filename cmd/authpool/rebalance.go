package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/admin"
)

// Rebalance implements admin.Sessions.
func (s sessions) Rebalance(ctx context.Context, dryRun bool) (admin.Rebalanced, error) {
	out := admin.Rebalanced{Moves: []admin.RebalancedMove{}, Whole: s.pool.Whole()}
	add := func(m pool.PlannedMove, err error) {
		one := admin.RebalancedMove{
			SessionName: admin.SessionName{Session: m.Session.Session, Agent: m.Session.Agent, Provider: m.Session.Provider},
			From:        m.From, Subscription: m.To, Why: m.Why, CacheTokens: m.CacheTokens,
		}
		if err != nil {
			one.Error = err.Error()
			out.Failed++
		}
		out.Moves = append(out.Moves, one)
	}
	if dryRun {
		for _, m := range s.pool.PlanRebalance() {
			add(m, nil)
		}
		return out, nil
	}
	done, wait, err := s.pool.Rebalance(ctx, true)
	for _, one := range done {
		add(one.PlannedMove, one.Err)
	}
	out.Wait = int64(math.Ceil(wait.Seconds()))
	return out, err
}

func newSessionsRebalanceCommand(p *program) *cobra.Command {
	var (
		find           clientFlags
		dryRun, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "Move sessions to where they are better off",
		Long: `Moves sessions now, as every sidecar does by itself about once a minute: those whose
subscription cannot serve for longer than sessions.cache_warm, and those that are
cold (not used for that long) from crowded subscriptions to others of their tier. The
latter are left alone with the strategies priority and drain_soonest. At most 20
sessions are moved a minute, over all sidecars.

The sidecar that is asked moves the sessions that it serves: only it knows what their
agents may use, and what their state is bound to. CACHE LOST is what a session has read
from its prompt cache in the last 5 minutes there.`,
		Example: "  authpool sessions rebalance --dry-run\n  authpool sessions rebalance --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var done admin.Rebalanced
			if err := c.send(cmd.Context(), "POST", admin.RebalancePath, admin.Rebalance{DryRun: dryRun}, &done); err != nil {
				return err
			}
			if !done.Whole {
				_, _ = fmt.Fprintln(p.Err, "authpool: Redis is away: this is by what the sidecar that was asked knows, and nothing is moved before Redis is back")
			}
			if asJSON {
				err = p.printJSON(done.Moves)
			} else {
				err = p.printf("%s", rebalancedTable(done, dryRun))
			}
			switch {
			case err != nil:
				return err
			case done.Failed > 0:
				return fmt.Errorf("%s of %d could not be moved; they stay where they are", plural(int64(done.Failed), "session"), len(done.Moves))
			case done.Wait > 0:
				_, _ = fmt.Fprintf(p.Err, "authpool: more are to be moved: the fleet's moves of this minute are used up, ask again in %d s\n", done.Wait)
			}
			return nil
		},
	}
	find.register(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be moved, and why")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func rebalancedTable(done admin.Rebalanced, dryRun bool) string {
	switch {
	case len(done.Moves) == 0 && done.Wait > 0:
		return "No session was moved.\n"
	case len(done.Moves) == 0:
		return "No session is to be moved.\n"
	}
	reasons := map[string]string{
		pool.WhyClosed: "its subscription cannot serve",
		pool.WhyUneven: "cold, and the other is less crowded",
	}
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "SESSION\tFROM\tTO\tCACHE LOST\tWHY\t")
	for _, m := range done.Moves {
		why := reasons[m.Why]
		if m.Error != "" {
			why += "; FAILED: " + m.Error
		}
		_, _ = fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t\n", m.Agent, m.Session, m.From, m.Subscription, grouped(m.CacheTokens), why)
	}
	_ = w.Flush() // a strings.Builder takes all
	if dryRun {
		_, _ = fmt.Fprintln(&out, "Nothing was moved: this is what would be.")
	}
	return out.String()
}
