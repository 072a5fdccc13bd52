package redisdb

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// brittle is a Redis that answers what a client asks when it connects, and hangs
// up, or stays silent, when it is given a script: the moment after which nobody
// knows whether it ran.
type brittle struct {
	addr   string
	silent bool

	mu      sync.Mutex
	scripts int
}

func startBrittle(t *testing.T, silent bool) *brittle {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &brittle{addr: listener.Addr().String(), silent: silent}
	var running sync.WaitGroup
	var conns sync.Map
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Store(conn, nil)
			running.Go(func() { b.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		conns.Range(func(conn, _ any) bool { _ = conn.(net.Conn).Close(); return true })
		running.Wait()
	})
	return b
}

func (b *brittle) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		command, err := readCommand(in)
		if err != nil {
			return
		}
		answer := "+OK\r\n"
		switch command[0] {
		case "EVALSHA", "EVAL":
			b.mu.Lock()
			b.scripts++
			b.mu.Unlock()
			if b.silent {
				_, _ = io.Copy(io.Discard, in)
			}
			return
		case "TIME":
			answer = "*2\r\n$10\r\n1763812800\r\n$1\r\n0\r\n"
		case "SETRANGE":
			answer = ":0\r\n"
		case "CLUSTER":
			host, port, _ := net.SplitHostPort(b.addr)
			answer = fmt.Sprintf("*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$%d\r\n%s\r\n:%s\r\n$4\r\nnode\r\n", len(host), host, port)
		case "COMMAND":
			answer = "*0\r\n"
		case "HELLO":
			answer = "-ERR unknown command\r\n"
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

// readCommand reads one command of a client; its name comes in upper case.
func readCommand(in *bufio.Reader) ([]string, error) {
	number := func(first byte) (n int, err error) {
		line, err := in.ReadString('\n')
		if err == nil {
			_, err = fmt.Sscanf(line, string(first)+"%d", &n)
		}
		return n, err
	}
	n, err := number('*')
	if err != nil {
		return nil, err
	}
	command := make([]string, n)
	for i := range command {
		size, err := number('$')
		if err != nil {
			return nil, err
		}
		text := make([]byte, size+2)
		if _, err := io.ReadFull(in, text); err != nil {
			return nil, err
		}
		command[i] = string(text[:size])
	}
	command[0] = strings.ToUpper(command[0])
	return command, nil
}

// Trap: the client repeats what failed, three times unless told, also a script
// that may have run, and its caller waits for all of it. Only who knows its
// request id may repeat it. A cluster's client cannot be told, since the setting
// that would stop it counts redirections too; there the gate before each node lets
// the first through alone.
func TestTrapScriptsAreSentOnce(t *testing.T) {
	for _, tt := range []struct {
		mode   Mode
		silent bool
	}{{Single, false}, {Single, true}, {Cluster, true}, {Cluster, false}} {
		t.Run(fmt.Sprintf("%s, silent %t", tt.mode, tt.silent), func(t *testing.T) {
			b := startBrittle(t, tt.silent)
			db := open(t, Options{Mode: tt.mode, Addresses: []string{b.addr}})
			if !db.Healthy() {
				t.Fatal("the Redis of this test is not understood")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			start := time.Now()
			err := redis.NewScript("return 1").EvalSha(ctx, db.Client(), []string{"authpool:{a}:now"}).Err()
			if err == nil {
				t.Error("no answer counts as one")
			}
			if took := time.Since(start); took > soon {
				t.Errorf("50 ms took %v", took)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.scripts != 1 {
				t.Errorf("the script was sent %d times", b.scripts)
			}
			if db.Healthy() {
				t.Error("healthy after a call that failed")
			}
		})
	}
}

// fieldTTL are the commands, and the client's methods, of hash fields that expire.
var fieldTTL = regexp.MustCompile(`(?i)\b(H(P?EXPIRE(AT|TIME)?(WithArgs)?|P?TTL|PERSIST|GETEX|SETEX|GETDEL))\b`)

// Trap: Redis 7.0, which Debian 12 has, knows no fields of a hash that expire;
// they came with 7.4. The suites run on the server that is installed, so what a
// newer one would take has to be looked for.
func TestTrapNoFieldExpires(t *testing.T) {
	files := 0
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			if name := entry.Name(); name == "testdata" || len(name) > 2 && name[0] == '.' {
				return fs.SkipDir
			}
			return nil
		case strings.HasSuffix(path, "_test.go") || filepath.Ext(path) != ".go" && filepath.Ext(path) != ".lua":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if filepath.Ext(path) == ".lua" {
			files++
		}
		if found := fieldTTL.Find(text); found != nil {
			t.Errorf("%s uses %s, which Redis 7.0 does not know", path, found)
		}
		return nil
	})
	if err != nil || files < 5 {
		t.Errorf("%d scripts were looked at, %v", files, err)
	}
}
