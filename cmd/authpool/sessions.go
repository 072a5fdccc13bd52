package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/proxy/admin"
)

// sessions tells of the pool's sessions and moves them. It implements admin.Sessions.
type sessions struct {
	pool   *pool.Pool
	agents *agents.Book
}

// Sessions implements admin.Sessions.
func (s sessions) Sessions(ctx context.Context, q admin.SessionQuery) (admin.SessionList, error) {
	list, whole, err := s.pool.Sessions(ctx, pool.SessionFilter(q))
	if err != nil {
		return admin.SessionList{}, err
	}
	out := admin.SessionList{Whole: whole, Sessions: make([]admin.Session, 0, len(list))}
	for _, one := range list {
		out.Sessions = append(out.Sessions, admin.Session{
			SessionName:  admin.SessionName{Session: one.Session, Agent: one.Agent, Provider: one.Provider},
			Subscription: one.Subscription,
			Since:        one.Since.UTC().Truncate(time.Millisecond),
			Last:         one.Last.UTC().Truncate(time.Millisecond),
			Parent:       one.Parent,
			Expires:      moment(one.Until.UTC().Truncate(time.Millisecond)),
			InFlight:     one.InFlight,
			Hour:         admin.Hour{Requests: one.Hour.Requests, Tokens: one.Hour.Tokens, CostUSD: admin.NanoUSD(one.Hour.CostNanoUSD)},
			Over:         one.Over,
		})
	}
	return out, nil
}

// MoveSession implements admin.Sessions.
func (s sessions) MoveSession(ctx context.Context, name admin.SessionName, to string) (admin.SessionMoved, error) {
	m := pool.Move{Session: sessionKey(name), To: to, Why: "operator"}
	if agent := s.agents.ByID(name.Agent); agent != nil {
		m.Allowed = agent.Subscriptions
	}
	from, err := s.pool.Move(ctx, m)
	if err != nil {
		return admin.SessionMoved{}, refusedMove(err, name, to)
	}
	return admin.SessionMoved{SessionName: name, From: from, Subscription: to}, nil
}

// refusedMove tells what the operator has to mend from what Redis has.
func refusedMove(err error, name admin.SessionName, to string) error {
	switch _, refused := errors.AsType[*pool.MoveError](err); {
	case refused:
		return &admin.RefusedError{Status: http.StatusConflict, Err: err}
	case errors.Is(err, pool.ErrNoSession):
		return noSession(name)
	case errors.Is(err, pool.ErrNoSuchSubscription):
		return &admin.RefusedError{Status: http.StatusNotFound, Err: fmt.Errorf("there is no subscription %q", to)}
	}
	return err
}

func noSession(name admin.SessionName) error {
	return &admin.RefusedError{Status: http.StatusNotFound, Err: fmt.Errorf("there is no session %s", shortened(name.String()))}
}

// shortened is a text that somebody may have made as long as he liked.
func shortened(text string) string {
	const most = 300
	if len(text) > most {
		text = text[:most] + "..."
	}
	return fmt.Sprintf("%q", text)
}

// ReleaseSession implements admin.Sessions.
func (s sessions) ReleaseSession(ctx context.Context, name admin.SessionName) (admin.SessionReleased, error) {
	from, err := s.pool.ReleaseSession(ctx, sessionKey(name))
	if errors.Is(err, pool.ErrNoSession) {
		err = noSession(name)
	}
	if err != nil {
		return admin.SessionReleased{}, err
	}
	return admin.SessionReleased{SessionName: name, From: from}, nil
}

func sessionKey(name admin.SessionName) pool.SessionKey {
	return pool.SessionKey{Provider: name.Provider, Agent: name.Agent, Session: name.Session}
}

func newSessionsCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "Show, move and release sticky sessions",
		Long: `Shows which subscription each session sticks to, and changes that.

SESSION is the id of a session. Where several agents or providers have one of that
id, it is AGENT/SESSION or PROVIDER/AGENT/SESSION.`,
		Example: "  authpool sessions list\n  authpool sessions move claude-42 team-b",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSessionsListCommand(p), newSessionsShowCommand(p), newSessionsMoveCommand(p), newSessionsReleaseCommand(p), newSessionsRebalanceCommand(p))
	return cmd
}

