package redistest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

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
	args   []string // beside the address and the folder
	client redis.UniversalClient
	proc   *process // nil while stopped
	paused bool
}

// startAttempts bounds the search for a port that nobody else took between
// finding it free and the server's bind.
const startAttempts = 10

// NewServer starts a redis-server on a free port of 127.0.0.1 with an empty
// folder of its own, and ends it with the test. Without redis-server on PATH the
// test is skipped, or fails when RequireEnv is set.
func NewServer(t testing.TB) *Server {
	t.Helper()
	return newServer(t)
}

// newServer starts redis-server with more arguments than NewServer.
func newServer(t testing.TB, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, path: binary(t), dir: t.TempDir(), args: args}
	var err error
	for range startAttempts {
		s.addr = freeAddr(t)
		if s.proc, err = start(s.path, s.dir, s.addr, s.args); err == nil {
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
	s.client = newClient(t, options(s.addr))
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
	s.proc, s.paused = nil, false
}

// Start starts a stopped server again on its old address, with the data of the
// last explicit SAVE.
func (s *Server) Start() {
	s.t.Helper()
	if s.proc != nil {
		s.t.Fatal("redis-server is running already")
	}
	var err error
	if s.proc, err = start(s.path, s.dir, s.addr, s.args); err != nil {
		s.t.Fatalf("cannot start redis-server on %s again: %v", s.addr, err)
	}
}

// Pause freezes the server: connections stay open, and nothing is answered until
// Resume. A test that ends in between is fine.
func (s *Server) Pause() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	s.paused = true
}

// Resume ends Pause.
func (s *Server) Resume() {
	s.t.Helper()
	s.signal(syscall.SIGCONT)
	s.paused = false
}

// answers tells whether the server is running and not frozen.
func (s *Server) answers() bool { return s.proc != nil && !s.paused }

// info returns one field of a section of INFO, empty when it is not there.
func (s *Server) info(section, field string) string {
	text, _ := s.client.Info(context.Background(), section).Result()
	_, rest, _ := strings.Cut(text, field+":")
	value, _, _ := strings.Cut(rest, "\r\n")
	return value
}

// until asks again and again for what only other processes can bring about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(45 * time.Second)
	defer end.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (s *Server) signal(sig os.Signal) {
	s.t.Helper()
	if s.proc == nil {
		s.t.Fatalf("cannot send %v: redis-server is stopped", sig)
	}
	if err := s.proc.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("cannot send %v to redis-server: %v", sig, err)
	}
}

// busOffset is what a cluster node adds to its port for the port of its bus.
const busOffset = 10_000

// freeAddr returns an address of the loopback that was free a moment ago, and
// whose port leaves room for that of a cluster's bus.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("cannot find a free port: %v", err)
		}
		addr := l.Addr().(*net.TCPAddr)
		if err := l.Close(); err != nil {
			t.Fatalf("cannot free %v: %v", addr, err)
		}
		if addr.Port < 1<<16-busOffset {
			return addr.String()
		}
	}
	t.Fatalf("cannot find a free port below %d", 1<<16-busOffset)
	return ""
}

// What redis-server logs when it accepts connections, the second as a sentinel.
const (
	readyServer   = "Ready to accept connections"
	readySentinel = "+monitor master"
)

// process is one run of redis-server.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it is gone
}

// start runs redis-server and returns when it accepts connections.
func start(path, dir, addr string, args []string) (*process, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, slices.Concat(args, []string{ //nolint:gosec // redis-server as found on PATH
		"--bind", host, "--port", port, "--dir", dir,
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--logfile", "",
	})...)
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
			if strings.Contains(lines.Text(), readyServer) || strings.Contains(lines.Text(), readySentinel) {
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
