package redistest

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Server is a real redis-server process of one test. Its methods are for the
// test's own goroutine; the client may be used from any.
//
// It persists nothing by itself: after Stop and Start it holds what the last
// explicit SAVE wrote, or nothing. That is how a test makes a Redis that lost
// its last writes.
type Server struct {
	t      testing.TB
	path   string
	dir    string
	addr   string
	client redis.UniversalClient
	proc   *process // nil while stopped
}

// startAttempts bounds the search for a port that nobody else took between
// finding it free and the server's bind.
const startAttempts = 10

// NewServer starts a redis-server on a free port of 127.0.0.1 with an empty
// folder of its own, and ends it with the test. Without redis-server on PATH the
// test is skipped, or fails when RequireEnv is set.
func NewServer(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, path: binary(t), dir: t.TempDir()}
	var err error
	for range startAttempts {
		s.addr = freeAddr(t)
		if s.proc, err = start(s.path, s.dir, s.addr); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("cannot start redis-server: %v", err)
	}
	t.Cleanup(func() {
		if s.proc != nil {
			s.Stop()
		}
	})
	s.client = newClient(t, s.addr)
	return s
}

// Addr returns host:port. It stays the same over Stop and Start.
func (s *Server) Addr() string { return s.addr }

// URL returns the address as a redis:// URL.
func (s *Server) URL() string { return "redis://" + s.addr }

// Client returns the server's one client. It lives until the test ends, also
// while the server is stopped.
func (s *Server) Client() redis.UniversalClient { return s.client }

// Stop kills the server as a crash would and waits until it is gone.
func (s *Server) Stop() {
	s.t.Helper()
	if s.proc == nil {
		s.t.Fatal("redis-server is stopped already")
	}
	if err := s.proc.kill(); err != nil {
		s.t.Fatalf("cannot stop redis-server: %v", err)
	}
	s.proc = nil
}

// Start starts a stopped server again on its old address, with the data of the
// last explicit SAVE.
func (s *Server) Start() {
	s.t.Helper()
	if s.proc != nil {
		s.t.Fatal("redis-server is running already")
	}
	var err error
	if s.proc, err = start(s.path, s.dir, s.addr); err != nil {
		s.t.Fatalf("cannot start redis-server on %s again: %v", s.addr, err)
	}
}

// Pause freezes the server: connections stay open, and nothing is answered until
// Resume. A test that ends in between is fine.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	s.t.Helper()
	if s.proc == nil {
		s.t.Fatalf("cannot send %v: redis-server is stopped", sig)
	}
	if err := s.proc.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("cannot send %v to redis-server: %v", sig, err)
	}
}

// freeAddr returns an address of the loopback that was free a moment ago.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("cannot find a free port: %v", err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatalf("cannot free port %s: %v", addr, err)
	}
	return addr
}

// process is one run of redis-server.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it is gone
}

// start runs redis-server and returns when it accepts connections.
func start(path, dir, addr string) (*process, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, //nolint:gosec // redis-server as found on PATH
		"--bind", host, "--port", port, "--dir", dir,
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--logfile", "")
	cmd.SysProcAttr = dieWithParent()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	ready := make(chan error, 1)
	go func() {
		// The kernel ties the child's life to the thread that forked it:
		// keep that thread until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			ready <- err
			return
		}
		var last []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), "Ready to accept connections") {
				ready <- nil
				last = nil
				continue
			}
			if len(last) < 20 {
				last = append(last, lines.Text())
			}
		}
		err := cmd.Wait()
		select {
		case ready <- fmt.Errorf("it ended at once: %w\n%s", err, strings.Join(last, "\n")):
		default:
		}
		close(p.done)
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return p, nil
}

// kill ends the process and waits for it.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}
