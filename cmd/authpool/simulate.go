package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/bench/simulator"
)

// simulatePace is the time between two events of a simulated stream, about that
// of a fast model.
const simulatePace = 10 * time.Millisecond

func newSimulateCommand(p *program) *cobra.Command {
	var (
		address  string
		seed     int64
		keysFile string
	)
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Run a provider simulator",
		Long: `Runs a provider that costs nothing: endpoints of Anthropic, OpenAI, Gemini and
Bedrock with real limits, real error bodies, and a ledger of what was billed at
GET /ledger.

--keys names a YAML list of the keys that it accepts:
  - {key: sk-sim-1, provider: anthropic, rpm: 50, itpm: 40000, otpm: 8000,
     faults: [{after: 10, count: 3, kind: status, status: 529}]}
  - {key: sk-sim-2, provider: anthropic, windows: [{name: 5h, tokens: 100000}],
     organisation: acme}
Keys of one organisation share its limits. Without --keys every key is accepted,
without limits. Faults are added at run time by POST /faults. Those of kind answer
play any raw HTTP answer byte for byte (answer, answer_base64, and answer_file in
the keys file), for keys of any provider.`,
		Example: "  authpool simulate --listen 127.0.0.1:8790 --keys keys.yaml\n  curl -s http://127.0.0.1:8790/ledger\n  jq -Rs '{key: \"sk-sim-1\", kind: \"answer\", answer: .}' ANSWER.http | curl --data @- http://127.0.0.1:8790/faults",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := readKeys(keysFile)
			if err != nil {
				return wrongUseError{err}
			}
			sim, err := simulator.New(simulator.Options{Keys: keys, Seed: seed, Pace: simulatePace})
			if err != nil {
				return wrongUseError{err}
			}
			l, err := listen(address, "--listen", ownerOnly)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return p.simulate(ctx.Done(), sim, l)
		},
	}
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:8790", "address to listen on")
	cmd.Flags().Int64Var(&seed, "seed", 1, "seed of the answers")
	cmd.Flags().StringVar(&keysFile, "keys", "", "YAML file with the keys that are accepted")
	return cmd
}

func readKeys(path string) ([]simulator.Key, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the keys file: %w", err)
	}
	defer f.Close() // read only
	keys, err := simulator.ReadKeys(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

// simulate serves on l until done is closed.
func (p *program) simulate(done <-chan struct{}, sim *simulator.Simulator, l net.Listener) error {
	if err := p.printf("simulator listening on http://%s\n", l.Addr()); err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- sim.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-done:
	}
	if err := sim.Close(); err != nil {
		return fmt.Errorf("cannot stop the simulator: %w", err)
	}
	return <-served
}
