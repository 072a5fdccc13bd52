// Command compare measures authpool beside nginx: CPU time per request of each, before the same upstream, in the
// same run. bench/README.md tells the method and how to read the table.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	os.Exit(run(os.Args[1:])) //nolint:forbidigo // this is main, and nothing is deferred
}

// run returns the exit code: 0 done, 1 failed, 2 wrong use.
func run(args []string) int {
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	var (
		smoke  = flags.Bool("smoke", false, "measure every case once, for a moment: shows that the comparison works, not who is faster")
		rounds = flags.Int("rounds", 5, "how often every case is measured; the table has the medians")
		window = flags.Duration("window", 3*time.Second, "how long each measurement sends requests")
		binary = flags.String("authpool", "", "the authpool to measure (default: built from this repository)")
	)
	flags.Usage = func() {
		_, _ = fmt.Fprintln(os.Stderr, "Compares authpool with nginx proxy_pass on CPU time per request.\n\n  go run ./bench/compare\n  go run ./bench/compare -smoke")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return 2 // it has been said
	}
	if flags.NArg() > 0 || *rounds < 1 || *window <= 0 {
		flags.Usage()
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	plan := plan{rounds: *rounds, window: *window, warmUp: time.Second, pin: runtime.NumCPU() > 1, binary: *binary}
	if *smoke {
		plan.shorten()
	}
	if err := compare(ctx, plan, os.Stdout); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "compare:", err)
		return 1
	}
	return 0
}
