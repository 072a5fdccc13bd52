package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/authpool/authpool/config"
)

// program is what every command is given: the outside world of one run.
type program struct {
	Stdio
	environ []string // NAME=value
}

// getenv returns the value of an environment variable, "" when it is not set.
func (p *program) getenv(name string) string {
	value := ""
	for _, pair := range p.environ {
		if n, v, ok := strings.Cut(pair, "="); ok && n == name {
			value = v // as in a shell, the last one rules
		}
	}
	return value
}

func newRootCommand(p *program) *cobra.Command {
	root := &cobra.Command{
		Use:   "authpool",
		Short: "A pool of LLM subscriptions behind one address, with usage counted in Redis",
		Long: `authpool is a sidecar that agents send their provider traffic through. It picks
one of your subscriptions for each session, puts its credential in, moves on
when a limit is hit, and counts tokens and cost per 5-hour block in Redis.

Every flag can also be set by an environment variable: --state-dir is
AUTHPOOL_STATE_DIR. A flag rules over the variable, the variable over the file.`,
		Example:                    "  authpool demo\n  authpool serve -c authpool.yaml\n  authpool status",
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		Args:                       knownCommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return flagsFromEnvironment(cmd.Flags(), p)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return wrongf("%w; see %q", err, cmd.CommandPath()+" --help")
	})
	root.AddCommand(
		newServeCommand(p),
		newDemoCommand(p),
		newCheckCommand(p),
		newStatusCommand(p),
		newUsageCommand(p),
		newAuditCommand(p),
		newSubscriptionsCommand(p),
		newSessionsCommand(p),
		newReloadCommand(p),
		newKeysCommand(p),
		newAgentsCommand(p),
		newNotificationsCommand(p),
		newRunCommand(p),
		newEnvCommand(p),
		newDoctorCommand(p),
		newCACommand(p),
		newExplainCommand(p),
		newExplainResponseCommand(p),
		newSimulateCommand(p),
		newVersionCommand(p),
	)
	return root
}

// knownCommand refuses arguments of the root: they are commands that do not
// exist.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf(", did you mean %q", near[0])
	}
	return wrongf("there is no command %q%s; see \"authpool --help\"", args[0], hint)
}

// noArgs refuses arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return wrongf("%q takes no argument, got %q; see %q", cmd.CommandPath(), args[0], cmd.CommandPath()+" --help")
	}
	return nil
}

// fromVariable marks a flag whose value came from its environment variable.
const fromVariable = "authpool-from-variable"

// flagsFromEnvironment sets each flag that was not given from its variable.
// Such a flag counts as Changed, so that it rules over the config file as the
// flag itself would.
func flagsFromEnvironment(flags *pflag.FlagSet, p *program) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		variable := config.EnvName(f.Name)
		value := p.getenv(variable)
		if f.Changed || value == "" || f.Name == "help" {
			return
		}
		if err := errors.Join(flags.Set(f.Name, value), flags.SetAnnotation(f.Name, fromVariable, []string{variable})); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", variable, err))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return wrongUseError{err}
	}
	return nil
}
