package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/ratelimit/usage"
)

func newAuditCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check what authpool has done and counted",
		Long: `Shows the audit log and checks that nobody has changed it; checks what authpool has
counted against what others say.`,
		Example: "  authpool audit tail -f\n  authpool audit verify\n  authpool audit usage --ledger http://127.0.0.1:8790/ledger -c authpool.yaml",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAuditTailCommand(p), newAuditVerifyCommand(p), newAuditUsageCommand(p))
	return cmd
}

// auditFlags are what `audit usage` is told.
type auditFlags struct {
	find         clientFlags
	config       string
	ledger       string
	columns      string
	subscription string
	aliases      []string
	since, until string
	asJSON       bool
}

func newAuditUsageCommand(p *program) *cobra.Command {
	var f auditFlags
	cmd := &cobra.Command{
		Use:   "usage --ledger FILE|URL",
		Short: "Compare what Redis has counted with an independent ledger",
		Long: `Compares what the running serve has in Redis with a ledger that somebody else has
kept, for each subscription, model and UTC day, and lists what differs. The exit
code is 0 when both are equal, 1 when they differ. Compare days that are over: on
one that goes on, answers between the two readings are in one of them alone.

A ledger is the simulator's (its /ledger, or that in a file), whose keys are found
among the credentials of the config named by -c, or of the environment. Or it is a
provider's usage export, CSV with a head line or a JSON array of flat objects, as
a file or a URL; --columns says what its columns are:

  day=COLUMN             RFC 3339, YYYY-MM-DD (taken for a UTC day) or epoch seconds
  model=COLUMN           may be left out: then all models are added up
  subscription=COLUMN    or --subscription, when all of it is one's
  requests=, input= (uncached), all_input= (with cache), output=, cache_read=,
  cache_write=, cache_write_5m=, cache_write_1h=, cost_usd=
                         what is compared; COLUMN+COLUMN are added up

--map NAME=SUBSCRIPTION says whose a name in the ledger is. Never put a key there:
arguments can be seen by others.

Some differences are explained, and do not count:
- Answers over midnight. The simulator dates a request by its admission, Redis by
  its last usage. Explained is what one day has more and the next has less, up to
  what the ledger has in the last hour of that day.
- Answers without an end (finished is false in the simulator's ledger), in a row
  where Redis has as many requests as the ledger, of which as many are estimated or
  unknown as had no end. Each kind of tokens is at least that of the answers with
  an end and at most that of all; output, which Redis then estimates, at most
  twice what was sent without an end, and 50 tokens for each: an estimate has the
  frame of a text or of a tool's call in it.
- Requests that the provider never saw or never answered. The journal knows of a
  request before the provider does; one that a crash cut off is counted as both
  estimated and unknown, without tokens. Explained are as many as Redis has more
  than the ledger, if they are all in the row that are so, beside answers without
  an end.`,
		Example: `  authpool audit usage --ledger http://127.0.0.1:8790/ledger -c authpool.yaml
  authpool audit usage --ledger export.csv --subscription team-a \
    --columns day=usage_date_utc,model=model_version,input=usage_input_tokens_no_cache,output=usage_output_tokens
  authpool audit usage --ledger export.json --since 2026-11-01 --until 2026-11-30 --json \
    --columns day=start_time,subscription=project_id,all_input=input_tokens,output=output_tokens --map proj_1=team-a`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.auditUsage(cmd.Context(), &f) },
	}
	f.find.register(cmd)
	flags := cmd.Flags()
	flags.StringVarP(&f.config, "config", "c", "", "config file whose credentials the simulator's keys are (default: the environment's)")
	flags.StringVar(&f.ledger, "ledger", "", "file or http(s) URL of the ledger")
	flags.StringVar(&f.columns, "columns", "", "what the columns of a usage export are (default: the ledger is the simulator's)")
	flags.StringVar(&f.subscription, "subscription", "", "compare this subscription alone; all of an export without such a column is its")
	flags.StringArrayVar(&f.aliases, "map", nil, "NAME=SUBSCRIPTION: whose a name in the ledger is; may be repeated")
	flags.StringVar(&f.since, "since", "", "first UTC day that is compared (default: the ledger's first)")
	flags.StringVar(&f.until, "until", "", "last UTC day that is compared (default: the ledger's last)")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	return cmd
}

