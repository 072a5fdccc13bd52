package redistest

import "syscall"

// dieWithParent ends the server also when the test binary is killed, so that no
// server is left behind.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
