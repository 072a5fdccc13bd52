package main

import (
	"fmt"
	"syscall"
)

// forbidCoreDumps keeps credentials out of core files, which the memory of a
// process that crashes is written to where the system allows it.
func forbidCoreDumps() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("cannot forbid core dumps: %w", err)
	}
	return nil
}
