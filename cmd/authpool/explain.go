package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/proxy/provider"
)

func newExplainCommand(p *program) *cobra.Command {
	var (
		find                  clientFlags
		session, subscription string
		status, limit         int
		asJSON                bool
	)
	cmd := &cobra.Command{
		Use:   "explain [REQUEST-ID]",
		Short: "Tell why a request went where it went",
		Long: fmt.Sprintf(`Tells of one request, by the X-Authpool-Request-Id of its answer, how each
subscription was chosen for it and who was passed over and why, how long it
waited, what each attempt came to and which row of the classifier said so, and
how it ended. Without an id it lists the last requests, the newest first.

Each serve remembers the last %d requests that it has answered, in %d MiB at
most, until it stops. Nothing of their content is kept.

A score is 100 × availability × headroom × soundness × swiftness × idleness, each
from 0 to 1: 1 unless it is being probed, 1 less what is used of its tightest
limit (which weighs less the sooner it is reset), 1 less its share of failures,
how soon its answers begin against the provider's usual, and how little is under
way for its weight. A lower priority comes first, whatever the score; between
equals the session's id decides. Where sessions.strategy is not balanced, what
that goes by is told beside the score.`, explain.Most, explain.MostBytes>>20),
		Example: "  authpool explain\n  authpool explain 0199d1c4-2f61-7c1e-9f0a-5d1f4c3b2a10\n  authpool explain --status 429 --limit 5 --json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return wrongf("%q takes one request id, got %q; see %q", cmd.CommandPath(), args, cmd.CommandPath()+" --help")
			}
			for _, name := range []string{"session", "subscription", "status", "limit"} {
				// A variable is meant for lists, and stands in nobody's way.
				if f := cmd.Flags().Lookup(name); len(args) == 1 && f.Changed && len(f.Annotations[fromVariable]) == 0 {
					return wrongf("--%s is for the list of requests, not for one", name)
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(p, find)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return p.explainRequest(cmd.Context(), c, args[0], asJSON)
			}
			query := url.Values{"limit": {strconv.Itoa(limit)}}
			if status != 0 {
				query.Set("status", strconv.Itoa(status))
			}
			for name, value := range map[string]string{"session": session, "subscription": subscription} {
				if value != "" {
					query.Set(name, value)
				}
			}
			return p.listRequests(cmd.Context(), c, query, asJSON)
		},
	}
	find.register(cmd)
	cmd.Flags().StringVar(&session, "session", "", "list only requests of this session (its id, or agent/id)")
	cmd.Flags().StringVar(&subscription, "subscription", "", "list only requests that were sent to this subscription")
	cmd.Flags().IntVar(&status, "status", 0, "list only requests that were answered with this HTTP status")
	cmd.Flags().IntVar(&limit, "limit", 20, "list at most so many, up to 1000")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (p *program) explainRequest(ctx context.Context, c *client, id string, asJSON bool) error {
	var r explain.Request
	if _, err := c.get(ctx, admin.RequestPath(id), nil, &r); err != nil {
		return err
	}
	if asJSON {
		return p.printJSON(r)
	}
	return p.printf("%s", requestText(&r))
}

func (p *program) listRequests(ctx context.Context, c *client, query url.Values, asJSON bool) error {
	var list []explain.Request
	if _, err := c.get(ctx, admin.RequestsPath, query, &list); err != nil {
		return err
	}
	if asJSON {
		return p.printJSON(list)
	}
	return p.printf("%s", requestsTable(list))
}

// requestsTable is a line for each request.
func requestsTable(list []explain.Request) string {
	if len(list) == 0 {
		return "No such request is remembered: only those whose answer has ended since serve was started are.\n"
	}
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "REQUEST\tBEGAN (UTC)\tSTATUS\tEND\tSUBSCRIPTION\tATTEMPTS\tTOOK\tMODEL\tSESSION") // a strings.Builder takes all
	for i := range list {
		r := &list[i]
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%d\t%s\t%s\t%s\n", r.ID, r.Start.UTC().Format(time.DateTime), r.Status, endCell(r),
			orDash(r.Subscription), attempts(r), took(r.Took), orDash(r.Model), orDash(r.Session))
	}
	_ = w.Flush()
	return out.String()
}

// endCell is how a request ended, with the code of authpool's own error.
func endCell(r *explain.Request) string {
	if r.Error == "" {
		return r.End
	}
	return r.End + ": " + r.Error
}

// attempts counts how often the request was sent.
func attempts(r *explain.Request) int {
	n := 0
	for i := range r.Choices {
		if r.Choices[i].Attempt != nil {
			n++
		}
	}
	return n
}