func newSessionsListCommand(p *program) *cobra.Command {
	var (
		find                          clientFlags
		provider, agent, subscription string
		asJSON                        bool
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the sessions that are not idle",
		Long: `Lists the sessions of all sidecars that were used within sessions.idle_timeout.
What each has used within the last hour is what the sidecar that is asked has
counted; one marked OVER has used up a limit of sessions.brake there.`,
		Example: "  authpool sessions list\n  authpool sessions list --subscription team-a --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			query := url.Values{}
			for name, value := range map[string]string{"provider": provider, "agent": agent, "subscription": subscription} {
				if value != "" {
					query.Set(name, value)
				}
			}
			list, err := c.sessions(cmd.Context(), query)
			if err != nil {
				return err
			}
			if !list.Whole {
				_, _ = fmt.Fprintln(p.Err, "authpool: Redis is away: these are the sessions of this sidecar alone")
			}
			if asJSON {
				return p.printJSON(list.Sessions)
			}
			return p.printf("%s", sessionsTable(list.Sessions, time.Now()))
		},
	}
	find.register(cmd)
	cmd.Flags().StringVar(&provider, "provider", "", "only those at this provider")
	cmd.Flags().StringVar(&agent, "agent", "", "only those of this agent")
	cmd.Flags().StringVar(&subscription, "subscription", "", "only those that stick to this subscription")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *client) sessions(ctx context.Context, query url.Values) (list admin.SessionList, err error) {
	_, err = c.get(ctx, admin.SessionsPath, query, &list)
	return list, err
}

func sessionsTable(list []admin.Session, now time.Time) string {
	if len(list) == 0 {
		return "No session is in use.\n"
	}
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "SESSION\tPROVIDER\tSUBSCRIPTION\tFOR\tLAST USED\tPARENT\tLAST HOUR\t")
	for _, s := range list {
		_, _ = fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", s.Agent, s.Session, s.Provider, s.Subscription,
			until(now, s.Since), until(now, s.Last)+" ago", orDash(s.Parent), hourCell(s))
	}
	_ = w.Flush() // a strings.Builder takes all
	return out.String()
}

// hourCell is what a session has used, and whether that was too much.
func hourCell(s admin.Session) string {
	if s.Hour == (admin.Hour{}) {
		return "-"
	}
	cell := fmt.Sprintf("%s, %s tokens, %s", plural(s.Hour.Requests, "request"), grouped(s.Hour.Tokens), money(s.Hour.CostUSD))
	if s.Over != "" {
		cell += "  OVER " + s.Over
	}
	return cell
}

// sessionArgs wants a session, and more behind it.
func sessionArgs(more ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1+len(more) {
			return wrongf("%q takes %s, got %d arguments", cmd.CommandPath(),
				strings.Join(append([]string{"a session"}, more...), " and "), len(args))
		}
		return nil
	}
}

// findSession asks the running serve for the session that is meant by name.
func (p *program) findSession(ctx context.Context, find clientFlags, name string) (*client, admin.Session, error) {
	c, err := newClient(p, find)
	if err != nil {
		return nil, admin.Session{}, err
	}
	s, err := c.session(ctx, name)
	return c, s, err
}

