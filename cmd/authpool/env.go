package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config"
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
		Long: `Prints the variables that put an agent behind authpool: base URLs and an agent
token in the place of keys. Variables of the shell that hold your own provider
keys are unset by the same lines.

--operator prints instead what you need yourself: the admin token and the
password of the embedded Redis.`,
		Example: "  eval \"$(authpool env)\" && claude\n  authpool env --shell fish | source\n  eval \"$(authpool env --operator)\" && redis-cli -p 8789 keys '*'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if mode != "base-url" {
				return wrongf("--mode %q: want base-url", mode)
			}
			write, ok := shells[shell]
			if !ok {
				return wrongf("--shell %q: want bash, fish, powershell or json", shell)
			}
			cfg, err := file.load(cmd, p)
			if err != nil {
				return err
			}
			dir, err := statedir.Path(cfg.StateDir, p.getenv)
			if err != nil {
				return wrongUseError{err}
			}
			var vars []variable
			if operator {
				vars, err = operatorVariables(dir)
			} else {
				vars, err = agentVariables(p, cfg, dir)
			}
			if err != nil {
				return err
			}
			return write(p, vars)
		},
	}
	file.register(cmd)
	cmd.Flags().StringVar(&mode, "mode", "base-url", "how agents reach authpool: base-url")
	cmd.Flags().BoolVar(&operator, "operator", false, "print what an operator needs: AUTHPOOL_ADMIN_TOKEN, REDISCLI_AUTH")
	cmd.Flags().StringVar(&shell, "shell", "bash", "syntax: bash (any POSIX shell), fish, powershell or json")
	return cmd
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

// agentVariables are the base URLs and tokens for the clients that read them
// (which client reads which is listed in the README). Both of Anthropic's
// credential variables are set, so that neither can hold a key of the operator.
func agentVariables(p *program, cfg *config.Config, dir string) ([]variable, error) {
	base, err := agentBaseURL(cfg)
	if err != nil {
		return nil, err
	}
	token := "anonymous" // clients want some key, with `auth: none` any will do
	if cfg.Agents.Auth == "token" {
		if token, err = stateToken(dir, statedir.AgentTokenFile); err != nil {
			return nil, err
		}
	}
	vars := []variable{
		{name: "ANTHROPIC_BASE_URL", value: base},
		{name: "ANTHROPIC_API_KEY", value: token},
		{name: "ANTHROPIC_AUTH_TOKEN", value: token},
		{name: "OPENAI_BASE_URL", value: base + "/v1"},
		{name: "OPENAI_API_KEY", value: token},
		{name: "GOOGLE_GEMINI_BASE_URL", value: base},
		{name: "GEMINI_API_KEY", value: token},
	}
	vars = append(vars, noProxy(p)...)
	return append(vars, ownCredentials(p, vars)...), nil
}

// agentBaseURL is the first address that agents can reach over TCP.
func agentBaseURL(cfg *config.Config) (string, error) {
	for _, address := range cfg.Listen {
		if strings.HasPrefix(address, "unix:") {
			continue
		}
		scheme := "http://"
		if cfg.TLS.Enabled() && !config.Loopback(address) {
			scheme = "https://"
		}
		return scheme + dialable(address), nil
	}
	return "", errors.New("agents reach a base URL over TCP only: add a host:port to listen")
}

// noProxy keeps clients from sending requests for the loopback address to a
// proxy of the environment, which several of them do.
func noProxy(p *program) []variable {
	proxied := false
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
		proxied = proxied || p.getenv(name) != ""
	}
	if !proxied {
		return nil
	}
	list := p.getenv("NO_PROXY")
	if list == "" {
		list = p.getenv("no_proxy")
	}
	hosts := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
	for _, host := range []string{"127.0.0.1", "localhost"} {
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	value := strings.Join(hosts, ",")
	return []variable{{name: "NO_PROXY", value: value}, {name: "no_proxy", value: value}}
}

// credentialVariable matches the variables that hold an operator's credentials:
// those that serve reads subscriptions from, and those that clients take their
// keys or logins from.
var credentialVariable = regexp.MustCompile(`^(` +
	`(ANTHROPIC|OPENAI|GEMINI)_API_KEY(_[0-9]+)?|GOOGLE_API_KEY|ANTHROPIC_ADMIN_KEY|OPENAI_ADMIN_KEY|` +
	`CLAUDE_CODE_OAUTH_TOKEN|CODEX_API_KEY|AUTHPOOL_ADMIN_TOKEN|REDISCLI_AUTH)$`)

// ownCredentials unsets the operator's own credentials that the environment
// holds and vars does not replace, in the order of their names.
func ownCredentials(p *program, vars []variable) []variable {
	var own []variable
	for _, pair := range p.environ {
		name, _, _ := strings.Cut(pair, "=")
		replaced := slices.ContainsFunc(vars, func(v variable) bool { return v.name == name })
		if !replaced && credentialVariable.MatchString(name) {
			own = append(own, variable{name: name, unset: true})
		}
	}
	slices.SortFunc(own, func(a, b variable) int { return strings.Compare(a.name, b.name) })
	return slices.Compact(own)
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
