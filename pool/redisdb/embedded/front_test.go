package embedded

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

var login = appendRequest(nil, "AUTH", testPassword)

func newFront(s *Store) *front {
	return &front{store: s, password: sha256.Sum256([]byte(testPassword)), conns: map[net.Conn]struct{}{}}
}

// visit has a connection over memory served by the port of s, and returns its
// other end.
func visit(t testing.TB, s *Store) net.Conn {
	t.Helper()
	f := newFront(s)
	client, own := net.Pipe()
	f.running.Go(func() { f.serve(own) })
	t.Cleanup(func() {
		_ = client.Close()
		f.running.Wait()
	})
	return client
}

// said is a connection whose other end said all of it at once and hung up.
type said struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *said) Read(p []byte) (int, error)     { return c.in.Read(p) }
func (c *said) Write(p []byte) (int, error)    { return c.out.Write(p) }
func (*said) Close() error                     { return nil }
func (*said) SetReadDeadline(time.Time) error  { return nil }
func (*said) SetWriteDeadline(time.Time) error { return nil }

// exchange returns all that the port answers to what was sent.
func exchange(s *Store, sent []byte) string {
	conn := &said{in: bytes.NewReader(sent)}
	newFront(s).serve(conn)
	return conn.out.String()
}

func TestFrontAnswers(t *testing.T) {
	s, client := open(t, Options{})
	if err := client.HSet(t.Context(), "authpool:{a}:now", "requests", 7).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.SAdd(t.Context(), "set", "a", "b").Err(); err != nil {
		t.Fatal(err)
	}
	const noAuth = "-NOAUTH Authentication required.\r\n"
	const wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n"
	p := testPassword
	tests := []struct {
		name string
		sent [][]string
		want string // how the answers begin
	}{
		{"stranger reads", [][]string{{"HGETALL", "authpool:{a}:now"}}, noAuth},
		{"stranger pings", [][]string{{"PING"}}, noAuth},
		{"wrong password", [][]string{{"AUTH", "wrong"}, {"GET", "k"}}, wrong + noAuth},
		{"empty password", [][]string{{"AUTH", ""}}, wrong},
		{"beginning of the password", [][]string{{"AUTH", p[:5]}}, wrong},
		{"other user", [][]string{{"AUTH", "admin", p}, {"PING"}}, wrong + noAuth},
		{"login", [][]string{{"AUTH", p}, {"HGETALL", "authpool:{a}:now"}}, "+OK\r\n*2\r\n$8\r\nrequests\r\n$1\r\n7\r\n"},
		{"login by user", [][]string{{"auth", "default", p}, {"ping"}}, "+OK\r\n+PONG\r\n"},
		{"hello as a stranger", [][]string{{"HELLO", "3"}}, "-NOAUTH HELLO must be called"},
		{"hello with a wrong password", [][]string{{"HELLO", "3", "AUTH", "default", "x"}, {"PING"}}, wrong + noAuth},
		{
			"hello 3",
			[][]string{{"HELLO", "3", "AUTH", "default", p, "SETNAME", "me"}, {"HGETALL", "authpool:{a}:now"}},
			"%6\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$5\r\nproto\r\n:3\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n" +
				"%1\r\n$8\r\nrequests\r\n$1\r\n7\r\n",
		},
		{"hello 4", [][]string{{"HELLO", "4"}}, "-NOPROTO unsupported protocol version\r\n"},
		{"write", [][]string{{"AUTH", p}, {"HSET", "authpool:{a}:now", "requests", "0"}}, "+OK\r\n-ERR this port is read-only: 'HSET' is refused"},
		{"script", [][]string{{"AUTH", p}, {"EVAL", "return redis.call('FLUSHALL')", "0"}}, "+OK\r\n-ERR unknown command 'EVAL' on this read-only port"},
		{"subscribe", [][]string{{"AUTH", p}, {"SUBSCRIBE", "x"}}, "+OK\r\n-ERR unknown command 'SUBSCRIBE'"},
		{"name with line ends", [][]string{{"AUTH", p}, {"A\r\n+OK\r\n"}}, "+OK\r\n-ERR unknown command 'A??+OK??' on"},
		{"select", [][]string{{"AUTH", p}, {"SELECT", "0"}, {"SELECT", "1"}}, "+OK\r\n+OK\r\n-ERR DB index is out of range\r\n"},
		{
			"client",
			[][]string{{"AUTH", p}, {"CLIENT", "SETINFO", "LIB-NAME", "x"}, {"CLIENT", "SETNAME", "me"}, {"CLIENT", "GETNAME"}, {"CLIENT", "KILL", "1"}},
			"+OK\r\n+OK\r\n+OK\r\n$2\r\nme\r\n-ERR unknown subcommand 'KILL'",
		},
		{"docs", [][]string{{"AUTH", p}, {"COMMAND", "DOCS"}, {"COMMAND"}}, "+OK\r\n*0\r\n*0\r\n"},
		{"pattern that kills miniredis", [][]string{{"AUTH", p}, {"KEYS", "[z-a]"}, {"PING"}}, "+OK\r\n-ERR this pattern is not supported: use * and ? only\r\n+PONG\r\n"},
		{"arguments that kill miniredis", [][]string{{"AUTH", p}, {"SSCAN", "set", "-1"}, {"PING"}}, "+OK\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var sent []byte
			for _, request := range tt.sent {
				sent = appendRequest(sent, request...)
			}
			if got := exchange(s, sent); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
	if v := client.HGet(t.Context(), "authpool:{a}:now", "requests").Val(); v != "7" {
		t.Errorf("the read-only port changed the value to %q", v)
	}
}

// hostile is what strangers send: the first entries kill or fill miniredis, redcon
// or both.
var hostile = map[string]string{
	"largest bulk":      "*1\r\n$9223372036854775807\r\n",
	"bulk over 64 bit":  "*1\r\n$99999999999999999999999\r\n",
	"large bulk":        "*2\r\n$4\r\nAUTH\r\n$1073741824\r\n",
	"large array":       "*2147483647\r\n",
	"largest array":     "*9223372036854775807\r\n$1\r\na\r\n",
	"negative bulk":     "*1\r\n$-9223372036854775808\r\n",
	"null bulk":         "*1\r\n$-1\r\n",
	"negative array":    "*-1\r\n",
	"empty array":       "*0\r\n",
	"no number":         "*\r\n",
	"plus":              "*+1\r\n$4\r\nPING\r\n",
	"endless digits":    "*" + strings.Repeat("0", 1<<20) + "1\r\n",
	"bare LF":           "*1\n$4\nPING\n",
	"CR alone":          "*1\r\r",
	"bulk too long":     "*1\r\n$4\r\nPINGPONG\r\n",
	"nested":            "*1\r\n*1\r\n*1\r\n*1\r\n",
	"inline":            "PING\r\n",
	"endless inline":    strings.Repeat("A", 1<<20),
	"http":              "POST / HTTP/1.1\r\nHost: 127.0.0.1:8789\r\nContent-Length: 999\r\n\r\n*1\r\n$8\r\nFLUSHALL\r\n",
	"tls":               "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
	"nothing":           "",
	"zeros":             strings.Repeat("\x00", 4096),
	"many empty args":   "*10\r\n" + strings.Repeat("$0\r\n\r\n", 10),
	"many args":         "*1024\r\n" + strings.Repeat("$1\r\na\r\n", 1024),
	"stranger's megs":   "*2\r\n$4\r\nAUTH\r\n$1048576\r\n" + strings.Repeat("x", 1<<20) + "\r\n",
	"unfinished":        "*2\r\n$4\r\nAUTH\r\n$100\r\nabc",
	"pipelined garbage": strings.Repeat("*1\r\n$4\r\nPING\r\n", 1000) + "*1\r\n$9223372036854775807\r\n",
}

// Over real sockets, again and again, before and after login: the port and the
// store go on, and the process does not grow.
func TestHostileBytes(t *testing.T) {
	s, client := open(t, Options{Listen: "127.0.0.1:0"})
	attack := func(prefix []byte, bytes string) {
		conn, err := net.Dial("tcp", s.FrontAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go io.Copy(io.Discard, conn)
		_, _ = conn.Write(append(slices.Clip(prefix), bytes...)) // may be cut off meanwhile
	}
	round := func() {
		for _, bytes := range hostile {
			attack(nil, bytes)
			attack(login, bytes)
		}
	}
	round()
	before := heap()
	for range 10 {
		round()
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("the process grew by %d bytes", grown)
	}
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Errorf("the store does not answer any more: %v", err)
	}
	reader := redis.NewClient(&redis.Options{Addr: s.FrontAddr().String(), Password: testPassword, Protocol: 2, DisableIdentity: true})
	defer reader.Close()
	if err := reader.Ping(t.Context()).Err(); err != nil {
		t.Errorf("the port does not answer any more: %v", err)
	}
}

// heap is what the process holds after a collection.
func heap() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapInuse + stats.StackInuse)
}

