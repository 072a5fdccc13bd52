package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config"
)

func newServeCommand(p *program) *cobra.Command {
	var file configFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the proxy",
		Long: `Runs the proxy until SIGTERM. Without a config file it serves the built-in
providers with the subscriptions that the environment names (ANTHROPIC_API_KEY
becomes anthropic-1, ANTHROPIC_API_KEY_2 anthropic-2, the same for OPENAI_ and
GEMINI_), with a Redis inside the process.

SIGTERM and SIGINT let answers under way end (shutdown.grace), a second one
exits at once. SIGHUP reads the config again.`,
		Example: "  ANTHROPIC_API_KEY=sk-ant-… authpool serve\n  authpool serve -c authpool.yaml --redis redis://127.0.0.1:6379/0",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (*config.Config, error) { return file.load(cmd, p) }
			cfg, err := load()
			if err != nil {
				return err
			}
			return p.serve(cmd.Context(), cfg, load, file.file)
		},
	}
	file.register(cmd)
	return cmd
}

// serve runs until it is told to stop or a listener breaks. load reads the
// config again.
func (p *program) serve(ctx context.Context, cfg *config.Config, load func() (*config.Config, error), file string) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	log := newLoggerFromConfig(cfg.Log, p.Err)
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
	if err := s.start(); err != nil {
		return errors.Join(err, s.shutdown(ctx))
	}
	s.auditStart(file)
	if err := s.ready(); err != nil {
		log.Warn("not ready", "reason", err)
	}
	for {
		select {
		case err := <-s.failed:
			s.auditStop(err.Error())
			return errors.Join(err, s.shutdown(ctx))
		case <-ctx.Done():
			s.auditStop("cancelled")
			return s.shutdown(context.WithoutCancel(ctx))
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				s.auditReload(file, reload(log, cfg, s.prices.Version(), load))
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

// stopOn runs stop, but not past a second signal that asks for an end.
func stopOn(signals <-chan os.Signal, stop func() error) error {
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for {
		select {
		case err := <-stopped:
			return err
		case sig := <-signals:
			if sig != syscall.SIGHUP {
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

// reload reads the config again. A wrong one changes nothing. A good one that
// differs cannot be taken over while serving yet: the log says which keys wait
// for a restart. prices is the version in use of what the key prices names. What
// came of it is returned in a few words.
func reload(log *slog.Logger, old *config.Config, prices string, load func() (*config.Config, error)) string {
	fresh, err := load()
	if err != nil {
		if faults, ok := errors.AsType[config.Faults](err); ok {
			for _, fault := range faults {
				log.Error("reload: the config is wrong, the old one stays", "fault", fault.String())
			}
			return "refused: it is wrong"
		}
		log.Error("reload: the config cannot be read, the old one stays", "error", err)
		return "refused: it cannot be read"
	}
	table, err := newPricesFromConfig(fresh)
	if err != nil {
		log.Error("reload: the prices are wrong, the old ones stay", "error", err)
		return "refused: the prices are wrong"
	}
	changed := changedKeys(old, fresh)
	if table.Version() != prices && !slices.Contains(changed, "prices") {
		changed = append(changed, "prices (the file's content)")
	}
	if len(changed) == 0 {
		log.Info("reload: the config has not changed")
		return "unchanged"
	}
	log.Warn("reload: the config is good, but takes effect at the next start only", "changed", strings.Join(changed, ", "))
	return "waits for a restart: " + strings.Join(changed, ", ")
}

// changedKeys names the top-level keys in which two configs differ.
func changedKeys(old, fresh *config.Config) []string {
	var changed []string
	a, b := reflect.ValueOf(old).Elem(), reflect.ValueOf(fresh).Elem()
	for i := range a.NumField() {
		field := a.Type().Field(i)
		if field.IsExported() && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			changed = append(changed, field.Tag.Get("yaml"))
		}
	}
	slices.Sort(changed)
	return changed
}
