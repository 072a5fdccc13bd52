package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/config"
)

// stage is a whole authpool in front of a simulated provider, in this process,
// on free ports and in one folder: what the demo plays on.
type stage struct {
	keys    map[string]simulator.Key // by subscription
	sim     *simulator.Simulator
	simBase string     // the simulator's base URL
	simDone chan error // what its listener ended with
	service *service
	asked   *client // the running authpool's admin address
}

// stageConfig is the config of a stage. The simulator's base URL and the
// subscriptions are put in.
const stageConfig = `
listen: 127.0.0.1:0
admin: {listen: 127.0.0.1:0}
redis: {listen: 127.0.0.1:0}
state_dir: state
intercept: {enabled: false}
providers:
  anthropic: {base_url: %[1]s, allow_plaintext: true}
  openai: {base_url: %[1]s, allow_plaintext: true}
subscriptions:
%[2]s
`

// newStage starts simulator and authpool. keys are what the simulator accepts,
// by subscription; subscriptions is the YAML list of the config, which finds
// each key as file:<subscription>.key. The caller closes the stage.
func newStage(ctx context.Context, folder string, keys map[string]simulator.Key, subscriptions string, pace time.Duration, log *slog.Logger) (*stage, error) {
	s := &stage{keys: keys}
	if err := s.startSimulator(pace); err != nil {
		return nil, err
	}
	if err := s.startService(ctx, folder, subscriptions, log); err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	return s, nil
}

func (s *stage) startSimulator(pace time.Duration) error {
	known := make([]simulator.Key, 0, len(s.keys))
	for _, key := range s.keys {
		known = append(known, key)
	}
	sim, err := simulator.New(simulator.Options{Keys: known, Seed: 1, Pace: pace})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(fmt.Errorf("cannot listen for the simulator: %w", err), sim.Close())
	}
	s.sim, s.simBase, s.simDone = sim, "http://"+l.Addr().String(), make(chan error, 1)
	go func() { s.simDone <- sim.Serve(l) }()
	return nil
}

// startService starts authpool exactly as serve does.
func (s *stage) startService(ctx context.Context, folder, subscriptions string, log *slog.Logger) error {
	for subscription, key := range s.keys {
		if err := os.WriteFile(filepath.Join(folder, subscription+".key"), []byte(key.Key+"\n"), 0o600); err != nil {
			return fmt.Errorf("cannot write a key: %w", err)
		}
	}
	cfg, err := config.Parse(filepath.Join(folder, "authpool.yaml"), fmt.Appendf(nil, stageConfig, s.simBase, subscriptions))
	if err != nil {
		return err
	}
	service, err := newService(ctx, cfg, os.Getenv, log)
	if err != nil {
		return err
	}
	s.service = service
	if err := service.start(); err != nil {
		return err
	}
	s.asked, err = newClient(&program{}, clientFlags{
		admin:     service.adminListener.Addr().String(),
		tokenFile: filepath.Join(service.dir.Path(), "admin.token"),
	})
	return err
}

// close stops authpool, then the simulator.
func (s *stage) close(ctx context.Context) error {
	var errs []error
	if s.service != nil {
		errs = append(errs, s.service.shutdown(ctx))
	}
	return errors.Join(append(errs, s.sim.Close(), <-s.simDone)...)
}
