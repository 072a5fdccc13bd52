package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/h2"
)

// listen opens one address of the config: host:port or unix:/path. setting
// names the flag and key that gave it, for the sentence that a person reads
// when the address is taken.
// mode is that of a unix socket.
func listen(address, setting string, mode fs.FileMode) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(address, "unix:")
	var (
		l   net.Listener
		err error
	)
	if isUnix {
		l, err = listenUnix(path, mode)
	} else {
		l, err = net.Listen("tcp", address)
	}
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s is taken by another program: stop it or choose another address by %s", address, setting)
	default:
		return nil, fmt.Errorf("cannot listen on %s: %w; choose another address by %s", address, plainNetError(err), setting)
	}
}

// plainNetError takes the address off an error of net, which is told already.
func plainNetError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// listenUnix opens a socket that those can connect to whom mode lets. A socket
// left by a process that died is replaced; any other is taken, also one whose process
// accepts nothing at the moment or lets us not in.
func listenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	// Of two that begin together the second one finds the first one's socket.
	parent, err := os.Open(parentFolder(path))
	if err != nil {
		return nil, err
	}
	defer parent.Close() // read only; it ends the lock
	err = waitFor(context.Background(), "another process to let go of "+parent.Name(), func() (bool, error) { return flock(parent, unix.LOCK_EX) })
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("there is a file of that name that is no socket")
	}
	if err == nil {
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			_ = conn.Close() // it was only a question
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, syscall.EADDRINUSE
		}
	}
	// The mode is set before anyone can connect: the socket is born in a folder
	// of its own and then moved to its place.
	folder, err := os.MkdirTemp(parent.Name(), ".authpool-")
	if err != nil {
		return nil, err
	}
	born := folder + "/s"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: born, Net: "unix"})
	if err != nil {
		return nil, errors.Join(err, os.Remove(folder))
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(born, mode)
	if err == nil {
		info, err = os.Lstat(born)
	}
	if err = errors.Join(err, os.Rename(born, path), os.Remove(folder)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unixListener{Listener: l, path: path, file: info}, nil
}

// ownerOnly is the mode of a socket that only the own user can connect to.
const ownerOnly fs.FileMode = 0o600

// socketMode is what unix.access stands for: who may write may connect (unix(7)).
func socketMode(access string) fs.FileMode {
	switch access {
	case "group":
		return 0o660
	case "all":
		return 0o666
	}
	return ownerOnly
}

func parentFolder(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	}
	return "/"
}

// unixListener removes its socket file when it is closed.
type unixListener struct {
	net.Listener
	path string
	file fs.FileInfo // of the socket, by which it is known again
}

// Addr returns the path under which the socket is found.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close implements net.Listener.
func (l *unixListener) Close() error {
	err := l.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	if info, fault := os.Lstat(l.path); fault == nil && !os.SameFile(info, l.file) {
		return err // somebody has removed ours, and it is another process's by now
	}
	if removed := os.Remove(l.path); removed != nil && !errors.Is(removed, fs.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	return err
}

// loadCertificate loads the certificate for listeners that are not loopback; nil
// without one.
func loadCertificate(c config.TLS) (*tls.Certificate, error) {
	if !c.Enabled() {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.Cert.File(), c.Key.File())
	if err != nil {
		return nil, fmt.Errorf("cannot load the certificate of tls: %w", err)
	}
	return &pair, nil
}

// serverTLS is the TLS of a listener whose certificate may be renewed.
func serverTLS(certificate func() *tls.Certificate) *tls.Config {
	c := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate(), nil },
	}
	c.GetConfigForClient = h2.Alone(c)
	return c
}