// An announced length costs nothing until its bytes come.
func TestAnnouncedLengthsAllocateNothing(t *testing.T) {
	for name, announced := range map[string]string{
		"array": "*1024\r\n", "bulk": "*1\r\n$1048576\r\n", "beyond": "*1\r\n$9223372036854775807\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			var in *bufio.Reader
			perRun := testing.AllocsPerRun(10, func() {
				in = bufio.NewReader(strings.NewReader(announced))
				if _, err := readRequest(in, readerLimits); err == nil {
					t.Error("a request without its bytes was read")
				}
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range 100 {
				in.Reset(strings.NewReader(announced))
				_, _ = readRequest(in, readerLimits)
			}
			runtime.ReadMemStats(&after)
			if each := (after.TotalAlloc - before.TotalAlloc) / 100; each > 2*firstChunk {
				t.Errorf("%d bytes in %v allocations for a length alone", each, perRun)
			}
		})
	}
}

func TestFrontLimits(t *testing.T) {
	s, _ := open(t, Options{})
	big := strings.Repeat("x", 1<<20-10)
	for _, tt := range []struct {
		name string
		sent []byte
		want string
	}{
		{"stranger's arguments", appendRequest(nil, strings.Split(strings.Repeat("a ", 10), " ")...), "-ERR Protocol error: more than 10 arguments\r\n"},
		{"stranger's bytes", appendRequest(nil, "AUTH", strings.Repeat("x", 5000)), "-ERR Protocol error: more than 4092 bytes\r\n"},
		{"reader's bytes", append(login, appendRequest(nil, "ECHO", big)...), "+OK\r\n$" + fmt.Sprint(len(big)) + "\r\n" + big + "\r\n"},
		{"too many of them", append(login, appendRequest(nil, "ECHO", big, big)...), "+OK\r\n-ERR Protocol error: more than 6 bytes\r\n"},
		{"reader's arguments", append(login, "*1025\r\n"...), "+OK\r\n-ERR Protocol error: more than 1024 arguments\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := exchange(s, tt.sent); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %.100q", got)
			}
		})
	}
}

