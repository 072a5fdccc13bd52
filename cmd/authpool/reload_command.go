package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/proxy/admin"
)

func newReloadCommand(p *program) *cobra.Command {
	var find clientFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the running serve read its config again",
		Long: `Has the running serve read its config again and take all of it over, or nothing: one
that is wrong, or that changes what is settled at the start (listen, redis and the
like), leaves it as it is and says why. Requests under way end as they began, and what
is known of subscriptions stays with their ids. serve does the same by itself when the
file changes, and at SIGHUP.`,
		Example: "  authpool check -c authpool.yaml && authpool reload",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var done admin.Reloaded
			if err := c.post(cmd.Context(), admin.ReloadPath, &done); err != nil {
				return err
			}
			switch {
			case asJSON:
				return p.printJSON(done)
			case len(done.Changed) == 0:
				return p.printf("the config has not changed\n")
			}
			var text strings.Builder
			text.WriteString("changed: " + strings.Join(done.Changed, ", ") + "\n")
			for _, part := range []struct {
				what string
				ids  []string
			}{{"added", done.Subscriptions.Added}, {"changed", done.Subscriptions.Changed}, {"removed", done.Subscriptions.Removed}} {
				if len(part.ids) > 0 {
					text.WriteString("subscriptions " + part.what + ": " + strings.Join(part.ids, ", ") + "\n")
				}
			}
			return p.printf("%s", text.String())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	find.register(cmd)
	return cmd
}
