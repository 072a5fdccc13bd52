package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report prints the table of all samples, in Markdown.
func report(out io.Writer, p plan, targets []target, all []benchCase, samples map[string][]sample) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d rounds of %s, median (least to most); %s, %d cores, %s\n\n", p.rounds, p.window, runtime.Version(), runtime.NumCPU(), pinned(p))
	b.WriteString("| case | target | req/s | CPU | to nginx | p50 | p99 | first byte p50 | allocations/request |\n")
	b.WriteString("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, c := range all {
		nginx := samples[c.name+" nginx"]
		for _, t := range targets {
			s := samples[c.name+" "+t.name]
			cpu, ratio, mallocs := "", "", ""
			if t.proxy != nil {
				times := column(s, func(s sample) float64 { return float64(s.cpu) / 1e3 })
				cpu = fmt.Sprintf("%.1f (%.1f–%.1f) µs/%s", median(times), slices.Min(times), slices.Max(times), c.unit)
				ratios := make([]float64, len(s))
				for i := range s {
					ratios[i] = float64(s[i].cpu) / float64(nginx[i].cpu)
				}
				ratio = fmt.Sprintf("%.2f", median(ratios))
				if slices.Min(column(nginx, func(s sample) float64 { return float64(s.cpu) })) == 0 {
					ratio = "?" // the window was too short for the clock of 10 ms
				}
			}
			if t.metrics != "" {
				mallocs = fmt.Sprintf("%.1f", median(column(s, func(s sample) float64 { return s.mallocs })))
			}
			fmt.Fprintf(&b, "| %s | %s | %.0f | %s | %s | %s | %s | %s | %s |\n", c.name, t.name,
				median(column(s, func(s sample) float64 { return s.perSecond })), cpu, ratio,
				medianTime(s, func(s sample) time.Duration { return s.p50 }), medianTime(s, func(s sample) time.Duration { return s.p99 }),
				medianTime(s, func(s sample) time.Duration { return s.first }), mallocs)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func pinned(p plan) string {
	if p.pin {
		return "proxies on core " + proxyCore + ", upstream and load on core " + loadCore
	}
	return "not pinned"
}

func column(s []sample, of func(sample) float64) []float64 {
	values := make([]float64, len(s))
	for i := range s {
		values[i] = of(s[i])
	}
	return values
}

// median of an even number of values is the mean of the two in the middle.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func medianTime(s []sample, of func(sample) time.Duration) string {
	d := time.Duration(median(column(s, func(s sample) float64 { return float64(of(s)) })))
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%d µs", d.Microseconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/1e6)
}
