package agentconn

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerOf tells whose process is at the other end of a unix socket (unix(7),
// SO_PEERCRED): as it was when that connected.
func peerOf(nc net.Conn) (uid uint32, ok bool) {
	uc, isUnix := nc.(*net.UnixConn)
	if !isUnix {
		return 0, false
	}
	rc, err := uc.SyscallConn()
	if err != nil {
		return 0, false
	}
	_ = rc.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid, ok = cred.Uid, true
		}
	})
	return uid, ok
}
