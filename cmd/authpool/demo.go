package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/bench/simulator"
)

func newDemoCommand(p *program) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "See all of it: simulator, proxy and agents in one process",
		Long: `Starts a provider simulator, authpool and a few agents in one process, on free
ports and in a temporary folder, and prints what happens: sessions stick to a
subscription, one subscription hits its limit, its sessions move on, and Redis
shows the block. At the end Redis is compared with the simulator's own ledger:
equal to the token, or the exit code is 1. Needs no key and no network.`,
		Example: "  authpool demo",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return p.demo(ctx, demoPace)
		},
	}
}

// demoPace is the time between two events of a simulated stream: slow enough
// that a person can follow.
const demoPace = 50 * time.Millisecond

// demoLimit is how many requests a minute the provider lets team-a make.
const demoLimit = 9

// demo is one run.
type demo struct {
	*program
	*stage
	agents []*demoAgent

	printing sync.Mutex // agents print at the same time
	broken   error      // the first thing that could not be printed
}

// The subscriptions of the demo: team-b serves when team-a cannot.
var demoKeys = map[string]simulator.Key{
	"team-a": {Key: "sk-sim-team-a", Provider: simulator.Anthropic, RPM: demoLimit},
	"team-b": {Key: "sk-sim-team-b", Provider: simulator.Anthropic},
	"lab":    {Key: "sk-sim-lab", Provider: simulator.OpenAI},
}

const demoSubscriptions = `
  - {id: team-a, provider: anthropic, priority: 1, credential: {value: file:team-a.key}}
  - {id: team-b, provider: anthropic, priority: 2, credential: {value: file:team-b.key}}
  - {id: lab, provider: openai, credential: {value: file:lab.key}}
`

func (p *program) demo(ctx context.Context, pace time.Duration) (err error) {
	folder, err := os.MkdirTemp("", "authpool-demo-")
	if err != nil {
		return fmt.Errorf("cannot make a temporary folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()

	// The demo itself says what happens; only what goes wrong is logged.
	log := slog.New(slog.NewTextHandler(p.Err, &slog.HandlerOptions{Level: slog.LevelError}))
	s, err := newStage(ctx, folder, demoKeys, demoSubscriptions, pace, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()

	d := &demo{program: p, stage: s}
	if err := d.story(ctx); err != nil {
		return err
	}
	return d.broken
}

// say prints a line. Agents call it at the same time.
func (d *demo) say(format string, args ...any) {
	d.printing.Lock()
	defer d.printing.Unlock()
	if _, err := fmt.Fprintf(d.Out, format+"\n", args...); err != nil && d.broken == nil {
		d.broken = fmt.Errorf("cannot write to standard output: %w", err)
	}
}

// story is what happens, in order.
func (d *demo) story(ctx context.Context) error {
	d.introduce()
	for _, part := range []func(context.Context) error{d.sessionsStick, d.limitIsHit, d.showStatus, d.showBlock, d.compare} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) introduce() {
	s := d.service
	state, front := s.dir.Path(), s.db.FrontAddr().String()
	_, frontPort, _ := net.SplitHostPort(front)
	d.say("authpool for agents   http://%s", s.agentAddress())
	d.say("admin                 http://%s", s.adminListener.Addr())
	d.say("simulated provider    %s (its ledger: %s/ledger)", d.simBase, d.simBase)
	d.say("")
	d.say("Where to look while this runs, from another shell:")
	d.say("  authpool status --watch --admin %s --state-dir %s", s.adminListener.Addr(), state)
	d.say("  REDISCLI_AUTH=$(cat %s/redis.password) redis-cli -p %s HGETALL 'authpool:{team-a}:now'", state, frontPort)
	d.say("")
	d.agents = []*demoAgent{
		newDemoAgent(d, "ada", anthropicDialect),
		newDemoAgent(d, "bob", anthropicDialect),
		newDemoAgent(d, "cyd", anthropicDialect),
		newDemoAgent(d, "dan", openAIDialect),
	}
}

// sessionsStick lets each agent have three turns of one conversation.
func (d *demo) sessionsStick(ctx context.Context) error {
	d.say("1. Four agents begin a conversation each. None of them holds a provider's key.")
	first := make(map[string]string)
	for turn := range 3 {
		if turn == 1 {
			d.say("")
			d.say("2. They go on. Each conversation stays where it began: its prompt cache is there.")
		}
		if err := d.round(ctx, d.agents); err != nil {
			return err
		}
		for _, a := range d.agents {
			if turn == 0 {
				first[a.name] = a.subscription
			} else if a.subscription != first[a.name] {
				return fmt.Errorf("%s's session did not stick: it moved from %s to %s", a.name, first[a.name], a.subscription)
			}
		}
	}
	return nil
}

// limitIsHit lets the agents on team-a go on until the provider refuses, which
// their next turns see to.
func (d *demo) limitIsHit(ctx context.Context) error {
	d.say("")
	d.say("3. The provider lets team-a make %d requests a minute. They are used up now; the agents just go on.", demoLimit)
	busy, elsewhere := d.agents[:3], 0
	for range 2 {
		if err := d.round(ctx, busy); err != nil {
			return err
		}
		for _, a := range busy {
			if a.subscription == "team-b" {
				elsewhere++
			}
		}
	}
	if elsewhere == 0 {
		return errors.New("the demo went wrong: team-a never hit its limit")
	}
	d.say("   team-b served %s meanwhile; the sessions stay with team-a, which has room again in seconds. The agents saw no error.", plural(int64(elsewhere), "turn"))
	return nil
}

// round lets agents take one turn each, all at the same time.
func (d *demo) round(ctx context.Context, agents []*demoAgent) error {
	errs := make([]error, len(agents))
	var turns sync.WaitGroup
	for i, a := range agents {
		turns.Go(func() { errs[i] = a.turn(ctx) })
	}
	turns.Wait()
	return errors.Join(errs...)
}

func (d *demo) showStatus(ctx context.Context) error {
	d.say("")
	d.say("4. authpool status:")
	status, err := d.settled(ctx)
	if err != nil {
		return err
	}
	d.say("%s", indent(statusTable(status, time.Now(), d.pen())))
	return nil
}

func indent(text string) string {
	return "   " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n   ")
}

// drained reads an answer to its end, as every agent does.
func drained(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("the answer was cut: %w", err)
	}
	return text, nil
}