// requestText is the story of a request.
func requestText(r *explain.Request) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d %s\n", r.ID, r.Status, strings.Join(outcomePhrases(r), ", "))
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(&b, "  %-8s %s\n", name, text)
		}
	}
	line("error", strings.Join(nonEmpty(r.Error, r.Message), ": "))
	line("began", r.Start.UTC().Format("2006-01-02 15:04:05.000 UTC"))
	line("agent", r.Agent)
	line("asked", strings.Join(askedPhrases(r), ", "))
	line("session", strings.Join(sessionPhrases(r), ", "))
	line("tokens", strings.Join(tokenPhrases(r), ", "))
	if r.Tries > 0 || r.Damped {
		text := grouped(r.Tries) + " before this one failed in a row"
		if r.Damped {
			text += "; the provider is left in peace for a moment, and its last error was shown again"
		}
		line("tries", text)
	}
	for i := range r.Choices {
		choiceText(&b, i+1, r, &r.Choices[i])
	}
	if r.MoreChoices > 0 {
		fmt.Fprintf(&b, "and %s more, not kept\n", plural(r.MoreChoices, "choice"))
	}
	return b.String()
}

func outcomePhrases(r *explain.Request) []string {
	phrases := []string{r.End}
	switch {
	case r.Subscription != "":
		phrases[0] += ", served by " + r.Subscription
	case r.End == "refused" && r.Error == "":
		phrases[0] += ", with the provider's own last error"
	}
	return append(phrases, "after "+took(r.Took))
}

func askedPhrases(r *explain.Request) []string {
	what := strings.TrimSpace(r.Provider + " " + r.Endpoint)
	if r.Action != "" && r.Action != provider.Inject.String() {
		what += " (" + r.Action + ")"
	}
	return nonEmpty(what, r.Model, word(r.Bytes > 0, size(r.Bytes)), word(r.Stream, "streamed"))
}

func sessionPhrases(r *explain.Request) []string {
	if r.Session == "" {
		return nil
	}
	by := "named by " + r.SessionSource
	switch r.SessionSource {
	case "hash":
		by = "known by how it began"
	case "socket":
		by = "of this WebSocket alone"
	}
	return nonEmpty(r.Session, by, word(r.Parent != "", "child of "+r.Parent))
}

func tokenPhrases(r *explain.Request) []string {
	t := &r.Tokens
	if t.Total() == 0 {
		return nil
	}
	written := t.CacheWrite5m + t.CacheWrite1h
	return nonEmpty(grouped(t.Input)+" in", grouped(t.Output)+" out",
		word(t.CacheRead > 0, grouped(t.CacheRead)+" from cache"), word(written > 0, grouped(written)+" into cache"),
		word(r.Turns > 0, "in "+plural(r.Turns, "turn")), word(r.Estimated, "estimated, as the answer was cut"))
}

// choiceText tells of one choice and its attempt.
func choiceText(b *strings.Builder, n int, r *explain.Request, c *explain.Choice) {
	fmt.Fprintf(b, "%d. %s: %s\n", n, cmp.Or(c.Subscription, "nobody"), strings.Join(whyPhrases(r, c), ", "))
	line := func(format string, args ...any) { fmt.Fprintf(b, "     "+format+"\n", args...) }
	if w := c.Wait; w != nil {
		text := fmt.Sprintf("waited %s in the queue", took(w.For))
		if w.Ahead > 0 {
			text += fmt.Sprintf(" behind %s (%s by the same agent)", plural(w.Ahead, "request"), grouped(w.Own))
		}
		if w.Subscription != "" {
			text += fmt.Sprintf("; the first to open was %s: %s%s", w.Subscription, w.Reason, untilText(w.Until, r.Start))
		}
		line("%s", text)
	}
	width := 0
	for _, one := range c.Candidates {
		width = max(width, len(one.Subscription))
	}
	for i := range c.Candidates {
		one := &c.Candidates[i]
		mark := " "
		if one.Subscription == c.Subscription {
			mark = "*"
		}
		line("%s %-*s  %s", mark, width, one.Subscription, candidateText(r, c.Strategy, one))
	}
	if c.Omitted > 0 {
		line("  and %s more", grouped(c.Omitted))
	}
	if a := c.Attempt; a != nil {
		attemptText(line, a)
	}
}

// whyPhrases say how the subscription was chosen, or why nobody was.
func whyPhrases(r *explain.Request, c *explain.Choice) []string {
	var phrases []string
	switch {
	case c.Subscription == "":
		phrases = append(phrases, c.Refusal)
	case c.Source == "bound":
		phrases = append(phrases, "the session's own")
	case c.Source == "moved":
		phrases = append(phrases, "chosen anew, the session moves here from "+c.Home)
	case c.Source == "elsewhere":
		phrases = append(phrases, "for this request only, the session stays with "+c.Home)
	case c.Source == "new" && r.Session == "":
		phrases = append(phrases, "chosen for this request, which has no session")
	case c.Source == "new" && c.Inherited:
		phrases = append(phrases, "new session, begins where its parent is")
	case c.Source == "new":
		phrases = append(phrases, "new session")
	default:
		phrases = append(phrases, c.Source)
	}
	return append(phrases, nonEmpty(
		word(c.Strategy != "" && c.Strategy != string(pool.StrategyBalanced) && c.Subscription != "", "by "+c.Strategy),
		word(c.ByHash && c.Subscription != "", "chosen by name alone because Redis did not answer"),
		word(c.Owner != "", "only "+c.Owner+" has what the request names"),
		word(c.Pinned && c.Owner == "" && c.Home != "", "it has to stay within the domain of "+c.Home))...)
}

