package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/admin"
)

func newSubscriptionsCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "subscriptions",
		Short: "Manage the subscriptions of the running serve",
		Long: `Manages the subscriptions of the running serve, and of all that share its Redis.

Those of the config file can be enabled, disabled and drained; all else about them
is the file's. Those that are added here are kept in Redis, their secrets sealed.
Where both have the same id, the file's rules.`,
		Example: "  authpool subscriptions list\n  authpool subscriptions add team-c --provider anthropic --credential-stdin <team-c.key\n  authpool subscriptions drain team-a",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newSubscriptionsListCommand(p),
		newSubscriptionsAddCommand(p),
		newSwitchCommand(p, "enable", "Let a subscription serve, and end its cooldowns", `Lets a subscription serve that was disabled or drained, and ends every cooldown of it,
of its models and of those that share its domain, in all processes. A credential that
was refused is tried again. Requests come back in steps, and a limit that is met again
closes it again.`),
		newSwitchCommand(p, "disable", "Let a subscription serve nobody", `Lets a subscription serve nobody until it is enabled again, in all processes and
over restarts. Its sessions go on at others; answers under way end.`),
		newSwitchCommand(p, "drain", "Let a subscription take no new sessions", `Lets a subscription take no new sessions until it is enabled again, in all processes
and over restarts. The sessions that it has stay.`),
		newRotateCommand(p),
		newRemoveCommand(p),
	)
	return cmd
}

// oneID takes the id of one subscription.
func oneID(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return wrongf("%q takes the id of one subscription, got %d arguments", cmd.CommandPath(), len(args))
	}
	return nil
}

// recordCommand asks for something that is answered with a record.
type recordCommand struct {
	find   clientFlags
	asJSON bool
}

func (r *recordCommand) register(cmd *cobra.Command) {
	r.find.register(cmd)
	cmd.Flags().BoolVar(&r.asJSON, "json", false, "print the record as JSON")
}

// run asks and prints what came of it, for people in the words of told.
func (r *recordCommand) run(ctx context.Context, p *program, method, path string, body any, told func(admin.SubscriptionRecord) string) error {
	c, err := newClient(p, r.find)
	if err != nil {
		return err
	}
	var done admin.SubscriptionRecord
	if body != nil {
		err = c.send(ctx, method, path, body, &done)
	} else {
		_, err = c.do(ctx, method, path, nil, nil, &done)
	}
	if err != nil {
		return err
	}
	if r.asJSON {
		return json.NewEncoder(p.Out).Encode(done)
	}
	if done.Reason != "" {
		if _, err := fmt.Fprintf(p.Err, "authpool: %s cannot be used: %s\n", done.ID, done.Reason); err != nil {
			return err
		}
	}
	return p.printf("%s\n", told(done))
}

func newSwitchCommand(p *program, verb, short, long string) *cobra.Command {
	var ask recordCommand
	cmd := &cobra.Command{
		Use:     verb + " ID",
		Short:   short,
		Long:    long,
		Example: "  authpool subscriptions " + verb + " team-a",
		Args:    oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask.run(cmd.Context(), p, http.MethodPost, admin.SubscriptionPath(args[0])+"/"+verb, nil, func(r admin.SubscriptionRecord) string {
				return r.ID + " is " + r.Switch
			})
		},
	}
	ask.register(cmd)
	return cmd
}

func newRemoveCommand(p *program) *cobra.Command {
	var ask recordCommand
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a subscription that was added at run time",
		Long: `Lets a subscription that was added at run time take no new sessions, and removes it
with its secret once none is on it any more, at the latest after sessions.idle_timeout. One that is disabled
is removed at once.
What it has used stays counted. A subscription of the config file is removed there.`,
		Example: "  authpool subscriptions remove team-c",
		Args:    oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask.run(cmd.Context(), p, http.MethodDelete, admin.SubscriptionPath(args[0]), nil, func(r admin.SubscriptionRecord) string {
				if r.Switch == admin.SwitchRemoved {
					return r.ID + " is removed"
				}
				return r.ID + " takes no new sessions, and goes once it has none"
			})
		},
	}
	ask.register(cmd)
	return cmd
}

func newRotateCommand(p *program) *cobra.Command {
	var (
		ask   recordCommand
		stdin bool
	)
	cmd := &cobra.Command{
		Use:   "rotate ID --credential-stdin",
		Short: "Give a subscription that was added at run time another secret",
		Long: `Gives a subscription that was added at run time the secret that is read from standard
input, in all processes. Requests under way end with the former one. A subscription of
the config file takes its secret from where the file says: change it there.`,
		Example: "  authpool subscriptions rotate team-c --credential-stdin <team-c.key",
		Args:    oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			secret, err := p.readCredential(stdin)
			if err != nil {
				return err
			}
			return ask.run(cmd.Context(), p, http.MethodPost, admin.SubscriptionPath(args[0])+"/rotate", admin.Rotation{Credential: secret},
				func(r admin.SubscriptionRecord) string { return r.ID + " has the secret " + r.Hint })
		},
	}
	ask.register(cmd)
	cmd.Flags().BoolVar(&stdin, "credential-stdin", false, "read the secret from standard input (the only way)")
	return cmd
}

