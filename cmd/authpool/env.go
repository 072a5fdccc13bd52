package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config/statedir"
)

func newEnvCommand(p *program) *cobra.Command {
	var (
		file     configFlags
		mode     string
		operator bool
		shell    string
	)
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the variables that an agent needs to go through authpool",
		Long: `Prints the variables that put an agent behind authpool: an agent token in the
place of keys and, by --mode, either authpool's address as base URLs, or as
HTTP(S) proxy with the files of authorities to trust. Variables of the shell that
hold your own provider keys are unset by the same lines.

--operator prints instead what you need yourself: the admin token and the
password of the embedded Redis.`,
		Example: "  eval \"$(authpool env)\" && claude\n  eval \"$(authpool env --mode proxy)\" && python agent.py\n  authpool env --shell fish | source\n  eval \"$(authpool env --operator)\" && redis-cli -p 8789 keys '*'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(modes, mode) {
				return wrongf("--mode %q: want base-url or proxy", mode)
			}
			write, ok := shells[shell]
			if !ok {
				return wrongf("--shell %q: want bash, fish, powershell or json", shell)
			}
			cfg, dir, err := file.loadWithState(cmd, p)
			if err != nil {
				return err
			}
			if operator {
				vars, err := operatorVariables(dir)
				if err != nil {
					return err
				}
				return write(p, vars)
			}
			base, err := agentBaseURL(cfg)
			if err != nil {
				return err
			}
			w, err := newWay(p, cfg, dir, mode, base)
			if err != nil {
				return err
			}
			return write(p, w.variables(p))
		},
	}
	file.register(cmd)
	cmd.Flags().StringVar(&mode, "mode", modeBaseURL, "how agents reach authpool: base-url or proxy")
	cmd.Flags().BoolVar(&operator, "operator", false, "print what an operator needs: AUTHPOOL_ADMIN_TOKEN, REDISCLI_AUTH")
	cmd.Flags().StringVar(&shell, "shell", "bash", "syntax: bash (any POSIX shell), fish, powershell or json")
	completes(cmd, "mode", modes)
	completes(cmd, "shell", slices.Sorted(maps.Keys(shells)))
	return cmd
}

// completes has shells complete a flag by its values.
func completes(cmd *cobra.Command, flag string, values []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic("BUG: " + err.Error()) // there is no such flag
	}
}

// variable is one environment variable to set, or to unset.
type variable struct {
	name  string
	value string
	unset bool
}

// operatorVariables reads what an operator needs from the state folder.
func operatorVariables(dir string) ([]variable, error) {
	token, err := stateToken(dir, statedir.AdminTokenFile)
	if err != nil {
		return nil, err
	}
	vars := []variable{{name: "AUTHPOOL_ADMIN_TOKEN", value: token}}
	password, err := stateToken(dir, statedir.RedisPasswordFile)
	if err != nil {
		return nil, err
	}
	return append(vars, variable{name: "REDISCLI_AUTH", value: password}), nil
}

func stateToken(dir, file string) (string, error) {
	token, err := readToken(filepath.Join(dir, file))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("there is no %s in %s: start \"authpool serve\" once, or name its folder by --state-dir", file, dir)
	}
	return token.Reveal(), err
}

// shells writes variables in each syntax.
var shells = map[string]func(*program, []variable) error{
	"bash": lines(
		func(v variable) string { return "export " + v.name + "=" + quoteWith(v.value, `'\''`) },
		func(v variable) string { return "unset " + v.name },
	),
	"fish": lines(
		func(v variable) string {
			return "set -gx " + v.name + " " + quoteWith(strings.ReplaceAll(v.value, `\`, `\\`), `\'`)
		},
		func(v variable) string { return "set -e " + v.name },
	),
	"powershell": lines(
		func(v variable) string { return "$Env:" + v.name + " = " + quoteWith(v.value, `''`) },
		func(v variable) string { return "Remove-Item Env:" + v.name + " -ErrorAction SilentlyContinue" },
	),
	"json": func(p *program, vars []variable) error {
		object := make(map[string]*string, len(vars)) // null: to be unset
		for _, v := range vars {
			object[v.name] = nil
			if !v.unset {
				object[v.name] = &v.value
			}
		}
		return p.printJSON(object)
	},
}

// lines makes a writer that prints one line for each variable.
func lines(set, unset func(variable) string) func(*program, []variable) error {
	return func(p *program, vars []variable) error {
		var out strings.Builder
		for _, v := range vars {
			line := set
			if v.unset {
				line = unset
			}
			out.WriteString(line(v) + "\n")
		}
		return p.printf("%s", out.String())
	}
}

// quoteWith puts value in single quotes, with quotes inside it written as quote.
func quoteWith(value, quote string) string {
	return "'" + strings.ReplaceAll(value, "'", quote) + "'"
}
