package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/admin"
)

func newRunCommand(p *program) *cobra.Command {
	var (
		file          configFlags
		session, mode string
		quiet         bool
	)
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run an agent behind authpool",
		Long: `Runs a command with everything that it needs to go through authpool, and without
your own provider credentials in its environment. What it does there is one session,
and what that has used is told at the end on standard error.

When no serve runs, one is started in the background, with the config and the keys of
your environment as "authpool serve" would have them. It ends with the last command
that uses it, and writes to serve.log in the state folder.

--mode base-url tells the command authpool's address as the providers'; --mode proxy
has it use authpool as its HTTP(S) proxy and trust authpool's certificate authority,
for what cannot change its base URL. Left out, curl, wget, HTTPie and Gemini CLI get
proxy, all others base-url.

Exits as the command does: with its status, 128 and the number of the signal that
ended it, 127 when there is no such command and 126 when it cannot be run.`,
		Example: "  ANTHROPIC_API_KEY=sk-ant-… authpool run -- claude\n  authpool run --session nightly -c authpool.yaml -- codex exec 'fix the tests'\n  authpool run --mode proxy -- python agent.py",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return wrongf("%q takes a command, such as: authpool run -- claude; see %q", cmd.CommandPath(), cmd.CommandPath()+" --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if mode != "" && !slices.Contains(modes, mode) {
				return wrongf("--mode %q: want base-url or proxy", mode)
			}
			if session != "" && !sessionName.MatchString(session) {
				return wrongf("--session %q: want 1 to 128 letters, digits, dots, dashes and underscores", session)
			}
			cfg, dir, err := file.loadWithState(cmd, p)
			if err != nil {
				return err
			}
			if dir, err = filepath.Abs(dir); err != nil {
				return fmt.Errorf("cannot use the state folder: %w", err)
			}
			r := &run{program: p, mode: mode, session: session, quiet: quiet, argv: args}
			return r.run(cmd, &file, cfg, dir)
		},
	}
	file.register(cmd)
	cmd.Flags().StringVar(&session, "session", "", "session to go on with (default: a new one)")
	cmd.Flags().StringVar(&mode, "mode", "", "how the command reaches authpool: base-url or proxy (default: by the command)")
	cmd.Flags().BoolVar(&quiet, "quiet", false, "do not tell what the session has used")
	cmd.Flags().SetInterspersed(false) // what follows the command is for it
	completes(cmd, "mode", modes)
	return cmd
}

// sessionName is what a session's id may be to be kept as it is.
var sessionName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// run is one run of an agent.
type run struct {
	*program
	mode, session string
	quiet         bool
	argv          []string
}

func (r *run) run(cmd *cobra.Command, file *configFlags, cfg *config.Config, dir string) (err error) {
	path, err := r.look()
	if err != nil {
		return err
	}
	if r.session == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("cannot make a session: %w", err)
		}
		r.session = id.String()
	}
	ctx := context.WithoutCancel(cmd.Context()) // the command ends by itself
	// From here on a signal must not keep the background serve from being ended.
	signals := caught()
	defer signal.Stop(signals)
	var (
		s      *usedServe
		before admin.UsageRow
	)
	err = unless(ctx, signals, func(ctx context.Context) error {
		found, err := r.findServe(ctx, cmd, file, cfg, dir)
		if err != nil {
			return err
		}
		s = found
		before, err = s.sessionUsage(ctx, r.session)
		return err
	})
	if s != nil {
		defer func() { err = errors.Join(err, s.hold.leave(ctx)) }()
	}
	if err != nil {
		return err
	}
	mode := r.mode
	if mode == "" {
		mode = defaultMode(r.argv[0], cfg)
	}
	w, err := newWay(r.program, cfg, dir, mode, s.base)
	if err != nil {
		return err
	}
	w.session = r.session
	setup, err := newSetup(r.program, w, r.argv)
	if err != nil {
		return err
	}
	err = r.command(path, setup, s.hold, signals)
	if !r.quiet {
		r.report(ctx, s, before)
	}
	return err
}

// look finds the command as a shell does.
func (r *run) look() (string, error) {
	path, err := exec.LookPath(r.argv[0])
	if err == nil {
		return path, nil
	}
	code := exitStatusError(exitNotRunnable)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		code = exitNotFound
	}
	return "", errors.Join(r.refused(bareExec(err)), code)
}

// The exit codes of shells for commands that were not run.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
)

// refused says on standard error why the command was not run.
func (r *run) refused(err error) error {
	_, printed := fmt.Fprintf(r.Err, "authpool: cannot run %s: %v\n", r.argv[0], err)
	return printed
}

// bareExec takes the name off an error of os/exec.
func bareExec(err error) error {
	if e, ok := errors.AsType[*exec.Error](err); ok {
		return e.Err
	}
	return err
}

// passed are the signals that the command gets from us.
var passed = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// caught catches them, but for those that are ignored on purpose (nohup).
func caught() chan os.Signal {
	signals := make(chan os.Signal, 16)
	for _, sig := range passed {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	return signals
}

// unless does what comes before the command. A signal ends it, and is then its error: there
// is nobody yet to get it.
func unless(ctx context.Context, signals <-chan os.Signal, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	select {
	case err := <-done:
		return err
	case sig := <-signals:
		cancel()
		code := exitFailed
		if n, ok := sig.(syscall.Signal); ok {
			code = 128 + int(n)
		}
		return errors.Join(exitStatusError(code), <-done) // the second says that it was cancelled
	}
}

// command runs the command and returns its exit status as an error.
func (r *run) command(path string, s *setup, h *hold, signals <-chan os.Signal) error {
	child := exec.Cmd{
		Path: path, Args: s.argv, Env: s.environ, Stdin: r.In, Stdout: r.Out, Stderr: r.Err,
		ExtraFiles: []*os.File{h.f}, // should we be killed, it needs the serve all the same
	}
	if err := child.Start(); err != nil {
		return errors.Join(r.refused(err), exitStatusError(exitNotRunnable))
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	for {
		select {
		case sig := <-signals:
			if !fromTerminal(sig) {
				_ = child.Process.Signal(sig) // it may have ended
			}
		case err := <-ended:
			status, ok := errors.AsType[*exec.ExitError](err)
			if !ok {
				return err
			}
			code := status.ExitCode()
			if by, ok := status.Sys().(syscall.WaitStatus); ok && by.Signaled() {
				code = 128 + int(by.Signal())
			}
			return exitStatusError(code)
		}
	}
}

// fromTerminal tells whether a signal was typed, which the whole foreground group got,
// the command too.
func fromTerminal(sig os.Signal) bool {
	if sig != syscall.SIGINT && sig != syscall.SIGQUIT {
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close() // read only
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// defaultMode is proxy, when authpool is one, for programs that are given a provider's own
// URL, since they know no base URL, and for Gemini CLI, which needs a change of its
// settings with one.
func defaultMode(command string, cfg *config.Config) string {
	proxied := []string{"curl", "wget", "wget2", "http", "https", "xh", "xhs", "gemini"}
	if cfg.Intercept.Enabled && slices.Contains(proxied, commandName(command)) {
		return modeProxy
	}
	return modeBaseURL
}

// commandName is the name of a program without its folder and ending.
func commandName(command string) string {
	return strings.TrimSuffix(filepath.Base(command), ".exe")
}