// auditUsage compares and prints. That both differ is an error too.
func (p *program) auditUsage(ctx context.Context, f *auditFlags) error {
	if f.ledger == "" {
		return wrongf("--ledger is missing: name a file or a URL; see %q", "authpool audit usage --help")
	}
	asked, err := admin.ParseQuery(url.Values{"by": {string(usage.ByCell)}, "since": {f.since}, "until": {f.until}}, time.Now())
	if err != nil {
		return wrongUseError{err}
	}
	c, err := newClient(p, f.find)
	if err != nil {
		return err
	}
	l, err := p.readLedger(ctx, f)
	if err != nil {
		return err
	}
	r := l.days.within(asked)
	if r.empty() {
		return wrongf("the ledger has %s, which --since and --until leave out: name both to compare days that it does not have", l.days)
	}
	counted, err := c.counted(ctx, r)
	if err != nil {
		return err
	}
	if err := p.noteUncounted(ctx, c); err != nil {
		return err
	}
	result := compare(l, counted, r)
	if len(result.strangers) > 0 && f.subscription == "" {
		_, _ = fmt.Fprintf(p.Err, "authpool: not compared, as the ledger does not tell of it: usage in Redis of %s\n", strings.Join(result.strangers, ", ")) // a note, not the answer
	}
	if f.asJSON {
		err = p.printJSON(result.report())
	} else {
		err = p.printf("%s", result.text())
	}
	return errors.Join(err, result.err())
}

// noteUncounted tells when Redis cannot be up to date.
func (p *program) noteUncounted(ctx context.Context, c *client) error {
	status, err := c.status(ctx)
	if err != nil {
		return err
	}
	if n := status.Redis.JournalPending; n > 0 {
		_, _ = fmt.Fprintf(p.Err, "authpool: %s of the journal did not reach Redis yet: differences may go away\n", plural(int64(n), "event")) // a note
	}
	return nil
}

// counted asks what Redis has on the days of r and on one more on each side, where
// answers over midnight are.
func (c *client) counted(ctx context.Context, r dayRange) (map[place]counted, error) {
	query := url.Values{"by": {string(usage.ByCell)}}
	if r.first != "" {
		query.Set("since", dayAfter(r.first, -1))
	}
	if r.last != "" {
		query.Set("until", dayAfter(r.last, 1))
	}
	var rows []admin.UsageRow
	if _, err := c.get(ctx, admin.UsagePath, query, &rows); err != nil {
		return nil, err
	}
	cells := make(map[place]counted, len(rows))
	for _, row := range rows {
		name := strings.SplitN(row.Key, "/", 3)
		if len(name) != 3 {
			return nil, fmt.Errorf("%s tells usage of %q, which is no subscription, day and model; check --admin", c.base, row.Key)
		}
		cells[place{name[0], name[1], name[2]}] = countedOf(row)
	}
	return cells, nil
}

// readLedger reads the ledger that the flags describe.
func (p *program) readLedger(ctx context.Context, f *auditFlags) (*ledger, error) {
	o := owners{aliases: map[string]string{}, only: f.subscription}
	for _, alias := range f.aliases {
		name, sub, ok := strings.Cut(alias, "=")
		if !ok || name == "" || sub == "" {
			return nil, wrongf("--map wants NAME=SUBSCRIPTION") // what was given may hold a key
		}
		o.aliases[name] = sub
	}
	var columns *columns
	if f.columns == "" {
		if err := p.findKeys(ctx, f.config, &o); err != nil {
			return nil, err
		}
	} else {
		var err error
		if columns, err = parseColumns(f.columns); err != nil {
			return nil, wrongf("--columns: %w", err)
		}
		if (columns.subscription == "") == (f.subscription == "") {
			return nil, wrongf("name the ledger's owner by either --subscription or --columns subscription=COLUMN")
		}
	}
	source, err := openLedger(ctx, f.ledger)
	if err != nil {
		return nil, err
	}
	defer source.Close() // read only
	var l *ledger
	if columns == nil {
		l, err = readSimulated(source, &o)
	} else {
		l, err = readExport(source, columns, &o)
	}
	if err != nil {
		return nil, wrongf("cannot use the ledger: %w", err)
	}
	return l, nil
}