func TestFrontTimeouts(t *testing.T) {
	tests := []struct {
		name  string
		first []byte // sent at once
		each  string // then sent byte by byte, one a second, for ever
		last  time.Duration
	}{
		{"silent stranger", nil, "", loginTime},
		{"slow stranger", nil, "*2\r\n$4\r\nAUTH\r\n$4000\r\n" + strings.Repeat("x", 4000), loginTime},
		{"stranger who chats", nil, strings.Repeat("*1\r\n$4\r\nPING\r\n", 100), loginTime},
		{"idle reader", login, "", idleTime},
		{"slow reader", login, "*2\r\n$4\r\nECHO\r\n$4000\r\n" + strings.Repeat("x", 4000), requestTime},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := open(t, Options{})
				conn := visit(t, s)
				ended := make(chan struct{})
				go func() {
					_, _ = io.Copy(io.Discard, conn)
					close(ended)
				}()
				start := time.Now()
				if _, err := conn.Write(tt.first); err != nil {
					t.Fatal(err)
				}
				for _, b := range []byte(tt.each) {
					if _, err := conn.Write([]byte{b}); err != nil {
						break
					}
					time.Sleep(time.Second)
				}
				<-ended
				if took := time.Since(start); took < tt.last || took > tt.last+2*time.Second {
					t.Errorf("the connection ended after %v, want %v", took, tt.last)
				}
			})
		})
	}
}

// A reader that does not take its answer delays nobody and is cut.
func TestSlowReaderDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := open(t, Options{})
		ctx := t.Context()
		if err := client.Set(ctx, "k", strings.Repeat("x", 1<<20), 0).Err(); err != nil {
			t.Fatal(err)
		}
		conn := visit(t, s)
		go func() { _, _ = conn.Write(append(login, appendRequest(nil, "GET", "k")...)) }()
		if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it is in the midst of the answer now
		start := time.Now()
		if err := client.Set(ctx, "k", "v", 0).Err(); err != nil || time.Since(start) > 0 {
			t.Errorf("a write waited %v, %v", time.Since(start), err)
		}
		time.Sleep(writeTime + time.Second)
		if n, err := io.Copy(io.Discard, conn); n > 8<<10 || err != nil {
			t.Errorf("%d bytes came after the time was over, %v", n, err)
		}
	})
}

