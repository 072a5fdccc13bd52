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
	var (
		smoke  = flag.Bool("smoke", false, "measure every case once, for a moment: shows that the comparison works, not who is faster")
		rounds = flag.Int("rounds", 5, "how often every case is measured; the table has the medians")
		window = flag.Duration("window", 3*time.Second, "how long each measurement sends requests")
		binary = flag.String("authpool", "", "the authpool to measure (default: built from this repository)")
	)
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Compares authpool with nginx proxy_pass on CPU time per request.\n\n  go run ./bench/compare\n  go run ./bench/compare -smoke")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || *rounds < 1 || *window <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	plan := plan{rounds: *rounds, window: *window, warmUp: time.Second, pin: runtime.NumCPU() > 1, binary: *binary}
	if *smoke {
		plan.shorten()
	}
	if err := compare(ctx, plan, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}
