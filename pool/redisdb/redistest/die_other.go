//go:build !linux

package redistest

import "syscall"

// dieWithParent is possible on Linux only; elsewhere a killed test binary leaves
// its server running.
func dieWithParent() *syscall.SysProcAttr { return nil }