// readCredential reads the secret of a subscription from standard input: one line.
func (p *program) readCredential(stdin bool) (admin.SecretText, error) {
	if !stdin {
		return "", wrongf("give the secret on standard input and say so by --credential-stdin: an argument could be read by others and stays in the shell's history")
	}
	const most = 64 << 10
	text, err := io.ReadAll(io.LimitReader(p.In, most+1))
	if err != nil {
		return "", fmt.Errorf("cannot read the secret from standard input: %w", err)
	}
	secret := strings.TrimRight(string(text), "\r\n")
	switch {
	case len(text) > most:
		return "", wrongf("the secret on standard input is larger than %d bytes", most)
	case secret == "":
		return "", wrongf("there is no secret on standard input")
	}
	if err := credential.Check(credential.NewSecret(secret)); err != nil {
		return "", wrongf("the secret on standard input cannot be used: %w", err)
	}
	return admin.SecretText(secret), nil
}

// addFlags say what a new subscription is. Those that are not given stay out of the
// request, so that the running serve has its own defaults.
type addFlags struct {
	provider, scheme, domain, email, note string
	priority, weight                      int
	models, labels, budgets               []string
	limits                                [5]int64
	stdin                                 bool
}

// limitFlags are the flags of addFlags.limits.
var limitFlags = [...]struct{ name, what string }{
	{"requests-per-minute", "most requests a minute"},
	{"input-tokens-per-minute", "most input tokens a minute"},
	{"output-tokens-per-minute", "most output tokens a minute"},
	{"concurrent", "most requests under way"},
	{"sessions", "most sessions at one time"},
}

func (f *addFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.provider, "provider", "", "built-in provider, or one that the config declares (required)")
	flags.StringVar(&f.scheme, "scheme", "", "in which form the secret is sent: api_key (default) or bearer")
	flags.IntVar(&f.priority, "priority", 1, "lower is used first")
	flags.IntVar(&f.weight, "weight", 1, "share of new sessions among equals")
	flags.StringArrayVar(&f.models, "model", nil, "glob of models that it serves, such as 'claude-*' (repeatable; default: all)")
	flags.StringVar(&f.domain, "domain", "", "those of one domain share their provider's limits")
	flags.StringArrayVar(&f.labels, "label", nil, "name by which agents may be allowed to use it (repeatable)")
	for i, limit := range limitFlags {
		flags.Int64Var(&f.limits[i], limit.name, 0, limit.what+", over all sidecars (default: no limit)")
	}
	flags.StringArrayVar(&f.budgets, "budget", nil, "WINDOW:KIND=AMOUNT[,KIND=AMOUNT...]; WINDOW: block, day, week or month; KIND: cost_usd, tokens or requests (repeatable)")
	flags.StringVar(&f.email, "email", "", "whose it is; kept sealed")
	flags.StringVar(&f.note, "note", "", "what people should know; kept sealed")
	flags.BoolVar(&f.stdin, "credential-stdin", false, "read the secret from standard input (the only way)")
}

func newSubscriptionsAddCommand(p *program) *cobra.Command {
	var (
		ask recordCommand
		f   addFlags
	)
	cmd := &cobra.Command{
		Use:   "add ID --provider P --credential-stdin",
		Short: "Add a subscription",
		Long: `Adds a subscription to the running serve and to all that share its Redis. Its secret
is read from standard input and kept in Redis, sealed. It serves within a second, and
after restarts, too.`,
		Example: `  authpool subscriptions add team-c --provider anthropic --credential-stdin <team-c.key
  pass show openai/lab | authpool subscriptions add lab --provider openai --credential-stdin \
    --priority 2 --model 'gpt-*' --label batch --concurrent 8 --budget day:cost_usd=25`,
		Args: oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := f.subscription(args[0], cmd.Flags())
			if err != nil {
				return err
			}
			if n.Credential, err = p.readCredential(f.stdin); err != nil {
				return err
			}
			return ask.run(cmd.Context(), p, http.MethodPost, admin.SubscriptionsPath, n, func(r admin.SubscriptionRecord) string {
				return fmt.Sprintf("%s is added, with the secret %s", r.ID, r.Hint)
			})
		},
	}
	ask.register(cmd)
	f.register(cmd.Flags())
	return cmd
}

