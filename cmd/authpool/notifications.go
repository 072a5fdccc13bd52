package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/notify"
	"github.com/authpool/authpool/proxy/admin"
)

// notifications tests webhooks for the admin address. It implements admin.Notifier.
type notifications struct {
	notifier func() *notify.Notifier // the present one
}

// TestNotifications implements admin.Notifier.
func (n notifications) TestNotifications(ctx context.Context, name string, target int) ([]admin.NotificationTest, error) {
	kind := event.NotificationsTest
	if name != "" {
		if kind = event.Kind(name); !slices.Contains(event.Kinds(), kind) {
			return nil, &admin.RefusedError{Status: http.StatusBadRequest, Err: fmt.Errorf("%q is no event", name)}
		}
	}
	results := n.notifier().Test(ctx, kind, target)
	if len(results) == 0 {
		err := errors.New("the configuration has no notifications")
		if target >= 0 {
			err = fmt.Errorf("the configuration has no notifications[%d]", target)
		}
		return nil, &admin.RefusedError{Status: http.StatusNotFound, Err: err}
	}
	out := make([]admin.NotificationTest, len(results))
	for i, r := range results {
		out[i] = admin.NotificationTest{Target: r.Index, Host: r.Host, OK: r.Err == nil, Status: r.Status, TookMS: r.Took.Milliseconds()}
		if r.Err != nil {
			out[i].Error = r.Err.Error()
		}
	}
	return out, nil
}

func newNotificationsCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "notifications",
		Short:   "Test the webhooks of the running serve",
		Example: "  authpool notifications test",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNotificationsTestCommand(p))
	return cmd
}

func newNotificationsTestCommand(p *program) *cobra.Command {
	var find clientFlags
	var name string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test [INDEX]",
		Short: "Send a test notification to each webhook, or to one",
		Long: `Has the running serve send a test notification to each webhook of its config, or to
the one of an index (0 is the first), whichever events it wants, and prints how each
answered. It fails when one did not accept it.`,
		Example: "  authpool notifications test\n  authpool notifications test 0 --event budget.80",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return wrongf("%q takes one index at most, got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{}
			if len(args) == 1 {
				if n, err := strconv.Atoi(args[0]); err != nil || n < 0 {
					return wrongf("%q is no index: 0 is the first of notifications", args[0])
				}
				query.Set("target", args[0])
			}
			if name != "" {
				if !slices.Contains(config.Events(), name) {
					return wrongf("--event: %q is no event", name)
				}
				query.Set("event", name)
			}
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			var results []admin.NotificationTest
			if _, err := c.do(cmd.Context(), http.MethodPost, admin.NotificationsTestPath, query, nil, &results); err != nil {
				return err
			}
			return p.showTests(results, asJSON)
		},
	}
	find.register(cmd)
	cmd.Flags().StringVar(&name, "event", "", "the event to send, such as budget.80 (default: notifications.test)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON list")
	return cmd
}

// showTests prints how each target answered; its error says that one has not
// accepted.
func (p *program) showTests(results []admin.NotificationTest, asJSON bool) error {
	if asJSON {
		if err := json.NewEncoder(p.Out).Encode(results); err != nil {
			return err
		}
	}
	failed := 0
	for _, r := range results {
		how := fmt.Sprintf("ok, status %d", r.Status)
		if !r.OK {
			failed++
			how = r.Error
		}
		if asJSON {
			continue
		}
		if err := p.printf("notifications[%d] %s: %s (%d ms)\n", r.Target, r.Host, how, r.TookMS); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %s did not accept the test notification", failed, plural(int64(len(results)), "webhook"))
	}
	return nil
}
