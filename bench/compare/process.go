package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// proxyCore runs the proxy that is measured, loadCore the upstream and the load.
	proxyCore, loadCore = "0", "1"
	// tick is the unit of CPU times in /proc; the kernel's interface fixes it at 100 Hz.
	tick = 10 * time.Millisecond
	// stopWithin is how long a child may take to end before it is killed.
	stopWithin = 10 * time.Second
)

// process is a child with everything it said. Its methods may be called on nil, which is no process.
type process struct {
	cmd    *exec.Cmd
	output *bytes.Buffer
}

// startProcess starts a program, on its own core if the plan says so.
func startProcess(ctx context.Context, p plan, env []string, program string, args ...string) (*process, error) {
	if p.pin {
		program, args = "taskset", append([]string{"-c", proxyCore, program}, args...)
		env = append(env, "GOMAXPROCS=1")
	}
	//nolint:gosec // the programs are nginx and authpool, named by whoever runs the comparison
	c := &process{cmd: exec.CommandContext(ctx, program, args...), output: new(bytes.Buffer)}
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(syscall.SIGTERM) }
	c.cmd.WaitDelay = stopWithin
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", program, err)
	}
	return c, nil
}

// stop ends the process and waits for it.
func (c *process) stop() {
	if c == nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	kill := time.AfterFunc(stopWithin, func() { _ = c.cmd.Process.Kill() })
	defer kill.Stop()
	_ = c.cmd.Wait() // how it ended does not matter any more
}

// ready asks again and again until probe succeeds.
func (c *process) ready(ctx context.Context, probe func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := probe()
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			c.stop() // the output is complete only then
			return fmt.Errorf("%s does not answer: %w; it said:\n%s", filepath.Base(c.cmd.Path), err, c.output)
		}
	}
}

// cpu returns the user and system time of the process and of its children.
func (c *process) cpu() (time.Duration, error) {
	if c == nil {
		return 0, nil
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		return 0, errors.New("cannot read CPU times: /proc is missing; the comparison runs on Linux only")
	}
	total := time.Duration(0)
	own := strconv.Itoa(c.cmd.Process.Pid)
	found := false
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		// The name is in parentheses and may hold anything, so fields are counted from the last one.
		pid, _, _ := strings.Cut(string(text), " ")
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if parent := fields[1]; pid != own && parent != own {
			continue
		}
		found = found || pid == own
		for _, f := range fields[11:13] { // utime, stime
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("cannot read %s: %w", path, err)
			}
			total += time.Duration(n) * tick
		}
	}
	if !found {
		return 0, fmt.Errorf("%s has ended", filepath.Base(c.cmd.Path))
	}
	return total, nil
}

// pinSelf moves this process, with the upstream and the load in it, to its own core.
func pinSelf(ctx context.Context) error {
	runtime.GOMAXPROCS(1)
	//nolint:gosec // all arguments are numbers of ours
	out, err := exec.CommandContext(ctx, "taskset", "-a", "-c", "-p", loadCore, strconv.Itoa(os.Getpid())).CombinedOutput()
	if err != nil {
		return fmt.Errorf("taskset: %w %s", err, bytes.TrimSpace(out))
	}
	return nil
}
