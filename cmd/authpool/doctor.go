package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// level is how bad a finding is.
type level string

// The levels: only wrong makes the exit code 1.
const (
	fine  level = "ok"
	heed  level = "note" // works, or not needed, but worth knowing
	wrong level = "wrong"
)

// finding is one line of the doctor's.
type finding struct {
	What  string `json:"what"` // a check, or a client and its mode
	Level level  `json:"level"`
	Says  string `json:"says"`
	Fix   string `json:"fix"` // what to do; empty: nothing
}

// diagnosis is all that the doctor found. Slices are never null.
type diagnosis struct {
	OK      bool      `json:"ok"`
	Checks  []finding `json:"checks"`
	Clients []visit   `json:"clients"`
}

func newDoctorCommand(p *program) *cobra.Command {
	var (
		file   configFlags
		mode   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "doctor [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Find out what keeps clients from going through authpool",
		Long: `Looks at the running serve, its certificate authority and the variables of your
shell. Then it runs each client that it finds on PATH through an authpool of its own,
with simulated providers, and tells whether the client goes through it, trusts its
certificate authority, and streams, and what becomes of a WebSocket; with the fix.
That needs no key and no network, and leaves your configs and logins alone.

With a command it runs that one instead, and tells what it did.`,
		Example: "  authpool doctor\n  authpool doctor -- python agent.py\n  authpool doctor --json | jq '.clients[] | select(.level == \"wrong\")'",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if mode != "" && !slices.Contains(modes, mode) {
				return wrongf("--mode %q: want base-url or proxy", mode)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			d := &doctor{program: p, asJSON: asJSON, diagnosis: diagnosis{OK: true, Checks: []finding{}, Clients: []visit{}}}
			if len(args) == 0 {
				cfg, dir, err := file.loadWithState(cmd, p)
				if err != nil {
					return err
				}
				for _, f := range d.examine(ctx, cfg, dir) {
					d.tell(f)
					d.Checks = append(d.Checks, f)
				}
			}
			if err := d.clients(ctx, args, mode); err != nil {
				return err
			}
			return d.finish()
		},
	}
	file.register(cmd)
	cmd.Flags().StringVar(&mode, "mode", "", "with a command: base-url or proxy (default: as authpool run does)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	completes(cmd, "mode", modes)
	return cmd
}

// doctor is one run.
type doctor struct {
	*program
	asJSON bool
	broken error // the first thing that could not be printed
	diagnosis
}

// tell prints a finding at once: clients take their time.
func (d *doctor) tell(f finding) {
	d.OK = d.OK && f.Level != wrong
	if d.asJSON || d.broken != nil {
		return
	}
	text := fmt.Sprintf("%-5s  %-29s  %s\n", f.Level, f.What, f.Says)
	if f.Fix != "" {
		text += fmt.Sprintf("%38s%s\n", "fix: ", f.Fix)
	}
	d.broken = d.printf("%s", text)
}

func (d *doctor) finish() error {
	if d.asJSON {
		d.broken = d.printJSON(d.diagnosis)
	}
	if d.broken == nil && !d.OK {
		return exitStatusError(exitFailed)
	}
	return d.broken
}

// clients visits the clients on PATH, or the one command.
func (d *doctor) clients(ctx context.Context, command []string, mode string) (err error) {
	list := knownClients()
	if len(command) > 0 {
		if _, err := exec.LookPath(command[0]); err != nil {
			return wrongf("cannot run %s: %w", command[0], bareExec(err))
		}
		list = []patient{{name: commandName(command[0]), argv: command, own: true}}
	}
	c, err := openClinic(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close(ctx)) }()
	for _, one := range list {
		if _, err := exec.LookPath(one.argv[0]); err != nil {
			continue
		}
		if one.own {
			one.modes = []string{mode}
			if mode == "" {
				one.modes = []string{defaultMode(command[0], c.service.cfg)}
			}
		}
		for _, v := range d.visits(ctx, c, one) {
			d.tell(v.finding)
			d.Clients = append(d.Clients, v)
		}
		if ctx.Err() != nil {
			return errors.New("stopped")
		}
	}
	return nil
}

// visits looks at one client in each of its modes. A mode in which it does not work is
// only worth knowing where it works in another.
func (d *doctor) visits(ctx context.Context, c *clinic, one patient) []visit {
	version, runs := one.versionOf(ctx)
	var list []visit
	works := false
	for _, mode := range one.modes {
		v, there := d.visit(ctx, c, one, mode)
		if !there {
			continue
		}
		v.Version = version
		v.What = strings.TrimSpace(one.name+" "+version) + ", " + mode
		if one.plain {
			v.What += " by env"
		}
		if !v.Through && !runs {
			// It says nothing about proxies and base URLs.
			command := strings.Join(append(one.argv[:1:1], one.version...), " ")
			v.Level, v.Says, v.Fix = heed, "does not run here: "+command+" fails", "run it yourself, and mend what it says"
		}
		works = works || v.Level == fine
		list = append(list, v)
	}
	for i := range list {
		if list[i].Level == wrong && works {
			list[i].Level = heed
		}
	}
	return list
}

// visit is one run of a client.
type visit struct {
	finding
	Client    string  `json:"client"`
	Version   string  `json:"version"`
	Mode      string  `json:"mode"`
	Through   bool    `json:"through"`   // it came to authpool
	TrustsCA  *bool   `json:"trusts_ca"` // null in base-url mode, and where no provider's host was asked for
	Streams   *bool   `json:"streams"`   // null for what has nothing to stream
	WebSocket string  `json:"websocket"` // "", refused (426), relayed
	Requests  int     `json:"requests"`  // to providers
	Exit      int     `json:"exit"`      // -1: ended by a signal
	Seconds   float64 `json:"seconds"`
}

