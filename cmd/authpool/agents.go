package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/proxy"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

// agentBook tells of the agents and changes them. It implements admin.Agents.
type agentBook struct {
	book *agents.Book
	cfg  func() *config.Config // the present one
}

// Agents implements admin.Agents.
func (b agentBook) Agents(ctx context.Context) (admin.AgentList, error) {
	list, fresh := b.book.List(ctx)
	if !fresh && !b.book.Known() && len(list) == 0 {
		return admin.AgentList{}, redisdb.ErrAway
	}
	out := admin.AgentList{Whole: fresh, Agents: make([]admin.Agent, 0, len(list))}
	for i := range list {
		out.Agents = append(out.Agents, shownAgent(&list[i]))
	}
	return out, nil
}

func shownAgent(u *agents.Used) admin.Agent {
	a := admin.Agent{
		Name: u.ID, Version: u.Version, Created: u.Created, Expires: moment(u.Expires), Token: u.Token, Broken: u.Unreadable,
		Providers:     append([]string{}, u.Providers...),
		Models:        append([]string{}, u.Models...),
		Subscriptions: append([]string{}, u.Subscriptions...),
		Budgets:       []admin.AgentBudgetState{},
		AgentRates:    admin.AgentRates(u.Rates),
		Last:          moment(u.Last.UTC().Truncate(time.Millisecond)),
	}
	for i, b := range u.Budgets {
		spent := u.Spent[i]
		a.Budgets = append(a.Budgets, admin.AgentBudgetState{
			AgentBudget: admin.AgentBudget{
				Window: string(b.Period), CostUSD: admin.NanoUSD(b.CostNanoUSD), Tokens: b.Tokens, Requests: b.Requests,
			},
			SpentUSD: admin.NanoUSD(spent.CostNanoUSD), UsedTokens: spent.Tokens, UsedRequests: spent.Requests, Resets: spent.Resets,
		})
	}
	return a
}

// Agent implements admin.Agents.
func (b agentBook) Agent(ctx context.Context, name string) (admin.Agent, error) {
	u, ok, _ := b.book.Find(ctx, name)
	switch {
	case ok:
		return shownAgent(&u), nil
	case !b.book.Known():
		return admin.Agent{}, redisdb.ErrAway
	}
	return admin.Agent{}, noAgent(name)
}

func noAgent(name string) error {
	return &admin.RefusedError{Status: http.StatusNotFound, Err: fmt.Errorf("there is no agent %s", shortened(name))}
}

// isOwn tells whether an agent is known without a token of the book.
func isOwn(name string) bool { return name == defaultAgent || name == proxy.AnonymousAgent }

// CreateAgent implements admin.Agents.
func (b agentBook) CreateAgent(ctx context.Context, wanted admin.NewAgent) (admin.AgentCreated, error) {
	if isOwn(wanted.Name) {
		return admin.AgentCreated{}, wrongAgent("name: %q is the agent without a token of its own: want another name", wanted.Name)
	}
	a := agents.Agent{ID: wanted.Name}
	if err := b.apply(&a, wanted.AgentChange); err != nil {
		return admin.AgentCreated{}, err
	}
	made, token, err := b.book.Create(ctx, a)
	if err != nil {
		return admin.AgentCreated{}, refusedAgent(err, wanted.Name, admin.AnyVersion, 0)
	}
	return admin.AgentCreated{Name: made.ID, Token: token.Reveal()}, nil
}

// LimitAgent implements admin.Agents.
func (b agentBook) LimitAgent(ctx context.Context, name string, version int64, change admin.AgentChange) (admin.Agent, error) {
	if isOwn(name) && change.Expires != nil {
		return admin.Agent{}, wrongAgent("expires: agent %q has no token of its own that could expire", name)
	}
	changed, err := b.book.Change(ctx, name, version, isOwn(name), func(a *agents.Agent) error { return b.apply(a, change) })
	if err != nil {
		return admin.Agent{}, refusedAgent(err, name, version, changed.Version)
	}
	return b.Agent(ctx, name)
}

// RevokeAgent implements admin.Agents.
func (b agentBook) RevokeAgent(ctx context.Context, name string, version int64) (admin.AgentRevoked, error) {
	if err := b.book.Remove(ctx, name, version); err != nil {
		return admin.AgentRevoked{}, refusedAgent(err, name, version, b.version(ctx, name))
	}
	return admin.AgentRevoked{Name: name}, nil
}

// version is the one that an agent has now, 0 where that is not known.
func (b agentBook) version(ctx context.Context, name string) int64 {
	_ = b.book.Refresh(ctx) // what was last known does, too
	if e := b.book.ByID(name); e != nil {
		return e.Version
	}
	return 0
}