func TestFrontTakes32(t *testing.T) {
	s, _ := open(t, Options{Listen: "127.0.0.1:0"})
	dial := func() (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", s.FrontAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn, bufio.NewReader(conn)
	}
	talk := func(conn net.Conn, in *bufio.Reader) string {
		_, _ = conn.Write(login) // a connection turned away may be closed already
		line, _ := in.ReadString('\n')
		return line
	}
	first, firstIn := dial()
	if got := talk(first, firstIn); got != "+OK\r\n" {
		t.Fatalf("got %q", got)
	}
	for range maxReaders - 1 {
		if got := talk(dial()); got != "+OK\r\n" {
			t.Fatalf("got %q", got)
		}
	}
	_, in := dial()
	if got, _ := in.ReadString('\n'); !strings.Contains(got, "max number of clients") {
		t.Errorf("connection %d got %q", maxReaders+1, got)
	}
	if _, err := first.Write(appendRequest(nil, "QUIT")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, firstIn); err != nil {
		t.Fatal(err)
	}
	for talk(dial()) != "+OK\r\n" {
		// The place is free a moment after the connection has ended.
	}
}

func TestAddressTaken(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, err = Open(Options{Listen: listener.Addr().String(), PasswordHash: sha256.Sum256([]byte("x"))})
	if err == nil || !strings.Contains(err.Error(), "redis.listen") || !strings.Contains(err.Error(), listener.Addr().String()) {
		t.Errorf("got %v", err)
	}
	if _, err := Open(Options{Listen: "127.0.0.1:0"}); err == nil {
		t.Error("a port without a password was opened")
	}
	s, _ := open(t, Options{Listen: "off"})
	if s.FrontAddr() != nil {
		t.Errorf("off listens on %v", s.FrontAddr())
	}
}

func TestRedisCLI(t *testing.T) {
	cli, err := exec.LookPath("redis-cli")
	if err != nil {
		if os.Getenv("AUTHPOOL_REQUIRE_REDIS") != "" {
			t.Fatal("redis-cli is not on PATH")
		}
		t.Skip("redis-cli is not on PATH: it comes with Redis 7")
	}
	s, client := open(t, Options{Listen: "127.0.0.1:0"})
	if err := client.HSet(t.Context(), "authpool:{team-a}:now", "block", "2026-11-22T11", "requests", 7).Err(); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.FrontAddr().String())
	tests := []struct {
		name     string
		password string
		input    string
		args     []string
		want     string
	}{
		{"one command", testPassword, "", []string{"HGETALL", "authpool:{team-a}:now"}, "block\n2026-11-22T11\nrequests\n7\n"},
		{"RESP3", testPassword, "", []string{"-3", "HGETALL", "authpool:{team-a}:now"}, "block 2026-11-22T11\nrequests 7\n"},
		{"by user", testPassword, "", []string{"--user", "default", "GET", "none"}, "\n"},
		{
			"typed in", testPassword, "KEYS *\nDBSIZE\nSELECT 0\nFLUSHALL\n", nil,
			"authpool:{team-a}:now\n1\nOK\nERR this port is read-only: 'FLUSHALL' is refused; change things with the commands of authpool\n\n",
		},
		{"scan", testPassword, "", []string{"--scan", "--pattern", "authpool:*"}, "authpool:{team-a}:now\n"},
		{"wrong password", "wrong", "", []string{"HGETALL", "authpool:{team-a}:now"}, "NOAUTH Authentication required."},
		{"no password", "", "", []string{"HGETALL", "authpool:{team-a}:now"}, "NOAUTH Authentication required."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), cli, append([]string{"-h", "127.0.0.1", "-p", port}, tt.args...)...)
			cmd.Env = append(os.Environ(), "REDISCLI_AUTH="+tt.password)
			cmd.Stdin = strings.NewReader(tt.input)
			out, err := cmd.Output()
			if !strings.HasPrefix(string(out), tt.want) || err != nil && !strings.HasPrefix(tt.want, "NOAUTH") {
				t.Errorf("got %q, %v", out, err)
			}
		})
	}
}