// findKeys resolves the credentials of the config, by which the simulator's ledger
// names its owners. One that cannot be resolved is not there; should the ledger
// have it, it says so.
func (p *program) findKeys(ctx context.Context, file string, o *owners) error {
	cfg, err := (&configFlags{file: file}).read(p)
	if err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return wrongUseError{err}
	}
	o.keys = map[credential.Secret][]string{}
	found := o.only == "" || slices.Contains(slices.Collect(maps.Values(o.aliases)), o.only)
	for _, s := range cfg.Subscriptions {
		found = found || s.ID == o.only
		secret, err := resolve(ctx, s.Credential.Value)
		switch {
		case err == nil:
			o.keys[secret] = append(o.keys[secret], s.ID)
		case s.ID == o.only:
			return wrongf("the ledger names %s by its key: %w", s.ID, err)
		default:
			o.unread = append(o.unread, fmt.Sprintf("%s (%s)", s.ID, err))
		}
	}
	if !found {
		return wrongf("--subscription %q is neither in the config nor named by --map", o.only)
	}
	return nil
}

// subscriptionID is what the contract calls a subscription.
var subscriptionID = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// owners know whose an entry of a ledger is.
type owners struct {
	aliases map[string]string
	// keys are the credentials of the config; nil when the ledger has no keys but
	// names, which stand for themselves where they have no alias.
	keys   map[credential.Secret][]string
	unread []string // subscriptions of the config whose credential cannot be read, each with why
	only   string   // if not empty, the one subscription that matters
}

// of returns the subscription of a name in the ledger, "" when it does not matter.
// A name may be a secret: no error repeats it.
func (o *owners) of(name string) (string, error) {
	sub, ok := o.aliases[name]
	if !ok {
		var err error
		if sub, err = o.byKey(name); err != nil {
			if o.only != "" && !slices.Contains(o.keys[credential.NewSecret(name)], o.only) {
				return "", nil // whoever that is, it is another
			}
			return "", err
		}
	}
	if o.only != "" && sub != o.only {
		return "", nil
	}
	return sub, nil
}

func (o *owners) byKey(name string) (string, error) {
	if o.keys == nil {
		if !subscriptionID.MatchString(name) {
			return "", fmt.Errorf("%s is no subscription: say whose it is by --map", credential.NewSecret(name))
		}
		return name, nil
	}
	key := credential.NewSecret(name)
	switch subs := o.keys[key]; len(subs) {
	case 1:
		return subs[0], nil
	case 0:
		if len(o.unread) > 0 {
			return "", fmt.Errorf("the key %s is no subscription's of the config as far as its credentials can be read, and not so those of %s: mend that, or say by --map whose it is",
				key, strings.Join(o.unread, ", "))
		}
		return "", fmt.Errorf("the key %s is no subscription's of the config: name the config by -c, or whose it is by --map", key)
	default:
		return "", fmt.Errorf("the key %s is that of %s: the ledger cannot tell them apart", key, strings.Join(subs, " and "))
	}
}

// known are the subscriptions that the ledger would tell of, did they use anything.
func (o *owners) known() []string {
	if o.only != "" {
		return []string{o.only}
	}
	var known []string
	for _, sub := range o.aliases {
		known = append(known, sub)
	}
	for _, subs := range o.keys {
		known = append(known, subs...)
	}
	return known
}
