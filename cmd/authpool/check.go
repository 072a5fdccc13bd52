package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config"
)

func newCheckCommand(p *program) *cobra.Command {
	var (
		file            configFlags
		resolve, schema bool
	)
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate a config without starting anything",
		Long: `Checks a config file and tells everything that is wrong in it at once, one
fault a line: FILE:LINE:COL: field: what is wrong → what is allowed. The exit
code is 2 then. Without -c it checks what serve would do in this environment.`,
		Example: "  authpool check -c authpool.yaml\n  authpool check -c authpool.yaml --resolve\n  authpool check --schema > authpool.schema.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if schema {
				return p.printf("%s\n", config.Schema())
			}
			cfg, err := file.load(cmd, p)
			if err != nil {
				return err
			}
			providers, err := newProvidersFromConfig(cfg)
			if err != nil {
				return err
			}
			warnings := append(cfg.Warnings(), pathWarnings(cfg, providers)...)
			if resolve {
				prices, err := newPricesFromConfig(cfg)
				if err != nil {
					return err
				}
				warnings = append(warnings, priceWarnings(cfg, prices)...)
			}
			for _, warning := range warnings {
				_, _ = fmt.Fprintf(p.Err, "warning: %s\n", warning) // a note, not the answer
			}
			name := file.file
			if name == "" {
				name = "environment"
			}
			if resolve {
				if err := resolveSecrets(cmd.Context(), cfg); err != nil {
					return err
				}
			}
			return p.printf("%s: ok, %s\n", name, plural(int64(len(cfg.Subscriptions)), "subscription"))
		},
	}
	file.register(cmd)
	cmd.Flags().BoolVar(&resolve, "resolve", false, "also resolve every secret and read the prices")
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of the config and stop")
	return cmd
}
