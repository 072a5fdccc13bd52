package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config"
)

func newServeCommand(p *program) *cobra.Command {
	var (
		file      configFlags
		whileUsed bool
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the proxy",
		Long: `Runs the proxy until SIGTERM. Without a config file it serves the built-in
providers with the subscriptions that the environment names (ANTHROPIC_API_KEY
becomes anthropic-1, ANTHROPIC_API_KEY_2 anthropic-2, the same for OPENAI_ and
GEMINI_), with a Redis inside the process.

SIGTERM and SIGINT let answers under way end (shutdown.grace), a second one
exits at once. The config is read again, and taken over as a whole or not at all,
when its file changes, at SIGHUP and at "authpool reload".`,
		Example: "  ANTHROPIC_API_KEY=sk-ant-… authpool serve\n  authpool serve -c authpool.yaml --redis redis://127.0.0.1:6379/0",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (*config.Config, error) { return file.load(cmd, p) }
			if whileUsed {
				load = spared(load)
			}
			cfg, err := load()
			if err != nil {
				return err
			}
			return p.serve(cmd.Context(), cfg, load, file.file, whileUsed)
		},
	}
	file.register(cmd)
	cmd.Flags().BoolVar(&whileUsed, whileUsedFlag, false, "end with the last \"authpool run\" that uses it")
	if err := cmd.Flags().MarkHidden(whileUsedFlag); err != nil {
		panic("BUG: " + err.Error()) // there is no such flag
	}
	return cmd
}

// serve runs until it is told to stop or a listener breaks. load reads the
// config again. whileUsed has it end with the last run that uses it, too.
func (p *program) serve(ctx context.Context, cfg *config.Config, load func() (*config.Config, error), file string, whileUsed bool) (err error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	level := new(slog.LevelVar)
	level.Set(logLevel(cfg.Log))
	log := newLoggerFromConfig(cfg.Log, level, p.Err)
	if err := forbidCoreDumps(); err != nil {
		log.Warn("a crash may write credentials to a core file", "error", err)
	}
	b := readBuild()
	log.Info("authpool starts", "version", b.Version, "commit", b.Commit, "go", b.Go, "pid", os.Getpid(), "config", file)
	for _, warning := range cfg.Warnings() {
		log.Warn("config", "warning", warning)
	}
	s, err := newService(ctx, cfg, p.getenv, log)
	if err != nil {
		return err
	}
	logSubscriptions(log, cfg)
	s.watchConfig(ctx, newReloader(s, load, file), level)
	if err := s.start(); err != nil {
		return errors.Join(err, s.shutdown(ctx))
	}
	s.auditStart(file)
	var unused <-chan struct{}
	if whileUsed {
		h, none, fault := s.whileUsed()
		if fault != nil {
			return errors.Join(fault, s.shutdown(ctx))
		}
		defer func() { err = errors.Join(err, h.f.Close()) }()
		unused = none
	}
	if err := s.ready(); err != nil {
		log.Warn("not ready", "reason", err)
	}
	for {
		select {
		case err := <-s.failed:
			s.auditStop(err.Error())
			return errors.Join(err, s.shutdown(ctx))
		case <-unused:
			log.Info("stopping", "reason", "nobody uses it any more")
			s.auditStop("unused")
			return stopOn(signals, func() error { return s.shutdown(ctx) })
		case <-ctx.Done():
			s.auditStop("cancelled")
			return s.shutdown(context.WithoutCancel(ctx))
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				s.reloader.ask("SIGHUP")
				continue
			}
			log.Info("stopping", "signal", sig.String())
			s.auditStop(sig.String())
			return stopOn(signals, func() error { return s.shutdown(ctx) })
		}
	}
}

// errImpatient ends the process before its answers have ended.
var errImpatient = errors.New("stopped at once by a second signal: answers were cut; their usage is counted from the journal at the next start")

// signalEcho is the time within which another signal is the first one once more: timeout
// sends its own to the process and to the group, npm passes on what the terminal has sent
// to all. Nobody who is impatient asks again so soon.
const signalEcho = 200 * time.Millisecond

// stopOn runs stop, but not past a second signal that asks for an end. The first one came
// just now.
func stopOn(signals <-chan os.Signal, stop func() error) error {
	asked := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for {
		select {
		case err := <-stopped:
			return err
		case sig := <-signals:
			if sig != syscall.SIGHUP && time.Since(asked) >= signalEcho {
				return errImpatient // main exits, and with it what stop is doing
			}
		}
	}
}

// logSubscriptions tells what the pool was given: where each credential comes
// from, never what it is.
func logSubscriptions(log *slog.Logger, cfg *config.Config) {
	for _, s := range cfg.Subscriptions {
		log.Info("subscription", "id", s.ID, "provider", s.Provider, "credential", s.Credential.Value.String(), "priority", s.Priority, "domain", s.Domain)
	}
}