// subscription is what the flags say, without the secret.
func (f *addFlags) subscription(id string, flags *pflag.FlagSet) (n admin.NewSubscription, err error) {
	n = admin.NewSubscription{ID: id, Email: f.email, Note: f.note}
	n.Provider, n.Scheme, n.Domain, n.Models, n.Labels = f.provider, f.scheme, f.domain, f.models, f.labels
	if f.provider == "" {
		return n, wrongf("--provider is missing: name a built-in provider, such as anthropic, or one that the config declares")
	}
	if flags.Changed("priority") {
		n.Priority = &f.priority
	}
	if flags.Changed("weight") {
		n.Weight = &f.weight
	}
	var limits admin.SubscriptionLimits
	for i, to := range []**int64{
		&limits.RequestsPerMinute, &limits.InputTokensPerMinute, &limits.OutputTokensPerMinute, &limits.Concurrent, &limits.Sessions,
	} {
		if flags.Changed(limitFlags[i].name) {
			*to, n.Limits = &f.limits[i], &limits
		}
	}
	n.Budgets, err = parseBudgets(f.budgets)
	return n, err
}

// parseBudgets reads WINDOW:KIND=AMOUNT[,KIND=AMOUNT...]; those of one window become
// one budget.
func parseBudgets(texts []string) (budgets []admin.SubscriptionBudget, err error) {
	at := map[string]int{}
	for _, text := range texts {
		window, rest, colon := strings.Cut(text, ":")
		if !colon {
			return nil, wrongf("--budget %s: want WINDOW:KIND=AMOUNT, such as day:cost_usd=25 or month:tokens=1000000,requests=500", shortened(text))
		}
		i, known := at[window]
		if !known {
			i = len(budgets)
			at[window] = i
			budgets = append(budgets, admin.SubscriptionBudget{Window: window})
		}
		for part := range strings.SplitSeq(rest, ",") {
			if err := parseAmount(text, part, &budgets[i]); err != nil {
				return nil, err
			}
		}
	}
	return budgets, nil
}

// parseAmount reads KIND=AMOUNT, a part of text.
func parseAmount(text, part string, b *admin.SubscriptionBudget) (err error) {
	kind, amount, equals := strings.Cut(part, "=")
	if !equals {
		return wrongf("--budget %s: want WINDOW:KIND=AMOUNT, such as day:cost_usd=25 or month:tokens=1000000,requests=500", shortened(text))
	}
	var taken bool
	switch kind {
	case "cost_usd":
		taken = b.CostUSD != nil
		b.CostUSD = new(admin.NanoUSD)
		err = b.CostUSD.UnmarshalText([]byte(amount))
	case "tokens":
		taken = b.Tokens != nil
		b.Tokens, err = count(amount)
	case "requests":
		taken = b.Requests != nil
		b.Requests, err = count(amount)
	default:
		return wrongf("--budget %s: %s is no kind of budget: want cost_usd, tokens or requests", shortened(text), shortened(kind))
	}
	if err != nil {
		return wrongf("--budget %s: %s is no amount: want a number above 0", shortened(text), shortened(amount))
	}
	if taken {
		return wrongf("--budget %s: %s of %s is given twice", shortened(text), kind, shortened(b.Window))
	}
	return nil
}

func count(text string) (*int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	return &n, err
}

func newSubscriptionsListCommand(p *program) *cobra.Command {
	var (
		find   clientFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the subscriptions as they are managed",
		Long: `Lists the subscriptions with where they come from, the switch that an operator has
set, the state that they are in and a hint of the secret. How they are doing is told
by "authpool status".`,
		Example: "  authpool subscriptions list\n  authpool subscriptions list --json | jq -r '.[] | select(.source == \"managed\") | .id'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			list := []admin.SubscriptionRecord{}
			if _, err := c.get(cmd.Context(), admin.SubscriptionsPath, nil, &list); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(p.Out).Encode(list)
			}
			_, err = io.WriteString(p.Out, subscriptionsTable(list))
			return err
		},
	}
	find.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON list")
	return cmd
}

// subscriptionsTable is the list for people.
func subscriptionsTable(list []admin.SubscriptionRecord) string {
	if len(list) == 0 {
		return "There is no subscription: add one by \"authpool subscriptions add\" or in the config.\n"
	}
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tPROVIDER\tSOURCE\tSWITCH\tSTATE\tVERSION\tPRIORITY\tWEIGHT\tSECRET\tLABELS\tNOTE") // a strings.Builder takes all
	for _, r := range list {
		secret := r.Hint
		if secret == "" {
			secret = "unreadable"
		}
		if r.Credential != sealedCredential {
			secret = r.Credential + " " + secret
		}
		note := r.Note
		if r.Reason != "" {
			note = "cannot be used: " + r.Reason
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\n", r.ID, r.Provider, r.Source, r.Switch, orDash(r.State), r.Version,
			deref(r.Priority), deref(r.Weight), secret, strings.Join(r.Labels, ","), printable(note)) // a strings.Builder takes all
	}
	_ = w.Flush() // a strings.Builder takes all
	return out.String()
}

func deref(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

// printable takes out of a text that people wrote what could do something to a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}