func candidateText(r *explain.Request, by string, c *explain.Candidate) string {
	if c.Obstacle != "" {
		text := c.Obstacle
		if c.Reason != "" && c.Reason != c.Obstacle {
			text += " (" + c.Reason + ")"
		}
		return text + untilText(c.Until, r.Start)
	}
	text := "could serve"
	if s := c.Score; s != nil {
		text = scoreText(s)
	}
	return strings.Join(nonEmpty(text, standingText(by, c.Standing), word(c.Priority != 0, fmt.Sprintf("priority %d", c.Priority)), word(c.Draining, "nearly used up")), ", ")
}

// standingText is what the strategy goes by; empty where that is the score, or the
// order of the config.
func standingText(by string, s *explain.Standing) string {
	if s == nil {
		return ""
	}
	switch pool.Strategy(by) {
	case pool.StrategyDrainSoonest:
		switch {
		case s.ExpiresIn == 0:
			return "nothing of it expires"
		case s.ExpiresIn <= explain.Seconds(pool.WindowNews):
			return "the next answer tells of its window"
		}
		return "its window ends in " + took(s.ExpiresIn)
	case pool.StrategyLeastUsed:
		return fmt.Sprintf("%.1f%% used, %s, %d under way", 100*s.Used, plural(s.Sessions, "session"), s.InFlight)
	case pool.StrategyRoundRobin:
		return fmt.Sprintf("turn %.3f", s.Turn)
	default:
		return ""
	}
}

// scoreText is a score with those of its parts that lower it.
func scoreText(s *explain.Score) string {
	var text strings.Builder
	fmt.Fprintf(&text, "score %.1f", s.Total)
	equals := " = 100 × "
	for _, part := range [...]struct {
		name  string
		value float64
	}{{"availability", s.Availability}, {"headroom", s.Headroom}, {"soundness", s.Soundness}, {"swiftness", s.Swiftness}, {"idleness", s.Idleness}} {
		if part.value < 1 {
			fmt.Fprintf(&text, "%s%s %.3f", equals, part.name, part.value)
			equals = " × "
		}
	}
	return text.String()
}

func attemptText(line func(string, ...any), a *explain.Attempt) {
	answered := "no answer"
	if a.Status != 0 {
		answered = strconv.FormatInt(a.Status, 10)
	}
	text := fmt.Sprintf("asked at %s, %s after %s: %s", took(a.At), answered, took(a.Took), verdictText(&a.Verdict))
	if a.Error != "" {
		text += " (" + a.Error + ")"
	}
	line("%s%s", text, rowText(&a.Verdict))
	if a.Final != "" {
		line("sent to nobody else: %s", a.Final)
	}
	if v := a.Late; v != nil {
		line("then, behind content: %s%s", verdictText(v), rowText(v))
	}
}

// rowText names the row that decided, where it is not the one of every good answer.
func rowText(v *explain.Verdict) string {
	return word(v.Row != "ok", "; row "+v.Row)
}

func verdictText(v *explain.Verdict) string {
	if v.Signal == "ok" {
		return v.Signal
	}
	text := v.Signal
	if v.Reason != "" {
		text += " (" + v.Reason + ")"
	}
	text += ", scope " + v.Scope
	if v.Wait != nil {
		text += ", wait " + took(*v.Wait)
	}
	return text
}

// untilText is when something ends, seen from about now; empty where that is not
// known.
func untilText(t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	layout := "15:04:05 UTC"
	if away := t.Sub(now); away < -time.Hour || away >= 23*time.Hour {
		layout = "2006-01-02 15:04:05 UTC"
	}
	return " until " + t.UTC().Format(layout)
}

// took is a duration to three or four digits.
func took(s explain.Seconds) string {
	d := time.Duration(s)
	switch {
	case d < time.Millisecond:
		d = d.Round(time.Microsecond)
	case d < time.Second:
		d = d.Round(100 * time.Microsecond)
	case d < time.Minute:
		d = d.Round(10 * time.Millisecond)
	default:
		d = d.Round(time.Second)
	}
	return d.String()
}

// word is text if it is to be said.
func word(said bool, text string) string {
	if said {
		return text
	}
	return ""
}

func nonEmpty(texts ...string) []string {
	var out []string
	for _, text := range texts {
		if text != "" {
			out = append(out, text)
		}
	}
	return out
}
