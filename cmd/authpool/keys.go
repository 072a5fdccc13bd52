package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/seal"
	"github.com/authpool/authpool/proxy/admin"
)

func newKeysCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "keys",
		Short:   "Manage the keyset that seals secrets in Redis",
		Example: "  authpool keys rotate",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeysNewCommand(p), newKeysRotateCommand(p))
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

func newKeysRotateCommand(p *program) *cobra.Command {
	var find clientFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Seal all secrets in Redis with a new key",
		Long: `Has the running serve add a key to the keyset that seals secrets in Redis, and seal
with it those of every managed subscription. A keyset that comes from env: or exec:
cannot be written: add the key there ("authpool keys new --add"), and this seals with
it.

Sidecars of one Redis need the same keyset: give it to the others, too. Until then
they go on with the secrets that they have opened, and disable a subscription whose
secret they cannot open. Older keys stay in the keyset.`,
		Example: "  authpool keys rotate",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var done admin.KeysRotated
			if err := c.post(cmd.Context(), admin.KeysRotatePath, &done); err != nil {
				return err
			}
			if asJSON {
				err = p.printJSON(done)
			} else {
				added := "the keyset is not authpool's to write, and has " + plural(int64(done.Keys), "key")
				if done.Added {
					added = "a key was added, the keyset has " + plural(int64(done.Keys), "key")
				}
				err = p.printf("%s; %s sealed anew\n", added, plural(int64(done.Resealed), "subscription"))
			}
			for _, id := range slices.Sorted(maps.Keys(done.Failed)) {
				err = errors.Join(err, fmt.Errorf("%s stays as it is: %s", id, done.Failed[id]))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	find.register(cmd)
	return cmd
}

// keys rotates the keyset of sealed secrets. It implements admin.Sealer.
type keys struct{ roster *roster }

// RotateKeys implements admin.Sealer.
func (k keys) RotateKeys(ctx context.Context) (admin.KeysRotated, error) {
	if _, err := k.roster.records.List(ctx); err != nil {
		return admin.KeysRotated{}, err // before there is a key that nothing is sealed with
	}
	done, err := k.roster.vault.Rotate(ctx, k.roster.records, k.roster.target)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("there is no keyset: it is made for the first secret that is added, or is where the key sealing.keyset says: %w", err)
	}
	if err != nil {
		return admin.KeysRotated{}, &admin.RefusedError{Status: http.StatusConflict, Err: err}
	}
	failed := make(map[string]string, len(done.Failed))
	for id, err := range done.Failed {
		failed[id] = err.Error()
	}
	return admin.KeysRotated{Keys: done.Keys, Added: done.Added, Resealed: done.Resealed, Failed: failed}, nil
}
