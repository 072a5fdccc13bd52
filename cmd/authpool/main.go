// Command authpool puts agents' provider traffic through a pool of
// subscriptions and counts what it used.
//
// Start at Main: it builds the command tree (root.go), one file a command.
// serve.go is the product; wire.go turns the configuration into live objects,
// one newXFromConfig for each; demo.go runs all of it against the simulator.
// The other commands are clients of a running serve (client.go) or look at
// files. Nothing here decides about a single request.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/authpool/authpool/config"
)

func main() {
	os.Exit(Main(context.Background(), Stdio{os.Stdin, os.Stdout, os.Stderr}, os.Environ(), os.Args[1:]))
}

// Stdio is where a command reads and writes.
type Stdio struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// The exit codes of the contract.
const (
	exitDone   = 0
	exitFailed = 1
	exitWrong  = 2 // wrong use or wrong config
)

// Main runs authpool with args (without the program's name) and environ (as
// os.Environ gives it) and returns the exit code. Every error is one sentence
// on stdio.Err.
func Main(ctx context.Context, stdio Stdio, environ, args []string) int {
	p := &program{Stdio: stdio, environ: environ}
	root := newRootCommand(p)
	root.SetArgs(args)
	root.SetIn(p.In)
	root.SetOut(p.Out)
	root.SetErr(p.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	if status, ok := errors.AsType[exitStatusError](err); ok {
		return int(status)
	}
	if faults, ok := errors.AsType[config.Faults](err); ok {
		_, _ = fmt.Fprintln(p.Err, faults) // one line each, which begins with its place
	} else {
		_, _ = fmt.Fprintf(p.Err, "authpool: %v\n", err)
	}
	if _, wrong := errors.AsType[wrongUseError](err); wrong {
		return exitWrong
	}
	return exitFailed
}

// exitStatusError is the exit code of a program that was run, which has said itself what
// there is to say.
type exitStatusError int

func (e exitStatusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// wrongUseError marks an error as the caller's: exit code 2.
type wrongUseError struct{ error }

func (w wrongUseError) Unwrap() error { return w.error }

// wrongf returns an error of wrong use.
func wrongf(format string, args ...any) error { return wrongUseError{fmt.Errorf(format, args...)} }