// refusedAgent tells what the operator has to mend from what Redis has. wanted is the
// version that was asked for, have the one that there is: 0 where there is no record.
func refusedAgent(err error, name string, wanted, have int64) error {
	switch {
	case errors.Is(err, agents.ErrUnknown):
		return noAgent(name)
	case errors.Is(err, agents.ErrVersion) && wanted != admin.AnyVersion:
		return admin.StaleError("agent "+name, have)
	case errors.Is(err, agents.ErrExists), errors.Is(err, agents.ErrVersion), errors.Is(err, agents.ErrFull), errors.Is(err, agents.ErrUnreadable):
		return &admin.RefusedError{Status: http.StatusConflict, Err: fmt.Errorf("agent %s: %w", shortened(name), err)}
	}
	return err
}

func wrongAgent(format string, args ...any) error {
	return &admin.RefusedError{Status: http.StatusBadRequest, Err: fmt.Errorf(format, args...)}
}

// apply makes a change, unless something is wrong with it.
func (b agentBook) apply(a *agents.Agent, change admin.AgentChange) error {
	now := time.Now()
	switch {
	case change.Expires == nil:
	case *change.Expires == "never":
		a.Expires = time.Time{}
	default:
		end, err := time.Parse(time.RFC3339, *change.Expires)
		if err != nil {
			return wrongAgent("expires: %s is no time: want RFC 3339 (2027-01-31T00:00:00Z) or never", shortened(*change.Expires))
		}
		a.Expires = end.UTC()
	}
	for _, list := range []struct{ from, to *[]string }{
		{change.Providers, &a.Providers}, {change.Models, &a.Models}, {change.Subscriptions, &a.Subscriptions},
	} {
		if list.from != nil {
			*list.to = slices.Clone(*list.from)
		}
	}
	for _, limit := range []struct{ from, to *int }{
		{change.RequestsPerMinute, &a.RequestsPerMinute}, {change.Concurrent, &a.Concurrent}, {change.Connections, &a.Connections},
	} {
		if limit.from != nil {
			*limit.to = *limit.from
		}
	}
	if change.Budgets != nil {
		a.Budgets = nil
		for _, budget := range *change.Budgets {
			a.Budgets = append(a.Budgets, agents.Budget{
				Period: usage.Period(budget.Window), CostNanoUSD: int64(budget.CostUSD), Tokens: budget.Tokens, Requests: budget.Requests,
			})
		}
	}
	if change.Expires == nil && !a.Expires.After(now) { // an end that is over may stay while something else is changed
		former := a.Expires
		a.Expires = time.Time{}
		defer func() { a.Expires = former }()
	}
	if err := a.Check(now); err != nil {
		return wrongAgent("%w", err)
	}
	if change.Providers != nil {
		for _, name := range a.Providers {
			if _, known := b.cfg().ProviderByName(name); !known {
				return wrongAgent("providers: %q is none: want a built-in one, or one that the config declares", name)
			}
		}
	}
	return nil
}

func newAgentsCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agents",
		Short: "List, make, limit and revoke agents",
		Long: `Gives each agent a token of its own, and says what it may use. The agent "default"
shows the token of the state folder, "anonymous" is everybody with agents.auth none;
both can be limited like any other.`,
		Example: "  authpool agents create ci --provider anthropic --budget day:cost_usd=5\n  authpool agents list",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAgentsListCommand(p), newAgentsCreateCommand(p), newAgentsLimitCommand(p), newAgentsRevokeCommand(p))
	return cmd
}

// agentFlags say what an agent may use.
type agentFlags struct {
	providers, models, subscriptions, budgets []string
	expires                                   string
	requests, concurrent, connections         int
}

func (f *agentFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.providers, "provider", nil, "a provider that it may use; more than one allowed, \"\" for all")
	flags.StringArrayVar(&f.models, "model", nil, "glob of models that it may use; more than one allowed, \"\" for all")
	flags.StringArrayVar(&f.subscriptions, "subscription", nil, "id or label of subscriptions that it may use; more than one allowed, \"\" for all")
	flags.StringArrayVar(&f.budgets, "budget", nil, "WINDOW:KIND=AMOUNT[,KIND=AMOUNT...]; WINDOW: day, week or month; KIND: cost_usd, tokens or requests (repeatable), \"\" for none")
	flags.IntVar(&f.requests, "requests-per-minute", 0, "requests that it may send to each sidecar in a minute, 0 for no limit")
	flags.IntVar(&f.concurrent, "concurrent", 0, "requests that it may have under way at each sidecar, 0 for no limit")
	flags.IntVar(&f.connections, "connections", 0, "connections that it may have open to each sidecar, 0 for no limit")
	flags.StringVar(&f.expires, "expires", "", "when its token ends: RFC 3339, a duration from now (30d, 12h), or never")
}

