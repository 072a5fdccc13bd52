package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/seal"
)

func newKeysCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "keys",
		Short:   "Manage the keyset that seals secrets in Redis",
		Example: "  authpool keys new",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeysNewCommand(p))
	return cmd
}

// maxKeyset bounds a keyset on standard input.
const maxKeyset = 64 << 10

func newKeysNewCommand(p *program) *cobra.Command {
	var add bool
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Print a new keyset",
		Long: `Prints a new keyset for the key sealing.keyset of the config, for those who keep it
where authpool cannot write. With --add the keyset on standard input is printed with
one more key, which seals from then on; then have "authpool keys rotate" seal with it
what the older ones have sealed. It needs no running serve.`,
		Example: "  authpool keys new > sealing.keyset\n  authpool keys new --add < sealing.keyset > next.keyset",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			keys, err := seal.New()
			if add {
				var text []byte
				if text, err = io.ReadAll(io.LimitReader(p.In, maxKeyset)); err != nil {
					return fmt.Errorf("cannot read the keyset from standard input: %w", err)
				}
				if keys, err = seal.Open(credential.NewSecret(string(text))); err != nil {
					return wrongf("standard input: %w", err)
				}
				keys, err = keys.Rotated()
			}
			if err != nil {
				return err
			}
			text, err := keys.Text()
			if err != nil {
				return err
			}
			return p.printf("%s\n", text.Reveal())
		},
	}
	cmd.Flags().BoolVar(&add, "add", false, "add a key to the keyset on standard input")
	return cmd
}
