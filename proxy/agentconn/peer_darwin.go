package agentconn

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerOf tells whose process is at the other end of a unix socket (unix(4),
// LOCAL_PEERCRED): as it was when that connected.
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
		if cred, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); err == nil {
			uid, ok = cred.Uid, true
		}
	})
	return uid, ok
}