// change is what the flags that were given say.
func (f *agentFlags) change(flags *pflag.FlagSet, now time.Time) (c admin.AgentChange, err error) {
	list := func(name string, values []string) *[]string {
		if !flags.Changed(name) {
			return nil
		}
		if len(values) == 1 && values[0] == "" {
			values = []string{}
		}
		return &values
	}
	c.Providers, c.Models, c.Subscriptions = list("provider", f.providers), list("model", f.models), list("subscription", f.subscriptions)
	if given := list("budget", f.budgets); given != nil {
		parsed, err := parseBudgets(*given)
		if err != nil {
			return c, err
		}
		budgets := make([]admin.AgentBudget, len(parsed))
		for i, b := range parsed {
			budgets[i] = admin.AgentBudget{Window: b.Window, CostUSD: orZero(b.CostUSD), Tokens: orZero(b.Tokens), Requests: orZero(b.Requests)}
		}
		c.Budgets = &budgets
	}
	for _, limit := range []struct {
		name  string
		given *int
		to    **int
	}{
		{"requests-per-minute", &f.requests, &c.RequestsPerMinute}, {"concurrent", &f.concurrent, &c.Concurrent}, {"connections", &f.connections, &c.Connections},
	} {
		if flags.Changed(limit.name) {
			*limit.to = limit.given
		}
	}
	if flags.Changed("expires") {
		end, err := expiry(f.expires, now)
		if err != nil {
			return c, err
		}
		c.Expires = &end
	}
	return c, nil
}

// orZero is what p points to.
func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// expiry reads --expires.
func expiry(text string, now time.Time) (string, error) {
	if text == "never" {
		return text, nil
	}
	if _, err := time.Parse(time.RFC3339, text); err == nil {
		return text, nil
	}
	wait, err := time.ParseDuration(text)
	if number, ok := strings.CutSuffix(text, "d"); ok {
		var days uint64
		days, err = strconv.ParseUint(number, 10, 16)
		wait = time.Duration(days) * 24 * time.Hour //nolint:gosec // below 65536
	}
	if err != nil || wait <= 0 {
		return "", wrongf("--expires %s: want RFC 3339 (2027-01-31T00:00:00Z), a duration from now (30d, 12h), or never", shortened(text))
	}
	return now.Add(wait).UTC().Truncate(time.Second).Format(time.RFC3339), nil
}

// oneAgent wants the name of one.
func oneAgent(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return wrongf("%q takes the name of an agent, got %d arguments", cmd.CommandPath(), len(args))
	}
	return nil
}

func newAgentsListCommand(p *program) *cobra.Command {
	var find clientFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the agents, and what they have used of their budgets",
		Long: `Lists the agents that were made or limited. What they have used counts over all
sidecars; LAST USED is what the sidecar that is asked has seen since its start.`,
		Example: "  authpool agents list\n  authpool agents list --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var list admin.AgentList
			if _, err := c.get(cmd.Context(), admin.AgentsPath, nil, &list); err != nil {
				return err
			}
			if !list.Whole {
				_, _ = fmt.Fprintln(p.Err, "authpool: Redis is away: these are the agents as last known")
			}
			if asJSON {
				return p.printJSON(list.Agents)
			}
			return p.printf("%s", agentsTable(list.Agents, time.Now()))
		},
	}
	find.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func agentsTable(list []admin.Agent, now time.Time) string {
	if len(list) == 0 {
		return "No agent was made or limited; \"default\" shows the token of the state folder.\n"
	}
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "AGENT\tEXPIRES\tPROVIDERS\tMODELS\tSUBSCRIPTIONS\tBUDGETS\tLIMITS\tLAST USED\t")
	for _, a := range list {
		last, expires := "-", "never"
		if a.Last != nil {
			last = until(now, *a.Last) + " ago"
		}
		switch {
		case a.Broken:
			expires = "BROKEN"
		case a.Expires != nil && !a.Expires.After(now):
			expires = "EXPIRED"
		case a.Expires != nil:
			expires = clock(*a.Expires, now)
		case !a.Token:
			expires = "-"
		}
		var budgets []string
		for _, b := range a.Budgets {
			budgets = append(budgets, budgetCell(b))
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", a.Name, expires, orAll(a.Providers), orAll(a.Models), orAll(a.Subscriptions),
			orDash(strings.Join(budgets, "; ")), orDash(ratesCell(a.AgentRates)), last)
	}
	_ = w.Flush() // a strings.Builder takes all
	return out.String()
}

