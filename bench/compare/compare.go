package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/authpool/authpool/bench/load"
	"github.com/authpool/authpool/bench/upstream"
)

// plan is how long and how often to measure.
type plan struct {
	rounds int
	window time.Duration
	warmUp time.Duration
	pin    bool   // proxies on one core, the rest on another
	binary string // authpool; empty: build it
}

// shorten makes the plan one that ends in seconds.
func (p *plan) shorten() {
	p.rounds, p.window, p.warmUp, p.pin = 1, 200*time.Millisecond, 0, false
}

// target is one thing that is measured.
type target struct {
	name    string
	address string
	key     string   // what its agents send in x-api-key
	proxy   *process // nil: the upstream itself
	metrics string   // URL with go_memstats_mallocs_total, or ""
}

// sample is one measurement of a case at a target.
type sample struct {
	perSecond       float64
	cpu             time.Duration // per unit of the case; 0 for the upstream itself
	mallocs         float64       // per request
	p50, p99, first time.Duration
}

// compare measures every case at every target and prints the table.
func compare(ctx context.Context, p plan, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "authpool-compare-")
	if err != nil {
		return fmt.Errorf("cannot make a working folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if p.pin {
		if err := pinSelf(ctx); err != nil {
			_, _ = fmt.Fprintf(out, "Not pinned: %v. Proxies and load share all cores.\n\n", err)
			p.pin = false
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	up := upstream.Start(ln)
	defer func() { err = errors.Join(err, up.Close()) }()

	nginx, err := startNginx(ctx, p, dir, up.Addr())
	if err != nil {
		return err
	}
	defer nginx.proxy.stop()
	authpool, err := startAuthpool(ctx, p, dir, up.Addr())
	if err != nil {
		return err
	}
	defer authpool.proxy.stop()
	targets := []target{{name: "direct", address: up.Addr(), key: "none"}, nginx, authpool}
	all := cases()
	samples := make(map[string][]sample) // by case and target
	for round := range p.rounds {
		for _, c := range all {
			// Targets alternate and the first one changes, so that what disturbs the machine hits all alike.
			for i := range targets {
				t := targets[(i+round)%len(targets)]
				s, err := measure(ctx, p, c, t)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, t.name, err)
				}
				samples[c.name+" "+t.name] = append(samples[c.name+" "+t.name], s)
			}
		}
	}
	return report(out, p, targets, all, samples)
}

// measure runs one case at one target for the plan's window. The error is for what went wrong; a sample has no
// failed request.
func measure(ctx context.Context, p plan, c benchCase, t target) (sample, error) {
	o := c.options(t)
	if p.warmUp > 0 {
		o.Duration = p.warmUp
		if _, err := send(ctx, o); err != nil {
			return sample{}, err
		}
	}
	o.Duration = p.window
	mallocs, err := t.mallocs(ctx)
	if err != nil {
		return sample{}, err
	}
	cpu, err := t.proxy.cpu()
	if err != nil {
		return sample{}, err
	}
	r, err := send(ctx, o)
	if err != nil {
		return sample{}, err
	}
	cpuAfter, err := t.proxy.cpu()
	if err != nil {
		return sample{}, err
	}
	mallocsAfter, err := t.mallocs(ctx)
	if err != nil {
		return sample{}, err
	}
	return sample{
		perSecond: float64(r.Requests) / r.Elapsed.Seconds(),
		cpu:       (cpuAfter - cpu) / time.Duration(r.Requests*c.units),
		mallocs:   (mallocsAfter - mallocs) / float64(r.Requests),
		p50:       r.Latency.Quantile(0.5), p99: r.Latency.Quantile(0.99), first: r.FirstByte.Quantile(0.5),
	}, nil
}

// send runs a load of which no request may fail.
func send(ctx context.Context, o load.Options) (*load.Result, error) {
	r, err := load.Run(ctx, o)
	switch {
	case err != nil:
		return nil, err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case r.Failures > 0:
		return nil, fmt.Errorf("%d of %d requests failed, first: %w", r.Failures, r.Failures+r.Requests, r.FirstFailure)
	case r.Requests == 0:
		return nil, errors.New("no request was answered")
	}
	runtime.GC() // the load's own garbage is not collected in the next window
	return r, nil
}