// session finds the one session that is meant by SESSION, AGENT/SESSION or
// PROVIDER/AGENT/SESSION.
func (c *client) session(ctx context.Context, name string) (admin.Session, error) {
	parts := strings.Split(name, "/")
	query := url.Values{}
	for i, what := range []string{"session", "agent", "provider"} {
		if i < len(parts) {
			query.Set(what, parts[len(parts)-1-i])
		}
	}
	for _, value := range query {
		if value[0] == "" || len(parts) > 3 || len(name) > 1024 {
			return admin.Session{}, wrongf("%s is no session: want SESSION, AGENT/SESSION or PROVIDER/AGENT/SESSION", shortened(name))
		}
	}
	list, err := c.sessions(ctx, query)
	if err != nil {
		return admin.Session{}, err
	}
	switch len(list.Sessions) {
	case 0:
		hint := ""
		if len(parts) == 1 {
			hint = " in use; one that is idle is found as AGENT/SESSION"
		}
		return admin.Session{}, fmt.Errorf("%s: there is no session %s%s", c.base, shortened(name), hint)
	case 1:
		return list.Sessions[0], nil
	}
	names := make([]string, len(list.Sessions))
	for i, s := range list.Sessions {
		names[i] = s.String()
	}
	const most = 5
	if len(names) > most {
		names = append(names[:most], "...")
	}
	return admin.Session{}, fmt.Errorf("there are %d sessions %s: name one of %s", len(list.Sessions), shortened(name), strings.Join(names, ", "))
}

func newSessionsShowCommand(p *program) *cobra.Command {
	var (
		find   clientFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "show SESSION",
		Short:   "Show one session, idle or not",
		Example: "  authpool sessions show claude-42\n  authpool sessions show default/claude-42 --json",
		Args:    sessionArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, s, err := p.findSession(cmd.Context(), find, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return p.printJSON(s)
			}
			return p.printf("%s", sessionSheet(s, time.Now()))
		},
	}
	find.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func sessionSheet(s admin.Session, now time.Time) string {
	place := "idle: it holds no place, its subscription is remembered"
	if s.Expires != nil {
		place = "held until " + clock(*s.Expires, now) + " unless it is used"
	}
	return fmt.Sprintf("session       %s\nagent         %s\nprovider      %s\nsubscription  %s since %s\nlast used     %s\nplace         %s\nparent        %s\nin flight     %d\nlast hour     %s\n",
		s.Session, s.Agent, s.Provider, s.Subscription, clock(s.Since, now), until(now, s.Last)+" ago", place,
		orDash(s.Parent), s.InFlight, hourCell(s))
}

func newSessionsMoveCommand(p *program) *cobra.Command {
	var find clientFlags
	cmd := &cobra.Command{
		Use:   "move SESSION SUBSCRIPTION",
		Short: "Have a session stick to another subscription",
		Long: `Moves a session, for all sidecars. Requests under way end where they are, the next
one goes to the new subscription, without what the provider had cached for the
session; nor does another organisation read what the former one has encrypted in it.
A move to who could not serve the session is refused.`,
		Example: "  authpool sessions move claude-42 team-b\n  authpool sessions move default/claude-42 team-b",
		Args:    sessionArgs("a subscription"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, s, err := p.findSession(cmd.Context(), find, args[0])
			if err != nil {
				return err
			}
			var moved admin.SessionMoved
			path := admin.SessionPath(s.SessionName) + "/move"
			if err := c.send(cmd.Context(), http.MethodPost, path, admin.MoveSession{Subscription: args[1]}, &moved); err != nil {
				return err
			}
			if moved.From == moved.Subscription {
				return p.printf("%s/%s is on %s already\n", moved.Agent, moved.Session, moved.Subscription)
			}
			return p.printf("%s/%s has moved from %s to %s\n", moved.Agent, moved.Session, moved.From, moved.Subscription)
		},
	}
	find.register(cmd)
	return cmd
}

func newSessionsReleaseCommand(p *program) *cobra.Command {
	var find clientFlags
	cmd := &cobra.Command{
		Use:   "release SESSION",
		Short: "End a session's binding and free its place",
		Long: `Makes all sidecars forget where a session sticks. Requests under way end where they
are; the next one goes where that of a new session would.`,
		Example: "  authpool sessions release claude-42",
		Args:    sessionArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, s, err := p.findSession(cmd.Context(), find, args[0])
			if err != nil {
				return err
			}
			var released admin.SessionReleased
			if err := c.post(cmd.Context(), admin.SessionPath(s.SessionName)+"/release", &released); err != nil {
				return err
			}
			return p.printf("%s/%s is released from %s\n", released.Agent, released.Session, released.From)
		},
	}
	find.register(cmd)
	return cmd
}