func orAll(list []string) string {
	if len(list) == 0 {
		return "all"
	}
	return strings.Join(list, ",")
}

// ratesCell is how much of a sidecar an agent may have at a time.
func ratesCell(r admin.AgentRates) string {
	var parts []string
	for _, limit := range []struct {
		most int
		of   string
	}{{r.RequestsPerMinute, "a minute"}, {r.Concurrent, "at once"}, {r.Connections, "connections"}} {
		if limit.most > 0 {
			parts = append(parts, grouped(int64(limit.most))+" "+limit.of)
		}
	}
	return strings.Join(parts, ", ")
}

// budgetCell is what was used of a budget.
func budgetCell(b admin.AgentBudgetState) string {
	var parts []string
	if b.CostUSD > 0 {
		parts = append(parts, money(b.SpentUSD)+" of "+money(b.CostUSD))
	}
	if b.Tokens > 0 {
		parts = append(parts, grouped(b.UsedTokens)+" of "+grouped(b.Tokens)+" tokens")
	}
	if b.Requests > 0 {
		parts = append(parts, grouped(b.UsedRequests)+" of "+grouped(b.Requests)+" requests")
	}
	return b.Window + " " + strings.Join(parts, ", ")
}

func newAgentsCreateCommand(p *program) *cobra.Command {
	var (
		find   clientFlags
		limits agentFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an agent, and show its token this once",
		Long: `Makes an agent that all sidecars know, and prints its token, of which only a hash is
kept: who loses it makes another agent. What no flag limits is not limited.`,
		Example: "  authpool agents create ci --provider anthropic --model 'claude-haiku-*' --budget day:cost_usd=5,requests=1000 --expires 90d\n  authpool agents create bob --subscription team-a --json",
		Args:    oneAgent,
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := limits.change(cmd.Flags(), time.Now())
			if err != nil {
				return err
			}
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var created admin.AgentCreated
			wanted := admin.NewAgent{Name: args[0], AgentChange: change}
			if err := c.send(cmd.Context(), http.MethodPost, admin.AgentsPath, wanted, &created); err != nil {
				return err
			}
			if asJSON {
				return p.printJSON(created)
			}
			_, _ = fmt.Fprintf(p.Err, "authpool: this is the token of agent %s; it is shown this once\n", created.Name)
			return p.printf("%s\n", created.Token)
		},
	}
	find.register(cmd)
	limits.register(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newAgentsLimitCommand(p *program) *cobra.Command {
	var (
		find   clientFlags
		limits agentFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "limit NAME",
		Short: "Change what an agent may use",
		Long: `Changes what the flags say, for all sidecars; the rest stays as it is. A flag that
can be given more than once stands for the whole list, and "" takes the limit away.`,
		Example: "  authpool agents limit ci --budget day:cost_usd=10 --budget month:cost_usd=100\n  authpool agents limit default --provider anthropic --model ''",
		Args:    oneAgent,
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := limits.change(cmd.Flags(), time.Now())
			if err != nil {
				return err
			}
			if change == (admin.AgentChange{}) {
				return wrongf("%q changes nothing without --provider, --model, --subscription, --budget, --requests-per-minute, --concurrent, --connections or --expires", cmd.CommandPath())
			}
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var changed admin.Agent
			if err := c.send(cmd.Context(), http.MethodPatch, admin.AgentPath(args[0]), change, &changed); err != nil {
				return err
			}
			if asJSON {
				return p.printJSON(changed)
			}
			return p.printf("%s", agentsTable([]admin.Agent{changed}, time.Now()))
		},
	}
	find.register(cmd)
	limits.register(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newAgentsRevokeCommand(p *program) *cobra.Command {
	var find clientFlags
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "End an agent and its token",
		Long: `Has no sidecar know the agent's token any more; requests under way end. What the
agent has used is still told by its name, and another agent that is made under it
takes over its sessions and whatever it has made at providers. Of the agents "default"
and "anonymous" this ends the limits.`,
		Example: "  authpool agents revoke ci",
		Args:    oneAgent,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var revoked admin.AgentRevoked
			if _, err := c.do(cmd.Context(), http.MethodDelete, admin.AgentPath(args[0]), nil, nil, &revoked); err != nil {
				return err
			}
			if isOwn(revoked.Name) {
				return p.printf("the limits of agent %s are taken away; it may go on\n", revoked.Name)
			}
			return p.printf("agent %s is revoked\n", revoked.Name)
		},
	}
	find.register(cmd)
	return cmd
}