const (
	// visitLimit bounds one run.
	visitLimit = time.Minute
	// lookLimit bounds the wait for connections to be closed after it.
	lookLimit = 10 * time.Second
)

// visit runs a client; false: it is not there after all.
func (d *doctor) visit(ctx context.Context, c *clinic, one patient, mode string) (visit, bool) {
	v := visit{Client: one.name, Mode: mode, finding: finding{Level: wrong}}
	folder, remove, err := c.room()
	if err == nil {
		defer remove()
		var s *setup
		if s, err = one.setup(d.program, c, mode, folder); err == nil {
			return d.observe(ctx, c, one, s, folder, v)
		}
	}
	v.Says = err.Error()
	if one.name == "gemini" {
		v.Fix = "authpool run -- gemini uses --mode proxy"
	}
	return v, true
}

// observe runs what was set up and judges what it did.
func (d *doctor) observe(ctx context.Context, c *clinic, one patient, s *setup, folder string, v visit) (visit, bool) {
	began := time.Now()
	out, code, err := runBounded(ctx, one, s, folder)
	took := time.Since(began)
	if code == notThere && !one.own {
		return v, false
	}
	v.Seconds, v.Exit = float64(took.Milliseconds())/1000, code
	// What is known of a request is written down before its connection is closed, which is
	// a moment after the client has left.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for settled := time.After(lookLimit); ; {
		left := c.desk.empty()
		judged := d.judge(v, one, c.look(began), last(out), err)
		if judged.Level == fine || left {
			return judged, true
		}
		select {
		case <-tick.C:
		case <-settled:
			return judged, true
		case <-ctx.Done():
			return judged, true
		}
	}
}

// gather fills in what was seen.
func (v *visit) gather(one patient, saw seen) {
	proxied := v.Mode == modeProxy
	var streams, trusts, asks bool
	for _, line := range saw.connections {
		asks = asks || slices.ContainsFunc(usualHosts, func(host string) bool { return strings.HasPrefix(line, "CONNECT "+host+":443 ") })
		v.Through = v.Through || !proxied || strings.HasPrefix(line, "CONNECT ") || strings.Contains(line, " http://")
	}
	for i := range saw.requests {
		r := &saw.requests[i]
		if r.Provider == "" {
			continue // a CONNECT that was refused
		}
		v.Requests++
		trusts = true
		// Some leave as soon as they have read the last event.
		streams = streams || r.Stream && r.Status == http.StatusOK && (r.End == "whole" || r.Tokens.Output > 0)
		switch r.Status {
		case http.StatusUpgradeRequired:
			v.WebSocket = "refused"
		case http.StatusSwitchingProtocols:
			v.WebSocket, streams = "relayed", true
		}
	}
	if proxied && asks {
		v.TrustsCA = &trusts
	}
	if !one.reach {
		v.Streams = &streams
	}
}

// judge puts in words what was seen, and what to do about it.
func (d *doctor) judge(v visit, one patient, saw seen, said string, err error) visit {
	proxied := v.Mode == modeProxy
	v.gather(one, saw)
	switch {
	case !v.Through && proxied:
		v.Says, v.Fix = "does not go through the proxy", one.bypassFix(d.program)
	case !v.Through:
		v.Says, v.Fix = "does not go to the base URL", "authpool run --mode proxy -- "+one.name
	case proxied && v.TrustsCA == nil && v.Requests == 0:
		v.Says = "goes through the proxy, but asked for no provider's host; other hosts are refused here"
	case v.TrustsCA != nil && !*v.TrustsCA:
		v.Says, v.Fix = "goes through the proxy, but does not trust authpool's certificate authority", one.trustFix()
	case v.Requests == 0:
		v.Says = "came, but sent no request"
	case v.Streams != nil && !*v.Streams && !one.own:
		v.Says = "comes through, but got no whole stream"
	default:
		v.Level, v.Says = fine, v.praise(saw)
		return v
	}
	if errors.Is(err, context.DeadlineExceeded) {
		v.Says += fmt.Sprintf("; ended after %s", visitLimit)
	} else if said != "" {
		v.Says += "; it says: " + said
	}
	return v
}

// praise tells what a client does well, and the hosts that it asked for.
func (v *visit) praise(saw seen) string {
	words := []string{"goes through authpool"}
	if v.TrustsCA != nil {
		words = append(words, "trusts its authority")
	}
	if v.Streams != nil && *v.Streams {
		words = append(words, "streams")
	}
	switch v.WebSocket {
	case "refused":
		words = append(words, "does without WebSocket")
	case "relayed":
		words = append(words, "uses WebSocket")
	}
	text := strings.Join(words, ", ") + fmt.Sprintf(" (%s)", plural(int64(v.Requests), "request"))
	hosts := map[string]int{}
	var names []string
	for _, line := range saw.connections {
		if host, ok := strings.CutPrefix(line, "CONNECT "); ok {
			host, _, _ = strings.Cut(host, " ")
			if hosts[host]++; hosts[host] == 1 {
				names = append(names, strings.TrimSuffix(host, ":443"))
			}
		}
	}
	if len(names) > 0 {
		text += ": " + strings.Join(names[:min(len(names), 5)], ", ")
	}
	return text
}
