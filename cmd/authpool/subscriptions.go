package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/admin"
)

// operator does in the pool what the admin address is asked for. It implements
// admin.Operations.
type operator struct{ pool *pool.Pool }

// Enable implements admin.Operations.
func (o operator) Enable(ctx context.Context, id string) error {
	err := o.pool.Enable(ctx, id)
	switch {
	case errors.Is(err, pool.ErrNoSuchSubscription):
		return &admin.RefusedError{Status: http.StatusNotFound, Err: fmt.Errorf("there is no subscription %q", id)}
	case errors.Is(err, pool.ErrDisabledByConfig):
		return &admin.RefusedError{Status: http.StatusConflict, Err: fmt.Errorf("cannot enable subscription %q: %w", id, err)}
	}
	return err
}

func newSubscriptionsCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "subscriptions",
		Short:   "Change the subscriptions of the running serve",
		Example: "  authpool subscriptions enable team-a",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newEnableCommand(p))
	return cmd
}

func newEnableCommand(p *program) *cobra.Command {
	var find clientFlags
	cmd := &cobra.Command{
		Use:   "enable ID",
		Short: "End the cooldowns of a subscription",
		Long: `Ends every cooldown of a subscription, of its models and of those that share its
domain, in all processes, and tries a credential again that was refused. Requests
come back in steps, and a limit that is met again closes it again.`,
		Example: "  authpool subscriptions enable team-a",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return wrongf("%q takes the id of one subscription, got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var done admin.Enabled
			if err := c.post(cmd.Context(), admin.EnablePath(args[0]), &done); err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.Out, "%s is enabled\n", done.ID)
			return err
		},
	}
	find.register(cmd)
	return cmd
}