// fuzzStore has keys of all types under the names "h", "z", "s", "l" and "t".
func fuzzStore(f *testing.F) (*Store, redis.UniversalClient) {
	s, client := open(f, Options{})
	_, err := client.Pipelined(f.Context(), func(pipe redis.Pipeliner) error {
		pipe.HSet(f.Context(), "h", "a", 7, "b", 8)
		pipe.ZAdd(f.Context(), "z", redis.Z{Score: 1, Member: "a"}, redis.Z{Score: 2, Member: "b"})
		pipe.SAdd(f.Context(), "s", "a", "b")
		pipe.RPush(f.Context(), "l", "a", "b")
		pipe.Set(f.Context(), "t", "12345", 0)
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	return s, client
}

// Whatever comes in, the port answers or ends the connection, and changes nothing.
func FuzzFront(f *testing.F) {
	for _, bytes := range hostile {
		if len(bytes) < 1<<16 {
			f.Add([]byte(bytes), true)
			f.Add([]byte(bytes), false)
		}
	}
	for name := range effects {
		f.Add(appendRequest(appendRequest(nil, name, "h", "0", "-1"), name), true)
	}
	s, client := fuzzStore(f)
	before := fmt.Sprint(contents(f, client))
	f.Fuzz(func(t *testing.T, sent []byte, known bool) {
		if known {
			sent = append(slices.Clip(login), sent...)
		}
		got := exchange(s, sent)
		if len(got) > 64<<10+2*len(sent) {
			t.Errorf("%d bytes were answered with %d", len(sent), len(got))
		}
		if after := fmt.Sprint(contents(t, client)); after != before {
			t.Errorf("the store changed:\n%s\n%s", before, after)
		}
	})
}

// Every command that the port takes gets an answer to whatever arguments, and none
// stops the store, though some make miniredis panic.
func FuzzCommands(f *testing.F) {
	var names []string
	for name, e := range effects {
		if e == reads {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for i, name := range names {
		for _, args := range []string{"", "h", "h a", "z 0 -1", "s a", "l 0 -1", "t 0 -1", "0 MATCH a* COUNT -1 TYPE hash"} {
			f.Add(byte(i), args)
		}
		switch name {
		case "ZRANGE":
			f.Add(byte(i), "z 0 -1 WITHSCORES REV")
			f.Add(byte(i), "z -inf +inf BYSCORE LIMIT -5 9")
			f.Add(byte(i), "z - + BYLEX LIMIT 1 -1")
		case "ZRANGEBYSCORE", "ZREVRANGEBYSCORE":
			f.Add(byte(i), "z (1 +inf WITHSCORES LIMIT 9223372036854775807 9223372036854775807")
		case "HSCAN", "SSCAN", "ZSCAN":
			f.Add(byte(i), "h 0 MATCH ?* COUNT 9999999999 NOVALUES")
			f.Add(byte(i), "s -1")
		case "GETRANGE":
			f.Add(byte(i), "t -9223372036854775808 9223372036854775807")
		}
	}
	s, client := fuzzStore(f)
	f.Fuzz(func(t *testing.T, which byte, args string) {
		request := append([]string{names[int(which)%len(names)]}, strings.Split(args, " ")...)
		got := exchange(s, append(slices.Clip(login), appendRequest(nil, request...)...))
		reply, ok := strings.CutPrefix(got, "+OK\r\n")
		_, err := server.ParseReply(bufio.NewReader(strings.NewReader(reply)))
		if !ok || err != nil && !strings.Contains(reply, "-") {
			t.Errorf("%q was answered with %q", request, got)
		}
		if err := client.Ping(t.Context()).Err(); err != nil {
			t.Errorf("the store does not answer after %q: %v", request, err)
		}
	})
}

// What is written as a request is read as it was, and nothing else is read.
func FuzzReadRequest(f *testing.F) {
	for _, bytes := range hostile {
		if len(bytes) < 1<<16 {
			f.Add([]byte(bytes))
		}
	}
	f.Add(appendRequest(nil, "HGETALL", "authpool:{a}:now"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		in := bufio.NewReader(bytes.NewReader(sent))
		args, err := readRequest(in, readerLimits)
		if err != nil {
			return
		}
		again := appendRequest(nil, args...)
		read := sent[:len(sent)-in.Buffered()]
		// Leading zeros in a length are the one freedom.
		back, err := readRequest(bufio.NewReader(bytes.NewReader(again)), readerLimits)
		if err != nil || fmt.Sprint(back) != fmt.Sprint(args) || len(again) > len(read) {
			t.Errorf("%q was read as %q", read, args)
		}
	})
}
